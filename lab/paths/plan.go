// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/bench"
	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

const minute = time.Minute

// Plan lists all scenarios; tries is how often each run repeats what is short.
func Plan(tries int) []bench.Scenario {
	return []bench.Scenario{
		natPlan(tries), upgradePlan(), failoverPlan(), uplinksPlan(), skewPlan(), roamPlan(),
		hubPlan(), blockedPlan(), attackPlan(), mtuPlan(),
	}
}

func natPlan(tries int) bench.Scenario {
	sc := bench.Scenario{
		Name: "nat", Title: "NAT matrix", Write: writeMatrix,
		Text: "Rows: the NAT of the one that sends the first packet. *Cold*: neither has heard of the other, both nodes run and know the hub; from the first packet to its answer, gathering and handshake included. *Known*: one of the two was restarted, 1.5 s after the last packet. The hub is 10 ms away from both, they are 10 ms from each other.",
	}
	for _, a := range NATs {
		sc.Cases = append(sc.Cases, bench.Case{Name: a, Limit: 4 * minute, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
			m, err := NewMatrix(ctx, lab, sys)
			if err != nil {
				return err
			}
			var meetings []Meeting
			for range tries {
				for _, b := range NATs {
					t, err := m.Prepare(ctx, a, b)
					if err != nil {
						return err
					}
					meetings = append(meetings, t)
				}
			}
			cells, err := meetAll(ctx, meetings)
			for _, c := range cells {
				s.Case = c.A + " × " + c.B
				c.figures(s)
			}
			if err != nil {
				return err
			}
			s.Case = a
			return nil
		}})
	}
	return sc
}

// meetAll runs meetings, two at a time: most of one is waiting.
func meetAll(ctx context.Context, meetings []Meeting) ([]Cell, error) {
	var mu sync.Mutex // guards cells and errs
	var cells []Cell
	var errs []error
	var wg sync.WaitGroup
	free := make(chan struct{}, 2)
	for _, t := range meetings {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			c, err := t.Meet(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("%s × %s: %w", t.a, t.b, err))
				return
			}
			cells = append(cells, c)
		})
	}
	wg.Wait()
	return cells, errors.Join(errs...)
}

// allCells is the case that has the samples of all cells.
const allCells = "all cells"

func (c Cell) figures(s *bench.Sheet) {
	direct := Direct(c.A, c.B)
	ok := (c.Path == fleet.PathDirect) == direct && c.Path != fleet.PathNone && c.Path != ""
	s.Word("path", c.Path, ok)
	s.Word("first path", c.First, true)
	s.MS("cold", bench.P95, c.Cold)
	s.MS("known", bench.P95, c.Known...)
	s.MS("settled after", bench.Median, c.Settled)
	// A cell has too few samples for a percentile; the matrix has enough.
	s.Case = allCells
	s.MS("cold", bench.P95, c.Cold).AtMost(1500)
	s.MS("known", bench.P95, c.Known...).AtMost(300)
}

func upgradePlan() bench.Scenario {
	return bench.Scenario{
		Name: "upgrade", Title: "Relay to direct and back",
		Text: "Two robots behind port-restricted NATs. UDP between them is blocked at the start, let through, and blocked again, under Critical streams of 100 packets a second each way.",
		Cases: []bench.Case{{Name: "block, open, block", Limit: minute, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
			c, err := Upgrade(ctx, lab, sys, 5*time.Second)
			if err != nil {
				return err
			}
			s.Word("relay", c.Relay, slices.Contains(world.Relays, c.Relay))
			s.Count("Critical sent", c.Streams[0].Sent, c.Streams[1].Sent)
			s.Count("Critical lost", c.Streams[0].Lost, c.Streams[1].Lost).AtMost(0)
			s.Count("Critical twice", c.Streams[0].Duplicated, c.Streams[1].Duplicated).AtMost(0)
			s.Count("Critical out of order", c.Streams[0].Reordered, c.Streams[1].Reordered).AtMost(0)
			s.MS("direct after the opening (by status)", bench.Median, c.Upgrade)
			s.MS("longest pause around the upgrade", bench.Median, c.UpGap)
			s.MS("relay after the block (by status)", bench.Median, c.Fallback)
			s.MS("longest pause around the fall back", bench.Median, c.DownGap)
			return nil
		}}},
	}
}

