// Templates, as C++ has them when it is optimised: recursion through 24 instances of one, a std::function, and a std::sort
// whose comparisons take all the time.
#include <algorithm>
#include <functional>
#include <unistd.h>
#include <vector>

#define APART __attribute__((noinline, noclone))

static volatile unsigned long sink;

namespace deep {
using Work = std::function<unsigned long(unsigned long)>;

template <int N> struct Descent {
    static APART unsigned long go(const Work &work, unsigned long x) {
        return Descent<N - 1>::go(work, x + N) * x + N;
    }
};

template <> struct Descent<0> {
    static APART unsigned long go(const Work &work, unsigned long x) { return work(x) + sink; }
};

template <typename Item> struct Slowly {
    APART bool operator()(const Item &a, const Item &b) const {
        unsigned long x = a;
        for (int i = 0; i < 2000; i++) x = x * 6364136223846793005ul + 1442695040888963407ul;
        sink += x;
        return a < b;
    }
};
}

int main() {
    alarm(600);
    unsigned long random = 88172645463325252ul;
    deep::Work work = [&random](unsigned long seed) {
        std::vector<unsigned long> items(300);
        for (unsigned long &item : items) {
            random ^= random << 13; random ^= random >> 7; random ^= random << 17;
            item = random ^ seed;
        }
        std::sort(items.begin(), items.end(), deep::Slowly<unsigned long>());
        return items[0];
    };
    for (;;) sink += deep::Descent<24>::go(work, sink);
}
