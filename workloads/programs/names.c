// Threads whose names are not what one expects of a name.
SPENDER(named_leaf)

static void *worker(void *name) {
    prctl(PR_SET_NAME, name);
    for (;;) named_leaf(1);
}

int main(int argc, char **argv) {
    static const char *names[] = {"\xff\xfe" "bytes", "a b;c \"d\"", "<b>x</b>\n&amp;", "\x1b[31mred\x1b[2J"};
    prctl(PR_SET_NAME, "names\n\xff\"<i>");
    for (int i = 0; i < 4; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, worker, (void *)names[i])) fail("pthread_create");
    }
    ready();
    for (;;) named_leaf(1);
}
