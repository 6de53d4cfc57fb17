// SPDX-License-Identifier: Apache-2.0

package bottleneck_test

import (
	"flag"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest/bottleneck"
	"github.com/bauxite-mesh/bauxite/conduit/congestion"
)

// seeds widens the tests: go test ./conduittest/bottleneck -seeds 5.
var seeds = flag.Int("seeds", 1, "how many seeds each scenario runs with")

// raced tells of the race detector, which makes runs ten times slower and has
// nothing to find: a run is one goroutine.
var raced bool

// scenario begins a test of a numbered scenario.
func scenario(t *testing.T) {
	t.Helper()
	if raced {
		t.Skip("runs without the race detector: one goroutine, and two minutes with it")
	}
	t.Parallel()
}

const (
	sec = time.Second
	ms  = time.Millisecond
)

func null() congestion.Strategy { return congestion.NewNull() }

func fixed(rate float64) func() congestion.Strategy {
	return func() congestion.Strategy { return congestion.NewFixed(rate) }
}

func delayRate(floor float64) func() congestion.Strategy {
	return func() congestion.Strategy {
		return congestion.NewDelayRate(congestion.DelayRateConfig{Floor: floor})
	}
}

func cubics(n int) []bottleneck.Flow { return bottleneck.Flows(bottleneck.CUBIC, n, sec) }

// base is the scenario that the others vary: 20 Mbit/s, 256 KiB, 40 ms, 4 CUBIC
// flows from 1 s on, DelayRate.
func base(change func(*bottleneck.Scenario)) bottleneck.Scenario {
	s := bottleneck.Scenario{
		Link:   bottleneck.Link{Rate: 20 * bottleneck.Mbit},
		Robots: []bottleneck.Robot{{Flows: cubics(4)}},
		Sample: 10 * ms, Warm: 6 * sec, Duration: 35 * sec,
	}
	if change != nil {
		change(&s)
	}
	return s
}

// each runs s with every seed and hands over what load added to the idle link.
func each(t *testing.T, s bottleneck.Scenario, check func(*testing.T, *run)) {
	t.Helper()
	s.Seed = 1
	idle := bottleneck.Run(s.Idle())
	for seed := range *seeds {
		s.Seed = uint64(seed + 1)
		name := fmt.Sprint("seed", s.Seed)
		if *seeds == 1 {
			name = "run"
		}
		t.Run(name, func(t *testing.T) {
			r := &run{Result: bottleneck.Run(s), s: s, idle: idle}
			t.Logf("p50 %v p99 %v p99.9 %v max %v over idle; lost %d demoted %d; util %.3f share %.3f; dropped %v marked %d", r.CriticalP50-idle.CriticalP50, r.p99(), r.p999(), r.CriticalMax,
				r.CriticalLost, r.CriticalDemoted, r.Utilisation, r.Share, r.DroppedFor, r.Marked)
			if r.Faults > 0 {
				t.Errorf("%d faults", r.Faults)
			}
			for _, x := range r.Series {
				if x.State.Rate < congestion.MinRate || x.State.Rate > congestion.MaxRate && !math.IsInf(x.State.Rate, 1) {
					t.Fatalf("rate %v at %v", x.State.Rate, x.At)
				}
			}
			check(t, r)
		})
	}
}

type run struct {
	*bottleneck.Result
	s    bottleneck.Scenario
	idle *bottleneck.Result
}

func (r *run) p99() time.Duration  { return r.CriticalP99 - r.idle.CriticalP99 }
func (r *run) p999() time.Duration { return r.CriticalP999 - r.idle.CriticalP999 }

// atMost is a bound in milliseconds.
func atMost(t *testing.T, what string, got time.Duration, bound float64) {
	t.Helper()
	if got > time.Duration(bound*float64(ms)) {
		t.Errorf("%s = %v, want at most %v ms", what, got, bound)
	}
}

func atLeast(t *testing.T, what string, got, bound float64) {
	t.Helper()
	if !(got >= bound) {
		t.Errorf("%s = %.3f, want at least %v", what, got, bound)
	}
}

// goal is what most scenarios want: bounds in milliseconds, none lost, a utilisation.
type goal struct{ p99, p999, util float64 }

func (g goal) check(t *testing.T, r *run) {
	t.Helper()
	atMost(t, "p99", r.p99(), g.p99)
	if g.p999 > 0 {
		atMost(t, "p99.9", r.p999(), g.p999)
	}
	atLeast(t, "utilisation", r.Utilisation, g.util)
	if r.CriticalLost > 0 {
		t.Errorf("%d Critical packets lost", r.CriticalLost)
	}
}

// reached is when the first robot first had 85 % of the link over 300 ms.
func (r *run) reached(from time.Duration) time.Duration {
	for at := from; at < r.s.Duration-sec; at += 100 * ms {
		if r.Rate(0, at, at+300*ms) >= 0.85*r.Capacity(at, at+300*ms) {
			return at - from
		}
	}
	return never
}

const never = 1 << 62

// settled is how long after from the last Critical packet was above the bound, of
// those sent before until.
func (r *run) settled(from, until, bound time.Duration) time.Duration {
	last := from
	for _, p := range r.Critical {
		if p.Sent >= from && p.Sent < until && p.Delay > bound {
			last = p.Sent
		}
	}
	return last - from
}

// leastRate is the least rate from..to while Bulk was not held back on purpose.
func (r *run) leastRate(from, to time.Duration) float64 {
	least := congestion.MaxRate
	for _, x := range r.Series {
		if x.At >= from && x.At < to && !x.State.Draining {
			least = min(least, x.State.Rate)
		}
	}
	return least
}