func failoverPlan() bench.Scenario {
	sc := bench.Scenario{
		Name: "failover", Title: "The preferred of two uplinks dies",
		Text: "A robot with Wi-Fi (4 ms) and LTE (15 ms) to a peer with one uplink; Critical streams and a TCP flow of 2 Mbit/s both ways; the Wi-Fi dies and stays dead. *Never* means not within 30 s.",
	}
	for _, cut := range []Cut{LinkDown, Blackholed} {
		sc.Cases = append(sc.Cases, bench.Case{Name: string(cut), Limit: 75 * time.Second, Rivals: true, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
			f, err := FailOver(ctx, lab, sys, cut, world.Never)
			if err != nil {
				return err
			}
			s.MS("traffic again, sent by the robot", bench.Median, f.Again[0])
			s.MS("traffic again, sent to it", bench.Median, f.Again[1])
			s.Count("Critical lost", f.Lost[0], f.Lost[1]).AtMost(0)
			s.MS("longest pause of TCP", bench.Median, max(f.FlowGap[0], f.FlowGap[1])).AtMost(450)
			return nil
		}})
	}
	return sc
}

func uplinksPlan() bench.Scenario {
	sc := bench.Scenario{
		Name: "uplinks", Title: "Two uplinks, each dies and comes back",
		Text: "3,000 Critical packets each way at 100 a second and a TCP flow; first the Wi-Fi is cut for 6 s, then the LTE. *Used again*: from the return of an uplink until Critical payload has left and come by it, as a capture sees it.",
	}
	for _, o := range []CutOptions{{Cut: LinkDown}, {Cut: Unplugged}, {Cut: Blackholed}, {Cut: Blackholed, Both: true}, {Cut: Blackholed, NAT: true}} {
		name := string(o.Cut)
		if o.Both {
			name += ", two uplinks at both ends"
		}
		if o.NAT {
			name += ", uplinks behind NATs"
		}
		o.Packets = 3000
		sc.Cases = append(sc.Cases, bench.Case{Name: name, Limit: minute, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
			c, err := CutUplinks(ctx, lab, sys, o)
			if err != nil {
				return err
			}
			s.Count("lost, own uplink cut", c.Streams[0].Lost).AtMost(0)
			s.Count("lost, peer's uplink cut", c.Streams[1].Lost).AtMost(0)
			s.Count("twice to the application", c.Streams[0].Duplicated, c.Streams[1].Duplicated).AtMost(0)
			s.MS("longest pause of TCP, own uplink", bench.Median, c.FlowGap[0]).AtMost(450)
			s.MS("longest pause of TCP, peer's uplink", bench.Median, c.FlowGap[1]).AtMost(450)
			if c.FlowErr != nil {
				s.Word("TCP flow", "broken", false)
			}
			s.MS("longest pause of Critical", bench.Median, c.Streams[0].MaxGap, c.Streams[1].MaxGap)
			s.MS("used again", bench.Median, c.Healed[0], c.Healed[1]).AtMost(2000)
			return nil
		}})
	}
	return sc
}

func skewPlan() bench.Scenario {
	return bench.Scenario{
		Name: "skew", Title: "Two paths of different delay, one with 30 % loss",
		Text: "500 Critical packets for each delay of the second uplink beyond the first, which loses 30 %; the hub is away, so that there is no other way. What reached the receiver's interface (a capture tells) must reach its application once.",
		Cases: []bench.Case{{Name: "0 to 1.5 s", Limit: minute, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
			all, err := Skews(ctx, lab, sys, 500, 0, 100*time.Millisecond, 500*time.Millisecond, 1500*time.Millisecond)
			if err != nil {
				return err
			}
			name := s.Case
			for _, k := range all {
				s.Case = "later by " + k.Delay.String()
				s.Count("different packets on the wire", k.Wire)
				s.Count("of them with copies", k.Copies)
				s.Count("on the wire, not at the application", max(k.Wire-k.Stream.Got, 0)).AtMost(0)
				s.Count("twice to the application", k.Stream.Duplicated).AtMost(0)
				s.Count("lost to the application", k.Stream.Lost)
			}
			s.Case = name
			return nil
		}}},
	}
}

