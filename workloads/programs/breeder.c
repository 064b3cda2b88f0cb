// Makes argv[2] executables in the folder argv[1], one after the other, each with a build id of its own and the content of one
// of the files argv[3] and so on in turn; starts each, waits for its end, and deletes it.
#define MARK "bulkhead-test-number"

static unsigned char *files[16], *marks[16];
static size_t sizes[16];

static void load(int i, const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (fd < 0 || fstat(fd, &about)) fail(path);
    sizes[i] = about.st_size;
    files[i] = malloc(sizes[i]);
    if (read(fd, files[i], sizes[i]) != (ssize_t)sizes[i]) fail(path);
    close(fd);
    marks[i] = memmem(files[i], sizes[i], MARK, strlen(MARK));
    if (!marks[i]) { fprintf(stderr, "%s has no build id to change\n", path); exit(1); }
}

int main(int argc, char **argv) {
    long count = atol(argv[2]), kinds = argc - 3;
    for (int i = 0; i < kinds; i++) load(i, argv[i + 3]);
    for (long n = 1; n <= count; n++) {
        int kind = n % kinds;
        int number[2] = {getpid(), n};
        memcpy(marks[kind], number, sizeof number);
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[1], strrchr(argv[kind + 3], '/') + 1);
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
        if (fd < 0 || write(fd, files[kind], sizes[kind]) != (ssize_t)sizes[kind]) fail(path);
        close(fd);
        pid_t child = vfork();
        if (child == 0) {
            execl(path, path, (char *)NULL);
            _exit(127);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status) fail("a child");
        if (unlink(path)) fail(path);
        if (n % 50 == 0 || n == count) {
            printf("finished %ld\n", n);
            fflush(stdout);
        }
    }
    return 0;
}
