// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/flood"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Cut is a way in which an uplink dies.
type Cut string

// The ways.
const (
	LinkDown   Cut = "link down"
	Unplugged  Cut = "unplugged"  // the carrier is lost
	Blackholed Cut = "blackholed" // silently: only the missing answers tell
)

func (c Cut) set(i *netns.Iface, cut bool) {
	switch {
	case c == LinkDown && cut:
		i.Down()
	case c == LinkDown:
		i.Up()
	case c == Unplugged && cut:
		i.Unplug()
	case c == Unplugged:
		i.Plug()
	default:
		i.Blackhole(cut)
	}
}

// The uplinks of a robot that has two.
var (
	wifi = world.Cable(4*time.Millisecond, time.Millisecond)
	lte  = world.Cable(15*time.Millisecond, 2*time.Millisecond)
	near = world.Cable(2*time.Millisecond, 0)
)

// twoUplinks is a robot with Wi-Fi and LTE, in that order of preference.
func twoUplinks(w *world.World, name string) *netns.Host {
	h := w.WAN.Host(name, wifi)
	h.Attach(w.WAN, lte)
	return h
}

// behindNATs is twoUplinks with a NAT in each: a router at home and a carrier's.
func behindNATs(w *world.World, name string) *netns.Host {
	home := w.Lab.NAT("home", netns.NATConfig{Kind: netns.PortRestricted, Upstream: w.WAN, Link: wifi})
	carrier := w.Lab.NAT("carrier", netns.NATConfig{Kind: netns.Symmetric, Upstream: w.WAN, Link: lte})
	h := home.Host(name, netns.Link{PerPacket: true})
	h.Attach(carrier, netns.Link{PerPacket: true})
	return h
}

// Cuts are two uplinks that died and came back, one after the other, under
// Critical streams and a TCP flow both ways.
type Cuts struct {
	Streams [2]probe.Delivery // from the host whose uplinks were cut, and to it
	// FlowGap is the longest pause of the flow, from that host and to it; FlowErr
	// is what broke it.
	FlowGap [2]time.Duration
	FlowErr error
	// Healed is, for each of the uplinks, the time from its return until a
	// Critical packet has left by it and one has come by it.
	Healed [2]time.Duration
	Marks  []Mark
}

// Mark is when something was done to an uplink.
type Mark struct {
	What string
	At   time.Time
}

// CutOptions say how long a scenario of cuts is, and where.
type CutOptions struct {
	Cut     Cut
	Packets int  // of each stream, 100 a second
	Both    bool // the other host has two uplinks as well
	NAT     bool // the uplinks lead through a port-restricted and a symmetric NAT
}

