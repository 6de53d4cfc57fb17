// SPDX-License-Identifier: Apache-2.0

package bottleneck_test

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
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

// TestNullFillsTheQueue checks the model against what was measured in the lab: 256 KiB
// at 20 Mbit/s are 104 ms.
func TestNullFillsTheQueue(t *testing.T) {
	t.Parallel()
	s := base(nil)
	s.Robots[0].Strategy = null
	each(t, s, func(t *testing.T, r *run) {
		if r.p99() < 100*ms || r.p99() > 106*ms {
			t.Errorf("p99 = %v, want 104 ms", r.p99())
		}
		atLeast(t, "utilisation", r.Utilisation, 0.98)
	})
}

func TestFixedBelowTheLink(t *testing.T) {
	t.Parallel()
	s := base(nil)
	s.Robots[0].Strategy = fixed(0.95 * 20 * bottleneck.Mbit)
	each(t, s, goal{1.5, 2, 0.93}.check)
}

// 1: queues and loads.
func TestLoads(t *testing.T) {
	scenario(t)
	loads := map[string][]bottleneck.Flow{
		"1 cubic": cubics(1),
		"4 cubic": cubics(4),
		"2 reno":  bottleneck.Flows(bottleneck.Reno, 2, sec),
		"2 bbr":   bottleneck.Flows(bottleneck.BBR, 2, sec),
		"flood":   append(cubics(4), bottleneck.Flow{Kind: bottleneck.UDP, Rate: 30 * bottleneck.Mbit, Start: sec}),
		"ecn":     cubics(4),
	}
	for i := range loads["ecn"] {
		loads["ecn"][i].ECN = true
	}
	for load, flows := range loads {
		for _, queue := range []int{64, 256, 1024} {
			if testing.Short() && queue != 256 {
				continue
			}
			t.Run(fmt.Sprintf("%s, %d KiB", load, queue), func(t *testing.T) {
				t.Parallel()
				s := base(func(s *bottleneck.Scenario) {
					s.Link.Queue = queue << 10
					s.Robots[0].Flows = flows
				})
				each(t, s, func(t *testing.T, r *run) {
					goal{5, 6, 0.94}.check(t, r)
					if load == "ecn" && (r.Dropped > 0 || r.Marked == 0) {
						t.Errorf("%v dropped, %d marked; want none dropped", r.DroppedFor, r.Marked)
					}
				})
			})
		}
	}
}

// 2: round-trip times. 3: rates.
func TestPaths(t *testing.T) {
	scenario(t)
	for name, c := range map[string]struct {
		change func(*bottleneck.Scenario)
		goal
	}{
		"rtt 10":           {func(s *bottleneck.Scenario) { s.RTT = 10 * ms }, goal{4, 5, 0.96}},
		"rtt 100":          {func(s *bottleneck.Scenario) { s.RTT = 100 * ms }, goal{5, 6, 0.94}},
		"100 Mbit, 64 KiB": {func(s *bottleneck.Scenario) { s.Link.Rate, s.Link.Queue = 100*bottleneck.Mbit, 64<<10 }, goal{4.5, 0, 0.96}},
		"100 Mbit, 1 MiB":  {func(s *bottleneck.Scenario) { s.Link.Rate, s.Link.Queue = 100*bottleneck.Mbit, 1<<20 }, goal{4.5, 0, 0.96}},
		"5 Mbit":           {func(s *bottleneck.Scenario) { s.Link.Rate = 5 * bottleneck.Mbit }, goal{9, 11, 0.93}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := base(c.change)
			if s.Link.Rate > 50*bottleneck.Mbit {
				s.Duration = 20 * sec
			}
			each(t, s, c.check)
		})
	}
}

// 4: from nothing to the link's rate.
func TestColdStart(t *testing.T) {
	scenario(t)
	for mbit, peak := range map[float64]float64{5: 14, 20: 6, 100: 5} {
		t.Run(fmt.Sprint(mbit), func(t *testing.T) {
			t.Parallel()
			s := base(func(s *bottleneck.Scenario) {
				s.Link.Rate = mbit * bottleneck.Mbit
				s.Duration, s.Warm = 6*sec, sec
			})
			each(t, s, func(t *testing.T, r *run) {
				atMost(t, "peak", r.Delays(sec, 3*sec).Max, peak)
				atMost(t, "85 % of the link", r.reached(sec), 500)
			})
		})
	}
}

func stepDown(at time.Duration) float64 {
	if at >= 12*sec && at < 22*sec {
		return 5 * bottleneck.Mbit
	}
	return 20 * bottleneck.Mbit
}

