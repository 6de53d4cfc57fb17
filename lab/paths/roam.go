// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Move is a change of the only uplink.
type Move string

// The moves.
const (
	NewAddress Move = "new address"
	HandOver   Move = "hand-over" // another interface, network and NAT
)

// Roam is what a move did to a stream.
type Roam struct {
	// Again is the time from the change until a packet that was sent after it had
	// come; never if it took longer than that.
	Again time.Duration
	Lost  int
	// LostAt are the times at which the lost ones were sent, from the change.
	LostAt []time.Duration
}

// RoamOptions say what moves and who speaks.
type RoamOptions struct {
	Move Move
	// FarSide lets only the one that stays send; otherwise only the mover does.
	FarSide bool
	Limit   time.Duration // how long to wait; zero means 30 s
}

// Roaming moves a robot under a Critical stream.
func Roaming(ctx context.Context, lab *netns.Lab, sys System, o RoamOptions) (Roam, error) {
	r := Roam{Again: never}
	if o.Limit == 0 {
		o.Limit = never
	}
	w, err := world.New(ctx, lab, sys, leg)
	if err != nil {
		return r, err
	}
	var a *netns.Host
	var next *netns.Iface
	if o.Move == HandOver {
		home := lab.NAT("home", netns.NATConfig{Kind: netns.PortRestricted, Upstream: w.WAN, Link: wifi})
		carrier := lab.NAT("carrier", netns.NATConfig{Kind: netns.Symmetric, Upstream: w.WAN, Link: lte})
		a = home.Host("robot1", netns.Link{PerPacket: true})
		next = a.Attach(carrier, netns.Link{PerPacket: true})
		next.Down()
	} else {
		a = w.WAN.Host("robot1", leg)
	}
	b := w.WAN.Host("robot2", near)
	p, err := w.Connect(ctx, a, b)
	if err != nil {
		return r, err
	}
	defer p.Close()
	from := 0
	if o.FarSide {
		from = 1
	}
	stream, err := p.Stream(from, probe.Requests{Count: probe.MaxRequests})
	if err != nil {
		return r, err
	}
	defer func() { _, _ = stream.Stop(ctx) }()
	if err := world.Pause(ctx, 2*time.Second); err != nil {
		return r, err
	}
	at := time.Now()
	if o.Move == HandOver {
		a.Iface(0).Down()
		next.Up()
	} else {
		a.Iface(0).Renumber()
	}
	before := stream.Got()
	for time.Since(at) < o.Limit && stream.Got() < before+100 {
		if err := world.Pause(ctx, 100*time.Millisecond); err != nil {
			return r, err
		}
	}
	d, err := stream.Stop(ctx)
	if err != nil {
		return r, err
	}
	if again, ok := d.Resumed(at); ok {
		r.Again = min(again, never)
	}
	r.Lost, r.LostAt = d.Lost, d.LostFrom(at)
	return r, nil
}
