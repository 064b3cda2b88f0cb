// Go that calls C that calls Go, and C leaves below both.
package main

/*
#include <stdint.h>
extern uint64_t up(uint64_t);
static uint64_t __attribute__((noinline)) spin_in_c(uint64_t n) {
    volatile uint64_t x = n;
    for (uint64_t i = 0; i < n; i++) x = x * 3 + 1;
    return x;
}
static uint64_t __attribute__((noinline)) call_back(uint64_t n) { return up(n) + 1; }
static uint64_t __attribute__((noinline)) down(uint64_t n) { return spin_in_c(n) + call_back(n) + 1; }
*/
import "C"
import "time"

var sink uint64

//go:noinline
func spin_in_go(n uint64) uint64 {
	x := n
	for i := uint64(0); i < n; i++ {
		x = x*6364136223846793005 + 1
	}
	return x
}

//export up
func up(n C.uint64_t) C.uint64_t { return C.uint64_t(spin_in_go(uint64(n))) + 1 }

//go:noinline
func call_c() { sink += uint64(C.down(300000)) }

func main() {
	time.AfterFunc(10*time.Minute, func() { panic("end of life") })
	for {
		call_c()
	}
}
