// One of several libraries: NUMBER names its functions, and moves them and their frames, so that the code of one read with
// the rows or the names of another gives no chain that could be taken for right.
#define JOIN(a, b, c) a##b##c
#define NAMED(number, part) JOIN(lib_, number, part)
#define NAME(part) NAMED(NUMBER, part)
#define TEXT(number) #number
#define GAP(number) __asm__(".text\n.skip " TEXT(number) " * 176 + 16, 0xcc\n");
#define APART __attribute__((noinline, noclone))
#define ROOM(bytes) volatile char room[bytes]; room[0] = x

static volatile unsigned long sink;
GAP(NUMBER)

static APART unsigned long NAME(_leaf)(unsigned long x) {
    for (long i = 0; i < 30000; i++) x = x * 6364136223846793005ul + 1442695040888963407ul;
    sink += x;
    return x;
}

static APART unsigned long NAME(_deep)(unsigned long x) {
    ROOM(40 + NUMBER * 24);
    unsigned long a = NAME(_leaf)(x), b = NAME(_leaf)(a ^ x);
    return a + b * x + room[0];
}

static APART unsigned long NAME(_middle)(unsigned long x) {
    ROOM(200 - NUMBER * 16);
    unsigned long a = NAME(_deep)(x), b = NAME(_deep)(a + x);
    return (a ^ b) + x + room[0];
}

static APART unsigned long NAME(_outer)(unsigned long x) {
    ROOM(16 + NUMBER * 8);
    return NAME(_middle)(x + 1) + x * room[0];
}

unsigned long library_entry(unsigned long x) { return NAME(_outer)(x) + sink; }
