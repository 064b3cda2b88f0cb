// The first thread ends, another one works on: the process's own /proc entry is empty from then on.
SPENDER(worker_leaf)
void worker_outer(void) { for (;;) worker_leaf(1); }

static void *worker(void *nothing) {
    sleep(1);
    ready();
    worker_outer();
    return nothing;
}

int main(int argc, char **argv) {
    pthread_t thread;
    if (pthread_create(&thread, 0, worker, 0)) fail("pthread_create");
    pthread_exit(0);
}