// 5: the link falls to a quarter and comes back.
func TestStep(t *testing.T) {
	scenario(t)
	for _, c := range []struct {
		rtt              time.Duration
		settled, reached float64
	}{
		{40 * ms, 300, 2000},
		{100 * ms, 600, 8000},
	} {
		t.Run(c.rtt.String(), func(t *testing.T) {
			t.Parallel()
			s := base(func(s *bottleneck.Scenario) {
				s.RTT = c.rtt
				s.Link.RateAt = stepDown
				s.Duration = 32 * sec
			})
			each(t, s, func(t *testing.T, r *run) {
				down := r.settled(12*sec, 22*sec, 15*ms)
				t.Logf("peak %v, inside after %v, least rate %.2f Mbit/s, 20 Mbit/s after %v", r.Delays(12*sec, 14*sec).Max, down, r.leastRate(12*sec, 22*sec)/bottleneck.Mbit, r.reached(22*sec))
				atMost(t, "back inside", down, c.settled)
				atMost(t, "inside after the rise", r.settled(22500*ms, 32*sec, 5*ms), 0)
				atLeast(t, "least rate", r.leastRate(12500*ms, 22*sec)/bottleneck.Mbit, 0.6*5)
				atMost(t, "85 % of 20 Mbit/s", r.reached(22*sec), c.reached)
				if r.CriticalLost > 0 {
					t.Errorf("%d Critical packets lost", r.CriticalLost)
				}
			})
		})
	}
}

// 6: what was measured 6 s ago is a memory.
func TestStaleRate(t *testing.T) {
	scenario(t)
	s := base(func(s *bottleneck.Scenario) {
		s.Link.RateAt = func(at time.Duration) float64 {
			if at > 9*sec {
				return 5 * bottleneck.Mbit
			}
			return 20 * bottleneck.Mbit
		}
		for i := range s.Robots[0].Flows {
			s.Robots[0].Flows[i].Active = func(at time.Duration) bool { return at < 6*sec || at > 12*sec }
		}
		s.Duration, s.Warm = 20*sec, 11*sec
	})
	each(t, s, func(t *testing.T, r *run) {
		atMost(t, "p99", r.p99(), 9)
		atMost(t, "max", r.CriticalMax, 20)
	})
}

// 7: two robots on one link.
func TestTwoRobots(t *testing.T) {
	scenario(t)
	for _, c := range []struct{ mbit, p99, util float64 }{{20, 5, 0.95}, {5, 15, 0.92}} {
		t.Run(fmt.Sprint(c.mbit), func(t *testing.T) {
			t.Parallel()
			s := base(func(s *bottleneck.Scenario) {
				s.Link.Rate = c.mbit * bottleneck.Mbit
				s.Robots = append(s.Robots, bottleneck.Robot{Flows: bottleneck.Flows(bottleneck.CUBIC, 4, 6*sec)})
				s.Warm, s.Duration = 12*sec, 45*sec
			})
			each(t, s, func(t *testing.T, r *run) {
				goal{c.p99, 0, c.util}.check(t, r)
				for i, share := range r.Share {
					if share < 0.4 || share > 0.6 {
						t.Errorf("robot %d has %.3f", i, share)
					}
				}
			})
		})
	}
}

// 8: a foreign CUBIC flow comes and goes. It begins at several moments: whether it
// finds the queue empty or not, and so how far its slow start gets, is chance.
func TestForeignFlow(t *testing.T) {
	scenario(t)
	for name, c := range map[string]struct{ floor, low, high float64 }{
		"floor":     {0.3, 0.22, 0.33},
		"scavenger": {-1, 0, 0.06},
	} {
		for _, start := range []time.Duration{10 * sec, 10185 * ms, 10222 * ms} {
			t.Run(fmt.Sprint(name, ", ", start), func(t *testing.T) {
				t.Parallel()
				s := base(func(s *bottleneck.Scenario) {
					s.Robots[0].Strategy = delayRate(c.floor)
					s.Foreign = []bottleneck.Flow{{Start: start, Active: func(at time.Duration) bool { return at < 30*sec }}}
					s.Warm, s.Duration = 12*sec, 45*sec
				})
				alone := s
				alone.Seed, alone.Robots = 1, []bottleneck.Robot{{}}
				limit := bottleneck.Run(alone).Delays(12*sec, 30*sec)
				each(t, s, func(t *testing.T, r *run) {
					// From 15 s on: until then the foreign flow takes its share.
					ours, theirs := r.Rate(0, 15*sec, 30*sec), r.Rate(1, 15*sec, 30*sec)
					share := ours / (ours + theirs)
					got := r.Delays(12*sec, 30*sec)
					after := r.Delays(32*sec, 45*sec)
					util := r.Rate(0, 32*sec, 45*sec) / r.Capacity(32*sec, 45*sec)
					t.Logf("share %.3f, p99 %v (foreign alone %v), lost %d; after: p99 %v, util %.3f", share, got.P99, limit.P99, got.Lost, after.P99, util)
					if share < c.low || share > c.high {
						t.Errorf("share = %.3f, want %v to %v", share, c.low, c.high)
					}
					atMost(t, "p99 over the foreign flow's", got.P99-limit.P99, 2)
					atMost(t, "p99 after it left", after.P99, 5)
					atLeast(t, "utilisation after it left", util, 0.93)
					if got.Lost > 10 {
						t.Errorf("%d Critical packets lost", got.Lost)
					}
				})
			})
		}
	}
}

