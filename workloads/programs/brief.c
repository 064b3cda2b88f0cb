// Lives 20 ms of CPU time, in a leaf that is called by brief_outer and brief_inner.
SPENDER(brief_leaf)
void brief_inner(void) { brief_leaf(0.020); sink++; }
void brief_outer(void) { brief_inner(); sink++; }

int main(int argc, char **argv) {
    brief_outer();
    return 0;
}
