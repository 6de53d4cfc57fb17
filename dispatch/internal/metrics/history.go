// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"time"
	"unique"
)

const (
	// MaxSamples is how many samples of a node are kept: an hour of one each 10 s.
	MaxSamples = 360
	// maxStates bounds how often what rarely changes may change within the kept
	// samples. Beyond it the oldest samples go.
	maxStates = 16

	growBytes = 512
	maxRecord = 3 + 2 + 2*numCounters + 2
)

// A counter has an index: lane*perLane + one of these, or below.
const (
	txPackets = iota
	txBytes
	rxPackets
	rxBytes
	laneDropped
	perLane
)

const (
	dropped = numLanes*perLane + iota
	denied
	numCounters
)

// The bits of a record above those of the counters.
const (
	sessionsBit = 1 << (numCounters + iota)
	stateBit
	resetBit
)

type counters [numCounters]uint64

// state is what a node reports and what rarely changes.
type state struct {
	started            int64 // Unix time in µs
	policy, generation uint64
	psk                uint32
	port               uint16
	ros, version       unique.Handle[string]
}

// cursor is the value of one sample.
type cursor struct {
	at       time.Duration // since the start of the Reports
	c        counters
	sessions uint16
}

// history keeps samples as differences in a ring of bytes. A record is
//
//	bits 24 | time 16 | growth of each counter that its bit names 16 | sessions 16
//
// where a difference is a mantissa of 11 and an exponent of 5 bits, rounded down.
// What is rounded off is in the next difference, so that errors do not add up: a
// counter read back is less than its sample's growth/1024 too low.
type history struct {
	buf        []byte
	head, size int    // of the used part of buf
	n          int    // records; there is one sample more
	base, tip  cursor // the oldest sample, and the newest as it is read back
	states     []state
}

// pack returns the largest number that 16 bits can stand for and that is at most v.
func pack(v uint64) uint16 {
	n := bits.Len64(v)
	if n <= 11 {
		return uint16(v)
	}
	e := n - 11
	if e > 31 {
		return 1<<16 - 1
	}
	return uint16(e<<11) | uint16(v>>e)
}

func unpack(p uint16) uint64 { return uint64(p&(1<<11-1)) << (p >> 11) }

// start makes c the first sample.
func (h *history) start(c cursor, s state) {
	h.head, h.size, h.n = 0, 0, 0
	h.base, h.tip = c, c
	h.states = append(h.states[:0], s)
}

// release drops the samples and their memory.
func (h *history) release() { *h = history{} }

// samples returns how many there are.
func (h *history) samples() int {
	if len(h.states) == 0 {
		return 0
	}
	return h.n + 1
}

// add appends a sample. reset tells that its counters began anew.
func (h *history) add(c cursor, s state, reset bool) {
	var rec [maxRecord]byte
	var set uint32
	b := rec[:3]
	dt := pack(uint64(max(0, (c.at - h.tip.at).Milliseconds())))
	b = binary.LittleEndian.AppendUint16(b, dt)
	h.tip.at += time.Duration(unpack(dt)) * time.Millisecond
	if reset {
		h.tip.c = counters{}
		set |= resetBit
	}
	for i, v := range c.c {
		if v <= h.tip.c[i] {
			continue
		}
		p := pack(v - h.tip.c[i])
		set |= 1 << i
		b = binary.LittleEndian.AppendUint16(b, p)
		h.tip.c[i] += unpack(p)
	}
	if c.sessions != h.tip.sessions {
		set |= sessionsBit
		b = binary.LittleEndian.AppendUint16(b, c.sessions)
		h.tip.sessions = c.sessions
	}
	if s != h.states[len(h.states)-1] {
		set |= stateBit
		h.states = append(h.states, s)
	}
	rec[0], rec[1], rec[2] = byte(set), byte(set>>8), byte(set>>16)
	for h.n > 0 && (h.n+2 > MaxSamples || len(h.states) > maxStates) {
		h.drop()
	}
	h.write(b)
	h.n++
}

// drop forgets the oldest sample.
func (h *history) drop() {
	n, changed := h.next(0, &h.base)
	h.head = (h.head + n) % len(h.buf)
	h.size -= n
	h.n--
	if changed {
		h.states = slices.Delete(h.states, 0, 1)
	}
}

func (h *history) write(b []byte) {
	if h.size+len(b) > len(h.buf) {
		grown := slices.Grow([]byte(nil), h.size+growBytes)
		grown = grown[:cap(grown)]
		k := copy(grown, h.buf[h.head:min(len(h.buf), h.head+h.size)])
		copy(grown[k:h.size], h.buf)
		h.buf, h.head = grown, 0
	}
	at := (h.head + h.size) % len(h.buf)
	k := copy(h.buf[at:], b)
	copy(h.buf, b[k:])
	h.size += len(b)
}

// next applies the record at off to c. It returns the record's length and whether
// the next state applies from it on.
func (h *history) next(off int, c *cursor) (n int, changed bool) {
	at := h.head + off
	get := func() uint32 {
		b := h.buf[at%len(h.buf)]
		at++
		return uint32(b)
	}
	get16 := func() uint16 { lo := get(); return uint16(lo | get()<<8) }
	set := get()
	set |= get() << 8
	set |= get() << 16
	c.at += time.Duration(unpack(get16())) * time.Millisecond
	if set&resetBit != 0 {
		c.c = counters{}
	}
	for m := set & (1<<numCounters - 1); m != 0; m &= m - 1 {
		c.c[bits.TrailingZeros32(m)] += unpack(get16())
	}
	if set&sessionsBit != 0 {
		c.sessions = get16()
	}
	return at - h.head - off, set&stateBit != 0
}

// each calls f for every sample, oldest first.
func (h *history) each(f func(cursor, *state)) {
	if len(h.states) == 0 {
		return
	}
	c, s := h.base, 0
	f(c, &h.states[0])
	for i, off := 0, 0; i < h.n; i++ {
		n, changed := h.next(off, &c)
		if off += n; changed {
			s++
		}
		f(c, &h.states[s])
	}
}

// bytes is the memory that the samples use.
func (h *history) bytes() int { return cap(h.buf) + cap(h.states)*stateSize }
