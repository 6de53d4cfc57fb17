// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/bench"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

const mbit = 1_000_000

// Plan lists the scenarios. load is how long a link is filled, zero for what each
// case takes by itself.
func Plan(load time.Duration) []bench.Scenario {
	return []bench.Scenario{
		fillPlan(load), stepPlan(load), foreignPlan(load), sharePlan(load), floodPlan(load), imagePlan(load),
		lossyPlan(load), saturatePlan(load), comparePlan(load),
	}
}

// or is the load of a case.
func or(load, own time.Duration) time.Duration {
	if load > 0 {
		return load
	}
	return own
}

// limit bounds a case whose load takes so long.
func limit(load time.Duration) time.Duration { return load*2 + 90*time.Second }

// over gives what was measured under load its goals over the idle latency.
func over(s *bench.Sheet, idle, loaded probe.Latency, p99, p999 float64) {
	s.MS("p99 over idle", bench.Median, loaded.P99-idle.P99).AtMost(p99)
	f := s.MS("p99.9 over idle", bench.Median, loaded.P999-idle.P99)
	if p999 > 0 {
		f.AtMost(p999)
	}
}

func spread(s *bench.Sheet, when string, l probe.Latency) {
	s.MS(when+" p50", bench.Median, l.P50)
	s.MS(when+" p99", bench.Median, l.P99)
	s.MS(when+" p99.9", bench.Median, l.P999)
	s.MS(when+" max", bench.Median, l.Max)
}

func fillPlan(load time.Duration) bench.Scenario {
	sc := bench.Scenario{
		Name: "fill", Title: "A thin link that Bulk fills",
		Text: "256 KiB of tail-drop queue, 40 ms of round trip; 4 TCP flows and a UDP flood of 1.5 times the link through the tunnel beside 100 Critical requests a second. *Own interface*: the rate limit is that of the sender's interface; *router*: that of a router's in the middle; *download*: the one that sends requests downloads. The first 2 s are reported apart; lost requests count from the start on.",
	}
	load = or(load, time.Minute)
	for _, rate := range []int64{20, 5} {
		for _, where := range []Where{Own, Router, Download} {
			o := FillOptions{Bottleneck: Bottleneck{Where: where, Rate: rate * mbit}, Flows: 4, Flood: rate * mbit * 3 / 2, Load: load}
			p99, p999, peak := 5.0, 10.0, 10.0
			if rate == 5 {
				p99, p999, peak = 15, 0, 15
			}
			sc.Cases = append(sc.Cases, bench.Case{
				Name: fmt.Sprintf("%d Mbit/s, %s", rate, where), Limit: limit(load), Rivals: true, Alone: true,
				Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
					r, err := Fill(ctx, lab, sys, o)
					if err != nil {
						return err
					}
					s.MS("idle p50", bench.Median, r.Idle.P50)
					s.MS("idle p99", bench.Median, r.Idle.P99)
					spread(s, "loaded", r.Loaded)
					over(s, r.Idle, r.Loaded, p99, p999)
					s.Count("requests lost", r.First.Lost()+r.Loaded.Lost()).AtMost(0)
					s.Add("Bulk of the link", "%", bench.Median, 100*r.Share).Least(90)
					s.Add("Bulk that arrived", "Mbit/s", bench.Median, r.Goodput*8/mbit)
					s.Add("of it UDP", "Mbit/s", bench.Median, r.UDP*8/mbit)
					s.Count("dropped by the bottleneck", r.Dropped)
					s.MS("first 2 s, peak over idle p99", bench.Median, r.First.Max-r.Idle.P99).AtMost(peak)
					s.MS("first 2 s, p99", bench.Median, r.First.P99)
					s.MS("85 % of the link after", bench.Median, r.Reached).AtMost(1000)
					return nil
				},
			})
		}
	}
	return sc
}

func stepPlan(load time.Duration) bench.Scenario {
	load = or(load, time.Minute)
	o := FillOptions{Bottleneck: Bottleneck{Where: Router, Rate: 20 * mbit}, Flows: 4, Flood: 30 * mbit, Load: load}
	return bench.Scenario{
		Name: "step", Title: "The link becomes thinner and recovers",
		Text: "The same with a rate that falls from 20 to 5 Mbit/s after a third of the time and rises again after two. *Inside*: from the fall until all requests of a second were answered within idle p99 + 15 ms, what was sent after the fall counted. That there is a spike nobody can avoid: what is under way at the old rate is in the queue already.",
		Cases: []bench.Case{{
			Name: "20, 5, 20 Mbit/s, router", Limit: limit(load), Rivals: true, Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := Steps(ctx, lab, sys, o, 5*mbit, 15*time.Millisecond)
				if err != nil {
					return err
				}
				s.MS("idle p99", bench.Median, r.Idle.P99)
				s.MS("p99 before", bench.Median, r.Before.P99)
				s.MS("spike over idle p99", bench.Median, r.Peak-r.Idle.P99)
				s.MS("inside after", bench.Median, r.Inside).AtMost(600)
				s.MS("p50 at 5 Mbit/s", bench.Median, r.Low.P50)
				s.MS("p99 at 5 Mbit/s, the fall included", bench.Median, r.Low.P99)
				s.Count("requests lost", r.Before.Lost()+r.Low.Lost()+r.After.Lost())
				s.Add("Bulk of 5 Mbit/s", "%", bench.Median, 100*r.Share)
				s.MS("85 % of 20 Mbit/s after the rise", bench.Median, r.Reached)
				s.MS("p99 after the rise", bench.Median, r.After.P99)
				return nil
			},
		}},
	}
}

