// C++ that throws, catches and cleans up all the time.
#include <stdexcept>
#include <string>
#include <vector>

static volatile unsigned long sink;

struct Guard {
    std::vector<int> room;
    explicit Guard(int size) : room(size) {}
    __attribute__((noinline)) ~Guard() {
        for (int &value : room) value += sink;
        sink += room.back();
    }
};

template <typename T> __attribute__((noinline)) T fail(T value, int depth) {
    Guard guard(1000 + depth);
    if (depth > 0) return fail<T>(value + 1, depth - 1) + guard.room[0];
    throw std::runtime_error(std::to_string(value));
}

__attribute__((noinline)) unsigned long attempt(int depth) {
    try {
        return fail<unsigned long>(sink, depth);
    } catch (const std::runtime_error &error) {
        return std::string(error.what()).size();
    }
}

int main() {
    for (;;) sink += attempt(8);
}
