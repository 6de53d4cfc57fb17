// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Narrow is how two robots got on over a path that eats long packets without a
// word.
type Narrow struct {
	// Full is the time from the first full-size UDP packet to the first that
	// arrived, Late how many of the packets after that one were lost.
	Full time.Duration
	Late int
	// Mbit is the throughput of a TCP transfer, 0 if it did not end.
	Mbit float64
}

// fullSize is a UDP payload that fills an inner packet of 1350 bytes.
const fullSize = 1350 - 28

// NarrowPath starts on a path that carries packets of at most mtu bytes.
func NarrowPath(ctx context.Context, lab *netns.Lab, sys System, mtu int) (Narrow, error) {
	r := Narrow{Full: never}
	p, _, err := narrowable(ctx, lab, sys, mtu)
	if err != nil {
		return r, err
	}
	defer p.Close()
	// At once, before anything could be found out by small packets.
	stream, err := p.Stream(0, probe.Requests{Count: 300, Size: fullSize})
	if err != nil {
		return r, err
	}
	d, err := stream.Wait(ctx)
	if err != nil {
		return r, err
	}
	if at, ok := d.First(); ok {
		r.Full = at
	}
	r.Late = d.LostAfterFirst()
	r.Mbit, err = transfer(ctx, p, 4<<20)
	return r, err
}

// narrowable is a pair on a path that can be narrowed; 0 leaves it wide.
func narrowable(ctx context.Context, lab *netns.Lab, sys System, mtu int) (p *world.Pair, narrow func(mtu int), err error) {
	w, err := world.New(ctx, lab, sys, leg)
	if err != nil {
		return nil, nil, err
	}
	a, b := w.WAN.Host("robot1", leg), w.WAN.Host("robot2", leg)
	narrow = func(mtu int) { w.WAN.Narrow(b.Iface(0), mtu) }
	if mtu != 0 {
		narrow(mtu)
	}
	p, err = w.Connect(ctx, a, b)
	return p, narrow, err
}

// Narrowed is what became of a flow whose path became narrow.
type Narrowed struct {
	// Wide and Found are the path's MTU as the first node had found it before and
	// at the end, in bytes of UDP payload.
	Wide, Found int
	// FlowGap is the longest pause of the flow; never if it did not come back.
	FlowGap  time.Duration
	Critical probe.Delivery // a stream of small packets beside it
}

// Narrowing lets a flow of full segments run until the path's MTU is known, then
// narrows the path and watches for so long.
func Narrowing(ctx context.Context, lab *netns.Lab, sys System, mtu int, watch time.Duration) (Narrowed, error) {
	var r Narrowed
	p, narrow, err := narrowable(ctx, lab, sys, 0)
	if err != nil {
		return r, err
	}
	defer p.Close()
	a, b, err := p.TCP(ctx)
	if err != nil {
		return r, err
	}
	flow := probe.StartFlow(a, b, probe.FlowConfig{Size: 8000, Interval: 20 * time.Millisecond})
	defer flow.Close()
	wide, cancel := context.WithTimeout(ctx, 10*time.Second)
	_, err = p.Nodes[0].WaitStatus(wide, "a wide path", func(s fleet.Status) bool {
		r.Wide = foundMTU(p, s)
		return r.Wide > 1450
	})
	cancel()
	if err != nil {
		return r, err
	}
	if err := world.Pause(ctx, time.Second); err != nil {
		return r, err
	}
	stream, err := p.Stream(0, probe.Requests{Count: int(watch / interval)})
	if err != nil {
		return r, err
	}
	at := time.Now()
	narrow(mtu)
	if r.Critical, err = stream.Wait(ctx); err != nil {
		return r, err
	}
	end := time.Now()
	r.FlowGap = max(flow.Gap(0, at, end), flow.Gap(1, at, end))
	if r.FlowGap > watch-time.Second {
		r.FlowGap = never
	}
	s, err := p.Nodes[0].Status(ctx)
	r.Found = foundMTU(p, s)
	return r, err
}

// foundMTU is that of the path that Critical uses.
func foundMTU(p *world.Pair, s fleet.Status) int {
	q, _ := s.Peer(p.Nodes[1].Name)
	for _, path := range q.Paths {
		if slices.Contains(path.Lanes, "critical") {
			return path.MTU
		}
	}
	return 0
}

// transfer moves bytes over TCP from the first host to the second and returns
// Mbit/s, 0 if that took more than 15 s.
func transfer(ctx context.Context, p *world.Pair, size int64) (float64, error) {
	limited, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	a, b, err := p.TCP(limited)
	if err != nil {
		return 0, ctx.Err()
	}
	defer a.Close()
	defer b.Close()
	received := make(chan error, 1)
	go func() {
		_, err := probe.Receive(limited, b, nil, size)
		received <- err
	}()
	t, err := probe.Send(limited, a, probe.Pattern(1, nil), size, nil)
	if err = errors.Join(err, <-received); err != nil {
		return 0, ctx.Err()
	}
	return t.Mbit(), nil
}
