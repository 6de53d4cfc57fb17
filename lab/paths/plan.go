// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
)

// Scenario is a chapter of the report.
type Scenario struct {
	Name  string // what -only takes
	Title string
	Text  string // how it was measured
	Cases []Case
}

// Case is what one lab is made for.
type Case struct {
	Name string
	// Limit bounds it, the making of the lab included.
	Limit time.Duration
	// Rivals can do it too.
	Rivals bool
	// Slow cases run only where that is asked for.
	Slow bool
	// Alone is set where the case loads the machine: nothing else may run beside it.
	Alone bool

	run func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error
}

// Run makes a lab, runs the case in it and returns its figures. What keeps a case
// from ending is a figure as well: one that is wrong.
func (c Case) Run(ctx context.Context, scenario string, sys System) ([]Figure, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	s := &sheet{scenario: scenario, kase: c.Name, system: sys.Name}
	err := netns.Run(ctx, scenario, func(lab *netns.Lab) error { return c.run(ctx, lab, s, sys) })
	word, ok := "yes", true
	if err != nil {
		word, ok = "no", sys.rival != nil
	}
	s.word(ended, word, ok)
	return s.figures, err
}

const minute = time.Minute

// Plan lists all scenarios; tries is how often each run repeats what is short.
func Plan(tries int) []Scenario {
	return []Scenario{
		natPlan(tries), upgradePlan(), failoverPlan(), uplinksPlan(), skewPlan(), roamPlan(),
		hubPlan(), blockedPlan(), attackPlan(), mtuPlan(),
	}
}

func natPlan(tries int) Scenario {
	sc := Scenario{
		Name: "nat", Title: "NAT matrix",
		Text: "Rows: the NAT of the one that sends the first packet. *Cold*: neither has heard of the other, both nodes run and know the hub; from the first packet to its answer, gathering and handshake included. *Known*: one of the two was restarted, 1.5 s after the last packet. The hub is 10 ms away from both, they are 10 ms from each other.",
	}
	for _, a := range NATs {
		sc.Cases = append(sc.Cases, Case{Name: a, Limit: 4 * minute, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
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
				s.kase = c.A + " × " + c.B
				c.figures(s)
			}
			if err != nil {
				return err
			}
			s.kase = a
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

func (c Cell) figures(s *sheet) {
	direct := Direct(c.A, c.B)
	ok := (c.Path == fleet.PathDirect) == direct && c.Path != fleet.PathNone && c.Path != ""
	s.word("path", c.Path, ok)
	s.word("first path", c.First, true)
	s.ms("cold", P95, c.Cold)
	s.ms("known", P95, c.Known...)
	s.ms("settled after", Median, c.Settled)
	// A cell has too few samples for a percentile; the matrix has enough.
	s.kase = allCells
	s.ms("cold", P95, c.Cold).atMost(1500)
	s.ms("known", P95, c.Known...).atMost(300)
}

func upgradePlan() Scenario {
	return Scenario{
		Name: "upgrade", Title: "Relay to direct and back",
		Text: "Two robots behind port-restricted NATs. UDP between them is blocked at the start, let through, and blocked again, under Critical streams of 100 packets a second each way.",
		Cases: []Case{{Name: "block, open, block", Limit: minute, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
			c, err := Upgrade(ctx, lab, sys, 5*time.Second)
			if err != nil {
				return err
			}
			s.word("relay", c.Relay, slices.Contains(relays, c.Relay))
			s.count("Critical sent", c.Streams[0].Sent, c.Streams[1].Sent)
			s.count("Critical lost", c.Streams[0].Lost, c.Streams[1].Lost).atMost(0)
			s.count("Critical twice", c.Streams[0].Duplicated, c.Streams[1].Duplicated).atMost(0)
			s.count("Critical out of order", c.Streams[0].Reordered, c.Streams[1].Reordered).atMost(0)
			s.ms("direct after the opening (by status)", Median, c.Upgrade)
			s.ms("longest pause around the upgrade", Median, c.UpGap)
			s.ms("relay after the block (by status)", Median, c.Fallback)
			s.ms("longest pause around the fall back", Median, c.DownGap)
			return nil
		}}},
	}
}

func failoverPlan() Scenario {
	sc := Scenario{
		Name: "failover", Title: "The preferred of two uplinks dies",
		Text: "A robot with Wi-Fi (4 ms) and LTE (15 ms) to a peer with one uplink; Critical streams and a TCP flow of 2 Mbit/s both ways; the Wi-Fi dies and stays dead. *Never* means not within 30 s.",
	}
	for _, cut := range []Cut{LinkDown, Blackholed} {
		sc.Cases = append(sc.Cases, Case{Name: string(cut), Limit: 75 * time.Second, Rivals: true, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
			f, err := FailOver(ctx, lab, sys, cut, never)
			if err != nil {
				return err
			}
			s.ms("traffic again, sent by the robot", Median, f.Again[0])
			s.ms("traffic again, sent to it", Median, f.Again[1])
			s.count("Critical lost", f.Lost[0], f.Lost[1]).atMost(0)
			s.ms("longest pause of TCP", Median, max(f.FlowGap[0], f.FlowGap[1])).atMost(450)
			return nil
		}})
	}
	return sc
}

func uplinksPlan() Scenario {
	sc := Scenario{
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
		sc.Cases = append(sc.Cases, Case{Name: name, Limit: minute, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
			c, err := CutUplinks(ctx, lab, sys, o)
			if err != nil {
				return err
			}
			s.count("lost, own uplink cut", c.Streams[0].Lost).atMost(0)
			s.count("lost, peer's uplink cut", c.Streams[1].Lost).atMost(0)
			s.count("twice to the application", c.Streams[0].Duplicated, c.Streams[1].Duplicated).atMost(0)
			s.ms("longest pause of TCP, own uplink", Median, c.FlowGap[0]).atMost(450)
			s.ms("longest pause of TCP, peer's uplink", Median, c.FlowGap[1]).atMost(450)
			if c.FlowErr != nil {
				s.word("TCP flow", "broken", false)
			}
			s.ms("longest pause of Critical", Median, c.Streams[0].MaxGap, c.Streams[1].MaxGap)
			s.ms("used again", Median, c.Healed[0], c.Healed[1]).atMost(2000)
			return nil
		}})
	}
	return sc
}

