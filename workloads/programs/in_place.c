// Loads the library argv[1], works in it and unloads it; then makes machine code at run time just where its code was, and works there.
typedef void (*function)(unsigned long iterations);

void call_in_place(function code) { code(20000000); sink++; }

int main(int argc, char **argv) {
    // push rbp; mov rbp, rsp; 1: dec rdi; jnz 1b; pop rbp; ret
    static const unsigned char machine[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3};
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) { fprintf(stderr, "%s\n", dlerror()); exit(1); }
    void (*work)(double) = dlsym(library, "plugin_entry");
    if (!work) { fprintf(stderr, "%s\n", dlerror()); exit(1); }
    // Long enough for the collector to hear of it.
    work(0.3);
    dlclose(library);
    void *page = (void *)((unsigned long)work & -4096ul);
    int protection = PROT_READ | PROT_WRITE | PROT_EXEC, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    unsigned char *memory = mmap(page, 4096, protection, flags, -1, 0);
    if (memory != page) fail("mmap");
    memcpy(memory + 256, machine, sizeof machine);
    ready();
    for (;;) call_in_place((function)(memory + 256));
}
