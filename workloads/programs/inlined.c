// Functions that exist only inlined (always_inline works without optimisation too), with debug information.
static inline __attribute__((always_inline)) unsigned long innermost(unsigned long x) {
    for (long i = 0; i < 200000; i++) x = x * 6364136223846793005ul + 1;
    return x;
}
static inline __attribute__((always_inline)) unsigned long middle(unsigned long x) { return innermost(x + 1); }
void outer(void) { for (int i = 0; i < 100; i++) sink += middle(i); }

int main(int argc, char **argv) {
    ready();
    for (;;) outer();
}
