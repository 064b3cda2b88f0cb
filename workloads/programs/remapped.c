// Put before and behind a generated program: it replaces its own text by anonymous memory with the same content, as programs do that
// want it in huge pages. Between `text_begin` and `text_end` lies the program; what replaces it lies elsewhere.
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

__asm__(".text\n.p2align 12\n.skip 4096, 0xcc\ntext_begin:\n");
extern char text_begin[], text_end[];

#define ELSEWHERE __attribute__((section(".replaces_text"), noinline))

static ELSEWHERE long ask(long number, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static ELSEWHERE void copy(char *to, const char *from, unsigned long length) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
}

static ELSEWHERE char *memory(char *at, unsigned long length, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0);
    return (char *)ask(SYS_mmap, (long)at, length, protection, flags, -1);
}

static ELSEWHERE void replace(char *text, unsigned long length, int protection) {
    char *aside = memory(0, length, PROT_READ | PROT_WRITE);
    copy(aside, text, length);
#ifdef MOVED
    // Executable before it is moved: the kernel tells of no move.
    ask(SYS_mprotect, (long)aside, length, PROT_READ | PROT_EXEC, 0, 0);
    ask(SYS_mremap, (long)aside, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, (long)text);
#else
    memory(text, length, protection);
    copy(text, aside, length);
    ask(SYS_madvise, (long)text, length, MADV_HUGEPAGE, 0, 0);
    ask(SYS_mprotect, (long)text, length, PROT_READ | PROT_EXEC, 0, 0);
#endif
}

// A page at a time, half of them made executable from the start, so that several pieces lie beside each other meanwhile.
__attribute__((constructor)) static ELSEWHERE void replace_text(void) {
    int write = PROT_READ | PROT_WRITE;
#ifdef PIECES
    int execute = write;
    for (char *text = text_begin; text < text_end; text += 4096) replace(text, 4096, execute ^= PROT_EXEC);
#else
    replace(text_begin, text_end - text_begin, write | PROT_EXEC);
#endif
    printf("ready %d\n", getpid());
    fflush(stdout);
}
