// Works in a function that -DSTAGE names for argv[1] seconds of CPU time, then becomes the program argv[2], which gets the rest of the arguments. At a fixed
// address (-no-pie) both stages have their functions in the same place. Without a successor it goes on for ever.
#define JOIN(a, b) a##b
#define NAME(stage) JOIN(work_of_stage_, stage)
SPENDER(NAME(STAGE))

int main(int argc, char **argv) {
    ready();
    if (argc < 3) for (;;) NAME(STAGE)(1);
    NAME(STAGE)(atof(argv[1]));
    execv(argv[2], argv + 2);
    fail(argv[2]);
}
