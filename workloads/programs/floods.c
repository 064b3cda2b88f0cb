// Does one thing without end, or has very much of something: argv[1] says what. argv[2]: a folder, where it takes files.
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>

// Memory whose page tables one system call goes through, holding the lock: 128 MiB of them. And how many of the rest.
enum { LOCKED_GIB = 64, MOUNTS = 20000, MAPPINGS = 16000, CHILDREN = 200, MAPS = 60 };
enum { POPULATE_READ = 22 };  // MADV_POPULATE_READ, include/uapi/asm-generic/mman-common.h

static void *map_code(int file) {
    int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE;
    void *code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, flags, file, 0);
    if (code == MAP_FAILED) fail("a mapping");
    return code;
}

// A new file without a name, each time.
static void map_memory_files(long microseconds) {
    for (unsigned long i = 0;; i++) {
        char name[32];
        snprintf(name, sizeof name, "m%lu", i);
        int file = memfd_create(name, 0);
        if (file < 0 || ftruncate(file, 4096)) fail("a file in memory");
        map_code(file);
        close(file);
        usleep(microseconds);
    }
}

// A file, mapped as code and deleted: each one new, and each path as long as the kernel tells of.
static void files(const char *folder, int broken) {
    char part[256];
    memset(part, 'p', 255);
    part[255] = 0;
    if (chdir(folder)) fail("the folder");
    // 14 parts of 256 with their slashes, and what is before and behind: below PATH_MAX.
    for (int i = 0; i < 14; i++) {
        if (mkdir(part, 0700) && errno != EEXIST) fail("a folder in it");
        if (chdir(part)) fail("the folder in it");
    }
    // Begins as an ELF file for x86-64, with program headers of an impossible size.
    unsigned char head[64] = {0x7f, 'E', 'L', 'F', 2, 1, 1, [16] = 2, [18] = 62, [20] = 1, [32] = 64, [54] = 0xff, 0xff, 1};
    ready();
    for (unsigned long i = 0;; i++) {
        char name[64];
        snprintf(name, sizeof name, "%d-%lu", getpid(), i);
        int file = open(name, O_CREAT | O_EXCL | O_RDWR, 0700);
        if (file < 0 || ftruncate(file, 4096)) fail("a file");
        if (broken && write(file, head, sizeof head) != sizeof head) fail("its head");
        munmap(map_code(file), 4096);
        close(file);
        unlink(name);
    }
}

static void *maps_meanwhile(void *unused) {
    map_memory_files(2000);
    return unused;
}

// One thread holds the lock of all mappings nearly all the time; another maps what whoever looks needs that lock for.
static void locked(void) {
    size_t gib = 1UL << 30, size = LOCKED_GIB * gib;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("much memory");
    madvise(memory, size, MADV_NOHUGEPAGE);
    // The zero page everywhere: nothing but page tables.
    for (size_t at = 0; at < size; at += gib) {
        if (madvise(memory + at, gib, POPULATE_READ)) fail("its page tables");
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, maps_meanwhile, NULL)) fail("a thread");
    ready();
    for (int i = 0;; i++) {
        if (mprotect(memory, size, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ)) fail("its protection");
    }
}

static void mounts(const char *folder) {
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) fail("a mount namespace");
    if (mount("none", folder, "tmpfs", 0, NULL) || chdir(folder)) fail("a file system");
    char name[201];
    memset(name, 'n', 200);
    name[200] = 0;
    for (int i = 0; i < MOUNTS; i++) {
        char path[256];
        snprintf(path, sizeof path, "%d%.190s", i, name);
        if (mkdir(path, 0700) || mount(path, path, NULL, MS_BIND, NULL)) fail("a mount");
    }
    ready();
    map_memory_files(2000);
}

// Each child has as many mappings as its parent, and one that is its own.
static void mappings(void) {
    char *memory = mmap(NULL, MAPPINGS * 8192UL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("memory");
    for (int i = 0; i < MAPPINGS; i++) {
        if (mprotect(memory + i * 8192UL, 4096, PROT_READ | PROT_EXEC)) fail("a mapping");
        // The kernel's records of it are all heard.
        if (i % 500 == 0) usleep(5000);
    }
    ready();
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child = fork();
        if (child < 0) fail("a child");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            map_code(-1);
            for (;;) pause();
        }
        usleep(10000);
    }
    for (;;) pause();
}

// Processes that run code without a file, at ever new addresses, each with a link to one large perf map: the file argv[2].
// As many mappings as can be read in a few milliseconds, and code that comes and goes: whoever is told of it looks for it among all of them.
static void gaps(void) {
    enum { COUNT = 1000, PLACES = 256, AWAY = 8192 };
    char *memory = mmap(NULL, COUNT * 8192UL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("memory");
    for (int i = 0; i < COUNT; i++) {
        if (mprotect(memory + i * 8192UL, 4096, PROT_READ)) fail("a mapping");
    }
    char *places = mmap(NULL, PLACES * (unsigned long)AWAY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (places == MAP_FAILED) fail("memory");
    ready();
    for (unsigned long i = 0;; i++) {
        char name[32], *place = places + i % PLACES * AWAY;
        snprintf(name, sizeof name, "g%lu", i);
        int file = memfd_create(name, 0);
        if (file < 0 || ftruncate(file, 4096)) fail("a file");
        if (mmap(place, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED) fail("code");
        if (munmap(place, 4096)) fail("no code");
        close(file);
    }
}

static void perf_maps(const char *map) {
    enum { SIZE = 1 << 20 };
    for (int i = 0; i < MAPS; i++) {
        pid_t child = fork();
        if (child < 0) fail("a child");
        if (child) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char name[64];
        snprintf(name, sizeof name, "/tmp/perf-%d.map", getpid());
        if (link(map, name)) fail("a link");
        unsigned char *code =
            mmap(NULL, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (code == MAP_FAILED) fail("code");
        memset(code, 0x90, SIZE);  // nop
        code[SIZE - 1] = 0xc3;     // ret
        for (srand(getpid());; usleep(MAPS * 200)) {
            for (int n = 0; n < 20; n++) ((void (*)(void))(code + rand() % SIZE))();
        }
    }
    ready();
    for (;;) pause();
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "", *place = argc > 2 ? argv[2] : "/nowhere";
    if (!strcmp(kind, "files")) files(place, 0);
    if (!strcmp(kind, "broken")) files(place, 1);
    if (!strcmp(kind, "locked")) locked();
    if (!strcmp(kind, "mounts")) mounts(place);
    if (!strcmp(kind, "mappings")) mappings();
    if (!strcmp(kind, "gaps")) gaps();
    if (!strcmp(kind, "perf-maps")) perf_maps(place);
    errno = EINVAL;
    fail("argv[1]");
}
