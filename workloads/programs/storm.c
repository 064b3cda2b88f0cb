// Maps argv[1] (5000) small regions of code, each with a page between it and the next, then works in named code and, for a tenth of the time, in
// the regions.
typedef void (*function)(unsigned long iterations);
SPENDER(storm_leaf)
void storm_named(void) { storm_leaf(0.09); sink++; }
void storm_region(function code) { code(20000); sink++; }

int main(int argc, char **argv) {
    static const unsigned char machine[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3};
    int count = argc > 1 ? atoi(argv[1]) : 5000;
    unsigned char *memory = mmap(0, count * 8192ul, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    for (int i = 0; i < count; i++) {
        unsigned char *region = memory + i * 8192ul;
        if (mprotect(region, 4096, PROT_READ | PROT_WRITE)) fail("mprotect");
        memcpy(region, machine, sizeof machine);
        if (mprotect(region, 4096, PROT_READ | PROT_EXEC)) fail("mprotect");
    }
    ready();
    for (int next = 0;;) {
        storm_named();
        for (int i = 0; i < 1000; i++, next = (next + 1) % count) storm_region((function)(memory + next * 8192ul));
    }
}