func skewPlan() Scenario {
	return Scenario{
		Name: "skew", Title: "Two paths of different delay, one with 30 % loss",
		Text: "500 Critical packets for each delay of the second uplink beyond the first, which loses 30 %; the hub is away, so that there is no other way. What reached the receiver's interface (a capture tells) must reach its application once.",
		Cases: []Case{{Name: "0 to 1.5 s", Limit: minute, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
			all, err := Skews(ctx, lab, sys, 500, 0, 100*time.Millisecond, 500*time.Millisecond, 1500*time.Millisecond)
			if err != nil {
				return err
			}
			name := s.kase
			for _, k := range all {
				s.kase = "later by " + k.Delay.String()
				s.count("different packets on the wire", k.Wire)
				s.count("of them with copies", k.Copies)
				s.count("on the wire, not at the application", max(k.Wire-k.Stream.Got, 0)).atMost(0)
				s.count("twice to the application", k.Stream.Duplicated).atMost(0)
				s.count("lost to the application", k.Stream.Lost)
			}
			s.kase = name
			return nil
		}}},
	}
}

func roamPlan() Scenario {
	sc := Scenario{
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
			sc.Cases = append(sc.Cases, Case{Name: name, Limit: minute, Rivals: true, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
				r, err := Roaming(ctx, lab, sys, o)
				if err != nil {
					return err
				}
				s.ms("traffic again", Worst, r.Again).atMost(500)
				s.count("Critical lost", r.Lost)
				return nil
			}})
		}
	}
	return sc
}

func hubPlan() Scenario {
	sc := Scenario{
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
			sc.Cases = append(sc.Cases, Case{Name: c.where + ", " + away.String(), Limit: limit, Slow: long, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
				r, err := HubAway(ctx, lab, sys, away, c.lan)
				if err != nil {
					return err
				}
				s.count("Critical sent", r.Streams[0].Sent, r.Streams[1].Sent)
				s.count("Critical lost", r.Streams[0].Lost, r.Streams[1].Lost).atMost(0)
				if long {
					// Every 120 s; the first may fall just before the hub goes.
					f := s.add("rekeys without the hub", "", Worst, float64(r.Rekeys))
					f.atMost(float64(away/(2*minute)) - 1)
					f.AtLeast = true
					s.add("age of the keys at the end", "s", Worst, r.KeyAge.Seconds()).atMost(180)
				}
				s.ms("connected again after a restart of both", Median, r.Back).atMost(3000)
				return nil
			}})
		}
	}
	return sc
}

