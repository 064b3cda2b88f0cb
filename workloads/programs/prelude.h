// Put before each program: system calls without a library's frames in between, and loops that take time.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static inline long call(long number, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

// Seconds on a clock, by a system call of our own: the vdso has no frame pointers.
static inline __attribute__((always_inline)) double seconds_on(int clock) {
    struct timespec now;
    call(SYS_clock_gettime, clock, (long)&now, 0, 0);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static volatile unsigned long sink;

// Defines a function that spends so many seconds of the thread's CPU time.
#define SPENDER(name)                                                                   \
    __attribute__((noinline)) void name(double seconds) {                               \
        double end = seconds_on(CLOCK_THREAD_CPUTIME_ID) + seconds;                     \
        while (seconds_on(CLOCK_THREAD_CPUTIME_ID) < end) {                             \
            unsigned long x = 1;                                                        \
            for (long i = 0; i < 200000; i++) x = x * 6364136223846793005ul + 1;        \
            sink += x;                                                                  \
        }                                                                               \
    }

static void ready(void) {
    printf("ready %d\n", getpid());
    fflush(stdout);
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

// The programs end by themselves, also when nobody stops them.
__attribute__((constructor)) static void limit_lifetime(void) { alarm(600); }
