// SPDX-License-Identifier: Apache-2.0

package world

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/rival"
)

// What scenarios have in common.
const (
	// Never is how long a recovery is waited for.
	Never = 30 * time.Second
	// Interval is that of the Critical streams: 100 a second.
	Interval = 10 * time.Millisecond
	// CriticalSize is a payload that makes an inner packet of 92 bytes, which is
	// Critical for its size.
	CriticalSize = 64

	// EchoPort is where both ends of a pair answer.
	EchoPort   = 7000
	StreamPort = 7001 // where a stream arrives
)

// Cable is a link with the same delay both ways.
func Cable(delay, jitter time.Duration) netns.Link {
	s := netns.Shape{Delay: delay, Jitter: jitter}
	return netns.Link{Up: s, Down: s, PerPacket: true}
}

// System is a tunnel under test.
type System struct {
	Name string

	bin   build.Binaries
	rival *rival.System
	raw   bool
	conf  string // more lines for config.toml
}

// Bauxite is the system under test.
func Bauxite(bin build.Binaries) System { return System{Name: "bauxite", bin: bin} }

// Rival is a system to compare with.
func Rival(r rival.System) System { return System{Name: r.Name, rival: &r} }

// Raw is the network itself, without a tunnel.
func Raw() System { return System{Name: "raw", raw: true} }

// Built tells whether the system is Bauxite, which has goals.
func (s System) Built() bool { return s.rival == nil && !s.raw }

// With is Bauxite with more lines in config.toml. Other systems stay as they are.
func (s System) With(lines string) System {
	if s.Built() {
		s.conf += lines
	}
	return s
}

// World is a lab with a router in the middle and, for Bauxite, a running hub.
type World struct {
	Lab    *netns.Lab
	System System
	WAN    *netns.WAN
	Hub    *fleet.Hub
	// third is the hub's host where a rival runs.
	third rival.End
}

// New makes a world; hub is the cable to the hub's host.
func New(ctx context.Context, lab *netns.Lab, sys System, hub netns.Link) (*World, error) {
	w := &World{Lab: lab, System: sys, WAN: lab.WAN("wan")}
	h := w.WAN.Host("hub", hub)
	if !sys.Built() {
		w.third = rival.End{Host: h, Addr: h.Addr4()}
		return w, nil
	}
	var err error
	// The lab's public addresses are those that a hub takes for private ones.
	w.Hub, err = fleet.StartHub(ctx, h, sys.bin, filepath.Join(lab.LogDir(), "hub"), "--turn-allow", "198.18.0.0/15")
	return w, err
}

// Join makes a host a member of the mesh.
func (w *World) Join(ctx context.Context, h *netns.Host) (*fleet.Node, error) {
	n := fleet.NewNode(h, w.System.bin, w.Lab.LogDir(), h.Name())
	token, err := w.Hub.Token(ctx)
	if err != nil {
		return nil, err
	}
	if _, err = n.Join(ctx, token, w.Hub.URL); err != nil {
		return nil, err
	}
	if w.System.conf != "" {
		err = n.Configure(w.System.conf)
	}
	return n, err
}

// Pair is two hosts with a tunnel between them.
type Pair struct {
	Hosts   [2]*netns.Host
	Virtual [2]netip.Addr
	Procs   [2]*netns.Proc // none where there is no tunnel
	Port    [2]uint16
	Nodes   [2]*fleet.Node // of Bauxite only

	closers []func()
}

// Connect makes a pair of two hosts and waits until the first hears from the
// second.
func (w *World) Connect(ctx context.Context, a, b *netns.Host) (*Pair, error) {
	p, err := w.Tunnel(ctx, a, b)
	if err != nil {
		return nil, err
	}
	if err := p.Echo(); err != nil {
		p.Close()
		return nil, err
	}
	if _, err := p.Answer(ctx); err != nil {
		tails := p.Tails()
		p.Close()
		return nil, fmt.Errorf("%w\n%s", err, tails)
	}
	return p, nil
}

