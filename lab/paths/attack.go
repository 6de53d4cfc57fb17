// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/flood"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
)

// Junk is what an attacker sends.
type Junk string

// The kinds of junk.
const (
	Unknown  Junk = "unknown index"
	BadTag   Junk = "bad tag"
	Counters Junk = "high counters"
	Invites  Junk = "forged INVITEs"
)

// JunkOf are the kinds that a system can be sent here: a rival gets packets of
// its own format with an index that it has never given out.
func JunkOf(sys System) []Junk {
	if sys.rival != nil {
		return []Junk{Unknown}
	}
	return []Junk{Unknown, BadTag, Counters, Invites}
}

// Attack is one kind of junk at a robot's port.
type Attack struct {
	Junk Junk
	Rate int // what was really sent, packets a second
	// Quiet and Loaded are Critical round trips before and during it.
	Quiet, Loaded probe.Latency
	// Answers are the packets that the attacker received from the victim.
	Answers int
	// Before and After are the victim's resident memory in bytes.
	Before, After int64
}

// Attacks sends each kind of junk to a robot that talks to another, at 50,000
// packets a second (INVITEs at 2,000), for so long each.
func Attacks(ctx context.Context, lab *netns.Lab, sys System, each time.Duration, kinds ...Junk) ([]Attack, error) {
	w, err := newWorld(ctx, lab, sys, netns.Link{PerPacket: true})
	if err != nil {
		return nil, err
	}
	link := netns.Link{PerPacket: true}
	a, b, mallory := w.wan.Host("robot1", link), w.wan.Host("robot2", link), w.wan.Host("mallory", link)
	capture, err := b.Iface(0).CaptureIncoming()
	if err != nil {
		return nil, err
	}
	p, err := w.connect(ctx, a, b)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := pause(ctx, time.Second); err != nil {
		return nil, err
	}
	if _, err := p.latency(ctx, time.Second); err != nil { // warm
		return nil, err
	}
	if err := capture.Stop(); err != nil {
		return nil, err
	}
	victim := netip.AddrPortFrom(b.Addr4(), p.port[1])
	var all []Attack
	for _, kind := range kinds {
		next, err := maker(sys, kind, capture)
		if err != nil {
			return nil, err
		}
		r, err := p.attack(ctx, mallory, victim, kind, next, each)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// maker forges the kind, from what was seen on the wire where it must be.
func maker(sys System, kind Junk, capture *netns.Capture) (flood.Maker, error) {
	if sys.rival != nil {
		return foreign(sys.Name), nil
	}
	switch kind {
	case Unknown:
		return flood.UnknownIndex(), nil
	case Invites:
		return flood.Invite(), nil
	default: // needs what was seen
	}
	frames := capture.Frames()
	for i := range frames {
		if typ, h, ok := meshPacket(frames[len(frames)-1-i]); ok && typ == flood.TypeData && h.Lane == 0 {
			if kind == Counters {
				return flood.HighCounter(h), nil
			}
			return flood.BadTag(h), nil
		}
	}
	return nil, errors.New("no Critical packet was seen on the wire")
}

// foreign makes data packets of a rival's format with a random index.
func foreign(name string) flood.Maker {
	head := []byte{4, 0, 0, 0} // WireGuard: transport data; the index follows
	if name == "nebula" {
		head = []byte{0x11, 0, 0, 0} // version 1, message
	}
	return func(b []byte) int {
		b = b[:124]
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		copy(b, head)
		return len(b)
	}
}

func (p *pair) attack(ctx context.Context, mallory *netns.Host, victim netip.AddrPort, kind Junk, next flood.Maker, each time.Duration) (Attack, error) {
	r := Attack{Junk: kind}
	rate := 50_000
	if kind == Invites {
		rate = 2_000
	}
	var err error
	if r.Quiet, err = p.latency(ctx, each); err != nil {
		return r, err
	}
	if r.Before, err = rss(p.procs[1].Pid()); err != nil {
		return r, err
	}
	conn, err := mallory.ListenUDP("0.0.0.0:0")
	if err != nil {
		return r, fmt.Errorf("open attacker's socket: %w", err)
	}
	defer conn.Close()
	answers, err := mallory.Iface(0).CaptureIncoming()
	if err != nil {
		return r, err
	}
	type result struct {
		sent int
		err  error
	}
	done := make(chan result, 1)
	during, stop := context.WithCancel(ctx)
	began := time.Now()
	go func() {
		n, err := flood.Run(during, conn, victim, rate, next)
		done <- result{n, err}
	}()
	end := func() result {
		stop()
		return <-done
	}
	if err := pause(ctx, 300*time.Millisecond); err != nil {
		return r, errors.Join(err, end().err)
	}
	r.Loaded, err = p.latency(ctx, each)
	took := time.Since(began)
	sent := end()
	if err := errors.Join(err, sent.err); err != nil {
		return r, err
	}
	r.Rate = int(float64(sent.sent) / took.Seconds())
	if r.After, err = rss(p.procs[1].Pid()); err != nil {
		return r, err
	}
	if err := answers.Stop(); err != nil {
		return r, err
	}
	for _, f := range answers.Frames() {
		if q := (netns.Classifier{}).Classify(f); q.Src.Addr() == victim.Addr() {
			r.Answers++
		}
	}
	return r, nil
}
