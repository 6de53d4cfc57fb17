// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"time"
)

const (
	initialRate   = 2e6 / 8  // where the search begins, and begins anew
	drainRate     = 96e3 / 8 // what is left to Bulk while a queue drains
	reportEvery   = 0.025    // s; the receiver's habit while Bulk flows
	slowReports   = 250 * time.Millisecond
	leastRate     = 240e3 / 8 // no queue lowers the rate below; a drain and silence do
	cut           = 0.96      // of the delivery
	cutNoisy      = 0.92      // the same where the delay varies by itself
	increase      = 0.10      // per second, of sqrt(rate · increaseScale)
	increaseScale = 20e6 / 8  // bytes/s
	untested      = 3 * time.Second
	undoTime      = 50 * time.Millisecond
	undoWindow    = 16 * time.Millisecond // of delivery
	maxJumpFails  = 4                     // each doubles the time until the next jump
)

// DelayRateConfig tunes a [DelayRate]. The zero value is fit for use.
type DelayRateConfig struct {
	// Initial is where the search for the rate begins, bytes per second. Zero
	// means 250e3 (2 Mbit/s). Half of what the network gave last time is a good one.
	Initial float64
	// Floor is the share of the largest rate of the last ten minutes that Bulk
	// keeps beside foreign flows that fill the queue until it drops. Zero means
	// 0.3, at most 1; negative means none: Bulk then yields nearly all.
	Floor float64
	// PacketSize is the wire bytes of a full Bulk packet. Zero means 1410.
	PacketSize int
}

// DelayRate finds the rate of a path from the delay of its packets and keeps
// the queue in the path's bottleneck within some milliseconds. The package
// comment says how.
type DelayRate struct {
	observer

	floorShare float64
	packet     float64 // wire bytes of a full Bulk packet

	rate     float64 // r
	capacity float64 // C: our share of the link when its queue was last busy; 0 unknown
	q        float64 // s of standing queue, by the last report
	startup  bool
	grew     time.Duration // last multiplicative step

	// The queue model: at anchorAt a packet left that met anchorQ, and until then
	// anchorSent bytes had left.
	anchored   bool
	anchorAt   time.Duration
	anchorSent uint64
	anchorQ    float64

	drain      bool
	drainStart time.Duration
	drainMax   time.Duration
	drainEnd   time.Duration
	checked    bool    // the first report behind the drain was looked at
	cutQ       float64 // queue at the last decrease
	cutAt      time.Duration
	high       time.Duration // since when the queue stands; never: it does not
	again      int           // drains on old news since the last decrease
	fails      int           // drains in a row that did not help
	compete    bool
	competeAt  time.Duration
	lossBase   lossBase
	silent     bool

	// What waits, seen by Tick.
	ticked   time.Duration
	waiting  int    // at the last Tick
	tickBulk uint64 // Bulk that had left then
	waited   time.Duration
	span     time.Duration
	backlog  float64       // share of the time between the last two reports in which Bulk waited
	usage    float64       // share of the rate that left lately
	waitFrom time.Duration // since when Bulk waits without a break
	lastWait time.Duration // when it last did so for 2 ms, or was more than a trickle
	seen     uint64        // of Bulk and Telemetry, at the anchor
	seenTele uint64
	lastLoad time.Duration
	hadLoad  bool

	// A train shows the link, not our share in it. jumped: the rate was raised by one,
	// and what came of it is not known yet; jumpFails counts those in a row that were
	// too much.
	jumped    bool
	jumpAt    time.Duration
	jumpFails int

	// The rate before a cut for a sudden queue, and until when that may be taken back.
	undoRate float64
	undoTo   time.Duration

	beside float64 // what all paths of the uplink are given together; 0 unknown

	noise noise
	train train
	open  open
	peaks peaks
}

// NewDelayRate returns a DelayRate that knows nothing of its path yet. What of
// cfg is out of range takes its default.
func NewDelayRate(cfg DelayRateConfig) *DelayRate {
	if !(cfg.Initial > 0) {
		cfg.Initial = initialRate
	}
	switch {
	case cfg.Floor < 0:
		cfg.Floor = 0
	case !(cfg.Floor > 0):
		cfg.Floor = 0.3
	}
	if cfg.PacketSize <= 0 {
		cfg.PacketSize = 1410
	}
	return &DelayRate{
		observer: newObserver(), floorShare: min(cfg.Floor, 1), packet: float64(cfg.PacketSize),
		rate: clampRate(cfg.Initial), startup: true, checked: true, grew: never,
		drainStart: never, drainEnd: never, cutAt: never, high: never,
		ticked: never, waitFrom: never, lastWait: never, lastLoad: never,
		undoTo: never,
		train:  train{asked: never, left: never, next: never, result: never},
		open:   open{until: never},
	}
}

// TrainSent implements [Strategy].
func (c *DelayRate) TrainSent(now time.Duration, t Train) {
	c.train.sent(c.clock(now), t)
}

// Rate implements [Strategy].
func (c *DelayRate) Rate(now time.Duration) float64 {
	now = c.clock(now)
	c.step(now)
	r := c.rate
	if c.open.on {
		r = MaxRate
	}
	if late := c.late(now); late > 0 {
		// Nothing heard of 3 KB: what keeps the reports away may be a queue.
		return clampRate(r * math.Exp2(-late/0.1))
	}
	if c.drain {
		if c.compete {
			return clampRate(max(r/2, c.floor()))
		}
		return clampRate(min(r, drainRate))
	}
	return r
}

