// SPDX-License-Identifier: Apache-2.0

package bottleneck_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest/bottleneck"
)

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
		if r.CriticalDemoted > 0 {
			t.Errorf("%d Critical packets demoted", r.CriticalDemoted)
		}
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

// What the numbered scenarios leave out.
func TestBeyond(t *testing.T) {
	scenario(t)
	for name, c := range map[string]struct {
		change func(*bottleneck.Scenario)
		goal
	}{
		"other round trips": {func(s *bottleneck.Scenario) {
			s.Robots[0].RTT = 20 * ms
			s.Robots = append(s.Robots, bottleneck.Robot{RTT: 100 * ms, Flows: bottleneck.Flows(bottleneck.CUBIC, 4, 6*sec)})
			s.Warm, s.Duration = 15*sec, 50*sec
		}, goal{5, 6, 0.95}},
		"four robots": {func(s *bottleneck.Scenario) {
			for i := range 3 {
				s.Robots = append(s.Robots, bottleneck.Robot{Flows: bottleneck.Flows(bottleneck.CUBIC, 2, time.Duration(2+i)*sec)})
			}
			s.Warm = 12 * sec
		}, goal{15, 18, 0.92}},
		"joined": {func(s *bottleneck.Scenario) {
			s.Link.Rate, s.Robots[0].Coalesce = 100*bottleneck.Mbit, 300*time.Microsecond
			s.Duration = 15 * sec
		}, goal{5, 6, 0.95}},
		"slow timer": {func(s *bottleneck.Scenario) { s.Timer = 4 * ms }, goal{5, 6, 0.94}},
		"jitter":     {func(s *bottleneck.Scenario) { s.Link.Jitter = 2 * ms }, goal{5, 7, 0.94}},
		"fast": {func(s *bottleneck.Scenario) {
			s.Link.Rate, s.Link.Queue, s.RTT = 500*bottleneck.Mbit, 1<<20, 10*ms
			s.Warm, s.Duration = 3*sec, 8*sec
		}, goal{8, 10, 0.94}},
		"pauses": {func(s *bottleneck.Scenario) {
			for i := range s.Robots[0].Flows {
				s.Robots[0].Flows[i].Active = func(at time.Duration) bool { return at%(4*sec) < 2*sec }
			}
		}, goal{5, 6, 0.4}},
		"telemetry": {func(s *bottleneck.Scenario) {
			s.Robots[0].Flows = append(s.Robots[0].Flows, bottleneck.Flow{Kind: bottleneck.UDP, Rate: 5 * bottleneck.Mbit, Telemetry: true})
		}, goal{5, 6, 0.94}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, base(c.change), func(t *testing.T, r *run) {
				c.check(t, r)
				if name == "other round trips" && (r.Share[0] < 0.35 || r.Share[0] > 0.65) {
					t.Errorf("share = %.3f", r.Share)
				}
			})
		})
	}
}

// What DelayRate does badly, so that nobody finds it by chance. A delay that wanders by
// 5 ms or more within some reports, and does not come back to its base between them,
// looks like a queue that stands: Critical is safe, and Bulk gets a part of the link.
func TestWeakSpots(t *testing.T) {
	scenario(t)
	for jitter, util := range map[time.Duration]float64{5 * ms: 0.25, 10 * ms: 0.12} {
		t.Run(jitter.String(), func(t *testing.T) {
			t.Parallel()
			each(t, base(func(s *bottleneck.Scenario) { s.Link.Jitter = jitter }), goal{5, 6, util}.check)
		})
	}
}
