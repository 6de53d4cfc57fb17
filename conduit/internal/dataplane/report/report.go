// SPDX-License-Identifier: Apache-2.0

// Package report watches what arrives on one path and says it in the REPORTs
// from which the other side learns delay, loss and rate (docs/wire.md, 2.6).
package report

import (
	"math"
	"slices"
	"sync"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// When a report is due, in nanoseconds.
const (
	// Fast and Slow are the gaps between reports while Bulk or Telemetry arrived in
	// the last Busy, and while only other data does.
	Fast = 25e6
	Slow = 250e6
	Busy = 1e9
	// First is how long the first packet after a silence waits for others.
	First = 5e6
	// An urgent report comes at least Apart after the one before and is about at
	// least UrgentPackets, one of them more than Late behind the base. So many
	// reports with such a packet in a row, UrgentRow, may be urgent: a queue that
	// stands after that is not news.
	Apart         = 8e6
	Late          = 8e6
	UrgentPackets = 4
	UrgentRow     = 16
)

const (
	unit = 16e3 // of delays, in ns
	// The header's time wraps after so many units.
	wrap = 1 << 16 * wire.TimeUnit * 1000 / unit
	// A delay is taken to be less than so much below the reference, else far above
	// it: up to 0.5 s below, 3.6 s above. The reference is the base of up to a bucket
	// ago; before there is one, the first packet is in the middle.
	below = wrap / 8
	// After so much silence the drift of the clocks may be more than that, in ns.
	forget = 60e9
	late   = Late / unit
	// An urgent lane that is ahead by less gives the least delay: its packets are
	// smaller, and nothing that matters is hidden from it.
	ahead = 4e6 / unit
	// The base is the least delay of this bucket and the one before, in ns.
	bucket = 5e9
	// none is a base that is not known.
	none = math.MaxInt64
	// reservoir is how many delays are kept for the median.
	reservoir = 128
)

// Arrival is one packet that was opened and was fresh.
type Arrival struct {
	Lane packet.Lane
	// Session is the receiver index, Counter that of the lane.
	Session uint32
	Counter uint64
	// Size is the length of the datagram.
	Size int
	// Sent is the header's time.
	Sent uint16
	// At is when it arrived, in nanoseconds by the clock of Take's now.
	At int64
	// Follower says that it is not the first of a coalesced run, whose time it has.
	Follower bool
	// Data says that the sender wants to hear of it: it is not about the path
	// itself, as probes and reports are, which alone make no report.
	Data bool
	// Rough says that At is when it was read, which is worth nothing for trains.
	Rough bool
}

// counts are cumulative, of all lanes.
type counts struct {
	packets, bytes uint64
	copies         uint32
}

// Receiver is the receiving end of one path. The zero value is ready. Safe for
// concurrent use; no method allocates.
type Receiver struct {
	mu sync.Mutex

	all counts // now

	// The newest packet, and what had come when it did.
	known   bool
	upTo    counts
	lane    packet.Lane
	session uint32
	counter uint64
	at      int64
	delay   int64 // units

	// The base, in units.
	now, before int64 // least delay of the bucket and of the one before
	bucketAt    int64
	ref         int64 // what tells the turns of the header's time apart

	// Since the last report.
	pending  bool // there is something to say
	opened   bool
	since    int64 // when there first was; valid with opened
	count    int   // packets
	late     bool
	named    bool        // the newest packet is one of them
	least    packet.Lane // the least urgent lane: the delays are those of it alone
	any      int64       // least delay of all lanes
	min, max int64
	samples  int // arrivals of the lane: followers are none
	stride   int // every so many of them is kept
	kept     int
	delays   [reservoir]int64
	best     seen

	reported bool
	taken    int64 // the last report
	busySeen bool
	busy     int64 // the last packet of Bulk or Telemetry
	row      int   // reports in a row with a late packet

	train train
}

// Arrived takes a packet in the order of arrival. It returns when Take is due by
// what is known now: at a time up to a.At at once, math.MaxInt64 not at all.
func (r *Receiver) Arrived(a *Arrival) (due int64) {
	r.mu.Lock()
	r.all.packets++
	r.all.bytes += uint64(a.Size)
	d := r.unwrap(a)
	if r.count == 0 {
		r.any = d
	}
	r.any = min(r.any, d)
	if r.count == 0 || a.Lane > r.least {
		r.least, r.samples, r.kept = a.Lane, 0, 0
	}
	r.count++
	// Who prefers an urgent lane on the way hides the queue of the others from it.
	if a.Lane == r.least {
		r.keep(a, d)
		// One that was overtaken in its lane says less than the one that overtook it.
		if !r.known || a.Lane != r.lane || a.Session != r.session || a.Counter > r.counter {
			r.known, r.lane, r.session, r.counter, r.at, r.delay = true, a.Lane, a.Session, a.Counter, a.At, d
			r.named, r.upTo = true, r.all
		}
	}
	if a.Lane != packet.Critical {
		r.busySeen, r.busy = true, a.At
	}
	if a.Lane == packet.Bulk {
		r.inTrain(a)
	}
	if a.Data {
		r.pending = true
	}
	due = r.due(a.At)
	r.mu.Unlock()
	return due
}

// Copied takes a packet of size bytes that had arrived before, on this path or
// another. It is due with what arrives next. Where copies are told by their
// counter alone, before their tag is looked at, whoever can repeat a datagram
// from the peer's address counts here too.
func (r *Receiver) Copied(size int) {
	r.mu.Lock()
	r.all.packets++
	r.all.copies++
	r.all.bytes += uint64(size)
	r.pending = true
	r.mu.Unlock()
}

// Take fills out with what is to say at now and begins anew. It returns false, and
// leaves out alone, where nothing but probes and the like came since.
//
// The median is exact up to 128 arrivals. Of more it is that of 64 to 128 of them,
// evenly spaced: mostly within a tenth of their ranks.
func (r *Receiver) Take(now int64, out *wire.Report) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.pending {
		return false
	}
	r.endQuiet(now)
	// The other side compares with what it had sent up to the newest packet: what
	// came behind it is for the next report.
	c := &r.all
	if r.named {
		c = &r.upTo
	}
	*out = wire.Report{
		Packets: c.packets, Bytes: c.bytes, Copies: c.copies,
		Lane: r.lane, Session: r.session, Counter: r.counter,
		Last:       int32(r.delay),
		TrainFirst: r.best.first, TrainPackets: r.best.packets, TrainBytes: r.best.bytes, TrainDispersion: r.best.dispersion,
	}
	if r.known {
		out.Received = uint64(max(r.at, 0)) / 1000
		out.Hold = uint32(min(max(now-r.at, 0)/1000, math.MaxUint32))
	}
	if r.samples > 0 {
		out.Samples = uint16(min(r.samples, math.MaxUint16))
		out.DelayMin, out.DelayMax = int32(r.min), int32(r.max)
		if r.min-r.any < ahead {
			out.DelayMin = int32(r.any)
		}
		out.DelayP50 = int32(r.median())
	}
	if r.late {
		r.row++
	} else {
		r.row = 0
	}
	r.reported, r.taken = true, now
	r.pending, r.opened, r.count, r.late, r.named, r.samples, r.kept = false, false, 0, false, false, 0, 0
	r.best = seen{}
	return true
}

