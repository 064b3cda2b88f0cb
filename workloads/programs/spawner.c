// Starts the program argv[2] argv[1] times, one after the other, as fast as it can.
int main(int argc, char **argv) {
    for (long n = atol(argv[1]); n > 0; n--) {
        pid_t child = vfork();
        if (child == 0) {
            execl(argv[2], argv[2], (char *)NULL);
            _exit(127);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status) fail("a child");
    }
    return 0;
}
