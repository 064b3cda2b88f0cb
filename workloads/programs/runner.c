// Maps the file argv[1] executable and works in the code that lies one page in (see write_broken): an "executable" that no loader would take.
typedef void (*function)(unsigned long iterations);
void runner_call(function code) { code(20000000); sink++; }

int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0) fail(argv[1]);
    unsigned char *memory = mmap(0, 8192, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED) fail("mmap");
    ready();
    for (;;) runner_call((function)(memory + 4096));
}
