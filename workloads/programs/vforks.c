// Calls vfork and _exit in a tight loop, from three named functions.
SPENDER(spend_between)
#define FORKER(name)                                \
    void name(void) {                               \
        for (int i = 0; i < 50; i++) {              \
            pid_t child = vfork();                  \
            if (child == 0) _exit(0);               \
            if (child > 0) waitpid(child, 0, 0);    \
        }                                           \
    }
FORKER(vfork_first)
FORKER(vfork_second)
FORKER(vfork_third)

int main(int argc, char **argv) {
    ready();
    for (;;) {
        vfork_first();
        vfork_second();
        vfork_third();
        spend_between(0.01);
    }
}