// CutUplinks runs it.
func CutUplinks(ctx context.Context, lab *netns.Lab, sys System, o CutOptions) (Cuts, error) {
	var c Cuts
	w, err := world.New(ctx, lab, sys, leg)
	if err != nil {
		return c, err
	}
	var a *netns.Host
	if o.NAT {
		a = behindNATs(w, "robot1")
	} else {
		a = twoUplinks(w, "robot1")
	}
	var b *netns.Host
	if o.Both {
		b = twoUplinks(w, "robot2")
	} else {
		b = w.WAN.Host("robot2", near)
	}
	p, err := w.Connect(ctx, a, b)
	if err != nil {
		return c, err
	}
	defer p.Close()
	var captures [2]*netns.Capture
	for i := range captures {
		if captures[i], err = a.Iface(i).Capture(); err != nil {
			return c, err
		}
	}
	if err := bothUsed(ctx, captures); err != nil {
		return c, err
	}
	flow, err := p.Flow(ctx)
	if err != nil {
		return c, err
	}
	began := time.Now()
	streams, err := p.Streams(probe.Requests{Count: o.Packets, Linger: 2 * time.Second})
	if err != nil {
		return c, err
	}
	whole := time.Duration(o.Packets) * interval
	mark := func(what string, share float64) (time.Time, error) {
		err := world.Pause(ctx, time.Until(began.Add(time.Duration(share*float64(whole)))))
		now := time.Now()
		c.Marks = append(c.Marks, Mark{what, now})
		return now, err
	}
	var heals [2]time.Time
	for i, share := range []float64{0.15, 0.55} {
		if _, err = mark(fmt.Sprintf("cut %d", i), share); err != nil {
			return c, err
		}
		o.Cut.set(a.Iface(i), true)
		if _, err = mark(fmt.Sprintf("heal %d", i), share+0.2); err != nil {
			return c, err
		}
		o.Cut.set(a.Iface(i), false)
		heals[i] = time.Now()
	}
	end, err := mark("end", 1)
	if err != nil {
		return c, err
	}
	c.FlowGap = [2]time.Duration{flow.Gap(1, began, end), flow.Gap(0, began, end)}
	c.FlowErr = flow.Close()
	if c.Streams, err = world.Await(ctx, streams); err != nil {
		return c, err
	}
	for i, capture := range captures {
		if err := capture.Stop(); err != nil {
			return c, err
		}
		c.Healed[i] = usedAfter(capture.Frames(), heals[i])
	}
	return c, nil
}

// bothUsed waits until Critical packets have left by both uplinks; whether they
// ever do is for the figures to tell, so it gives up without a word.
func bothUsed(ctx context.Context, captures [2]*netns.Capture) error {
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
		if err := world.Pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
		used := 0
		for _, c := range captures {
			for _, f := range c.Frames() {
				if typ, _, ok := meshPacket(f); ok && typ != flood.TypeHandshake {
					used++
					break
				}
			}
		}
		if used == 2 {
			return world.Pause(ctx, 300*time.Millisecond)
		}
	}
	return nil
}

// meshPacket reads the head of the (first) mesh packet in a frame.
func meshPacket(f netns.Frame) (typ byte, h flood.Header, ok bool) {
	q := netns.Classifier{}.Classify(f)
	if q.Class != netns.ClassMesh {
		return 0, h, false
	}
	h, ok = flood.ParseHeader(q.Payload)
	return h.Type, h, ok
}

// usedAfter is the time from t until Critical payload had left and had come;
// never where one of them did not.
func usedAfter(frames []netns.Frame, t time.Time) time.Duration {
	out, in := never, never
	for _, f := range frames {
		if f.Time.Before(t) {
			continue
		}
		typ, h, ok := meshPacket(f)
		if !ok || typ != flood.TypeData || h.Lane != 0 {
			continue
		}
		if f.Outgoing {
			out = min(out, f.Time.Sub(t))
		} else {
			in = min(in, f.Time.Sub(t))
		}
	}
	return max(out, in)
}

// Failover is one cut of the preferred of two uplinks, for any system.
type Failover struct {
	// Again is the time from the cut until a packet that was sent after it had
	// come, from the host whose uplink was cut and to it; never if it took longer
	// than that.
	Again [2]time.Duration
	Lost  [2]int
	// FlowGap is the longest pause of a TCP flow; never if it did not come back.
	FlowGap [2]time.Duration
}

