// Maps each file of its arguments executable and works beside it.
SPENDER(mapper_leaf)
void mapper_work(void) { for (;;) mapper_leaf(1); }

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        int fd = open(argv[i], O_RDONLY);
        if (fd < 0) fail(argv[i]);
        struct stat status;
        if (fstat(fd, &status)) fail("fstat");
        // A mapping of an empty file is allowed; touching it is not.
        if (mmap(0, status.st_size ? status.st_size : 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED)
            fail("mmap");
        close(fd);
    }
    ready();
    mapper_work();
}
