// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

const (
	// ringLife is how long a sealed Critical packet is kept.
	ringLife = int64(time.Second)
	// maxRing bounds the packets kept for one peer; the oldest goes first.
	maxRing = 256
	minRing = 16
	// A sealed packet up to ringSmall bytes is copied, so that keeping it does not
	// keep its buffer: most of Critical is small, and a station has many peers.
	ringSmall = 160
)

// resendRing keeps what was sealed for one peer in Critical during the last second.
// Only the sealing goroutine touches it.
type resendRing struct {
	slots   []ringSlot // a power of two long, or none
	head, n int
	popped  uint64 // how many went before slot 0
}

type ringSlot struct {
	at  int64
	len int
	// unsent is set while the packet has left on no path at all, uncounted where no
	// counter knows of that yet.
	unsent, uncounted bool
	more              uint8 // how often it is sent once more on the path that it left on
	id                ident
	buf               *packet.Buf // holds the packet where small does not
	small             [ringSmall]byte
}

func (s *ringSlot) bytes() []byte {
	if s.buf != nil {
		return s.buf.Raw()[:s.len]
	}
	return s.small[:s.len]
}

func (r *resendRing) slot(i int) *ringSlot { return &r.slots[(r.head+i)&(len(r.slots)-1)] }

// push keeps a sealed packet, which lies at the start of b, and returns its slot,
// and how many others fell out that had never left.
func (r *resendRing) push(b *packet.Buf, sealed []byte, now int64) (s *ringSlot, lost int) {
	lost = r.expire(now)
	if r.n == len(r.slots) {
		if r.n == maxRing {
			lost += r.pop()
		} else {
			r.grow()
		}
	}
	s = r.slot(r.n)
	r.n++
	s.at, s.len, s.unsent, s.uncounted = now, len(sealed), false, false
	if len(sealed) <= ringSmall {
		copy(s.small[:], sealed)
		return s, lost
	}
	b.Retain()
	s.buf = b
	return s, lost
}

func (r *resendRing) grow() {
	slots := make([]ringSlot, max(minRing, 2*len(r.slots)))
	for i := range r.n {
		slots[i] = *r.slot(i)
	}
	r.slots, r.head = slots, 0
}

// pop forgets the oldest packet and returns 1 where it had never left and nobody
// has counted that.
func (r *resendRing) pop() (lost int) {
	s := r.slot(0)
	if s.buf != nil {
		s.buf.Release()
		s.buf = nil
	}
	r.head = (r.head + 1) & (len(r.slots) - 1)
	r.n--
	r.popped++
	if s.unsent && s.uncounted {
		return 1
	}
	return 0
}

// expire forgets what is too old to be sent again.
func (r *resendRing) expire(now int64) (lost int) {
	for r.n > 0 && now-r.slot(0).at > ringLife {
		lost += r.pop()
	}
	return lost
}

// free forgets all.
func (r *resendRing) free() {
	for r.n > 0 {
		r.pop()
	}
	*r = resendRing{popped: r.popped}
}