func blockedPlan() Scenario {
	return Scenario{
		Name: "blocked", Title: "No UDP at all",
		Text: "All UDP is dropped in the internet, uplinks carry 20 Mbit/s; Critical round trips alone and beside 24 Mbit/s of Bulk over the same stream.",
		Cases: []Case{{Name: "hub stream", Limit: minute, Alone: true, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
			r, err := UDPBlocked(ctx, lab, sys, 8*time.Second)
			if err != nil {
				return err
			}
			s.word("path", r.Path, r.Path == fleet.PathHubRelay)
			s.ms("first answer", Median, r.First).atMost(1500)
			s.ms("Critical p50 alone", Median, r.Idle.P50)
			s.ms("Critical p99 alone", Median, r.Idle.P99)
			s.ms("Critical p50 beside Bulk", Median, r.Loaded.P50)
			s.ms("Critical p99 beside Bulk", Median, r.Loaded.P99)
			s.count("Critical unanswered beside Bulk", r.Loaded.Sent-r.Loaded.Got).atMost(0)
			s.add("Bulk that arrived", "Mbit/s", Median, r.BulkMbit)
			s.ms("first answer after a restart of the other", Median, r.Known).atMost(300)
			return nil
		}}},
	}
}

func attackPlan() Scenario {
	return Scenario{
		Name: "attack", Title: "Junk at the port",
		Text: "A third host sends 50,000 datagrams a second of 124 bytes (INVITEs: 2,000) to one robot's UDP port while Critical round trips are measured. Nothing is shaped; attacker, routers and robots share the cores. The *insider* knows the certificates of both robots, has cookies for 16 addresses and forges 2,000 INVITEs a second, in three pieces each, whose signature alone is wrong. A rival gets data packets of its own format with unknown indexes.",
		Cases: []Case{{Name: "junk", Limit: 3 * minute, Rivals: true, Alone: true, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
			all, err := Attacks(ctx, lab, sys, 8*time.Second, JunkOf(sys)...)
			if err != nil {
				return err
			}
			name := s.kase
			for _, a := range all {
				s.kase = string(a.Junk)
				s.add("junk that was sent", "1/s", Median, float64(a.Rate))
				s.ms("Critical p99 in quiet", Median, a.Quiet.P99)
				s.ms("Critical p99 under attack", Median, a.Loaded.P99)
				s.ms("p99 added", Median, a.Loaded.P99-a.Quiet.P99).atMost(5)
				s.count("Critical unanswered", a.Loaded.Sent-a.Loaded.Got).atMost(0)
				s.count("answers to the attacker", a.Answers).atMost(0)
				s.add("memory grown", "MiB", Median, float64(a.Grown())/(1<<20)).atMost(24)
				creep := s.add("of it in the second half", "MiB", Median, float64(a.Creep())/(1<<20))
				if a.Junk == Insiders { // long enough for the heap to have reached its bound
					creep.atMost(2)
				}
			}
			s.kase = name
			return nil
		}}},
	}
}

func mtuPlan() Scenario {
	sc := Scenario{
		Name: "mtu", Title: "Narrow paths that tell nobody",
		Text: "The internet drops what is longer, without an ICMP message. *From the start*: inner packets of 1,350 bytes over UDP, 100 a second from the first moment on, then 4 MiB over TCP. *Under a flow*: the path is wide until the node has found that out, then becomes narrow under a TCP flow of full segments.",
	}
	for _, mtu := range []int{1400, 1280} {
		sc.Cases = append(sc.Cases,
			Case{Name: fmt.Sprintf("%d bytes, from the start", mtu), Limit: minute, Alone: true, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
				r, err := NarrowPath(ctx, lab, sys, mtu)
				if err != nil {
					return err
				}
				s.ms("first full-size UDP packet through", Median, r.Full).atMost(2000)
				s.count("full-size packets lost after it", r.Late).atMost(0)
				f := s.add("TCP transfer", "Mbit/s", Worst, r.Mbit)
				f.atMost(1)
				f.AtLeast = true
				return nil
			}},
			Case{Name: fmt.Sprintf("%d bytes, under a flow", mtu), Limit: minute, run: func(ctx context.Context, lab *netns.Lab, s *sheet, sys System) error {
				r, err := Narrowing(ctx, lab, sys, mtu, 10*time.Second)
				if err != nil {
					return err
				}
				s.add("path MTU found before", "bytes of UDP payload", Median, float64(r.Wide))
				s.add("path MTU found after", "bytes of UDP payload", Median, float64(r.Found)).atMost(float64(mtu - 28))
				s.ms("pause of TCP when it becomes narrow", Median, r.FlowGap).atMost(3000)
				s.count("small Critical packets lost", r.Critical.Lost).atMost(0)
				return nil
			}})
	}
	return sc
}