// FailOver cuts the preferred uplink and waits for recovery, for at most limit,
// which is at most 30 s.
func FailOver(ctx context.Context, lab *netns.Lab, sys System, cut Cut, limit time.Duration) (Failover, error) {
	var f Failover
	w, err := world.New(ctx, lab, sys, leg)
	if err != nil {
		return f, err
	}
	a, b := twoUplinks(w, "robot1"), w.WAN.Host("robot2", near)
	p, err := w.Connect(ctx, a, b)
	if err != nil {
		return f, err
	}
	defer p.Close()
	if err := world.Pause(ctx, time.Second); err != nil {
		return f, err
	}
	flow, err := p.Flow(ctx)
	if err != nil {
		return f, err
	}
	streams, err := p.Streams(probe.Requests{Count: probe.MaxRequests})
	if err != nil {
		return f, err
	}
	defer func() { _, _ = world.StopStreams(ctx, streams) }()
	if err := world.Pause(ctx, 2*time.Second); err != nil {
		return f, err
	}
	at := time.Now()
	cut.set(a.Iface(0), true)
	var before [2]int
	for i := range streams {
		before[i] = streams[i].Got()
	}
	// Recovered when both streams move again; a second more tells what was lost.
	for time.Since(at) < limit {
		if err := world.Pause(ctx, 100*time.Millisecond); err != nil {
			return f, err
		}
		if streams[0].Got() > before[0]+100 && streams[1].Got() > before[1]+100 {
			break
		}
	}
	if err := world.Pause(ctx, 500*time.Millisecond); err != nil {
		return f, err
	}
	end := time.Now()
	f.FlowGap = [2]time.Duration{flow.Gap(1, at, end), flow.Gap(0, at, end)}
	d, err := world.StopStreams(ctx, streams)
	if err != nil {
		return f, err
	}
	for i := range d {
		f.Lost[i], f.Again[i] = d[i].Lost, never
		if again, ok := d[i].Resumed(at); ok {
			f.Again[i] = min(again, never)
		}
		if f.FlowGap[i] > limit-time.Second {
			f.FlowGap[i] = never
		}
	}
	return f, nil
}

// Skew is what two uplinks of different delay, one of them with loss, did to a
// stream.
type Skew struct {
	Delay  time.Duration // of the second uplink beyond the first
	Stream probe.Delivery
	// Wire is how many different Critical packets reached the receiver's
	// interface, Copies how many came twice or more.
	Wire, Copies int
	Missed       int // frames that the capture missed
}

// Skews streams packets over a first uplink that loses 30 % and a second one that
// is later by each of the delays.
func Skews(ctx context.Context, lab *netns.Lab, sys System, packets int, delays ...time.Duration) ([]Skew, error) {
	w, err := world.New(ctx, lab, sys, leg)
	if err != nil {
		return nil, err
	}
	short := netns.Shape{Delay: 5 * time.Millisecond}
	a, b := w.WAN.Host("robot1", leg), w.WAN.Host("robot2", near)
	second := a.Attach(w.WAN, leg)
	p, err := w.Connect(ctx, a, b)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if err := world.Pause(ctx, 2*time.Second); err != nil { // both paths are in use
		return nil, err
	}
	w.Hub.Stop() // or its relay would carry what the capture does not see
	lossy := netns.Shape{Delay: short.Delay, Loss: 0.3}
	a.Iface(0).SetShape(lossy, lossy)
	var all []Skew
	for _, delay := range delays {
		late := netns.Shape{Delay: short.Delay + delay}
		second.SetShape(late, late)
		s := Skew{Delay: delay}
		capture, err := b.Iface(0).CaptureIncoming()
		if err != nil {
			return nil, err
		}
		stream, err := p.Stream(0, probe.Requests{Count: packets, Linger: 2*delay + 1500*time.Millisecond})
		if err != nil {
			return nil, err
		}
		if s.Stream, err = stream.Wait(ctx); err != nil {
			return nil, err
		}
		p.CloseStream() // the receiver's port is for the next stream
		if err := capture.Stop(); err != nil {
			return nil, err
		}
		type id struct {
			index   uint32
			counter uint64
		}
		seen := map[id]int{}
		for _, f := range capture.Frames() {
			if typ, h, ok := meshPacket(f); ok && typ == flood.TypeData && h.Lane == 0 {
				seen[id{h.Index, h.Counter}]++
			}
		}
		for _, n := range seen {
			if n > 1 {
				s.Copies++
			}
		}
		s.Wire, s.Missed = len(seen), capture.Missed()
		all = append(all, s)
	}
	return all, nil
}
