// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Change is a path that gets better and worse again under two Critical streams.
type Change struct {
	// Relay is the kind of path while UDP between the two is blocked.
	Relay string
	// Streams are from the first host and from the second.
	Streams [2]probe.Delivery
	// Upgrade is the time from the end of the block until the status says direct,
	// Fallback the one from its return until the status says relay.
	Upgrade, Fallback time.Duration
	// UpGap and DownGap are the longest pauses of either stream around the two.
	UpGap, DownGap time.Duration
}

// Upgrade blocks UDP between two robots, so that they start over a relay, lets
// it through, and blocks it again; each state lasts for hold after the status has
// shown it.
func Upgrade(ctx context.Context, lab *netns.Lab, sys System, hold time.Duration) (Change, error) {
	var c Change
	w, err := world.New(ctx, lab, sys, leg)
	if err != nil {
		return c, err
	}
	box := func(name string) *netns.NAT {
		return lab.NAT(name, netns.NATConfig{Kind: netns.PortRestricted, Upstream: w.WAN, Link: leg})
	}
	na, nb := box("home-a"), box("home-b")
	a, b := na.Host("robot1", netns.Link{PerPacket: true}), nb.Host("robot2", netns.Link{PerPacket: true})
	w.WAN.BlockUDP(true, na.Outside(), nb.Outside())
	p, err := w.Connect(ctx, a, b)
	if err != nil {
		return c, err
	}
	defer p.Close()
	if c.Relay, err = p.PathTo(ctx, world.Relays...); err != nil {
		return c, err
	}
	streams, err := p.Streams(probe.Requests{Count: probe.MaxRequests})
	if err != nil {
		return c, err
	}
	defer func() { _, _ = world.StopStreams(ctx, streams) }()
	if err := world.Pause(ctx, hold); err != nil {
		return c, err
	}

	up := time.Now()
	w.WAN.BlockUDP(false)
	if _, err = p.PathTo(ctx, fleet.PathDirect); err != nil {
		return c, fmt.Errorf("upgrade: %w", err)
	}
	c.Upgrade = time.Since(up)
	if err := world.Pause(ctx, hold); err != nil {
		return c, err
	}
	down := time.Now()
	w.WAN.BlockUDP(true, na.Outside(), nb.Outside())
	if _, err := p.PathTo(ctx, world.Relays...); err != nil {
		return c, fmt.Errorf("fall back: %w", err)
	}
	c.Fallback = time.Since(down)
	if err := world.Pause(ctx, hold); err != nil {
		return c, err
	}
	end := time.Now()
	if c.Streams, err = world.StopStreams(ctx, streams); err != nil {
		return c, err
	}
	for i := range c.Streams {
		c.UpGap = max(c.UpGap, c.Streams[i].GapWithin(up, down))
		c.DownGap = max(c.DownGap, c.Streams[i].GapWithin(down, end))
	}
	return c, nil
}
