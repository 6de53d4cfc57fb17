// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Shared is a bottleneck that two robots fill.
type Shared struct {
	Idle   probe.Latency
	Loaded [2]probe.Latency // of each robot
	// Part is what each got of what arrived, 0 to 1; Share what both took of the
	// link, in bytes on the wire.
	Part  [2]float64
	Share float64
}

// Share has two robots upload to a third host through its thin downlink, the
// second one some seconds later. It looks at o.Load after both have started.
func Share(ctx context.Context, lab *netns.Lab, sys world.System, o FillOptions) (Shared, error) {
	var r Shared
	o = o.withDefaults()
	o.Where = Router
	s, err := newSite(ctx, lab, sys, o.Bottleneck)
	if err != nil {
		return r, err
	}
	defer s.close()
	second := *s
	if second.p, err = s.w.Beside(ctx, s.w.WAN.Host("robot3", o.far()), s.p, 1); err != nil {
		return r, err
	}
	defer second.close()
	if err := second.ready(ctx); err != nil {
		return r, err
	}
	robots := [2]*site{s, &second}
	var start [2]func() *load
	for i, one := range robots {
		if start[i], err = one.bulk(ctx, o.Flows, 0); err != nil {
			return r, err
		}
	}
	var alone float64
	if r.Idle, alone, err = s.idle(ctx, o.Idle); err != nil {
		return r, err
	}
	m := s.meter()
	var loads [2]*load
	var asked [2]*probe.Trips
	for i, one := range robots {
		if asked[i], err = one.trips(); err != nil {
			return r, err
		}
		loads[i] = start[i]()
		if err := world.Pause(ctx, 5*time.Second); err != nil {
			return r, err
		}
	}
	began := time.Now()
	before := [2]int64{loads[0].bytes(), loads[1].bytes()}
	if err := world.Pause(ctx, o.Load); err != nil {
		return r, err
	}
	end := time.Now()
	got := [2]float64{float64(loads[0].bytes() - before[0]), float64(loads[1].bytes() - before[1])}
	for i, t := range asked {
		a, err := t.Stop(ctx)
		if err != nil {
			return r, err
		}
		r.Loaded[i] = a.Within(began, end)
		r.Part[i] = got[i] / (got[0] + got[1])
	}
	err = m.end()
	r.Share = (m.rate(began, end) - 2*alone) * 8 / float64(o.Rate)
	return r, err
}

// Flooded is a robot that floods one peer with Critical, beside Bulk and requests
// to another one.
type Flooded struct {
	Idle, Loaded probe.Latency // with the other peer
	// Flood is what was sent to the one, Arrived what it got, in packets a second.
	Flood, Arrived float64
	Goodput        float64 // of Bulk, in bytes per second
}

// floodSize is a payload that is Critical for its size.
const floodSize = 64

// FloodCritical sends small packets to one peer, perSecond of them.
func FloodCritical(ctx context.Context, lab *netns.Lab, sys world.System, o FillOptions, perSecond int) (Flooded, error) {
	var r Flooded
	o = o.withDefaults()
	o.Where = Own
	s, err := newSite(ctx, lab, sys, o.Bottleneck)
	if err != nil {
		return r, err
	}
	defer s.close()
	other, err := s.w.Beside(ctx, s.w.WAN.Host("robot3", o.far()), s.p, 0)
	if err != nil {
		return r, err
	}
	defer other.Close()
	start, err := s.bulk(ctx, o.Flows, 0)
	if err != nil {
		return r, err
	}
	if r.Idle, _, err = s.idle(ctx, o.Idle); err != nil {
		return r, err
	}
	at, err := other.UDP(0, blastPort)
	if err != nil {
		return r, err
	}
	out, err := other.UDP(1, 0)
	if err != nil {
		return r, err
	}
	l := start()
	flood := probe.StartBlast(out, at, netip.AddrPortFrom(other.Virtual[0], blastPort), floodSize, 32, int64(perSecond)*floodSize*8)
	defer flood.Close()
	if err := world.Pause(ctx, startTime); err != nil {
		return r, err
	}
	began, bulk, sent := time.Now(), l.bytes(), flood.Sent()
	arrived, _ := flood.Got()
	r.Loaded, _, err = s.idle(ctx, o.Load)
	took := time.Since(began).Seconds()
	got, _ := flood.Got()
	r.Goodput = float64(l.bytes()-bulk) / took
	r.Flood, r.Arrived = float64(flood.Sent()-sent)/took, float64(got-arrived)/took
	return r, err
}

// Images is a thin link with images of 16 datagrams of 64 KB, ten a second, beside
// joint states.
type Images struct {
	// Idle and Loaded are Critical, JointIdle and JointLoaded requests in the
	// Telemetry lane.
	Idle, Loaded, JointIdle, JointLoaded probe.Latency
	// Sent is how many datagrams the socket took, Whole how many the receiver's
	// system put together, Partial how many it gave up.
	Sent, Whole, Partial int
}

const (
	imagePart  = 65_000
	imageParts = 16
	imageRate  = imagePart * imageParts * 10 * 8 // bits per second
	jointPort  = 5006
	jointSize  = 400
)

// Image sends them.
func Image(ctx context.Context, lab *netns.Lab, sys world.System, o FillOptions) (Images, error) {
	var r Images
	o = o.withDefaults()
	s, err := newSite(ctx, lab, sys, o.Bottleneck)
	if err != nil {
		return r, err
	}
	defer s.close()
	to := s.p.Hosts[1-s.from]
	if err := quickReassembly(to); err != nil {
		return r, err
	}
	c, err := s.p.UDP(1, jointPort)
	if err != nil {
		return r, err
	}
	joints := probe.StartEcho(c)
	s.p.OnClose(func() { _ = joints.Close() })
	both := func(d time.Duration) (critical, joint probe.Latency, err error) {
		t, err := trips(s.p, jointPort, jointSize)
		if err != nil {
			return critical, joint, err
		}
		critical, _, err = s.idle(ctx, d)
		a, stopErr := t.Stop(ctx)
		return critical, a.All(), errors.Join(err, stopErr)
	}
	if r.Idle, r.JointIdle, err = both(o.Idle); err != nil {
		return r, err
	}
	at, err := s.p.UDP(1-s.from, blastPort)
	if err != nil {
		return r, err
	}
	out, err := s.p.UDP(s.from, 0)
	if err != nil {
		return r, err
	}
	whole, partial, err := reassembled(to)
	if err != nil {
		return r, err
	}
	images := probe.StartBlast(out, at, netip.AddrPortFrom(s.p.Virtual[1-s.from], blastPort), imagePart, imageParts, imageRate)
	defer images.Close()
	if r.Loaded, r.JointLoaded, err = both(o.Load); err != nil {
		return r, err
	}
	images.StopSending()
	// Until what waits has come, and the receiver has given up the rest.
	if err := world.Pause(ctx, 4*time.Second); err != nil {
		return r, err
	}
	w, p, err := reassembled(to)
	r.Sent, r.Whole, r.Partial = int(images.Sent()), w-whole, p-partial
	return r, err
}
