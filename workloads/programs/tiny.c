// A small executable without any library that works for two times ROUNDS and ends. VARIANT names its functions and moves them;
// the functions that nobody calls give it some thousand unwind rows.
#define JOIN(a, b, c) a##b##c
#define NAMED(number, part) JOIN(tiny_, number, part)
#define NAME(part) NAMED(VARIANT, part)
#define TEXT(number) #number
#define GAP(number) __asm__(".text\n.skip " TEXT(number) " * 208 + 16, 0xcc\n");
#define APART __attribute__((noinline, noclone))
#define ROOM(bytes) volatile char room[bytes]; room[0] = x

static volatile unsigned long sink;
GAP(VARIANT)

// The root: its return address is said to be none, as the C library's own start code says it.
__asm__(".text\n.globl _start\n.type _start, @function\n_start:\n.cfi_startproc\n.cfi_undefined rip\nxor %ebp, %ebp\n"
        "and $-16, %rsp\ncall main\nhlt\n.cfi_endproc\n.size _start, . - _start\n");

static APART unsigned long NAME(_leaf)(unsigned long x) {
    for (long i = 0; i < ROUNDS; i++) x = x * 6364136223846793005ul + 1442695040888963407ul;
    sink += x;
    return x;
}

static APART unsigned long NAME(_inner)(unsigned long x) {
    ROOM(40 + VARIANT * 24);
    unsigned long a = NAME(_leaf)(x), b = NAME(_leaf)(a ^ x);
    return a + b * x + room[0];
}

static APART unsigned long NAME(_outer)(unsigned long x) {
    ROOM(120 - VARIANT * 16);
    return NAME(_inner)(x + 1) + x * room[0];
}

int main(void) {
    sink += NAME(_outer)(sink);
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(60), "D"(0) : "rcx", "r11", "memory");
    return 1;
}

#define MORE(n)                                                                                        \
    unsigned long more_##n(unsigned long a, unsigned long b, unsigned long c, unsigned long d) {       \
        unsigned long e = NAME(_leaf)(a + b), f = NAME(_leaf)(e + c), g = NAME(_leaf)(f ^ d);          \
        return a * e + b * f + c * g + d + NAME(_leaf)(e ^ f ^ g);                                     \
    }
#define MORE8(n) MORE(n##0) MORE(n##1) MORE(n##2) MORE(n##3) MORE(n##4) MORE(n##5) MORE(n##6) MORE(n##7)
#define MORE64(n) MORE8(n##0) MORE8(n##1) MORE8(n##2) MORE8(n##3) MORE8(n##4) MORE8(n##5) MORE8(n##6) MORE8(n##7)
MORE64(1) MORE64(2) MORE64(3) MORE64(4)
