// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
)

// Away is what two robots did while there was no hub.
type Away struct {
	Time    time.Duration // how long, before the restart
	Streams [2]probe.Delivery
	// Rekeys counts the in-band rekeys in that time, Handshakes the full ones.
	Rekeys, Handshakes uint64
	// KeyAge is the age of the keys at its end.
	KeyAge time.Duration
	// Back is the time from the start of both robots, still without the hub, until
	// the first had an answer of the second.
	Back time.Duration
}

// HubAway stops the hub, streams for so long, and restarts both robots. They are
// behind one NAT where lan is true, otherwise public hosts.
func HubAway(ctx context.Context, lab *netns.Lab, sys System, away time.Duration, lan bool) (Away, error) {
	r := Away{Time: away, Back: never}
	w, err := newWorld(ctx, lab, sys, leg)
	if err != nil {
		return r, err
	}
	var hosts [2]*netns.Host
	if lan {
		home := lab.NAT("home", netns.NATConfig{Kind: netns.PortRestricted, Upstream: w.wan, Link: leg})
		for i, name := range []string{"robot1", "robot2"} {
			hosts[i] = home.Host(name, netns.Link{PerPacket: true})
		}
	} else {
		for i, name := range []string{"robot1", "robot2"} {
			hosts[i] = w.wan.Host(name, leg)
		}
	}
	p, err := w.connect(ctx, hosts[0], hosts[1])
	if err != nil {
		return r, err
	}
	defer p.close()
	if _, err := p.pathTo(ctx, fleet.PathDirect); err != nil {
		return r, err
	}
	before, err := p.keys(ctx)
	if err != nil {
		return r, err
	}
	streams, err := p.streams(probe.Requests{Count: int(away / interval)})
	if err != nil {
		return r, err
	}
	w.hub.Stop()
	if r.Streams, err = await(ctx, streams); err != nil {
		return r, err
	}
	after, err := p.keys(ctx)
	if err != nil {
		return r, err
	}
	r.Rekeys, r.Handshakes = after.Keys.Rekeys-before.Keys.Rekeys, after.Keys.Handshakes-before.Keys.Handshakes
	r.KeyAge = time.Since(after.Keys.Since)

	for _, n := range p.nodes {
		n.Stop()
	}
	began := time.Now()
	for _, n := range p.nodes {
		if err := n.Spawn(ctx); err != nil {
			return r, err
		}
	}
	c, err := p.udp(0, 0)
	if err != nil {
		return r, err
	}
	wait, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := probe.WaitAnswer(wait, c, netip.AddrPortFrom(p.virtual[1], echoPort), interval); err == nil {
		r.Back = time.Since(began)
	}
	return r, ctx.Err()
}

func (p *pair) keys(ctx context.Context) (fleet.Peer, error) {
	s, err := p.nodes[0].Status(ctx)
	q, _ := s.Peer(p.nodes[1].Name)
	return q, err
}

// Blocked is how two robots got on without UDP.
type Blocked struct {
	Path string
	// First is the time from the first packet to its answer.
	First time.Duration
	// Idle are the round trips of Critical requests alone, Loaded those beside a
	// flood of Bulk over the same stream.
	Idle, Loaded probe.Latency
	BulkMbit     float64 // that arrived
	// Known is the first answer after a restart of the second robot.
	Known time.Duration
}

// UDPBlocked drops all UDP in the internet and lets two robots with uplinks of
// 20 Mbit/s talk, for so long without and with a flood.
func UDPBlocked(ctx context.Context, lab *netns.Lab, sys System, each time.Duration) (Blocked, error) {
	var r Blocked
	w, err := newWorld(ctx, lab, sys, leg)
	if err != nil {
		return r, err
	}
	slow := leg
	slow.Up.Rate, slow.Down.Rate = 20e6, 20e6
	a, b := w.wan.Host("robot1", slow), w.wan.Host("robot2", slow)
	w.wan.BlockUDP(true)
	p, err := w.tunnel(ctx, a, b)
	if err != nil {
		return r, err
	}
	defer p.close()
	if err := p.echo(); err != nil {
		return r, err
	}
	if r.First, err = p.answer(ctx); err != nil {
		return r, err
	}
	if r.Path, err = p.pathTo(ctx, append(relays, fleet.PathDirect)...); err != nil {
		return r, err
	}
	if err := pause(ctx, time.Second); err != nil {
		return r, err
	}
	if r.Idle, err = p.latency(ctx, each); err != nil {
		return r, err
	}
	at, err := p.udp(1, 7002)
	if err != nil {
		return r, err
	}
	from, err := p.udp(0, 0)
	if err != nil {
		return r, err
	}
	// 1200 bytes every 400 µs are 24 Mbit/s: more than the uplink takes.
	flood, err := probe.StartStream(from, at, netip.AddrPortFrom(p.virtual[1], 7002),
		probe.Requests{Count: probe.MaxRequests, Size: 1200, Interval: 400 * time.Microsecond})
	if err != nil {
		return r, err
	}
	defer func() { _, _ = flood.Stop(ctx) }()
	if err := pause(ctx, time.Second); err != nil {
		return r, err
	}
	got, began := flood.Got(), time.Now()
	if r.Loaded, err = p.latency(ctx, each); err != nil {
		return r, err
	}
	r.BulkMbit = float64(flood.Got()-got) * 1200 * 8 / time.Since(began).Seconds() / 1e6
	if _, err := flood.Stop(ctx); err != nil {
		return r, err
	}
	p.nodes[1].Stop()
	if err := p.nodes[1].Start(ctx); err != nil {
		return r, err
	}
	if err := p.ready(ctx); err != nil {
		return r, err
	}
	r.Known, err = p.first(ctx)
	return r, err
}

// latency measures Critical round trips, 100 a second, for so long.
func (p *pair) latency(ctx context.Context, d time.Duration) (probe.Latency, error) {
	c, err := p.udp(0, 0)
	if err != nil {
		return probe.Latency{}, err
	}
	defer c.Close()
	return probe.RoundTrips(ctx, c, netip.AddrPortFrom(p.virtual[1], echoPort), probe.Requests{
		Count: int(d / interval), Interval: interval, Size: criticalSize, Linger: 2 * time.Second,
	})
}
