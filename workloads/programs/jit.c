// Makes machine code at run time and works in it. argv[1] is the kind of perf map it leaves for it: good, none, symlink, fifo, broken.
typedef void (*function)(unsigned long iterations);

static void append(FILE *map, const char *text) { fputs(text, map); }

void call_jit(function code) { code(20000000); sink++; }

int main(int argc, char **argv) {
    // push rbp; mov rbp, rsp; 1: dec rdi; jnz 1b; pop rbp; ret
    static const unsigned char machine[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3};
    const char *kind = argc > 1 ? argv[1] : "good";
    unsigned char *memory = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    memcpy(memory + 256, machine, sizeof machine);
    if (mprotect(memory, 8192, PROT_READ | PROT_EXEC)) fail("mprotect");

    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    unlink(path);
    if (!strcmp(kind, "symlink")) {
        if (symlink("/etc/shadow", path)) fail("symlink");
    } else if (!strcmp(kind, "fifo")) {
        if (mkfifo(path, 0644)) fail("mkfifo");
    } else if (strcmp(kind, "none")) {
        FILE *map = fopen(path, "w");
        if (!map) fail(path);
        if (!strcmp(kind, "broken")) {
            append(map, "7f00");
            fputc(0, map);
            append(map, "\n\nnothing here\n1234\n1234 10\nfffffffffffffffff 1 too_big\n-5 3 negative\n\xff\xfe 1 x\n");
        }
        fprintf(map, "%lx %lx jit_function<\"with & markup\">\n", (unsigned long)memory + 256, sizeof machine);
        if (!strcmp(kind, "broken")) append(map, "ffffffffffffff00 ffffff wraps_around\n7fff");
        fclose(map);
    }
    ready();
    for (;;) call_jit((function)(memory + 256));
}
