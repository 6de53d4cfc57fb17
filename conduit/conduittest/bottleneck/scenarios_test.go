// SPDX-License-Identifier: Apache-2.0

package bottleneck_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest/bottleneck"
)

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
