// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// probeSize is the payload of a Critical request: more than what is Critical for
// its size.
const probeSize = 128

// probeLane has requests travel as Critical.
var probeLane = fmt.Sprintf("[[lane]]\nlane = \"critical\"\nproto = \"udp\"\nport = %d\n", world.EchoPort)

// startTime is the part of a load that is reported apart.
const startTime = 2 * time.Second

// acquaintTime is for how long Bulk has had the link before a foreign flow comes.
const acquaintTime = 6 * time.Second

// overflowTime bounds how long a flow may take to fill the bottleneck's queue.
const overflowTime = 40 * time.Second

// enough is the share of a link that counts as all of it.
const enough = 0.85

// Shaped is what a thin link that is filled does to Critical.
type Shaped struct {
	// Idle is before the load, First its first 2 s, Loaded the rest.
	Idle, First, Loaded probe.Latency
	// Share is what Bulk took of the link, in bytes on the wire: all but what the
	// probe alone takes. 0 to 1.
	Share float64
	// Goodput is what arrived of Bulk, in bytes per second of payload; UDP is the
	// part of the flood.
	Goodput, UDP float64
	// Reached is the time from the start until 85 % of the link were used.
	Reached time.Duration
	// Dropped is how many packets the bottleneck dropped.
	Dropped int
}

// FillOptions say how long a link is idle and filled, and with what.
type FillOptions struct {
	Bottleneck
	Idle, Load time.Duration // zero means 10 s and 60 s
	Flows      int           // TCP flows
	Flood      int64         // of UDP, bits per second
}

func (o FillOptions) withDefaults() FillOptions {
	if o.Idle == 0 {
		o.Idle = 10 * time.Second
	}
	if o.Load == 0 {
		o.Load = time.Minute
	}
	return o
}

// Fill fills a thin link.
func Fill(ctx context.Context, lab *netns.Lab, sys world.System, o FillOptions) (Shaped, error) {
	var r Shaped
	o = o.withDefaults()
	s, err := newSite(ctx, lab, sys, o.Bottleneck)
	if err != nil {
		return r, err
	}
	defer s.close()
	start, err := s.bulk(ctx, o.Flows, o.Flood)
	if err != nil {
		return r, err
	}
	var alone float64
	if r.Idle, alone, err = s.idle(ctx, o.Idle); err != nil {
		return r, err
	}
	before, err := s.sent()
	if err != nil {
		return r, err
	}
	t, err := s.trips()
	if err != nil {
		return r, err
	}
	m := s.meter()
	began := time.Now()
	l := start()
	if err := world.Pause(ctx, startTime); err != nil {
		return r, err
	}
	loaded, arrived, udp := time.Now(), l.bytes(), l.udp()
	if err := world.Pause(ctx, o.Load); err != nil {
		return r, err
	}
	end := time.Now()
	r.Goodput = float64(l.bytes()-arrived) / end.Sub(loaded).Seconds()
	r.UDP = float64(l.udp()-udp) / end.Sub(loaded).Seconds()
	s.note(ctx, "filled")
	// The requests stop under load: what they meet then is no part of it.
	a, err := t.Stop(ctx)
	after, sentErr := s.sent()
	if err := errors.Join(err, sentErr, m.end()); err != nil {
		return r, err
	}
	s.trace("filled", began, m, a)
	r.First, r.Loaded = a.Within(began, loaded), a.Within(loaded, end)
	link := float64(o.Rate) / 8
	r.Share = (m.rate(loaded, end) - alone) / link
	r.Reached = m.reached(began, end, enough*link)
	r.Dropped = int(after.Dropped - before.Dropped)
	return r, nil
}

func (l *load) udp() int64 {
	if l.blast == nil {
		return 0
	}
	_, b := l.blast.Got()
	return b
}

// Step is a link whose rate falls and rises again under load.
type Step struct {
	Idle probe.Latency
	// Before, Low and After are the three parts.
	Before, Low, After probe.Latency
	// Peak is the longest round trip after the fall, Inside the time from the fall
	// until all round trips of a second were within the bound.
	Peak, Inside time.Duration
	// Reached is the time from the rise until 85 % of the link were used.
	Reached time.Duration
	// Share is Bulk's of the low rate, from 1 s after the fall on.
	Share float64
}

// Steps lets the rate fall to low and rise again, each part a third of o.Load.
// bound is what counts as inside, over the idle p99.
func Steps(ctx context.Context, lab *netns.Lab, sys world.System, o FillOptions, low int64, bound time.Duration) (Step, error) {
	r := Step{Inside: world.Never, Reached: world.Never}
	o = o.withDefaults()
	high := o.Rate
	s, err := newSite(ctx, lab, sys, o.Bottleneck)
	if err != nil {
		return r, err
	}
	defer s.close()
	start, err := s.bulk(ctx, o.Flows, o.Flood)
	if err != nil {
		return r, err
	}
	var alone float64
	if r.Idle, alone, err = s.idle(ctx, o.Idle); err != nil {
		return r, err
	}
	t, err := s.trips()
	if err != nil {
		return r, err
	}
	m := s.meter()
	began := time.Now()
	start()
	var mark [3]time.Time // the ends of the parts
	for i, next := range []int64{low, high, 0} {
		if err := world.Pause(ctx, o.Load/3); err != nil {
			return r, err
		}
		if mark[i] = time.Now(); next != 0 {
			s.setRate(next)
		}
	}
	a, err := t.Stop(ctx)
	if err := errors.Join(err, m.end()); err != nil {
		return r, err
	}
	s.trace("steps", began, m, a)
	fall, rise, end := mark[0], mark[1], mark[2]
	// Requests of the last moments before the fall wait in the queue as well.
	r.Before, r.Low, r.After = a.Within(began, fall.Add(-world.Interval)), a.Within(fall.Add(-100*time.Millisecond), rise), a.Within(rise, end)
	r.Peak = r.Low.Max
	if in, ok := a.Inside(fall, rise, r.Idle.P99+bound, time.Second); ok {
		r.Inside = in
	}
	r.Reached = m.reached(rise, end, enough*float64(high)/8)
	r.Share = (m.rate(fall.Add(time.Second), rise) - alone) * 8 / float64(low)
	return r, nil
}

