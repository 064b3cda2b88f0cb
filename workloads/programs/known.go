// Go with known shares: 70 % in a method, 30 % in a closure's callee. The leaves have local arrays, so that the compiler gives them a frame.
package main

import (
	"math/rand"
	"time"
)

var sink uint64

type engine struct{ seed uint64 }

//go:noinline
func (e *engine) turn(n int) {
	var buffer [32]uint64
	x := e.seed
	for i := 0; i < n; i++ {
		x = x*6364136223846793005 + 1
		buffer[x>>59] += x
	}
	sink += buffer[x>>59]
}

//go:noinline
func idle(n int) {
	var buffer [32]uint64
	x := uint64(n)
	for i := 0; i < n; i++ {
		x = x*6364136223846793005 + 1
		buffer[x>>59] += x
	}
	sink += buffer[x>>59]
}

//go:noinline
func drive(e *engine, turn bool) {
	if turn {
		e.turn(200000)
	} else {
		idle(200000)
	}
	sink++
}

func main() {
	time.AfterFunc(10*time.Minute, func() { panic("end of life") })
	e := &engine{1}
	deck := []bool{true, true, true, true, true, true, true, false, false, false}
	for {
		rand.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		for _, turn := range deck {
			drive(e, turn)
		}
	}
}
