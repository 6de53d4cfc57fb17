// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Where there is no second path in space, a Critical packet is sent again in time:
// on a single path that loses much it leaves twice or three times, byte for byte
// the same, and the receiver's window takes the first that arrives. A loss that
// hits packets independently of each other, with share p, is p to the power of the
// copies then. Losses in bursts longer than the spacing are not helped.
const (
	// copyGap is between copies of a packet: longer than the bursts in which Wi-Fi
	// loses, short beside a round trip.
	copyGap = int64(5 * time.Millisecond)
	// From twiceLoss on there is one more copy, from thriceLoss on two. It takes
	// calmFor with less than half of that to go back.
	twiceLoss, thriceLoss = 0.005, 0.02
	calmFor               = int64(20 * time.Second)
	// minLossSamples is how many packets it takes to speak of loss.
	minLossSamples = 100
	maxCopies      = 3
	// Copies may take copyShare of the rate, and minCopyRate (bytes per second) in
	// any case, anyCopyRate where no rate is known; copySlack is what they may take
	// at once.
	copyShare   = 0.1
	minCopyRate = 64e3
	anyCopyRate = 1e6
	copySlack   = int64(250 * time.Millisecond)
)

// copies is the sealing goroutine's account of a peer's copies.
type copies struct {
	pending bool
	// next is the number of the packet in the ring that is looked at next for the
	// first copy, and for the second.
	next [maxCopies - 1]uint64
	paid int64 // until when the budget is used (GCRA)
}

// repeat notes that the packet in slot, which left on w alone, will be repeated
// where that path loses much.
func (s *sender) repeat(p *Peer, slot *ringSlot, w *way) {
	if w.stat == nil {
		return
	}
	n := w.stat.copies.Load()
	if n < 2 {
		return
	}
	c := &p.out.copies
	if !c.pending {
		c.pending = true
		s.repairing = append(s.repairing, p)
		at := p.out.ring.popped + uint64(p.out.ring.n) - 1
		c.next = [maxCopies - 1]uint64{at, at}
	}
	slot.more = uint8(n - 1)
}

// repair sends the copies that are due and has the lanes wake it for the next.
func (s *sender) repair() {
	if len(s.repairing) == 0 {
		return
	}
	next := int64(math.MaxInt64)
	keep := s.repairing[:0]
	for _, p := range s.repairing {
		at := s.repairPeer(p)
		if at == math.MaxInt64 {
			p.out.copies.pending = false
			continue
		}
		keep = append(keep, p)
		next = min(next, at)
	}
	clear(s.repairing[len(keep):])
	s.repairing = keep
	if len(s.touched) > 0 {
		s.train, s.alone = false, true
		s.flush(packet.Critical)
	}
	if next != math.MaxInt64 {
		s.d.lanes.Wake(next)
	}
}

// repairPeer sends what is due and returns when more will be.
func (s *sender) repairPeer(p *Peer) (next int64) {
	next = math.MaxInt64
	ring, c := &p.out.ring, &p.out.copies
	end := ring.popped + uint64(ring.n)
	for k := range c.next {
		for c.next[k] = max(c.next[k], ring.popped); c.next[k] < end; c.next[k]++ {
			slot := ring.slot(int(c.next[k] - ring.popped))
			if int(slot.more) <= k {
				continue
			}
			if due := slot.at + int64(k+1)*copyGap; due > s.now {
				next = min(next, due)
				break
			}
			s.copy(p, slot)
		}
	}
	return next
}

func (s *sender) copy(p *Peer, slot *ringSlot) {
	set := p.ways.Load()
	if set == nil || len(set.lanes[packet.Critical]) != 1 {
		return // a path that came since has been given all anyway
	}
	w := &set.lanes[packet.Critical][0]
	rate := minCopyRate
	if pipe := w.pipe(); pipe != nil {
		rate = max(rate, min(copyShare*pipe.Rate(), anyCopyRate))
	}
	c := &p.out.copies
	cost := int64(float64(slot.len+w.over) / rate * 1e9)
	if c.paid < s.now-copySlack || c.paid == 0 { // 0: the clock may be as young
		c.paid = s.now - copySlack
	}
	if c.paid+cost > s.now {
		s.d.stats.copyless.Add(1)
		return
	}
	c.paid += cost
	b := packet.Get()
	sealed := b.Raw()[:copy(b.Raw(), slot.bytes())]
	s.owned = append(s.owned, b)
	if s.put(w, b, sealed, &slot.id, 1) {
		s.d.stats.copies.Add(1)
	}
}

// lossy decides, at each report, how often Critical leaves on the path.
func (st *pathStat) lossy(state *congestion.State, now int64) {
	if state.LossSamples < minLossSamples {
		return
	}
	want := int32(1)
	switch {
	case state.Loss >= thriceLoss:
		want = 3
	case state.Loss >= twiceLoss:
		want = 2
	}
	have := max(st.copies.Load(), 1)
	limit := [maxCopies + 1]float64{0, 0, twiceLoss / 2, thriceLoss / 2}[have]
	switch {
	case want >= have:
		st.copies.Store(want)
		st.calm.Store(now)
	case state.Loss >= limit:
		st.calm.Store(now)
	case now-st.calm.Load() > calmFor:
		st.copies.Store(have - 1)
		st.calm.Store(now)
	}
}
