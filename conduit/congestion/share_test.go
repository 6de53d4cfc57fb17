// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"testing"
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