func roamPlan() bench.Scenario {
	sc := bench.Scenario{
		Name: "roam", Title: "The only uplink changes its address",
		Text: "A Critical stream of one direction; *new address*: another lease on the same network; *hand-over*: another interface, from a port-restricted NAT to a symmetric one. Until a packet sent after the change arrived. *Never* means not within 30 s.",
	}
	for _, move := range []Move{NewAddress, HandOver} {
		for _, far := range []bool{false, true} {
			name := string(move) + ", the mover sends"
			if far {
				name = string(move) + ", only the far side sends"
			}
			o := RoamOptions{Move: move, FarSide: far}
			sc.Cases = append(sc.Cases, bench.Case{Name: name, Limit: minute, Rivals: true, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
				r, err := Roaming(ctx, lab, sys, o)
				if err != nil {
					return err
				}
				s.MS("traffic again", bench.Worst, r.Again).AtMost(500)
				s.Count("Critical lost", r.Lost)
				return nil
			}})
		}
	}
	return sc
}

func hubPlan() bench.Scenario {
	sc := bench.Scenario{
		Name: "hub", Title: "The hub is away",
		Text: "Critical streams each way while there is no hub; then both robots are restarted, still without it.",
	}
	for _, c := range []struct {
		where string
		lan   bool
	}{{"behind one NAT", true}, {"public hosts", false}} {
		for _, long := range []bool{false, true} {
			away, limit := 15*time.Second, minute
			if long {
				if c.lan {
					continue // ten minutes once are enough
				}
				away, limit = 10*minute, 12*minute
			}
			sc.Cases = append(sc.Cases, bench.Case{Name: c.where + ", " + away.String(), Limit: limit, Slow: long, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
				r, err := HubAway(ctx, lab, sys, away, c.lan)
				if err != nil {
					return err
				}
				s.Count("Critical sent", r.Streams[0].Sent, r.Streams[1].Sent)
				s.Count("Critical lost", r.Streams[0].Lost, r.Streams[1].Lost).AtMost(0)
				if long {
					// Every 120 s; the first may fall just before the hub goes.
					f := s.Add("rekeys without the hub", "", bench.Worst, float64(r.Rekeys))
					f.AtMost(float64(away/(2*minute)) - 1)
					f.AtLeast = true
					s.Add("age of the keys at the end", "s", bench.Worst, r.KeyAge.Seconds()).AtMost(180)
				}
				s.MS("connected again after a restart of both", bench.Median, r.Back).AtMost(3000)
				return nil
			}})
		}
	}
	return sc
}

func blockedPlan() bench.Scenario {
	return bench.Scenario{
		Name: "blocked", Title: "No UDP at all",
		Text: "All UDP is dropped in the internet, uplinks carry 20 Mbit/s; Critical round trips alone and beside 24 Mbit/s of Bulk over the same stream.",
		Cases: []bench.Case{{Name: "hub stream", Limit: minute, Alone: true, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
			r, err := UDPBlocked(ctx, lab, sys, 8*time.Second)
			if err != nil {
				return err
			}
			s.Word("path", r.Path, r.Path == fleet.PathHubRelay)
			s.MS("first answer", bench.Median, r.First).AtMost(1500)
			s.MS("Critical p50 alone", bench.Median, r.Idle.P50)
			s.MS("Critical p99 alone", bench.Median, r.Idle.P99)
			s.MS("Critical p50 beside Bulk", bench.Median, r.Loaded.P50)
			s.MS("Critical p99 beside Bulk", bench.Median, r.Loaded.P99)
			s.Count("Critical unanswered beside Bulk", r.Loaded.Sent-r.Loaded.Got).AtMost(0)
			s.Add("Bulk that arrived", "Mbit/s", bench.Median, r.BulkMbit)
			s.MS("first answer after a restart of the other", bench.Median, r.Known).AtMost(300)
			return nil
		}}},
	}
}

