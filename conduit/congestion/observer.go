// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"time"
)

const (
	// never is an instant before all others; a difference to it does not overflow.
	never = time.Duration(math.MinInt64 / 4)

	histLen    = 64 // reports: 1.6 s while Bulk flows
	bucketTime = 5 * time.Second
	lossWindow = 300.0 // packets; but no shorter than a second
)

// seconds is d as a number.
func seconds(d time.Duration) float64 { return float64(d) / 1e9 }

// duration is the inverse of seconds, for spans that are bounded.
func duration(s float64) time.Duration { return time.Duration(s * 1e9) }

// point is what one report said of the counters.
type point struct {
	at       time.Duration // when it came
	received time.Duration // receiver's clock
	packets  uint64        // without copies
	copies   uint64
	bytes    uint64
	arrived  uint64        // datagrams: packets and copies, as far as we saw them grow
	sentAt   time.Duration // of the newest packet
	sent     totals        // up to the newest packet; only where found
	found    bool
	gone     uint64 // bytes that had left when the report came
}

// observer turns reports into delay, loss and delivery. All strategies have one.
type observer struct {
	record
	now time.Duration // does not go back

	hist  [histLen]point
	n     int // of them in use
	head  int // next
	odd   int // reports in a row that seem older than the last
	fresh bool

	// Least one-way delay and round trip: two buckets of 5 s, so that a drift of
	// the clocks or a new route is forgotten after 10 s at most (RFC 6817, 3.4).
	delays [2]time.Duration
	trips  [2]time.Duration
	turned time.Duration // when bucket 0 was begun

	rtt                   float64 // s, smoothed; 0 unknown
	q50, qlo, qmax, qlast float64 // s above the least
	dt                    float64 // s since the report before
	lastReport            time.Duration
	waitSince             time.Duration // first packet that left after the last report; never: none

	lossMark    bool // lossSent and lossArrived are valid
	lossSent    uint64
	lossArrived uint64
	lossAt      time.Duration
	lossW, allW float64 // lost and sent datagrams, forgotten slowly
}

func newObserver() observer {
	return observer{
		now: never, lastReport: never, waitSince: never,
		delays: [2]time.Duration{math.MaxInt64, math.MaxInt64},
		trips:  [2]time.Duration{math.MaxInt64, math.MaxInt64},
		turned: never,
	}
}

// clock returns the latest time that the caller has named.
func (o *observer) clock(now time.Duration) time.Duration {
	o.now = max(o.now, now)
	return o.now
}

// Sent implements [Strategy].
func (o *observer) Sent(now time.Duration, s Sent) {
	now = o.clock(now)
	if o.waitSince == never && s.Session != 0 {
		o.waitSince = now
	}
	o.add(now, &s)
}

// back is the report i before the newest. There must be one.
func (o *observer) back(i int) *point { return &o.hist[(o.head-1-i+2*histLen)%histLen] }

// observe takes a report; false: it says nothing new.
func (o *observer) observe(now time.Duration, r *Report) bool {
	o.fresh = false
	p := point{at: now, received: r.Received, packets: r.Packets, copies: r.Copies, bytes: r.Bytes, gone: o.bytes}
	if o.n > 0 {
		last := o.back(0)
		if r.Packets == last.packets && r.Bytes == last.bytes && r.Received == last.received {
			return false // a duplicate
		}
		older, fewer := r.Received < last.received, r.Packets < last.packets || r.Bytes < last.bytes
		switch {
		case older: // overtaken; or the receiver's clock was put back
			if o.odd++; o.odd < 3 {
				return false
			}
			o.forget()
		case fewer: // the receiver forgot the path
			o.forget()
		}
	}
	o.odd = 0
	if o.n > 0 {
		last := o.back(0)
		// Copies are counted modulo 2^32 on the wire.
		p.arrived = last.arrived + (r.Packets - last.packets) + uint64(uint32(r.Copies-last.copies))
		// A delay cannot grow by more than the time between two arrivals.
		if b := o.least(); r.Samples > 0 && b != math.MaxInt64 &&
			r.DelayMin-b > r.Received-last.received+duration(o.qmax)+200*time.Millisecond {
			o.forget()
			p.arrived = 0
		}
	}
	p.sentAt, p.sent, p.found = o.find(r.Session, r.Lane, r.Counter)
	if o.lastReport == never {
		o.dt = 0
	} else {
		o.dt = seconds(now - o.lastReport)
	}
	o.lastReport, o.waitSince = now, never
	o.turn(now)
	if p.found {
		o.roundTrip(now, p.sentAt, r.Hold)
		o.countLoss(now, &p)
	} else {
		p.sentAt = now - max(r.Hold, 0) - duration(min(o.rtt, 60))
	}
	if r.Samples > 0 {
		o.delays[0] = min(o.delays[0], r.DelayMin)
		b := o.least()
		o.q50, o.qlo = o.above(r.DelayP50, b), o.above(r.DelayMin, b)
		o.qmax, o.qlast = o.above(r.DelayMax, b), o.above(r.DelayLast, b)
	}
	o.hist[o.head] = p
	o.head = (o.head + 1) % histLen
	o.n = min(o.n+1, histLen)
	o.fresh = r.Samples > 0
	return true
}

// forget begins anew with a receiver that did so; what was learnt of loss and
// round trips stays.
func (o *observer) forget() {
	o.n, o.odd, o.lossMark = 0, 0, false
	o.delays = [2]time.Duration{math.MaxInt64, math.MaxInt64}
	o.q50, o.qlo, o.qmax, o.qlast = 0, 0, 0, 0
}

