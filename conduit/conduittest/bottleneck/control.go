// SPDX-License-Identifier: Apache-2.0

package bottleneck

import "math"

// loss is the part of Reno and CUBIC that is alike: slow start with HyStart's
// delay increase (RFC 9406), and the cut.
type loss struct {
	cwnd, ssthresh float64
	roundRTT       int64 // smallest of this round
	bestRTT        int64 // smallest of the rounds before
	roundEnd       int64
}

func newLoss() loss {
	return loss{cwnd: 10, ssthresh: math.Inf(1), roundRTT: never, bestRTT: never}
}

func (c *loss) window() float64 { return c.cwnd }
func (c *loss) pace() float64   { return 0 }

// slowStart grows the window by one packet per packet, and reports whether it did.
func (c *loss) slowStart(a *sample) bool {
	if c.cwnd >= c.ssthresh {
		return false
	}
	c.cwnd++
	c.roundRTT = min(c.roundRTT, a.rtt)
	if a.seq >= c.roundEnd {
		rise := min(16*millisecond, max(4*millisecond, c.bestRTT/8))
		if c.bestRTT < never && c.cwnd > 16 && c.roundRTT > c.bestRTT+rise {
			c.ssthresh = c.cwnd
		}
		c.bestRTT = min(c.bestRTT, c.roundRTT)
		c.roundRTT = never
		c.roundEnd = a.next
	}
	return true
}

type reno struct{ loss }

func newReno() *reno { return &reno{newLoss()} }

func (c *reno) acked(_ int64, a *sample, recovering bool) {
	if !recovering && !c.slowStart(a) {
		c.cwnd += 1 / c.cwnd
	}
}

func (c *reno) congested() {
	c.cwnd = max(2, c.cwnd*0.5)
	c.ssthresh = c.cwnd
}

func (c *reno) expired(again bool) {
	if !again {
		c.ssthresh = max(2, c.cwnd*0.5)
	}
	c.cwnd = 2
}

// cubic is RFC 9438: C = 0.4, beta = 0.7, fast convergence, Reno-friendly region.
type cubic struct {
	loss
	most, k  float64
	epoch    int64
	friendly float64
}

func newCubic() *cubic { return &cubic{loss: newLoss()} }

func (c *cubic) acked(now int64, a *sample, recovering bool) {
	if recovering || c.slowStart(a) {
		return
	}
	if c.epoch == 0 {
		c.epoch = now
		c.k = 0
		if c.cwnd < c.most {
			c.k = math.Cbrt((c.most - c.cwnd) / 0.4)
		} else {
			c.most = c.cwnd
		}
		c.friendly = c.cwnd
	}
	t := (float64(now-c.epoch) + a.srtt) / 1e9
	t -= c.k
	target := min(c.most+0.4*t*t*t, 1.5*c.cwnd)
	c.cwnd += max(0.01, target-c.cwnd) / c.cwnd
	c.friendly += 3 * 0.3 / 1.7 / c.cwnd
	c.cwnd = max(c.cwnd, c.friendly)
}

func (c *cubic) congested() {
	if c.cwnd < c.most {
		c.most = c.cwnd * 0.85
	} else {
		c.most = c.cwnd
	}
	c.cwnd = max(2, c.cwnd*0.7)
	c.ssthresh = c.cwnd
	c.epoch = 0
}

func (c *cubic) expired(again bool) {
	if !again {
		c.ssthresh = max(2, c.cwnd*0.7)
		c.most = c.cwnd
	}
	c.cwnd = 2
	c.epoch = 0
}

// Phases of bbr.
const (
	bbrStartup = iota
	bbrDrain
	bbrProbeBandwidth
	bbrProbeRTT
)

// bbr resembles BBR version 1: a model of bandwidth (maximum over ten rounds) and
// propagation (minimum over 10 s), and a gain cycle of eight.
type bbr struct {
	cwnd       float64
	bandwidth  [10]float64
	round      int
	roundEnd   int64
	phase      int
	full       float64
	flat       int
	minRTT     int64
	minAt      int64
	cycle      int
	cycleAt    int64
	probeUntil int64
}

func newBBR() *bbr { return &bbr{cwnd: 10, minRTT: never} }

func (c *bbr) window() float64 { return c.cwnd }
func (c *bbr) congested()      {}
func (c *bbr) expired(bool)    { c.cwnd = 4 }

func (c *bbr) most() float64 {
	m := 0.0
	for _, b := range c.bandwidth {
		m = max(m, b)
	}
	return m
}

func (c *bbr) pace() float64 {
	gain := 1.0
	switch c.phase {
	case bbrStartup:
		gain = 2.885
	case bbrDrain:
		gain = 0.35
	case bbrProbeBandwidth:
		gain = [8]float64{1.25, 0.75, 1, 1, 1, 1, 1, 1}[c.cycle]
	}
	return c.most() * gain
}

func (c *bbr) acked(now int64, a *sample, _ bool) {
	if old := now-c.minAt > 10*second; a.rtt < c.minRTT || old {
		c.minRTT, c.minAt = a.rtt, now
		if old && c.phase == bbrProbeBandwidth {
			c.phase = bbrProbeRTT
			c.probeUntil = now + 200*millisecond
		}
	}
	if a.priorBytes >= c.roundEnd {
		c.nextRound(a)
	}
	rate := float64(a.delivered-a.priorBytes) / float64(max(a.sinceAcked, a.rtt)) * 1e9
	slot := &c.bandwidth[c.round%len(c.bandwidth)]
	*slot = max(*slot, rate)

	bdp := c.most() * float64(c.minRTT) / 1e9 / float64(a.size)
	switch c.phase {
	case bbrStartup:
		c.cwnd = max(4, 2.885*bdp)
		return
	case bbrDrain:
		if float64(a.inflight) <= bdp {
			c.phase, c.cycle, c.cycleAt = bbrProbeBandwidth, 2, now
		}
	case bbrProbeBandwidth:
		if now-c.cycleAt > c.minRTT {
			c.cycle = (c.cycle + 1) % 8
			c.cycleAt = now
		}
	case bbrProbeRTT:
		c.cwnd = 4
		if now > c.probeUntil {
			c.phase, c.minAt = bbrProbeBandwidth, now
		}
		return
	}
	c.cwnd = max(4, 2*bdp)
}

func (c *bbr) nextRound(a *sample) {
	c.round++
	c.roundEnd = a.delivered
	c.bandwidth[c.round%len(c.bandwidth)] = 0
	if c.phase != bbrStartup {
		return
	}
	if m := c.most(); m > 1.25*c.full {
		c.full, c.flat = m, 0
	} else if c.flat++; c.flat >= 3 {
		c.phase = bbrDrain
	}
}
