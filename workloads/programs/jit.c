// Makes machine code at run time and works in it. argv[1] is the kind of perf map it leaves for it: good, none, symlink, fifo, device,
// folder, broken, huge (a TiB, nearly all of it a hole) or changing (a child writes and cuts it all the time).
typedef void (*function)(unsigned long iterations);

static void append(FILE *map, const char *text) { fputs(text, map); }

void call_jit(function code) { code(20000000); sink++; }

// A child that lives as long as this process.
static void change(const char *path, unsigned long code) {
    if (fork()) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // A target of its own.
    prctl(PR_SET_NAME, "changer");
    for (unsigned round = 0;; round++) {
        FILE *map = fopen(path, round % 2 ? "w" : "r+");
        if (!map) continue;
        for (unsigned i = 0; i < round % 5000; i++) fprintf(map, "%lx %x other_%u\n", code + 4096 + i, i, i);
        fprintf(map, "%lx 10 jit_function<\"with & markup\">\n", code);
        fclose(map);
        if (round % 7 == 0 && truncate(path, 3)) continue;
    }
}

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
    } else if (!strcmp(kind, "device")) {
        // /dev/zero: whoever reads it never comes to its end.
        if (mknod(path, S_IFCHR | 0644, makedev(1, 5))) fail("mknod");
    } else if (!strcmp(kind, "folder")) {
        if (mkdir(path, 0755)) fail("mkdir");
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
        if (!strcmp(kind, "huge") && truncate(path, 1L << 40)) fail("truncate");
        if (!strcmp(kind, "changing")) change(path, (unsigned long)memory + 256);
    }
    ready();
    for (;;) call_jit((function)(memory + 256));
}