func attackPlan() bench.Scenario {
	return bench.Scenario{
		Name: "attack", Title: "Junk at the port",
		Text: "A third host sends 50,000 datagrams a second of 124 bytes (INVITEs: 2,000) to one robot's UDP port while Critical round trips are measured. Nothing is shaped; attacker, routers and robots share the cores. The *insider* knows the certificates of both robots, has cookies for 16 addresses and forges 2,000 INVITEs a second, in three pieces each, whose signature alone is wrong. A rival gets data packets of its own format with unknown indexes.",
		Cases: []bench.Case{{Name: "junk", Limit: 3 * minute, Rivals: true, Alone: true, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
			all, err := Attacks(ctx, lab, sys, 8*time.Second, JunkOf(sys)...)
			if err != nil {
				return err
			}
			name := s.Case
			for _, a := range all {
				s.Case = string(a.Junk)
				s.Add("junk that was sent", "1/s", bench.Median, float64(a.Rate))
				s.MS("Critical p99 in quiet", bench.Median, a.Quiet.P99)
				s.MS("Critical p99 under attack", bench.Median, a.Loaded.P99)
				s.MS("p99 added", bench.Median, a.Loaded.P99-a.Quiet.P99).AtMost(5)
				s.Count("Critical unanswered", a.Loaded.Sent-a.Loaded.Got).AtMost(0)
				s.Count("answers to the attacker", a.Answers).AtMost(0)
				s.Add("memory grown", "MiB", bench.Median, float64(a.Grown())/(1<<20)).AtMost(24)
				creep := s.Add("of it in the second half", "MiB", bench.Median, float64(a.Creep())/(1<<20))
				if a.Junk == Insiders { // long enough for the heap to have reached its bound
					creep.AtMost(2)
				}
			}
			s.Case = name
			return nil
		}}},
	}
}

func mtuPlan() bench.Scenario {
	sc := bench.Scenario{
		Name: "mtu", Title: "Narrow paths that tell nobody",
		Text: "The internet drops what is longer, without an ICMP message. *From the start*: inner packets of 1,350 bytes over UDP, 100 a second from the first moment on, then 4 MiB over TCP. *Under a flow*: the path is wide until the node has found that out, then becomes narrow under a TCP flow of full segments.",
	}
	for _, mtu := range []int{1400, 1280} {
		sc.Cases = append(sc.Cases,
			bench.Case{Name: fmt.Sprintf("%d bytes, from the start", mtu), Limit: minute, Alone: true, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
				r, err := NarrowPath(ctx, lab, sys, mtu)
				if err != nil {
					return err
				}
				s.MS("first full-size UDP packet through", bench.Median, r.Full).AtMost(2000)
				s.Count("full-size packets lost after it", r.Late).AtMost(0)
				f := s.Add("TCP transfer", "Mbit/s", bench.Worst, r.Mbit)
				f.AtMost(1)
				f.AtLeast = true
				return nil
			}},
			bench.Case{Name: fmt.Sprintf("%d bytes, under a flow", mtu), Limit: minute, Do: func(ctx context.Context, lab *netns.Lab, s *bench.Sheet, sys System) error {
				r, err := Narrowing(ctx, lab, sys, mtu, 10*time.Second)
				if err != nil {
					return err
				}
				s.Add("path MTU found before", "bytes of UDP payload", bench.Median, float64(r.Wide))
				s.Add("path MTU found after", "bytes of UDP payload", bench.Median, float64(r.Found)).AtMost(float64(mtu - 28))
				s.MS("pause of TCP when it becomes narrow", bench.Median, r.FlowGap).AtMost(3000)
				s.Count("small Critical packets lost", r.Critical.Lost).AtMost(0)
				return nil
			}})
	}
	return sc
}