// due says when Take is to be called, at the arrival of a packet.
func (r *Receiver) due(at int64) int64 {
	if !r.pending {
		return math.MaxInt64
	}
	if !r.opened {
		r.opened, r.since = true, at
	}
	due := r.since + First
	if r.reported {
		gap := int64(Slow)
		if r.busySeen && at-r.busy <= Busy {
			gap = Fast
		}
		due = max(due, r.taken+gap)
	}
	if r.late && r.count >= UrgentPackets && r.row < UrgentRow {
		urgent := at
		if r.reported {
			urgent = max(at, r.taken+Apart)
		}
		due = min(due, urgent)
	}
	return due
}

// unwrap returns the one-way delay of a in units from an arbitrary zero and
// learns the base.
func (r *Receiver) unwrap(a *Arrival) int64 {
	d := (a.At/unit - int64(a.Sent)*(wire.TimeUnit*1000/unit)) & (wrap - 1)
	gone := a.At - r.bucketAt
	if !r.known {
		gone = forget
	}
	switch {
	case gone >= forget: // nobody knows in which turn this one was sent
		r.ref = d - wrap/2 + below
		r.now, r.before, r.bucketAt = none, none, a.At
	case gone >= 2*bucket: // a queue may stand, so the old reference is the better one
		r.now, r.before, r.bucketAt = none, none, a.At
	case gone >= bucket:
		r.ref = min(r.now, r.before)
		r.now, r.before, r.bucketAt = none, r.now, r.bucketAt+bucket
	}
	base := min(r.now, r.before)
	r.ref = min(r.ref, base)
	// Nothing overtakes the fastest by much, while queues of seconds exist.
	d = r.ref - below + (d-r.ref+below)&(wrap-1)
	if base != none && d-base > late {
		r.late = true
	}
	r.now = min(r.now, d)
	return d
}

// keep takes a delay into those of this report.
func (r *Receiver) keep(a *Arrival, d int64) {
	if r.samples == 0 {
		r.min, r.max, r.stride = d, d, 1
	} else {
		r.min, r.max = min(r.min, d), max(r.max, d)
		if a.Follower {
			return
		}
	}
	if r.samples&(r.stride-1) == 0 {
		if r.kept == reservoir { // halve what is there
			r.kept /= 2
			for i := range r.kept {
				r.delays[i] = r.delays[2*i]
			}
			r.stride *= 2
		}
		r.delays[r.kept] = d
		r.kept++
	}
	r.samples++
}

// median returns the lower median of what was kept.
func (r *Receiver) median() int64 {
	s := r.delays[:r.kept]
	slices.Sort(s)
	return s[(len(s)-1)/2]
}