// Beside makes a host a member that talks to an end of a pair, too, and waits until
// it hears from there. Rivals cannot.
func (w *World) Beside(ctx context.Context, h *netns.Host, p *Pair, end int) (*Pair, error) {
	if !w.System.Built() {
		return nil, fmt.Errorf("connect a third host: %w", errors.ErrUnsupported)
	}
	n, err := w.Join(ctx, h)
	if err == nil {
		err = n.Start(ctx)
	}
	if err != nil {
		return nil, err
	}
	q := &Pair{Hosts: [2]*netns.Host{h, p.Hosts[end]}, Nodes: [2]*fleet.Node{n, p.Nodes[end]}}
	if err = q.Ready(ctx); err == nil {
		_, err = q.First(ctx) // the other end answers already
	}
	return q, err
}

// Tunnel is Connect without waiting for an answer.
func (w *World) Tunnel(ctx context.Context, a, b *netns.Host) (*Pair, error) {
	p := &Pair{Hosts: [2]*netns.Host{a, b}}
	if w.System.raw {
		p.Virtual = [2]netip.Addr{a.Addr4(), b.Addr4()}
		return p, nil
	}
	if r := w.System.rival; r != nil {
		t, err := r.Start(ctx, w.Lab.LogDir(), rival.End{Host: a, Addr: a.Addr4()}, rival.End{Host: b, Addr: b.Addr4()}, w.third)
		if err != nil {
			return nil, err
		}
		p.Virtual, p.Procs, p.Port = t.Virtual, t.Procs, [2]uint16{t.Port, t.Port}
		p.closers = append(p.closers, t.Stop)
		return p, nil
	}
	for i, h := range p.Hosts {
		n, err := w.Join(ctx, h)
		if err == nil {
			err = n.Start(ctx)
		}
		if err != nil {
			return nil, err
		}
		p.Nodes[i], p.Procs[i] = n, n.Proc
	}
	return p, p.Ready(ctx)
}

// Ready waits until both nodes know the hub and each other.
func (p *Pair) Ready(ctx context.Context) error {
	for i, n := range p.Nodes {
		s, err := n.WaitReady(ctx, p.Nodes[1-i].Name)
		if err != nil {
			return err
		}
		p.Virtual[i], p.Port[i], p.Procs[i] = s.Node.VirtualIP, s.Node.Port, n.Proc
	}
	return nil
}

// Close ends what the pair has opened. Its daemons end with the lab.
func (p *Pair) Close() {
	for _, f := range p.closers {
		f()
	}
	p.closers = nil
}

// OnClose has Close call f too.
func (p *Pair) OnClose(f func()) { p.closers = append(p.closers, f) }

// CloseStream closes the sockets of the last Stream, so that its port is free.
func (p *Pair) CloseStream() {
	for _, f := range p.closers[len(p.closers)-2:] {
		f()
	}
}

// Tails are the last lines of the daemons' logs.
func (p *Pair) Tails() string {
	var b strings.Builder
	for i, proc := range p.Procs {
		if proc != nil {
			fmt.Fprintf(&b, "--- %s:\n%s\n", p.Hosts[i].Name(), proc.Tail(12))
		}
	}
	return b.String()
}

// UDP opens a socket of a host until Close.
func (p *Pair) UDP(host int, port int) (*net.UDPConn, error) {
	c, err := p.Hosts[host].ListenUDP(fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, fmt.Errorf("open socket on %s: %w", p.Hosts[host].Name(), err)
	}
	p.closers = append(p.closers, func() { _ = c.Close() })
	return c, nil
}

// Echo answers at both ends.
func (p *Pair) Echo() error {
	for host := range p.Hosts {
		c, err := p.UDP(host, EchoPort)
		if err != nil {
			return err
		}
		e := probe.StartEcho(c)
		p.closers = append(p.closers, func() { _ = e.Close() })
	}
	return nil
}

// Answer returns how long it takes until the second host's echo answers the
// first.
func (p *Pair) Answer(ctx context.Context) (time.Duration, error) {
	c, err := p.UDP(0, 0)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return probe.WaitAnswer(ctx, c, netip.AddrPortFrom(p.Virtual[1], EchoPort), Interval)
}

