// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"time"
)

const (
	// fastRate is where a link counts as fast: its queue is short in time, so one
	// report more is awaited, since a host that is busy shows as delay too.
	fastRate = 200e6 / 8
	// usedUp is the share of the rate that must have left for the rate to be what
	// holds the traffic back, where no Bulk waits: Telemetry has no backlog here.
	usedUp = 0.9
	// standingTime is how long a queue stands before it counts on an open path.
	standingTime = 120 * time.Millisecond
)

// heard is what one report comes to.
type heard struct {
	now    time.Duration
	sentAt time.Duration // when the newest packet left
	loaded bool          // traffic of ours that is paced arrived
	idle   bool          // there was none for some time
	noisy  bool
	hard   bool
	lastQ  float64       // median of the report before, s
	jump   bool          // a delay that was not there one report ago and is not there for all packets
	q      float64       // standing queue, s
	thr    float64       // the most that it may be
	d      float64       // feedback delay, s
	dl     float64       // delivery, bytes/s
	window time.Duration // of dl
	res    float64       // what a train showed, bytes/s; 0: nothing
	luck   float64       // the same, of a batch that was a train by chance
}

// Report implements [Strategy].
func (c *DelayRate) Report(now time.Duration, r *Report) {
	now = c.clock(now)
	c.step(now)
	if c.silent {
		c.silent = false
		if c.pending(now) || now-c.lastLoad < time.Second {
			c.restart(now, 0)
		}
	}
	if !c.observe(now, r) {
		return
	}
	c.measureBacklog()
	if c.n < 2 || !c.fresh {
		c.anchor(c.qlast)
		return
	}
	h := c.hear(now, r)
	c.respond(&h)
}

// pending tells whether Bulk waits, as far as the last tick knows.
func (c *DelayRate) pending(now time.Duration) bool {
	return c.waiting > 0 && c.bulk-c.tickBulk < uint64(c.waiting) && now-c.ticked < 20*time.Millisecond
}

func (c *DelayRate) measureBacklog() {
	if c.dt > 0.002 || c.span > 2*time.Millisecond {
		c.backlog = min(1, seconds(c.waited)/max(seconds(c.span), c.dt))
		c.waited, c.span = 0, 0
	}
	c.usage = 0
	if !c.open.on && !c.drain {
		c.usage = c.outRate(100*time.Millisecond) / c.rate
	}
}

// anchor ties the queue model to the newest packet of the last report.
func (c *DelayRate) anchor(q float64) {
	if p := c.back(0); p.found {
		c.anchored, c.anchorAt, c.anchorSent, c.anchorQ = true, p.sentAt, p.sent.bytes, q
	}
}

// load tells whether traffic that is paced arrived since the last report: any
// Bulk, or so much Telemetry that it matters.
func (c *DelayRate) load() bool {
	p := c.back(0)
	if !p.found {
		return c.pending(p.at)
	}
	loaded := p.sent.bulk > c.seen
	if tele := p.sent.telemetry; tele > c.seenTele {
		loaded = loaded || float64(tele-c.seenTele) > 0.25*c.rate*min(c.dt, 1)
	}
	c.seen, c.seenTele = max(c.seen, p.sent.bulk), max(c.seenTele, p.sent.telemetry)
	return loaded
}

// hear learns what the report says of the path.
func (c *DelayRate) hear(now time.Duration, r *Report) heard {
	if c.train.result == never {
		c.train.result = now
	}
	h := heard{now: now, sentAt: c.back(0).sentAt, d: c.feedback(), window: 40 * time.Millisecond}
	if h.loaded = c.load(); h.loaded {
		c.hadLoad, c.lastLoad = true, now
		c.noise.samples = 0
	}
	h.idle = !c.hadLoad || now-c.lastLoad > duration(0.4+c.rtt) && !c.pending(now) && !c.drain

	c.noise.age(c.dt)
	switch {
	case h.idle:
		c.noise.idle(now, r.Samples, c.qlo, c.qmax)
	case !c.drain && now > c.drainEnd+duration(2*h.d) && !c.train.out() && !c.startup:
		c.noise.loaded(c.qlo, c.packetTime())
	}
	h.lastQ = c.noise.q50
	h.jump = h.lastQ < 0.001 && c.qlo < 0.001 && !c.train.out() && now-c.train.result > duration(h.d)
	c.noise.remember(now, c.q50, c.qlo, c.qmax)

	h.noisy = c.noisy()
	s := min(c.noise.s, noiseMax)
	h.q = c.q50
	anchorQ := c.qlast
	switch {
	case h.noisy:
		h.q = c.noise.standing(now, duration(min(max(4*s, 0.04), 0.12)))
		h.window = duration(max(0.08, 5*s))
		anchorQ = h.q
	case c.open.on:
		h.q = c.noise.standing(now, standingTime)
		anchorQ = h.q
	case c.rate >= fastRate:
		h.q = min(h.q, h.lastQ)
	}
	c.q = h.q
	c.anchor(anchorQ)
	h.thr = max(0.0025, 2.2*c.linkTime())
	h.hard = h.q > 3*h.thr
	h.dl = c.delivery(0, h.window, false)
	if h.res = c.take(now, r); h.res == 0 {
		h.luck = c.chance(&h, r)
	}
	if h.q <= h.thr {
		c.high = never
	} else if c.high == never {
		c.high = now
	}
	if h.loaded {
		if x := c.delivery(0, 400*time.Millisecond, true); x > 0 {
			c.peaks.add(now, min(x, c.Rate(now)))
		}
	}
	return h
}

