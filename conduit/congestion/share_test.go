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
		c.decrease(&heard{now: c.cutAt + after, sentAt: c.cutAt + after, q: 0.02, thr: 0.0025, dl: 6e6, window: 40 * time.Millisecond})
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