// late is by how many seconds the receiver's next report is overdue.
func (c *DelayRate) late(now time.Duration) float64 {
	if !c.hadLoad || c.waitSince == never || c.n == 0 || c.bytes-c.back(0).gone <= 3000 {
		return 0
	}
	wait := 2*c.rtt + 0.1
	if now-c.lastLoad > time.Second+duration(c.rtt) {
		wait += seconds(slowReports)
	}
	return seconds(now-c.waitSince) - wait
}

// queue is the model of the queue at this moment, in seconds: what the newest
// packet known of met, and what has left since, less what the link took.
func (c *DelayRate) queue(now time.Duration) float64 {
	if c.capacity <= 0 || !c.anchored {
		return 0
	}
	return max(0, c.anchorQ+float64(c.bytes-c.anchorSent)/c.capacity-seconds(now-c.anchorAt))
}

func (c *DelayRate) startDrain(now time.Duration) {
	c.drain, c.drainStart = true, now
	c.drainMax = duration(min(1, 1.5*c.queue(now)+0.02))
}

func (c *DelayRate) endDrain(now time.Duration) { c.drain, c.drainEnd, c.checked = false, now, false }

// step does what only time brings.
func (c *DelayRate) step(now time.Duration) {
	if c.drain && (c.queue(now) < 0.0005 || now-c.drainStart > c.drainMax) {
		c.endDrain(now)
	}
	if c.late(now) > 0.1 {
		c.silent = true
	}
}

// Tick implements [Strategy].
func (c *DelayRate) Tick(now time.Duration, waiting int) int {
	now = c.clock(now)
	c.step(now)
	c.watch(now, max(waiting, 0))
	if c.drain || c.open.on || c.noisy() || !c.train.free(now, c.rtt) {
		return 0
	}
	if !c.startup && (c.q > c.clear() || now-c.cutAt <= c.quietTime()) {
		return 0
	}
	size := int(min(max(c.rate*0.003, 4*c.packet), 48*c.packet))
	if waiting < size {
		return 0
	}
	c.train.asked = now
	return size
}

// watch learns from the ticks for how much of the time Bulk had to wait.
func (c *DelayRate) watch(now time.Duration, waiting int) {
	if c.ticked == never {
		c.ticked, c.waitFrom = now, now
	}
	dt := now - c.ticked
	// What waited at the last tick and has not left since did wait all the while.
	stayed := c.pending(now)
	if stayed {
		c.waited += dt
	}
	c.span += dt
	if !stayed || waiting == 0 {
		c.waitFrom = now
	}
	if now-c.waitFrom >= 2*time.Millisecond || float64(waiting) > 2*c.packet {
		if c.lastWait != never && now-c.lastWait >= untested && !c.startup {
			// For 3 s nothing tested the rate: it is a memory by now.
			c.restart(now, c.delivery(0, 40*time.Millisecond, true))
		}
		c.lastWait = now
	}
	c.ticked, c.waiting, c.tickBulk = now, waiting, c.bulk
}

// restart looks for the rate anew, from what is known to pass.
func (c *DelayRate) restart(now time.Duration, known float64) {
	c.startup, c.open.on = true, false
	c.train.reset(now)
	c.setRate(max(initialRate, c.rate/4, known))
}

func (c *DelayRate) setRate(r float64)     { c.rate = clampRate(r) }
func (c *DelayRate) setCapacity(x float64) { c.capacity = min(max(x, 10e3), MaxRate) }

// feedback is d: how old news of a packet is, in seconds.
func (c *DelayRate) feedback() float64 { return c.rtt + reportEvery }

// packetTime is how long a full packet takes at the rate, in seconds.
func (c *DelayRate) packetTime() float64 { return c.packet / c.rate }

// Learns implements [Learner].
func (c *DelayRate) Learns() {}

// Beside tells what all paths of the uplink are given together, this one included,
// in bytes per second. Where several share a link, a packet takes the time of the
// link and not that of a path's share in it: without knowing so, each path would
// bear a queue that grows with their number.
func (c *DelayRate) Beside(total float64) { c.beside = total }

// linkTime is how long a full packet takes on the link, in seconds: by what the
// uplink is given in all, as far as a train went as fast. The paths may share
// nothing behind the uplink.
func (c *DelayRate) linkTime() float64 {
	return c.packet / max(c.rate, min(c.beside, max(c.train.rate, c.train.before)))
}

// clear is the queue below which the path counts as empty.
func (c *DelayRate) clear() float64 { return max(0.001, 0.6*c.linkTime()) }

// quietTime is how long there must have been no decrease before the rate is
// looked for by more than the steady increase.
func (c *DelayRate) quietTime() time.Duration { return duration(max(1, 14*c.feedback())) }

// floor is what Bulk keeps beside foreign flows.
func (c *DelayRate) floor() float64 { return c.floorShare * c.peaks.max() }

func (c *DelayRate) noisy() bool { return c.noise.s >= 0.004+2*c.packetTime() }

// State implements [Strategy].
func (c *DelayRate) State(now time.Duration) State {
	r := c.Rate(now)
	s := c.state("delay-rate", r)
	s.Startup, s.Draining, s.Competing, s.Noisy = c.startup, c.drain, c.compete, c.noisy()
	s.Noise = duration(c.noise.s)
	return s
}
