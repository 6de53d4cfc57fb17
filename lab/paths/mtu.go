// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"errors"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
)

// Narrow is how two robots got on over a path that eats long packets without a
// word.
type Narrow struct {
	MTU int
	// Full is the time from the first full-size UDP packet to the first that
	// arrived, Late how many of the packets after that one were lost.
	Full time.Duration
	Late int
	// Mbit is the throughput of a TCP transfer, 0 if it did not end.
	Mbit float64
	// FlowGap is the longest pause of a TCP flow when the path became narrow under
	// it; never if it did not come back.
	FlowGap time.Duration
}

// fullSize is a UDP payload that fills an inner packet of 1350 bytes.
const fullSize = 1350 - 28

// NarrowPath starts on a path that carries packets of at most mtu bytes. Then it
// widens the path and narrows it again under a flow, which it watches for so long.
func NarrowPath(ctx context.Context, lab *netns.Lab, sys System, mtu int, watch time.Duration) (Narrow, error) {
	r := Narrow{MTU: mtu, Full: never, FlowGap: never}
	w, err := newWorld(ctx, lab, sys, leg)
	if err != nil {
		return r, err
	}
	a, b := w.wan.Host("robot1", leg), w.wan.Host("robot2", leg)
	w.wan.Narrow(b.Iface(0), mtu)
	p, err := w.connect(ctx, a, b)
	if err != nil {
		return r, err
	}
	defer p.close()
	// At once, before anything could be found out by small packets.
	stream, err := p.stream(0, probe.Requests{Count: int(watch / 2 / interval), Size: fullSize})
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
	if r.Mbit, err = p.transfer(ctx, 2<<20); err != nil {
		return r, err
	}
	w.wan.Narrow(b.Iface(0), 0)
	if err := pause(ctx, time.Second); err != nil {
		return r, err
	}
	flow, err := p.flow(ctx)
	if err != nil {
		return r, nil //nolint:nilerr // no connection is a result: FlowGap says never
	}
	if err := pause(ctx, time.Second); err != nil {
		return r, err
	}
	at := time.Now()
	w.wan.Narrow(b.Iface(0), mtu)
	if err := pause(ctx, watch); err != nil {
		return r, err
	}
	end := time.Now()
	r.FlowGap = max(flow.Gap(0, at, end), flow.Gap(1, at, end))
	if r.FlowGap > watch-time.Second {
		r.FlowGap = never
	}
	return r, nil
}

// transfer moves bytes over TCP from the first host to the second and returns
// Mbit/s, 0 if that took more than 15 s.
func (p *pair) transfer(ctx context.Context, size int64) (float64, error) {
	limited, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	a, b, err := p.tcp(limited)
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
