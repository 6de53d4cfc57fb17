// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
	"unique"
)

func TestPack(t *testing.T) {
	for _, v := range []uint64{0, 1, 2047, 2048, 2049, 4095, 12345, 1 << 20, 1<<32 - 1, 2047 << 31, 1 << 50, math.MaxUint64} {
		got := unpack(pack(v))
		if got > v {
			t.Errorf("%d reads back as %d, which is more", v, got)
		}
		if v <= 2047<<31 && v-got > v/1024 {
			t.Errorf("%d reads back as %d", v, got)
		}
		if v < 2048 && got != v {
			t.Errorf("%d reads back as %d, want it exact", v, got)
		}
	}
	if got := unpack(pack(math.MaxUint64)); got != 2047<<31 {
		t.Errorf("the largest number is %d", got)
	}
}

func testState(version string) state {
	return state{started: 1, version: unique.Make(version), ros: unique.Make("")}
}

// TestHistory compares with a slice of everything that was added.
func TestHistory(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	type sample struct {
		cursor
		state
	}
	var (
		h    history
		all  []sample
		c    cursor
		s    = testState("1")
		peak int
	)
	for i := range 3000 {
		reset := rnd.IntN(100) == 0 && i > 0
		if reset {
			c.c = counters{}
			s.started++
		}
		c.at += 10*time.Second + time.Duration(rnd.IntN(50))*time.Millisecond
		for k := range c.c {
			if rnd.IntN(3) > 0 {
				c.c[k] += rnd.Uint64N(1 << rnd.IntN(36))
			}
		}
		if rnd.IntN(4) == 0 {
			c.sessions = uint16(rnd.IntN(300))
		}
		if rnd.IntN(60) == 0 {
			s.version = unique.Make(strconv.Itoa(i))
		}
		all = append(all, sample{c, s})
		if i == 0 {
			h.start(c, s)
		} else {
			h.add(c, s, reset)
		}
		peak = max(peak, h.bytes())

		n := h.samples()
		if n > MaxSamples || n > i+1 || i < MaxSamples && len(h.states) < maxStates && n != i+1 {
			t.Fatalf("%d samples after %d", n, i+1)
		}
		if i%97 != 0 {
			continue
		}
		want := all[len(all)-n:]
		k := 0
		h.each(func(got cursor, st *state) {
			w := want[k]
			if *st != w.state || got.sessions != w.sessions {
				t.Fatalf("after %d, sample %d: state %+v %d, want %+v %d", i, k, *st, got.sessions, w.state, w.sessions)
			}
			if d := w.at - got.at; d < 0 || d > 50*time.Millisecond {
				t.Fatalf("sample %d: time is off by %v", k, d)
			}
			for f := range got.c {
				if got.c[f] > w.c[f] {
					t.Fatalf("sample %d, counter %d: %d is more than %d", k, f, got.c[f], w.c[f])
				}
				var before uint64
				if k > 0 && want[k-1].started == w.started {
					before = want[k-1].c[f]
				}
				// The loss of the sample before is within this one's growth.
				if k > 0 && w.c[f]-got.c[f] > (w.c[f]-before)/1024+before/1024 {
					t.Fatalf("sample %d, counter %d: %d, want %d", k, f, got.c[f], w.c[f])
				}
			}
			k++
		})
		if k != n {
			t.Fatalf("each gave %d of %d samples", k, n)
		}
	}
	if peak > MaxSamples*maxRecord+2*growBytes+2*maxStates*stateSize {
		t.Errorf("the samples used %d bytes", peak)
	}
	if h.release(); h.samples() != 0 || h.bytes() != 0 {
		t.Error("release keeps something")
	}
}

// TestHistoryErrors shows that what is rounded off does not add up.
func TestHistoryErrors(t *testing.T) {
	var h history
	var c cursor
	h.start(c, testState("1"))
	for range 300 {
		c.at += 10 * time.Second
		c.c[txBytes] += 1_234_567
		h.add(c, testState("1"), false)
	}
	var read uint64
	h.each(func(c cursor, _ *state) { read = c.c[txBytes] })
	if read > c.c[txBytes] {
		t.Errorf("%d is read back as %d", c.c[txBytes], read)
	}
	if lost := c.c[txBytes] - read; lost > 1_234_567/500 {
		t.Errorf("300 samples are %d too low together", lost)
	}
}

// TestHistoryFlapping holds the memory of a node whose state changes all the time.
func TestHistoryFlapping(t *testing.T) {
	var h history
	h.start(cursor{}, testState("0"))
	for i := range 1000 {
		h.add(cursor{at: time.Duration(i+1) * time.Second}, testState(strconv.Itoa(i%2)), false)
	}
	if len(h.states) > maxStates || h.samples() != maxStates {
		t.Errorf("%d states and %d samples", len(h.states), h.samples())
	}
}
