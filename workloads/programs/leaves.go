// Go leaves without frames, each with its own caller, and what the runtime does on stacks of its own: the clock through
// the vdso, and a garbage collection.
package main

import (
	"runtime"
	"time"
)

var sink uint64

//go:noinline
func leaf(n int, x uint64) uint64 {
	for i := 0; i < n; i++ {
		x = x*6364136223846793005 + 1
	}
	return x
}

//go:noinline
func even(n int) uint64 { return leaf(n, 2) + 2 }

//go:noinline
func odd(n int) uint64 { return leaf(n, 3) + 3 }

//go:noinline
func clock(n int) (x uint64) {
	for i := 0; i < n; i++ {
		x += uint64(time.Now().Nanosecond())
	}
	return x
}

func main() {
	time.AfterFunc(10*time.Minute, func() { panic("end of life") })
	for i := 0; ; i++ {
		for j := 0; j < 20; j++ {
			sink += even(100000) + odd(100000) + clock(2000)
		}
		if i%20 == 0 {
			runtime.GC()
		}
	}
}
