// C++ with known shares: 60 % in a method of a template, 40 % in an operator.
namespace shop {
static volatile unsigned long sink;

static inline __attribute__((always_inline)) void work() {
    unsigned long x = 1;
    for (long i = 0; i < 150000; i++) x = x * 6364136223846793005ul + 1;
    sink += x;
}

template <typename Item> struct Basket {
    __attribute__((noinline, aligned(64))) void add(Item) { work(); }
    __attribute__((noinline, aligned(64))) void operator()(const char *) { work(); }
};

void serve(Basket<int> &basket, bool add) {
    if (add) basket.add(1);
    else basket("x");
}
}

#include <unistd.h>

int main() {
    alarm(600);
    shop::Basket<int> basket;
    unsigned long random = 88172645463325252ul;
    for (;;) {
        // Of each ten, six.
        unsigned sixes = 6, rest = 10;
        while (rest > 0) {
            random ^= random << 13; random ^= random >> 7; random ^= random << 17;
            bool add = random % rest < sixes;
            sixes -= add;
            rest--;
            shop::serve(basket, add);
        }
    }
}
