// Compiled without frame pointers: MODE says what makes its stacks hard to unwind. Every sample's stack is whole only if it
// reaches _start (or a thread's own start).
#include <alloca.h>

#define APART __attribute__((noinline, noclone))

APART unsigned long spin(unsigned long rounds) {
    unsigned long x = rounds;
    for (unsigned long i = 0; i < rounds; i++) x = x * 6364136223846793005ul + 1442695040888963407ul;
    sink += x;
    return x;
}

#if MODE == 1 // A signal handler that is busy most of the time.
static APART void on_signal(int number) { sink += spin(2000000) + number; }

APART unsigned long interrupted(void) {
    unsigned long sum = 0;
    for (;;) sum += spin(1000) ^ sum;
    return sum;
}

APART void run(void) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGALRM, &action, NULL);
    // Not in step with a sampler's clock, which would see the same moment each time.
    struct { long interval[2], value[2]; } every = {{0, 4321}, {0, 4321}};
    call(SYS_setitimer, 0, (long)&every, 0, 0);
    sink += interrupted();
}
#elif MODE == 2 // Deep recursion, with frames whose size is known only at run time.
APART unsigned long descend(int depth) {
    volatile char *room = alloca(16 + depth % 7 * 100);
    room[0] = depth;
    if (depth > 1) return descend(depth - 1) + room[0];
    return spin(50000) + room[0];
}

APART void run(void) {
    for (;;) sink += descend(DEPTH);
}
#elif MODE == 3 // Large frames.
APART unsigned long inner(void) {
    volatile char room[100000];
    room[99999] = 1;
    return spin(50000) + room[99999];
}

APART unsigned long outer(void) {
    volatile char room[60000];
    room[59999] = 1;
    return inner() + room[59999];
}

APART void run(void) {
    for (;;) sink += outer();
}
#elif MODE == 4 // The vdso.
APART void ask_time(void) {
    struct timespec now;
    for (int i = 0; i < 1000; i++) clock_gettime(CLOCK_MONOTONIC, &now);
    sink += now.tv_nsec;
}

APART void run(void) {
    for (;;) ask_time();
}
#elif MODE == 5 // A tiny function in a library, called through the linkage table.
extern unsigned long tiny(unsigned long);

APART void call_tiny(void) {
    unsigned long sum = 0;
    for (int i = 0; i < 100000; i++) sum += tiny(sum);
    sink += sum;
}

APART void run(void) {
    for (;;) call_tiny();
}
#elif MODE == 6 // A function that ends with a call which never returns.
APART __attribute__((noreturn)) void forever(void) {
    for (;;) sink += spin(50000);
}

APART __attribute__((noreturn)) void last_call(void) { forever(); }

APART unsigned long neighbour(unsigned long x) { return x * 3 + spin(10); }

APART void run(void) {
    if (sink == 42) sink += neighbour(sink);
    last_call();
}
#elif MODE == 7 // Threads.
APART void *in_thread(void *unused) {
    for (;;) sink += spin(50000);
    return unused;
}

APART void run(void) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, in_thread, NULL);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}
#elif MODE == 8 // A stack that is realigned.
APART unsigned long aligned(unsigned long x) {
    __attribute__((aligned(64))) volatile char room[256];
    room[0] = x;
    volatile char *more = alloca(32 + x % 64);
    more[0] = 1;
    return spin(50000) + room[0] + more[0];
}

APART void run(void) {
    for (;;) sink += aligned(sink);
}
#elif MODE == 9 // Secrets on the stack.
APART unsigned long hold(int depth) {
    volatile unsigned long secrets[256];
    for (int i = 0; i < 256; i++) secrets[i] = SECRET + i * 8;
    if (depth > 0) return hold(depth - 1) + secrets[depth];
    return spin(100000) + secrets[0];
}

APART void run(void) {
    for (;;) sink += hold(8);
}
#elif MODE == 10 // Hand-written assembly that keeps the old stack pointer in whatever register is free, as cryptography does.
#define FUNCTION(name, body) \
    ".type " #name ", @function\n" #name ":\n.cfi_startproc\n" body "ret\n.cfi_endproc\n.size " #name ", . - " #name "\n"
#define KEEP_STACK_IN(register, room) \
    "mov %rsp, %" #register "\n.cfi_def_cfa_register %" #register "\nsub $" #room ", %rsp\nand $-64, %rsp\n"
#define TAKE_STACK_FROM(register) "mov %" #register ", %rsp\n.cfi_def_cfa_register %rsp\n"

__asm__(".text\n"
        // Called from nowhere else: it knows what its callers keep, and leaves it alone.
        FUNCTION(in_rbx, "push %rbx\n.cfi_adjust_cfa_offset 8\n.cfi_offset %rbx, -16\n"
                         KEEP_STACK_IN(rbx, 200) "mov $400000, %ecx\n1: dec %ecx\njnz 1b\n" TAKE_STACK_FROM(rbx)
                         "pop %rbx\n.cfi_adjust_cfa_offset -8\n.cfi_restore %rbx\n")
        FUNCTION(in_r11, KEEP_STACK_IN(r11, 1000) "call in_rbx\n" TAKE_STACK_FROM(r11))
        FUNCTION(in_rax, KEEP_STACK_IN(rax, 300) "call in_r11\n" TAKE_STACK_FROM(rax)));

APART void run(void) {
    for (;;) __asm__ volatile("call in_rax" : : : "rax", "rcx", "r11", "memory", "cc");
}
#elif MODE == 11 // A signal interrupts a function at its very first instruction: what lies before that is another function.
static APART void on_trap(int number, siginfo_t *info, void *context) {
    sink += spin(2000000) + number;
    // rip (REG_RIP of ucontext.h), beyond the two bytes of ud2.
    ((ucontext_t *)context)->uc_mcontext.gregs[16] += 2;
}

__asm__(".text\n.type neighbour, @function\nneighbour:\n.cfi_startproc\nnop\nret\n.cfi_endproc\n.size neighbour, . - neighbour\n"
        ".type trap, @function\ntrap:\n.cfi_startproc\nud2\nret\n.cfi_endproc\n.size trap, . - trap\n");

APART void run(void) {
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
    for (;;) __asm__ volatile("call trap" : : : "memory", "cc");
}
#endif

int main(void) {
    call(SYS_alarm, MODE == 1 ? 0 : 600, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    printf("ready %d\n", getpid());
    fflush(stdout);
    run();
    return sink == 1;
}
