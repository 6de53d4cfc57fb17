// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"time"
)

// NewNull returns the strategy without a limit. It still reads the reports, so
// that its State tells of delay and loss.
func NewNull() Strategy {
	return &constant{observer: newObserver(), name: "null", rate: math.Inf(1)}
}

// NewFixed returns the strategy of one rate, in bytes per second on the wire,
// kept within MinRate and MaxRate. It still reads the reports.
func NewFixed(rate float64) Strategy {
	return &constant{observer: newObserver(), name: "fixed", rate: clampRate(rate)}
}

// constant is a strategy whose rate nothing changes.
type constant struct {
	observer
	name string
	rate float64
}

func (c *constant) Report(now time.Duration, r *Report) { c.observe(c.clock(now), r) }
func (c *constant) Tick(time.Duration, int) int         { return 0 }
func (c *constant) TrainSent(time.Duration, Train)      {}
func (c *constant) Rate(time.Duration) float64          { return c.rate }
func (c *constant) State(time.Duration) State           { return c.state(c.name, c.rate) }

// clampRate keeps a finite rate within what a Strategy may return.
func clampRate(r float64) float64 {
	if !(r > MinRate) { // NaN too
		return MinRate
	}
	return min(r, MaxRate)
}