// Beside is a link that is shared with a foreign TCP flow outside the tunnel.
type Beside struct {
	Idle probe.Latency
	// Alone is Critical beside the foreign flow only, Loaded with Bulk as well,
	// Left after the foreign flow has ended.
	Alone, Loaded, Left probe.Latency
	// Share is the tunnel's part of the link beside the foreign flow, LeftShare
	// that without it.
	Share, LeftShare float64
}

// Foreign runs a TCP flow of a third host through the bottleneck, which must be a
// Router: alone, with Bulk beside it, and Bulk alone again. Unless fresh is set, Bulk
// has had the link before, so that the tunnel knows what it can give.
func Foreign(ctx context.Context, lab *netns.Lab, sys world.System, o FillOptions, fresh bool) (Beside, error) {
	var r Beside
	o = o.withDefaults()
	o.Where = Router
	s, err := newSite(ctx, lab, sys, o.Bottleneck)
	if err != nil {
		return r, err
	}
	defer s.close()
	stranger := s.w.WAN.Host("stranger", o.far())
	out, in, err := dial(ctx, stranger, s.p.Hosts[1])
	if err != nil {
		return r, err
	}
	if r.Idle, _, err = s.idle(ctx, o.Idle); err != nil {
		return r, err
	}
	if !fresh {
		if err := s.acquaint(ctx, o); err != nil {
			return r, err
		}
	}
	start, err := s.bulk(ctx, o.Flows, o.Flood)
	if err != nil {
		return r, err
	}
	m := s.meter()
	foreign := probe.StartBulk([]net.Conn{out}, []net.Conn{in})
	s.p.OnClose(foreign.Close)
	if err := s.overflow(ctx); err != nil {
		return r, err
	}
	if r.Alone, _, err = s.idle(ctx, o.Load); err != nil {
		return r, err
	}
	start()
	if err := world.Pause(ctx, startTime); err != nil {
		return r, err
	}
	began, theirs := time.Now(), foreign.Bytes()
	t, err := s.trips()
	if err != nil {
		return r, err
	}
	pauseErr := world.Pause(ctx, o.Load)
	s.note(ctx, "beside")
	loaded, err := t.Stop(ctx)
	if err = errors.Join(pauseErr, err); err != nil {
		return r, err
	}
	r.Loaded = loaded.All()
	end := time.Now()
	// What its segments of 1448 bytes are on the wire.
	wire := float64(foreign.Bytes()-theirs) * 1514 / 1448 / end.Sub(began).Seconds()
	foreign.Close()
	if err := world.Pause(ctx, 3*time.Second); err != nil {
		return r, err
	}
	left := time.Now()
	if r.Left, _, err = s.idle(ctx, o.Load/3); err != nil {
		return r, err
	}
	over := time.Now()
	if err := m.end(); err != nil {
		return r, err
	}
	s.trace("beside", began, m, loaded)
	link := float64(o.Rate) / 8
	r.Share = (m.rate(began, end) - wire) / link
	r.LeftShare = m.rate(left, over) / link
	return r, nil
}

// acquaint has Bulk use the link for some seconds.
func (s *site) acquaint(ctx context.Context, o FillOptions) error {
	start, err := s.bulk(ctx, o.Flows, o.Flood)
	if err != nil {
		return err
	}
	l := start()
	defer l.close()
	return world.Pause(ctx, acquaintTime)
}

// overflow waits until the bottleneck has dropped something, so that a flow which
// fills it has come to where it stays.
func (s *site) overflow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, overflowTime)
	defer cancel()
	before, err := s.sent()
	if err != nil {
		return err
	}
	for {
		now, err := s.sent()
		if err != nil || now.Dropped > before.Dropped {
			return err
		}
		if err := world.Pause(ctx, meterEvery); err != nil {
			return fmt.Errorf("wait for the queue to overflow: %w", err)
		}
	}
}

// dial makes a TCP connection outside the tunnel.
func dial(ctx context.Context, from, to *netns.Host) (out, in net.Conn, err error) {
	ln, err := to.ListenTCP(net.JoinHostPort(to.Addr4().String(), "0"))
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if out, err = from.DialTCP(ctx, ln.Addr().(*net.TCPAddr).AddrPort()); err != nil {
		return nil, nil, err
	}
	// It is in the backlog already.
	if in, err = ln.Accept(); err != nil {
		return nil, nil, errors.Join(err, out.Close())
	}
	return out, in, nil
}
