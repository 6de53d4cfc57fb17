// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
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
	w, err := world.New(ctx, lab, sys, leg)
	if err != nil {
		return r, err
	}
	var hosts [2]*netns.Host
	if lan {
		home := lab.NAT("home", netns.NATConfig{Kind: netns.PortRestricted, Upstream: w.WAN, Link: leg})
		for i, name := range []string{"robot1", "robot2"} {
			hosts[i] = home.Host(name, netns.Link{PerPacket: true})
		}
	} else {
		for i, name := range []string{"robot1", "robot2"} {
			hosts[i] = w.WAN.Host(name, leg)
		}
	}
	p, err := w.Connect(ctx, hosts[0], hosts[1])
	if err != nil {
		return r, err
	}
	defer p.Close()
	if _, err := p.PathTo(ctx, fleet.PathDirect); err != nil {
		return r, err
	}
	before, err := p.Keys(ctx)
	if err != nil {
		return r, err
	}
	streams, err := p.Streams(probe.Requests{Count: int(away / interval)})
	if err != nil {
		return r, err
	}
	w.Hub.Stop()
	if r.Streams, err = world.Await(ctx, streams); err != nil {
		return r, err
	}
	after, err := p.Keys(ctx)
	if err != nil {
		return r, err
	}
	r.Rekeys, r.Handshakes = after.Keys.Rekeys-before.Keys.Rekeys, after.Keys.Handshakes-before.Keys.Handshakes
	r.KeyAge = time.Since(after.Keys.Since)

	for _, n := range p.Nodes {
		n.Stop()
	}
	began := time.Now()
	for _, n := range p.Nodes {
		if err := n.Spawn(ctx); err != nil {
			return r, err
		}
	}
	c, err := p.UDP(0, 0)
	if err != nil {
		return r, err
	}
	wait, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := probe.WaitAnswer(wait, c, netip.AddrPortFrom(p.Virtual[1], world.EchoPort), interval); err == nil {
		r.Back = time.Since(began)
	}
	return r, ctx.Err()
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
	w, err := world.New(ctx, lab, sys, leg)
	if err != nil {
		return r, err
	}
	slow := leg
	slow.Up.Rate, slow.Down.Rate = 20e6, 20e6
	a, b := w.WAN.Host("robot1", slow), w.WAN.Host("robot2", slow)
	w.WAN.BlockUDP(true)
	p, err := w.Tunnel(ctx, a, b)
	if err != nil {
		return r, err
	}
	defer p.Close()
	if err := p.Echo(); err != nil {
		return r, err
	}
	if r.First, err = p.Answer(ctx); err != nil {
		return r, err
	}
	if r.Path, err = p.PathTo(ctx, append(world.Relays, fleet.PathDirect)...); err != nil {
		return r, err
	}
	if err := world.Pause(ctx, time.Second); err != nil {
		return r, err
	}
	if r.Idle, err = p.Latency(ctx, each); err != nil {
		return r, err
	}
	at, err := p.UDP(1, 7002)
	if err != nil {
		return r, err
	}
	from, err := p.UDP(0, 0)
	if err != nil {
		return r, err
	}
	// 1200 bytes every 400 µs are 24 Mbit/s: more than the uplink takes.
	flood, err := probe.StartStream(from, at, netip.AddrPortFrom(p.Virtual[1], 7002),
		probe.Requests{Count: probe.MaxRequests, Size: 1200, Interval: 400 * time.Microsecond})
	if err != nil {
		return r, err
	}
	defer func() { _, _ = flood.Stop(ctx) }()
	if err := world.Pause(ctx, time.Second); err != nil {
		return r, err
	}
	got, began := flood.Got(), time.Now()
	if r.Loaded, err = p.Latency(ctx, each); err != nil {
		return r, err
	}
	r.BulkMbit = float64(flood.Got()-got) * 1200 * 8 / time.Since(began).Seconds() / 1e6
	if _, err := flood.Stop(ctx); err != nil {
		return r, err
	}
	p.Nodes[1].Stop()
	if err := p.Nodes[1].Start(ctx); err != nil {
		return r, err
	}
	if err := p.Ready(ctx); err != nil {
		return r, err
	}
	r.Known, err = p.First(ctx)
	return r, err
}