func foreignPlan(load time.Duration) bench.Scenario {
	load = or(load, time.Minute)
	o := FillOptions{Bottleneck: Bottleneck{Where: Router, Rate: 20 * mbit}, Flows: 4, Load: load}
	return bench.Scenario{
		Name: "foreign", Title: "Beside a foreign flow",
		Text: "A CUBIC flow of a third host shares the 20 Mbit/s, outside the tunnel: alone from its first loss on, then with 4 TCP flows of Bulk beside it, then those alone. The queue is the foreign flow's; no one can lower it from here. Bulk has had the link for 6 s before, so that the floor, a share of what the link gave in the last ten minutes, is known.",
		Cases: []bench.Case{{
			Name: "one CUBIC flow", Limit: limit(2 * load), Rivals: true, Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := Foreign(ctx, lab, sys, o, false)
				if err != nil {
					return err
				}
				s.MS("idle p99", bench.Median, r.Idle.P99)
				s.MS("p50 beside the foreign flow alone", bench.Median, r.Alone.P50)
				s.MS("p99 beside the foreign flow alone", bench.Median, r.Alone.P99)
				s.MS("p50 with Bulk", bench.Median, r.Loaded.P50)
				s.MS("p99 with Bulk", bench.Median, r.Loaded.P99)
				s.MS("p99 that Bulk adds", bench.Median, r.Loaded.P99-r.Alone.P99).AtMost(3)
				s.Add("the tunnel's share", "%", bench.Median, 100*r.Share).Least(20)
				s.Count("requests lost with Bulk", r.Loaded.Lost())
				s.MS("p99 after it has left", bench.Median, r.Left.P99)
				s.Add("of the link after it has left", "%", bench.Median, 100*r.LeftShare)
				return nil
			},
		}, {
			Name: "one CUBIC flow, the link unknown", Limit: limit(2 * load), Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := Foreign(ctx, lab, sys, o, true)
				if err != nil {
					return err
				}
				s.MS("p99 beside the foreign flow alone", bench.Median, r.Alone.P99)
				s.MS("p99 that Bulk adds", bench.Median, r.Loaded.P99-r.Alone.P99).AtMost(3)
				s.Add("the tunnel's share", "%", bench.Median, 100*r.Share)
				s.Add("of the link after it has left", "%", bench.Median, 100*r.LeftShare)
				return nil
			},
		}},
	}
}

func saturatePlan(load time.Duration) bench.Scenario {
	load = or(load, 20*time.Second)
	return bench.Scenario{
		Name: "cpu", Title: "The processor is the limit",
		Text: "Nothing is shaped; one TCP flow takes what the tunnel gives. *Raw* is the same without a tunnel.",
		Cases: []bench.Case{{
			Name: "one TCP flow", Limit: limit(load), Rivals: true, Raw: true, Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := Saturate(ctx, lab, sys, 1, load)
				if err != nil {
					return err
				}
				s.MS("idle p50", bench.Median, r.Idle.P50)
				s.MS("idle p99", bench.Median, r.Idle.P99)
				s.MS("loaded p50", bench.Median, r.Loaded.P50)
				s.MS("loaded p99", bench.Median, r.Loaded.P99).AtMost(6)
				s.MS("loaded max", bench.Median, r.Loaded.Max)
				s.Count("requests lost", r.Loaded.Lost()).AtMost(0)
				s.Add("TCP", "Mbit/s", bench.Median, r.Goodput*8/mbit)
				return nil
			},
		}},
	}
}

func comparePlan(load time.Duration) bench.Scenario {
	load = or(load, 5*time.Second)
	sc := bench.Scenario{
		Name: "cost", Title: "What pacing costs where there is no thin link",
		Text: "Two pairs of hosts in one lab, the nodes of the second without pacing; TCP through one, then the other, in turns, four times each. The ratio is that of the medians of a run.",
	}
	for _, flows := range []int{1, 4} {
		name := "one TCP flow"
		if flows > 1 {
			name = fmt.Sprintf("%d TCP flows", flows)
		}
		sc.Cases = append(sc.Cases, bench.Case{
			Name: name, Limit: limit(8 * load), Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := Compare(ctx, lab, sys, flows, 4, load)
				if err != nil {
					return err
				}
				paced, unpaced := median(r.Paced), median(r.Unpaced)
				s.Add("paced", "Mbit/s", bench.Median, paced*8/mbit)
				s.Add("without pacing", "Mbit/s", bench.Median, unpaced*8/mbit)
				s.Add("pacing takes", "%", bench.Median, 100*(1-paced/unpaced)).AtMost(3)
				return nil
			},
		})
	}
	return sc
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n == 0 {
		return 0
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}
