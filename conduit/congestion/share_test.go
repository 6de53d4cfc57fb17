// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"testing"
	"time"
)

// What a path bears of a queue is by the packet time of the link that it shares, not
// of its share; and of its own link, where it shares nothing.
func TestBeside(t *testing.T) {
	for name, tt := range map[string]struct{ beside, train, before, want float64 }{
		"alone":                           {0, 2.5e6, 2.4e6, 0.5e6},
		"one of five on a link":           {2.5e6, 2.6e6, 0, 2.5e6},
		"the link was seen a while ago":   {2.5e6, 0.6e6, 2.4e6, 2.4e6},
		"five links behind a wide uplink": {2.5e6, 0.6e6, 0.5e6, 0.6e6},
		"no train yet":                    {2.5e6, 0, 0, 0.5e6},
	} {
		c := NewDelayRate(DelayRateConfig{Initial: 0.5e6})
		c.Beside(tt.beside)
		c.train.rate, c.train.before = tt.train, tt.before
		if got := c.packet / c.linkTime(); math.Abs(got-tt.want) > 1 {
			t.Errorf("%s: a link of %.0f B/s, want %.0f", name, got, tt.want)
		}
	}
}

// A train shows the link and not our share in it: a jump that was too much makes the
// next one rarer, and one that was right makes up for it.
func TestJumpsThatFail(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	c.startup, c.backlog, c.dt, c.rtt = false, 1, 0.025, 0.04
	grow := func(after time.Duration) bool {
		c.setRate(6e6)
		c.grow(&heard{now: c.cutAt + after, d: c.feedback(), res: 12.5e6})
		return c.rate > 8e6
	}
	fail := func(after time.Duration) {
		c.decrease(&heard{now: c.cutAt + after, sentAt: c.cutAt + after, q: 0.02, thr: 0.0025, hard: true, d: c.feedback(), dl: 6e6, window: 40 * time.Millisecond})
	}
	c.cutAt, c.drainEnd = 0, never
	for n, wait := range []time.Duration{1, 2, 4, 8, 16, 16} {
		wait *= time.Second
		if grow(wait - time.Millisecond) {
			t.Fatalf("jump %d comes within %v of the last cut", n, wait)
		}
		if !grow(wait + time.Millisecond) {
			t.Fatalf("jump %d does not come %v after the last cut", n, wait)
		}
		fail(wait + 100*time.Millisecond)
		c.drain, c.drainEnd = false, never
	}
	if !grow(17*time.Second) || c.jumpFails == 0 {
		t.Fatal("no jump")
	}
	grow(19 * time.Second) // no cut since
	if c.jumpFails != 0 {
		t.Errorf("%d failures are remembered after a jump that was right", c.jumpFails)
	}
}

// A stall of the path is not a link that fell: what is delivered while its queue
// stands gives the rate back, and no more than there was before.
func TestUndo(t *testing.T) {
	for name, tt := range map[string]struct {
		after time.Duration
		dl    float64
		noisy bool
		want  float64
	}{
		"a stall":               {16 * time.Millisecond, 2.47e6, false, cut * 2.47e6},
		"a burst":               {16 * time.Millisecond, 9e6, false, 2.4e6},
		"a link that fell":      {16 * time.Millisecond, 0.6e6, false, cut * 1.5e6},
		"long after":            {time.Second, 2.47e6, false, cut * 1.5e6},
		"a path like that ever": {16 * time.Millisecond, 2.47e6, true, cut * 1.5e6},
	} {
		c := NewDelayRate(DelayRateConfig{})
		c.startup, c.backlog, c.rtt, c.drainEnd = false, 1, 0.04, never
		c.setRate(2.4e6)
		now := 10 * time.Second
		c.decrease(&heard{now: now, sentAt: now, loaded: true, q: 0.012, thr: 0.0025, hard: true, d: c.feedback(), dl: 1.5e6, window: 40 * time.Millisecond})
		if c.rate != cut*1.5e6 {
			t.Fatalf("%s: cut to %.0f", name, c.rate)
		}
		c.respond(&heard{now: now + tt.after, sentAt: now, loaded: true, noisy: tt.noisy, q: 0.011, thr: 0.0025, d: c.feedback(), dl: tt.dl, window: 40 * time.Millisecond})
		if math.Abs(c.rate-tt.want) > 1 {
			t.Errorf("%s: rate %.0f, want %.0f", name, c.rate, tt.want)
		}
	}
}

// A queue that one report shows, out of nothing, is looked at again before it costs
// anything.
func TestOneOddReport(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	c.startup, c.backlog, c.rtt, c.drainEnd = false, 1, 0.04, never
	c.setRate(2.4e6)
	h := heard{now: 10 * time.Second, sentAt: 10 * time.Second, loaded: true, q: 0.004, thr: 0.0025, d: c.feedback(), dl: 2.3e6, window: 40 * time.Millisecond}
	if c.decrease(&h); c.rate != 2.4e6 {
		t.Error("one odd report costs rate")
	}
	h.lastQ, h.now, h.sentAt = 0.004, h.now+25*time.Millisecond, h.now+25*time.Millisecond
	if c.decrease(&h); c.rate != cut*2.3e6 {
		t.Errorf("two of them leave %.0f", c.rate)
	}
}
