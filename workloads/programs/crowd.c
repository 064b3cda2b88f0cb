// A process for each line of a file, in the cgroup whose cgroup.procs the line names: each works for a millisecond every twenty seconds, at a time
// of its own. They end with the first one.
#include <stdio.h>
#include <sys/prctl.h>

SPENDER(crowd_work)

int main(int argc, char **argv) {
    FILE *list = fopen(argv[1], "r");
    char line[4096];
    unsigned number = 0;
    if (!list) return 1;
    while (fgets(line, sizeof line, list)) {
        number++;
        line[strcspn(line, "\n")] = 0;
        pid_t child = fork();
        if (child < 0) return 2;
        if (child > 0) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        FILE *procs = fopen(line, "w");
        if (!procs || fprintf(procs, "%d", getpid()) < 0 || fclose(procs)) _exit(3);
        usleep(number * 7919u % 20000000u);
        for (;;) {
            crowd_work(0.001);
            usleep(20000000);
        }
    }
    ready();
    for (;;) pause();
}
