// SPDX-License-Identifier: Apache-2.0

package congestion

import "time"

const (
	recordMin = 64   // batches at first
	recordMax = 4096 // batches at most
	recordAge = time.Second
)

// totals counts what left on a path since its strategy was made.
type totals struct {
	bytes     uint64 // of everything
	bulk      uint64 // bytes of Bulk
	telemetry uint64 // bytes of Telemetry
	packets   uint64 // with copies, without what belongs to no session
}

// batch is one call of Sent, with the totals behind its last packet.
type batch struct {
	at          time.Duration
	first, last uint64
	after       totals
	bytes       int
	packets     int
	session     uint32
	lane        uint8
	copies      bool // of nothing but copies
}

// record remembers what left lately: a ring of batches that doubles while the
// oldest is younger than a second. A fast path fills batches, so the ring stays
// small beside what it stands for.
type record struct {
	totals
	ring []batch
	head int // where the next one goes
	n    int
}

func (r *record) add(now time.Duration, s *Sent) {
	// No call stands for so much; sums stay sums even so.
	size, packets := min(max(s.Bytes, 0), 1<<30), min(max(s.Packets, 0), 1<<30)
	r.bytes += uint64(size)
	if s.Session == 0 {
		return
	}
	switch s.Lane {
	case Bulk:
		r.bulk += uint64(size)
	case Telemetry:
		r.telemetry += uint64(size)
	}
	r.packets += uint64(packets)
	if s.Last < s.First {
		return
	}
	if r.n == len(r.ring) {
		r.grow(now)
	}
	r.ring[r.head] = batch{
		at: now, first: s.First, last: s.Last, after: r.totals, bytes: size, packets: packets,
		session: s.Session, lane: s.Lane, copies: s.Copies > 0 && s.Copies >= s.Packets,
	}
	r.head = (r.head + 1) % len(r.ring)
	r.n = min(r.n+1, len(r.ring))
}

// grow makes room where the oldest batch is still too young to be forgotten.
// r is full.
func (r *record) grow(now time.Duration) {
	old := len(r.ring)
	if old >= recordMax || old > 0 && now-r.ring[r.head].at >= recordAge {
		return
	}
	ring := make([]batch, max(2*old, recordMin))
	k := copy(ring, r.ring[r.head:])
	copy(ring[k:], r.ring[:r.head])
	r.ring, r.head = ring, old
}

// find tells when a packet left and the totals up to it. A packet that left more
// than once is the first of them: that is the one that arrives first, as a rule.
func (r *record) find(session uint32, lane uint8, counter uint64) (time.Duration, totals, bool) {
	var hit *batch
	for i := range r.n {
		b := &r.ring[(r.head-1-i)&(len(r.ring)-1)] // a power of two long
		if b.lane != lane || b.session != session || counter < b.first {
			continue
		}
		if counter > b.last {
			if !b.copies { // counters grow: what is older has lesser ones
				break
			}
			continue
		}
		hit = b
		if !b.copies {
			break
		}
	}
	if hit == nil {
		return 0, totals{}, false
	}
	// What of the batch had not left when this packet did.
	rest := float64(hit.last-counter) / (float64(hit.last-hit.first) + 1)
	t := hit.after
	behind := uint64(rest * float64(hit.bytes))
	t.bytes -= behind
	switch lane {
	case Bulk:
		t.bulk -= behind
	case Telemetry:
		t.telemetry -= behind
	}
	t.packets -= uint64(rest*float64(hit.packets) + 0.5)
	return hit.at, t, true
}

// together tells whether bytes of Bulk behind the packet first left in one go
// with it.
func (r *record) together(first uint64, bytes int) bool {
	for i := range r.n {
		k := (r.head - 1 - i + len(r.ring)) % len(r.ring)
		b := &r.ring[k]
		if b.lane != Bulk || b.copies || first < b.first || first > b.last {
			continue
		}
		got := float64(b.last-first) / (float64(b.last-b.first) + 1) * float64(b.bytes)
		for ; i > 0 && got < float64(bytes); i-- {
			k = (k + 1) % len(r.ring)
			next := &r.ring[k]
			if next.at-b.at > backToBack {
				break
			}
			if next.lane == Bulk && next.session == b.session && !next.copies {
				got += float64(next.bytes)
			}
		}
		return got >= 0.98*float64(bytes)
	}
	return false
}