// respond changes the rate.
func (c *DelayRate) respond(h *heard) {
	c.undo(h)
	if h.hard && h.loaded && c.capacity > 0 && h.dl < c.capacity && (!c.drain || h.sentAt <= c.drainStart) {
		// The link falls: the newest sample counts.
		c.setCapacity(max(h.dl, 0.3*c.capacity))
		if h.now-c.cutAt < duration(6*h.d) {
			c.lowerRate(cut * c.capacity)
		}
	}
	if c.drain {
		if c.startup && h.res > 0 {
			c.setRate(max(c.rate, min(4*c.rate, 0.85*h.res)))
		}
		return
	}
	c.checkDrain(h)
	switch {
	case h.q > h.thr:
		c.decrease(h)
	case c.open.on:
		c.policed(h)
	case c.startup:
		c.search(h)
	case !c.policed(h):
		c.grow(h)
	}
}

// undo takes back what a stall of the path made of the rate: for some milliseconds
// nothing came, as where a radio retries, which looks like a link that fell. But what
// is delivered while the queue of the stall stands is the link's rate again.
func (c *DelayRate) undo(h *heard) {
	if h.now >= c.undoTo || h.noisy || !h.loaded || h.q <= h.thr {
		return
	}
	h.dl = max(h.dl, c.delivery(0, undoWindow, true))
	if h.dl <= c.capacity {
		return
	}
	c.setCapacity(h.dl)
	if r := min(c.undoRate, cut*h.dl); r > c.rate {
		c.setRate(r)
	}
}

// checkDrain asks whether the queue went while Bulk stood still. If not, time
// and again, it is somebody else's.
func (c *DelayRate) checkDrain(h *heard) {
	if !c.checked && h.sentAt > c.drainEnd {
		c.checked = true
		if h.q > max(h.thr, 0.4*c.cutQ) {
			c.fails++
		} else {
			c.fails = 0
		}
		if c.fails >= 3 && !c.compete {
			c.compete, c.competeAt = true, h.now
		}
	}
	if !c.compete {
		return
	}
	if h.q < h.thr {
		c.compete, c.fails = false, 0
	}
	// A floor that does not arrive was that of a better link.
	if h.now-c.competeAt > time.Second+duration(c.rtt) && h.loaded && c.rate <= c.floor() && c.backlog > 0.5 {
		if x := c.delivery(0, 400*time.Millisecond, true); x > 0 && x < 0.8*c.rate {
			c.peaks.lower(x)
			c.competeAt = h.now
		}
	}
	c.setRate(max(c.rate, c.floor()))
}

// limited tells whether it is the rate that makes the queue. A trickle meets
// queues of others, and its delivery says nothing of the link.
func (c *DelayRate) limited(h *heard) bool {
	if c.backlog > 0.3 || c.usage > usedUp || c.open.on || h.dl > 0.5*c.rate {
		return true
	}
	if out := c.sendRate(h.window); out > 1.02*h.dl && out > 0.25*c.rate {
		return true
	}
	return h.now-c.high > 500*time.Millisecond && h.dl > 0.1*c.rate
}

// decrease answers a queue: what is delivered while there is one is our share
// of the link.
func (c *DelayRate) decrease(h *heard) {
	if h.idle || !c.limited(h) {
		return // not our queue
	}
	if h.sentAt <= c.drainEnd {
		// Old news. Does the model say that the queue is still there? It may be
		// wrong where others are in the queue: then a look at it is due.
		if c.queue(h.now) > h.thr && !c.compete && c.again < 2 {
			c.again++
			c.startDrain(h.now)
		}
		return
	}
	if !h.hard && !c.startup && !c.compete && h.lastQ < h.thr/2 {
		return // too sudden for what our rate does to a queue: is it still there at the next?
	}
	if c.jumped && h.now-c.jumpAt < duration(4*h.d) {
		c.jumpFails = min(c.jumpFails+1, maxJumpFails)
	}
	c.jumped = false
	if h.hard && h.lastQ < 0.001 && !c.startup && !h.noisy {
		c.undoRate, c.undoTo = c.rate, h.now+duration(h.d+h.q)+undoTime
	}
	if h.jump && !c.startup {
		c.noise.event(c.qmax)
	}
	share := h.dl
	if !h.hard {
		// One odd report must not take the rate down for good.
		for i := 1; i <= 4; i++ {
			share = max(share, c.delivery(i, h.window, true))
		}
	}
	searching := false
	if c.startup {
		// The window may span idle time.
		if c.train.count == 0 && (c.train.out() || !c.trainless(h)) {
			share, searching = max(share, c.delivery(0, 8*time.Millisecond, true)), true
		} else if c.train.rate < veryFast {
			share = max(share, 0.85*c.train.rate)
		}
	}
	if c.open.on {
		c.open.shut(h.now)
		c.rate = MaxRate
	}
	c.startup = searching
	c.setCapacity(share)
	factor := cut
	if h.noisy {
		factor = cutNoisy
	}
	c.lowerRate(factor * share)
	c.cutQ, c.cutAt, c.again = h.q, h.now, 0
	if c.compete {
		c.setRate(max(c.rate, c.floor()))
		c.endDrain(h.now)
		return
	}
	c.startDrain(h.now)
}

