// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"time"
)

// NewNull returns the strategy without a limit. It still reads the reports, so
// that its State tells of delay and loss.
func NewNull() Strategy { return &constant{name: "null", rate: math.Inf(1)} }

// NewFixed returns the strategy of one rate, in bytes per second on the wire,
// kept within MinRate and MaxRate. It still reads the reports.
func NewFixed(rate float64) Strategy { return &constant{name: "fixed", rate: clampRate(rate)} }

// constant is a strategy whose rate nothing changes.
type constant struct {
	name string
	rate float64
}

func (c *constant) Sent(time.Duration, Sent)       {}
func (c *constant) Report(time.Duration, *Report)  {}
func (c *constant) Tick(time.Duration, int) int    { return 0 }
func (c *constant) TrainSent(time.Duration, Train) {}
func (c *constant) Rate(time.Duration) float64     { return c.rate }
func (c *constant) State(time.Duration) State      { return State{Name: c.name, Rate: c.rate} }

// clampRate keeps a finite rate within what a Strategy may return.
func clampRate(r float64) float64 {
	if !(r > MinRate) { // NaN too
		return MinRate
	}
	return min(r, MaxRate)
}