// wild is a rate of 20 Mbit/s +- 50 %, anew every 200 ms.
func wild(seed uint64) func(time.Duration) float64 {
	rng := rand.New(rand.NewPCG(seed, 7))
	rates := make([]float64, 1000)
	for i := range rates {
		rates[i] = 20 * bottleneck.Mbit * (0.5 + rng.Float64())
	}
	return func(at time.Duration) float64 { return rates[int(at/(200*ms))%len(rates)] }
}

// 9: grants of a cell.
func TestLTE(t *testing.T) {
	scenario(t)
	t.Run("constant", func(t *testing.T) {
		t.Parallel()
		each(t, base(func(s *bottleneck.Scenario) { s.Link.Service = bottleneck.LTE }), func(t *testing.T, r *run) {
			atMost(t, "p99", r.p99(), 8)
			atLeast(t, "utilisation", r.Utilisation, 0.93)
		})
	})
	t.Run("wild", func(t *testing.T) {
		t.Parallel()
		s := base(func(s *bottleneck.Scenario) {
			s.Link.Service = bottleneck.LTE
			s.Link.RateAt = wild(7)
		})
		n := s
		n.Robots = []bottleneck.Robot{{Strategy: null, Flows: cubics(4)}}
		n.Seed = 1
		worst := bottleneck.Run(n)
		each(t, s, func(t *testing.T, r *run) {
			bound := 0.4 * float64(worst.CriticalP99-r.idle.CriticalP99) / float64(ms)
			atMost(t, "p99", r.p99(), bound)
			atLeast(t, "utilisation", r.Utilisation, 0.6)
		})
	})
}

// 10: aggregates and stalls.
func TestWiFi(t *testing.T) {
	scenario(t)
	s := base(func(s *bottleneck.Scenario) {
		s.Link.Service = bottleneck.WiFi
		s.Link.Rate = 40 * bottleneck.Mbit
	})
	n := s
	n.Robots = []bottleneck.Robot{{Strategy: null, Flows: cubics(4)}}
	n.Seed = 1
	most := bottleneck.Run(n).Utilisation
	each(t, s, func(t *testing.T, r *run) {
		atMost(t, "p99", r.p99(), 16)
		atLeast(t, "utilisation beside that of Null", r.Utilisation/most, 0.75)
		low := time.Duration(0) // how long the rate has been low
		for _, x := range r.Series {
			switch {
			case x.At < s.Warm || x.State.Draining:
			case x.State.Rate >= 0.4*most*s.Link.Rate:
				low = 0
			default:
				if low += s.Sample; low == sec {
					t.Errorf("rate %.1f Mbit/s at %v, low for 1 s", x.State.Rate/bottleneck.Mbit, x.At)
				}
			}
		}
	})
}

// 11: clocks that run apart, over 2 minutes, a rekey and the wrap of the stamps.
func TestDrift(t *testing.T) {
	scenario(t)
	for _, ppm := range []float64{100, -100} {
		t.Run(fmt.Sprint(ppm), func(t *testing.T) {
			t.Parallel()
			each(t, base(func(s *bottleneck.Scenario) {
				s.Robots[0].Drift = ppm * 1e-6
				s.Duration = 125 * sec
			}), goal{5, 6, 0.94}.check)
		})
	}
}

// Counters begin anew with each session: nothing may show.
func TestRekey(t *testing.T) {
	t.Parallel()
	each(t, base(func(s *bottleneck.Scenario) { s.Robots[0].Rekey = 3 * sec }), goal{5, 6, 0.94}.check)
}

