// A fork without an exec: parent and child spend time in functions of their own.
SPENDER(spend_as_parent)
SPENDER(spend_as_child)
void parent_work(void) { for (;;) spend_as_parent(1); }
void child_work(void) { for (;;) spend_as_child(1); }

int main(int argc, char **argv) {
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_NAME, "forks-child");
        child_work();
    }
    ready();
    parent_work();
}