// turn ages the least delays.
func (o *observer) turn(now time.Duration) {
	switch age := now - o.turned; {
	case o.turned == never:
		o.turned = now
	case age > 2*bucketTime:
		o.delays, o.trips = [2]time.Duration{math.MaxInt64, math.MaxInt64}, [2]time.Duration{math.MaxInt64, math.MaxInt64}
		o.turned = now
	case age > bucketTime:
		o.delays, o.trips = [2]time.Duration{math.MaxInt64, o.delays[0]}, [2]time.Duration{math.MaxInt64, o.trips[0]}
		o.turned = now
	}
}

func (o *observer) least() time.Duration { return min(o.delays[0], o.delays[1]) }

// above is a delay over the least one, in seconds.
func (o *observer) above(d, least time.Duration) float64 { return max(0, seconds(d-least)) }

func (o *observer) roundTrip(now, sentAt, hold time.Duration) {
	t := now - sentAt - hold
	if hold < 0 || t <= 0 || t > time.Minute {
		return
	}
	if o.rtt == 0 {
		o.rtt = seconds(t)
	}
	o.rtt += (seconds(t) - o.rtt) / 8
	o.trips[0] = min(o.trips[0], t)
}

// countLoss compares what arrived with what had left up to the newest packet.
// The differences add up, so that a packet which overtakes others (another lane
// in somebody's priority queue) is a loss for one report only.
func (o *observer) countLoss(now time.Duration, p *point) {
	if !o.lossMark {
		o.lossMark, o.lossSent, o.lossArrived, o.lossAt = true, p.sent.packets, p.arrived, now
		return
	}
	if p.sent.packets <= o.lossSent {
		return
	}
	sent, got := float64(p.sent.packets-o.lossSent), float64(p.arrived-o.lossArrived)
	keep := math.Exp(-min(sent/lossWindow, max(seconds(now-o.lossAt), 0)))
	o.allW = keep*o.allW + sent
	o.lossW = min(max(keep*o.lossW+sent-got, -10), o.allW)
	o.lossSent, o.lossArrived, o.lossAt = p.sent.packets, p.arrived, now
}

// delivery is bytes per second that arrived over at least window, up to the
// report i before the newest; strict: 0 where the reports do not reach so far.
func (o *observer) delivery(i int, window time.Duration, strict bool) float64 {
	if o.n < i+2 {
		return 0
	}
	b := o.back(i)
	var a *point
	for k := i + 1; k < o.n; k++ {
		if a = o.back(k); b.received-a.received >= window {
			return speed(b.bytes-a.bytes, b.received-a.received)
		}
	}
	if strict {
		return 0
	}
	return speed(b.bytes-a.bytes, b.received-a.received)
}

// sendRate is bytes per second at which what arrived over at least window had left.
func (o *observer) sendRate(window time.Duration) float64 {
	if o.n < 2 || !o.back(0).found {
		return 0
	}
	b := o.back(0)
	for k := 1; k < o.n; k++ {
		if a := o.back(k); a.found && b.sentAt-a.sentAt >= window {
			return speed(b.sent.bytes-a.sent.bytes, b.sentAt-a.sentAt)
		}
	}
	return 0
}

// outRate is bytes per second that left over at least window, up to the last report.
func (o *observer) outRate(window time.Duration) float64 {
	for k := 1; k < o.n; k++ {
		if a, b := o.back(k), o.back(0); b.at-a.at >= window {
			return speed(b.gone-a.gone, b.at-a.at)
		}
	}
	return 0
}

func speed(bytes uint64, d time.Duration) float64 {
	if d < time.Millisecond {
		return 0
	}
	return min(float64(bytes)/seconds(d), 4*MaxRate)
}

// recentLoss is the share lost over some reports: eight, or as many as it takes
// to have 200 datagrams. It is not known where there were too few.
func (o *observer) recentLoss() (float64, bool) {
	if o.n < 2 || !o.back(0).found {
		return 0, false
	}
	b := o.back(0)
	var sent, got float64
	for k := 1; k < o.n; k++ {
		a := o.back(k)
		if !a.found || a.sent.packets >= b.sent.packets {
			continue
		}
		sent, got = float64(b.sent.packets-a.sent.packets), float64(b.arrived-a.arrived)
		if k >= 8 && sent >= 200 {
			break
		}
	}
	if sent < 100 {
		return 0, false
	}
	return min(max(1-got/sent, 0), 1), true
}

// lossBase is the least loss of the last 5 to 10 s: what the way loses at any
// rate. A mean would take up what a policer drops, and then allow it.
type lossBase struct {
	least [2]float64
	at    time.Duration
	begun bool
}

func (l *lossBase) add(now time.Duration, loss float64) float64 {
	switch {
	case !l.begun || now-l.at > 2*bucketTime:
		l.least, l.at, l.begun = [2]float64{1, 1}, now, true
	case now-l.at > bucketTime:
		l.least, l.at = [2]float64{1, l.least[0]}, now
	}
	l.least[0] = min(l.least[0], loss)
	return min(l.least[0], l.least[1])
}

// state fills in what every strategy knows.
func (o *observer) state(name string, rate float64) State {
	s := State{Name: name, Rate: rate, RTT: duration(o.rtt), Queue: duration(min(o.q50, 1e6)), LossSamples: int(min(o.allW, 1e9) + 0.5)}
	if t := min(o.trips[0], o.trips[1]); t != math.MaxInt64 {
		s.BaseRTT = t
	}
	if o.allW > 0 {
		s.Loss = max(o.lossW/o.allW, 0)
	}
	s.Delivery = o.delivery(0, 40*time.Millisecond, false)
	return s
}