// search finds the rate at the start: by trains; where the delay varies or no
// train comes through, by steps.
func (c *DelayRate) search(h *heard) {
	if h.res > 0 {
		c.train.next = h.now
		c.setRate(max(c.rate, min(4*c.rate, 0.92*h.res)))
		if c.tryOpen(h) {
			return
		}
		if c.rate > 0.8*h.res && c.train.count >= 2 {
			c.startup, c.cutAt = false, h.now
		}
		return
	}
	if h.luck > 0 && c.busy() {
		c.setRate(max(c.rate, min(4*c.rate, 0.92*h.luck)))
		c.train.result = h.now
		c.tryOpen(h)
		return
	}
	if c.backlog < 0.3 && c.usage < 0.6 {
		c.train.result = h.now // none was needed
		return
	}
	if c.trainless(h) && c.busy() && h.now-c.grew >= duration(0.9*h.d) && !c.policed(h) {
		c.setRate(1.25 * c.rate)
		c.grew = h.now
	}
}

// trainless tells that trains cannot show the rate: the delay varies, or none came through.
func (c *DelayRate) trainless(h *heard) bool {
	return h.noisy || h.now-c.train.result > duration(max(0.4, 5*h.d))
}

// lowerRate lowers the rate to r, but keeps enough for Critical not to be policed.
func (c *DelayRate) lowerRate(r float64) { c.setRate(min(c.rate, max(r, leastRate))) }

// busy tells whether more rate would be used.
func (c *DelayRate) busy() bool { return c.backlog > 0.5 || c.usage > usedUp }

// tryOpen takes the limit away where trains say that the link is faster than we are.
func (c *DelayRate) tryOpen(h *heard) bool {
	if c.rate < 0.6*openRate || min(c.train.rate, c.train.before) < openRate || h.q > 0.001 || h.now < c.open.until {
		return false
	}
	c.open.on, c.startup = true, false
	return true
}

// policed answers loss without delay: a policer, or a queue of few packets.
func (c *DelayRate) policed(h *heard) bool {
	loss, known := c.recentLoss()
	if !known {
		return false
	}
	base := c.lossBase.add(h.now, loss)
	busy := c.backlog > 0.3 || c.usage > usedUp || c.open.on
	if loss <= 2*base+0.08 || !busy || h.dl <= 0 || h.sentAt <= c.drainEnd || h.now-c.cutAt <= duration(2*h.d) {
		return false
	}
	if c.open.on {
		c.open.shut(h.now)
	}
	c.startup = false
	c.setRate(0.97 * h.dl / (1 - min(0.5, base)))
	c.cutAt = h.now
	return true
}

// grow raises the rate where it is used: by a law under which two senders get
// equal shares, and faster once no queue has been seen for some time.
func (c *DelayRate) grow(h *heard) {
	if !c.busy() {
		return
	}
	quiet := h.now-c.cutAt > c.quietTime()
	if h.noisy {
		quiet = h.now-c.cutAt > duration(max(0.4, 5*h.d))
	}
	empty := h.q < c.clear()
	step := 0.0
	switch {
	case quiet && h.noisy:
		step = 1.05
	case quiet && empty && c.rate >= fastRate:
		step = 1.02 // a fast link fills a short queue slowly
	}
	if step > 0 && h.now-c.grew >= duration(0.9*h.d) {
		c.setRate(step * c.rate)
		c.grew = h.now
	}
	r := c.rate + increase*math.Sqrt(c.rate*increaseScale)*min(1, 0.065/h.d)*min(c.dt, 0.1)
	if c.jumped && h.now-c.jumpAt > c.quietTime() {
		c.jumped, c.jumpFails = false, 0 // it was right
	}
	if res := max(h.res, h.luck); quiet && empty && !h.noisy && res > 1.3*r && h.now-c.cutAt > c.quietTime()<<c.jumpFails {
		c.jumped, c.jumpAt = true, h.now
		r = min(1.5*r, 0.92*res)
		c.train.next = h.now
		c.setRate(r)
		c.tryOpen(h)
		return
	}
	c.setRate(r)
}
