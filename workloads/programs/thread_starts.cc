// Two busy threads, one started by pthread_create and one as a std::thread, each with a name that says so.
#include <pthread.h>
#include <sys/prctl.h>
#include <thread>
#include <unistd.h>

#define APART __attribute__((noinline, noclone))

static volatile unsigned long sink;

static APART unsigned long spin(unsigned long x) {
    for (int i = 0; i < 50000; i++) x = x * 6364136223846793005ul + 1442695040888963407ul;
    sink += x;
    return x;
}

static APART void *in_pthread(void *) {
    prctl(PR_SET_NAME, "by-pthread");
    for (;;) sink += spin(sink);
}

static APART void in_std_thread(int start) {
    prctl(PR_SET_NAME, "by-std");
    for (;;) sink += spin(start);
}

int main() {
    alarm(600);
    pthread_t first;
    if (pthread_create(&first, nullptr, in_pthread, nullptr)) return 1;
    std::thread second(in_std_thread, 1);
    second.join();
}
