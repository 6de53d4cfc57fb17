// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/flood"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Junk is what an attacker sends.
type Junk string

// The kinds of junk.
const (
	Unknown  Junk = "unknown index"
	BadTag   Junk = "bad tag"
	Counters Junk = "high counters"
	Invites  Junk = "forged INVITEs"
	// Insiders knows the certificates of both robots, as every member does, has
	// cookies for 16 addresses, and forges all of an INVITE but its signature.
	Insiders Junk = "forged INVITEs of an insider"
)

// insiders is how many addresses the insider sends from.
const insiders = 16

// JunkOf are the kinds that a system can be sent here: a rival gets packets of
// its own format with an index that it has never given out.
func JunkOf(sys System) []Junk {
	if !sys.Built() {
		return []Junk{Unknown}
	}
	return []Junk{Unknown, BadTag, Counters, Invites, Insiders}
}

// Attack is one kind of junk at a robot's port.
type Attack struct {
	Junk Junk
	Rate int // what was really sent, packets a second
	// Quiet and Loaded are Critical round trips before and during it.
	Quiet, Loaded probe.Latency
	// Answers are the packets that the attacker received from the victim.
	Answers int
	// Memory is the victim's resident memory in bytes: before, and every second of
	// the attack.
	Memory []int64
}

// Grown is how much more memory the victim had at the end than before.
func (a Attack) Grown() int64 { return a.Memory[len(a.Memory)-1] - a.Memory[0] }

// Creep is how much it grew in the second half of the attack, when what has a
// bound should have reached it.
func (a Attack) Creep() int64 { return a.Memory[len(a.Memory)-1] - a.Memory[len(a.Memory)/2] }

// Attacks sends each kind of junk to a robot that talks to another, at 50,000
// packets a second (INVITEs at 2,000), for so long each.
func Attacks(ctx context.Context, lab *netns.Lab, sys System, each time.Duration, kinds ...Junk) ([]Attack, error) {
	w, err := world.New(ctx, lab, sys, netns.Link{PerPacket: true})
	if err != nil {
		return nil, err
	}
	link := netns.Link{PerPacket: true}
	a, b, mallory := w.WAN.Host("robot1", link), w.WAN.Host("robot2", link), w.WAN.Host("mallory", link)
	capture, err := b.Iface(0).CaptureIncoming()
	if err != nil {
		return nil, err
	}
	p, err := w.Connect(ctx, a, b)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if err := world.Pause(ctx, time.Second); err != nil {
		return nil, err
	}
	if _, err := p.Latency(ctx, time.Second); err != nil { // warm
		return nil, err
	}
	if err := capture.Stop(); err != nil {
		return nil, err
	}
	victim := netip.AddrPortFrom(b.Addr4(), p.Port[1])
	var all []Attack
	for _, kind := range kinds {
		t := target{host: 1, addr: victim}
		if kind == Insiders {
			err = insider(ctx, p, mallory, &t)
		} else {
			var next flood.Maker
			next, err = maker(sys, kind, capture)
			t.next = []flood.Maker{next}
		}
		if err == nil && t.conns == nil {
			var c *net.UDPConn
			c, err = mallory.ListenUDP("0.0.0.0:0")
			t.conns = []*net.UDPConn{c}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		r, err := attack(ctx, p, mallory, t, kind, each)
		for _, c := range t.conns {
			_ = c.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// target is what is attacked, and what with.
type target struct {
	host  int // of the pair
	addr  netip.AddrPort
	conns []*net.UDPConn
	next  []flood.Maker // one for each of conns
}

// insider prepares the insider's attack. An INVITE goes to the higher PeerID.
func insider(ctx context.Context, p *world.Pair, mallory *netns.Host, t *target) error {
	var members [2]flood.Member
	for i, n := range p.Nodes {
		text, err := os.ReadFile(filepath.Join(n.Home, "certs", "node.crt"))
		if err != nil {
			return err
		}
		if members[i], err = flood.ParseMember(text); err != nil {
			return err
		}
	}
	if bytes.Compare(members[0].ID[:], members[1].ID[:]) > 0 {
		t.host = 0
	}
	t.addr = netip.AddrPortFrom(p.Hosts[t.host].Addr4(), p.Port[t.host])
	for i := range insiders {
		addr := mallory.Iface(0).AddAddr4(100 + i)
		c, err := mallory.ListenUDP(netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			return err
		}
		t.conns = append(t.conns, c)
		next, err := flood.Insider(ctx, c, t.addr, members[1-t.host], members[t.host])
		if err != nil {
			return err
		}
		t.next = append(t.next, next)
	}
	return nil
}

// maker forges the kind, from what was seen on the wire where it must be.
func maker(sys System, kind Junk, capture *netns.Capture) (flood.Maker, error) {
	if !sys.Built() {
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

func attack(ctx context.Context, p *world.Pair, mallory *netns.Host, t target, kind Junk, each time.Duration) (Attack, error) {
	r := Attack{Junk: kind}
	rate := 50_000
	switch kind {
	case Invites:
		rate = 2_000
	case Insiders:
		rate = 6_000 // three pieces each
	default:
	}
	var err error
	if r.Quiet, err = p.Latency(ctx, each); err != nil {
		return r, err
	}
	pid := p.Procs[t.host].Pid()
	before, err := world.RSS(pid)
	if err != nil {
		return r, err
	}
	r.Memory = []int64{before}
	answers, err := mallory.Iface(0).CaptureIncoming()
	if err != nil {
		return r, err
	}
	type result struct {
		sent int
		err  error
	}
	done := make(chan result, len(t.conns))
	during, stop := context.WithCancel(ctx)
	began := time.Now()
	for i, c := range t.conns {
		go func() {
			n, err := flood.Run(during, c, t.addr, rate/len(t.conns), t.next[i])
			done <- result{n, err}
		}()
	}
	end := func() (sent int, err error) {
		stop()
		for range t.conns {
			one := <-done
			sent, err = sent+one.sent, errors.Join(err, one.err)
		}
		return sent, err
	}
	if err := world.Pause(ctx, 300*time.Millisecond); err != nil {
		_, _ = end()
		return r, err
	}
	watched := make(chan []int64, 1)
	go func() { watched <- watchMemory(during, pid) }()
	if kind == Insiders {
		each *= 3 // a heap that has a bound takes a while to get there
	}
	r.Loaded, err = p.Latency(ctx, each)
	took := time.Since(began)
	last, memErr := world.RSS(pid)
	sent, sendErr := end()
	r.Memory = append(append(r.Memory, <-watched...), last)
	if err := errors.Join(err, memErr, sendErr); err != nil {
		return r, err
	}
	r.Rate = int(float64(sent) / took.Seconds())
	if err := answers.Stop(); err != nil {
		return r, err
	}
	for _, f := range answers.Frames() {
		if q := (netns.Classifier{}).Classify(f); q.Src.Addr() == t.addr.Addr() {
			r.Answers++
		}
	}
	return r, nil
}

// watchMemory reads a process's memory every second until ctx ends.
func watchMemory(ctx context.Context, pid int) (all []int64) {
	for world.Pause(ctx, time.Second) == nil {
		if n, err := world.RSS(pid); err == nil {
			all = append(all, n)
		}
	}
	return all
}
