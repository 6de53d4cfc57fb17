// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"context"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/bench"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// onWire is what a byte of TCP payload takes of a link as Bulk: full segments of
// 1298 bytes are frames of 1424.
const onWire = 1424.0 / 1298

func sharePlan(load time.Duration) bench.Scenario {
	load = or(load, 30*time.Second)
	sc := bench.Scenario{
		Name: "share", Title: "Two robots share a bottleneck",
		Text: "Both upload 4 TCP flows to a third host, through a router before it; the second starts 5 s later, and 5 s after that the figures begin.",
	}
	for _, rate := range []int64{20, 5} {
		o := FillOptions{Bottleneck: Bottleneck{Where: Router, Rate: rate * mbit}, Flows: 4, Load: load}
		p99 := 5.0
		if rate == 5 {
			p99 = 15
		}
		sc.Cases = append(sc.Cases, bench.Case{
			Name: fmt.Sprintf("%d Mbit/s", rate), Limit: limit(load), Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := Share(ctx, lab, sys, o)
				if err != nil {
					return err
				}
				s.MS("idle p99", bench.Median, r.Idle.P99)
				for i, name := range []string{"first robot", "second robot"} {
					s.MS(name+", p99 over idle", bench.Median, r.Loaded[i].P99-r.Idle.P99).AtMost(p99)
					s.MS(name+", max over idle p99", bench.Median, r.Loaded[i].Max-r.Idle.P99)
					s.Add(name+", of what arrived", "%", bench.Median, 100*r.Part[i])
				}
				s.Add("the smaller part", "%", bench.Median, 100*min(r.Part[0], r.Part[1])).Least(35)
				s.Count("requests lost", r.Loaded[0].Lost()+r.Loaded[1].Lost()).AtMost(0)
				s.Add("both of the link", "%", bench.Median, 100*r.Share).Least(90)
				return nil
			},
		})
	}
	return sc
}

func floodPlan(load time.Duration) bench.Scenario {
	load = or(load, 30*time.Second)
	o := FillOptions{Bottleneck: Bottleneck{Where: Own, Rate: 20 * mbit}, Flows: 4, Load: load}
	return bench.Scenario{
		Name: "flood", Title: "A flood of Critical",
		Text: "A robot with an uplink of 20 Mbit/s sends 20,000 packets a second of 92 bytes to one peer, each of them Critical for its size and all of them more than the link; 4 TCP flows and the requests go to another peer.",
		Cases: []bench.Case{{
			Name: "20,000 packets a second", Limit: limit(load), Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := FloodCritical(ctx, lab, sys, o, 20_000)
				if err != nil {
					return err
				}
				s.MS("idle p99", bench.Median, r.Idle.P99)
				spread(s, "loaded", r.Loaded)
				s.MS("p99 over idle", bench.Median, r.Loaded.P99-r.Idle.P99).AtMost(5)
				s.Count("requests lost", r.Loaded.Lost()).AtMost(0)
				s.Add("flood that was sent", "1/s", bench.Median, r.Flood)
				s.Add("flood that arrived", "1/s", bench.Median, r.Arrived)
				s.Add("Bulk of the link", "%", bench.Median, 100*r.Goodput*onWire*8/float64(o.Rate)).Least(50)
				return nil
			},
		}},
	}
}

func imagePlan(load time.Duration) bench.Scenario {
	load = or(load, 30*time.Second)
	sc := bench.Scenario{
		Name: "image", Title: "Datagrams of 64 KB",
		Text: "Images of 16 datagrams of 65,000 bytes, ten a second (83 Mbit/s), beside Critical requests and joint states, which are requests of 400 bytes in the Telemetry lane. *Given up*: datagrams of which the receiver's system got a part only.",
	}
	for _, rate := range []int64{20, 100} {
		o := FillOptions{Bottleneck: Bottleneck{Where: Router, Rate: rate * mbit}, Load: load}
		sc.Cases = append(sc.Cases, bench.Case{
			Name: fmt.Sprintf("%d Mbit/s", rate), Limit: limit(load), Rivals: true, Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := Image(ctx, lab, sys, o)
				if err != nil {
					return err
				}
				s.MS("joint states, idle p99", bench.Median, r.JointIdle.P99)
				s.MS("joint states, p50", bench.Median, r.JointLoaded.P50)
				s.MS("joint states, p99 over idle", bench.Median, r.JointLoaded.P99-r.JointIdle.P99).AtMost(10)
				s.Count("joint states lost", r.JointLoaded.Lost())
				s.MS("Critical, idle p99", bench.Median, r.Idle.P99)
				s.MS("Critical, p99 over idle", bench.Median, r.Loaded.P99-r.Idle.P99).AtMost(5)
				s.Count("Critical requests lost", r.Loaded.Lost()).AtMost(0)
				s.Count("datagrams sent", r.Sent)
				s.Count("datagrams that came whole", r.Whole)
				s.Count("datagrams given up", r.Partial).AtMost(0)
				return nil
			},
		})
	}
	return sc
}

func lossyPlan(load time.Duration) bench.Scenario {
	load = or(load, 102*time.Second)
	sc := bench.Scenario{
		Name: "lossy", Title: "A link that loses packets",
		Text: "Critical requests, 100 a second and nothing else, over the only uplink, which loses packets at random each way; 20 ms of round trip. With the *hub away* its relay, which is TCP over the same uplink, is no other way. The first 5 s, in which the loss must be noticed, are apart. *Load*: what the robot sends beyond what it sends without loss, in bytes on the wire.",
	}
	for _, c := range []struct {
		percent, goal float64
		away          bool
	}{{5, 0.6, false}, {5, 0.6, true}, {1, 0.1, false}, {1, 0.1, true}} {
		name := fmt.Sprintf("%g %% each way", c.percent)
		if c.away {
			name += ", hub away"
		}
		sc.Cases = append(sc.Cases, bench.Case{
			Name: name, Limit: limit(load), Rivals: !c.away, Alone: true,
			Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys world.System) error {
				r, err := Loses(ctx, lab, sys, LossOptions{Loss: c.percent / 100, Load: load, HubAway: c.away})
				if err != nil {
					return err
				}
				s.Count("requests", r.Rest.Sent)
				s.Count("requests that were lost", r.Rest.Lost())
				s.Add("requests lost", "%", bench.Median, 100*r.Rest.Loss()).AtMost(c.goal)
				s.Add("first 5 s, requests lost", "%", bench.Median, 100*r.First.Loss())
				s.MS("p99 without loss", bench.Median, r.Clean.P99)
				s.MS("p99", bench.Median, r.Rest.P99)
				s.Add("load", "%", bench.Median, 100*r.Load)
				return nil
			},
		})
	}
	return sc
}
