// Lives 20 ms of CPU time, or as many microseconds as it is told, in a leaf that is called by brief_outer and brief_inner.
SPENDER(brief_leaf)
void brief_inner(double seconds) { brief_leaf(seconds); sink++; }
void brief_outer(double seconds) { brief_inner(seconds); sink++; }

int main(int argc, char **argv) {
    brief_outer(argc > 1 ? atoi(argv[1]) / 1e6 : 0.020);
    return 0;
}