// 12: reports that are late, lost or silent.
func TestReports(t *testing.T) {
	scenario(t)
	silent := func(at time.Duration) bool { return at > 11800*ms && at < 12800*ms }
	for name, c := range map[string]struct {
		change func(*bottleneck.Scenario)
		goal
	}{
		"jitter and loss": {func(s *bottleneck.Scenario) {
			s.Robots[0].ReportJitter, s.Robots[0].ReportLoss = 20*ms, 0.2
			for i := range s.Robots[0].Flows {
				s.Robots[0].Flows[i].AckJitter = 20 * ms
			}
		}, goal{5, 6, 0.93}},
		"half lost": {func(s *bottleneck.Scenario) { s.Robots[0].ReportLoss = 0.5 }, goal{7, 9, 0.93}},
		"silence":   {func(s *bottleneck.Scenario) { s.Robots[0].ReportSilence = silent }, goal{5, 0, 0.93}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, base(c.change), c.check)
		})
	}
	t.Run("silence in a step", func(t *testing.T) {
		t.Parallel()
		s := base(func(s *bottleneck.Scenario) {
			s.Robots[0].ReportSilence = silent
			s.Link.RateAt = stepDown
			s.Duration = 32 * sec
		})
		each(t, s, func(t *testing.T, r *run) {
			atMost(t, "back inside after reports return", r.settled(12800*ms, 22*sec, 15*ms), 600)
			if r.CriticalLost > 0 {
				t.Errorf("%d Critical packets lost", r.CriticalLost)
			}
		})
	})
}

// 13: a route that is 20 ms longer, then not any more.
func TestRoute(t *testing.T) {
	scenario(t)
	s := base(func(s *bottleneck.Scenario) {
		s.Link.Extra = func(at time.Duration) time.Duration {
			if at > 15*sec && at < 40*sec {
				return 20 * ms
			}
			return 0
		}
		s.Duration = 60 * sec
	})
	each(t, s, func(t *testing.T, r *run) {
		low := time.Duration(0)
		for at := 15 * sec; at < 60*sec; at += 500 * ms {
			if r.Rate(0, at, at+500*ms) < 0.9*r.Capacity(at, at+500*ms) {
				low += 500 * ms
			}
		}
		t.Logf("below 90 %% for %v, least rate %.2f Mbit/s", low, r.leastRate(15*sec, 40*sec)/bottleneck.Mbit)
		atMost(t, "below 90 % of the link", low, 12000)
		longer, back := r.Delays(28*sec, 40*sec), r.Delays(41*sec, 60*sec)
		atMost(t, "p99 on the longer route", longer.P99-20*ms, 5)
		atMost(t, "p99.9 on the longer route", longer.P999-20*ms, 6)
		atMost(t, "p99 on the old route", back.P99, 5)
		atMost(t, "p99.9 on the old route", back.P999, 6)
		atLeast(t, "utilisation on the old route", r.Rate(0, 41*sec, 60*sec)/r.Capacity(41*sec, 60*sec), 0.94)
	})
}

// 14: somebody else's stream of 30 %.
func TestForeignStream(t *testing.T) {
	scenario(t)
	each(t, base(func(s *bottleneck.Scenario) {
		s.Foreign = []bottleneck.Flow{{Kind: bottleneck.UDP, Rate: 6 * bottleneck.Mbit}}
	}), goal{5, 7, 0.66}.check)
}

// 15: Critical of 1.5 Mbit/s on 5.
func TestMuchCritical(t *testing.T) {
	scenario(t)
	s := base(func(s *bottleneck.Scenario) {
		s.Link.Rate = 5 * bottleneck.Mbit
		s.Robots[0].Critical = 1000
	})
	each(t, s, func(t *testing.T, r *run) {
		left := 1 - 190*1000/(5*bottleneck.Mbit)
		goal{10, 0, 0.95 * left}.check(t, r)
	})
}

// 16: no queue to speak of, and loss that has nothing to do with us.
func TestLoss(t *testing.T) {
	scenario(t)
	for name, change := range map[string]func(*bottleneck.Scenario){
		"8 KiB": func(s *bottleneck.Scenario) { s.Link.Queue = 8 << 10 },
		"1 %":   func(s *bottleneck.Scenario) { s.Link.Loss = 0.01 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := base(change)
			n := s
			n.Robots = []bottleneck.Robot{{Strategy: null, Flows: cubics(4)}}
			n.Seed = 1
			most := bottleneck.Run(n).Utilisation
			each(t, s, func(t *testing.T, r *run) {
				t.Logf("Null: %.3f", most)
				if name == "8 KiB" && r.CriticalLost > 0 {
					t.Errorf("%d Critical packets lost", r.CriticalLost)
				}
				atLeast(t, "utilisation beside that of Null", r.Utilisation/most, 0.93)
			})
		})
	}
}
