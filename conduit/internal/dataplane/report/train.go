// SPDX-License-Identifier: Apache-2.0

package report

import "math"

const (
	// A train has at least so many packets.
	trainPackets = 4
	// trainSpan is the most between the header times of its first and any other.
	trainSpan = 2
	// A later packet of a time that only looks the same is told by its arrival, ns.
	trainLife = 1e9
	// A train ends when nothing follows for quiet and 3 times its mean gap, ns.
	quiet = 2e6
)

// train is the one that arrives.
type train struct {
	open    bool
	broken  bool // a packet is missing, late, or has no time of its own
	session uint32
	sent    uint16 // of the first
	first   uint64
	next    uint64 // the counter that continues it
	n       int
	bytes   int // without the first
	firstAt int64
	lastAt  int64
	run     int // packets of the coalesced run that arrives, and of the longest
	longest int
}

// seen is a train that is complete, as a report tells it.
type seen struct {
	first      uint64
	packets    uint16 // without the first, as are the bytes
	bytes      uint32
	dispersion uint32
}

// inTrain takes a packet of Bulk. Packets of the other lanes may come between
// those of a train; they make it look slower, by their few bytes.
func (r *Receiver) inTrain(a *Arrival) {
	t := &r.train
	if t.open && a.Session == t.session {
		if a.Counter < t.first {
			return // a late one of before
		}
		if a.Sent-t.sent <= trainSpan && a.At-t.firstAt < trainLife {
			if a.Counter != t.next || a.Rough {
				t.broken = true
			}
			if t.broken {
				return // what is left of it is no train either
			}
			t.next++
			t.n++
			t.bytes += a.Size
			t.lastAt = a.At
			if !a.Follower {
				t.run = 0
			}
			t.run++
			t.longest = max(t.longest, t.run)
			return
		}
	}
	r.endTrain()
	*t = train{
		open: true, broken: a.Rough, session: a.Session, sent: a.Sent, first: a.Counter, next: a.Counter + 1,
		n: 1, firstAt: a.At, lastAt: a.At, run: 1, longest: 1,
	}
}

// endTrain keeps the train for the report if it is the longest.
func (r *Receiver) endTrain() {
	t := &r.train
	if t.open && !t.broken && t.n >= trainPackets && t.n-1 > int(r.best.packets) {
		r.best = seen{
			first: t.first, packets: uint16(min(t.n-1, math.MaxUint16)), bytes: uint32(min(t.bytes, math.MaxInt32)),
			dispersion: uint32(min(max(t.lastAt-t.firstAt, 0)/1000, math.MaxUint32)),
		}
		if 2*t.longest > t.n {
			r.best.dispersion = 0 // one time for most of it says nothing
		}
	}
	t.open = false
}

// endQuiet ends a train that nothing seems to follow.
func (r *Receiver) endQuiet(now int64) {
	t := &r.train
	if t.open && t.n >= trainPackets && now-t.lastAt > quiet+3*(t.lastAt-t.firstAt)/int64(t.n-1) {
		r.endTrain()
	}
}