// Stream starts a Critical stream from a host to the other.
func (p *Pair) Stream(from int, r probe.Requests) (*probe.Stream, error) {
	at, err := p.UDP(1-from, StreamPort)
	if err != nil {
		return nil, err
	}
	c, err := p.UDP(from, 0)
	if err != nil {
		return nil, err
	}
	if r.Interval == 0 {
		r.Interval = Interval
	}
	if r.Size == 0 {
		r.Size = CriticalSize
	}
	return probe.StartStream(c, at, netip.AddrPortFrom(p.Virtual[1-from], StreamPort), r)
}

// Streams starts one each way. [0] is from the first host.
func (p *Pair) Streams(r probe.Requests) (s [2]*probe.Stream, err error) {
	for from := range s {
		if s[from], err = p.Stream(from, r); err != nil {
			return s, err
		}
	}
	return s, nil
}

// Await waits for both streams.
func Await(ctx context.Context, s [2]*probe.Stream) (d [2]probe.Delivery, err error) {
	var errs [2]error
	for i := range s {
		d[i], errs[i] = s[i].Wait(ctx)
	}
	return d, errors.Join(errs[:]...)
}

// StopStreams is Await without sending the rest.
func StopStreams(ctx context.Context, s [2]*probe.Stream) (d [2]probe.Delivery, err error) {
	var errs [2]error
	for i := range s {
		d[i], errs[i] = s[i].Stop(ctx)
	}
	return d, errors.Join(errs[:]...)
}

// TCP opens a connection through the tunnel, from the first host to the second.
func (p *Pair) TCP(ctx context.Context) (a, b net.Conn, err error) {
	ln, err := p.Hosts[1].ListenTCP(net.JoinHostPort(p.Virtual[1].String(), "0"))
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- c
	}()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	a, err = p.Hosts[0].DialTCP(ctx, ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		_ = ln.Close()
		if c := <-accepted; c != nil {
			_ = c.Close()
		}
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	b = <-accepted
	if b == nil {
		_ = a.Close()
		return nil, nil, errors.New("accept: listener is closed")
	}
	return a, b, nil
}

// Flow starts a TCP flow through the tunnel; end 0 is the first host.
func (p *Pair) Flow(ctx context.Context) (*probe.Flow, error) {
	a, b, err := p.TCP(ctx)
	if err != nil {
		return nil, err
	}
	f := probe.StartFlow(a, b, probe.FlowConfig{})
	p.closers = append(p.closers, func() { _ = f.Close() })
	return f, nil
}

// PathTo waits until the first node's path is of one of the kinds.
func (p *Pair) PathTo(ctx context.Context, kinds ...string) (string, error) {
	n := p.Nodes[0]
	s, err := n.WaitStatus(ctx, "a path "+strings.Join(kinds, " or "), func(s fleet.Status) bool {
		q, ok := s.Peer(p.Nodes[1].Name)
		for _, k := range kinds {
			if ok && q.Path.Type == k {
				return true
			}
		}
		return false
	})
	q, _ := s.Peer(p.Nodes[1].Name)
	return q.Path.Type, err
}

// Relays are the kinds of paths that are not direct.
var Relays = []string{fleet.PathTurn, fleet.PathPeerRelay, fleet.PathHubRelay}

// Pause waits.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// RSS is a process's resident memory in bytes.
func RSS(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0, fmt.Errorf("read memory of process %d: %q", pid, b)
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// First is Answer with a limit of its own.
func (p *Pair) First(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	took, err := p.Answer(ctx)
	if err != nil {
		return took, fmt.Errorf("%w\n%s", err, p.Tails())
	}
	return took, nil
}

// Keys is what the first node says of the second.
func (p *Pair) Keys(ctx context.Context) (fleet.Peer, error) {
	s, err := p.Nodes[0].Status(ctx)
	q, _ := s.Peer(p.Nodes[1].Name)
	return q, err
}

// Latency measures Critical round trips, 100 a second, for so long.
func (p *Pair) Latency(ctx context.Context, d time.Duration) (probe.Latency, error) {
	c, err := p.UDP(0, 0)
	if err != nil {
		return probe.Latency{}, err
	}
	defer c.Close()
	return probe.RoundTrips(ctx, c, netip.AddrPortFrom(p.Virtual[1], EchoPort), probe.Requests{
		Count: int(d / Interval), Interval: Interval, Size: CriticalSize, Linger: 2 * time.Second,
	})
}
