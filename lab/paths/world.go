// SPDX-License-Identifier: Apache-2.0

package paths

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

const (
	// never is how long a recovery is waited for.
	never = 30 * time.Second
	// pps is the rate of the Critical streams: 100 a second.
	interval = 10 * time.Millisecond
	// criticalSize is a payload that makes an inner packet of 92 bytes, which is
	// Critical for its size.
	criticalSize = 64

	echoPort   = 7000
	streamPort = 7001
)

// leg is one cable of the internet: 5 ms, so a round trip between two hosts is
// 20 ms, and as much to the hub.
var leg = cable(5*time.Millisecond, 0)

// cable is a link with the same delay both ways.
func cable(delay, jitter time.Duration) netns.Link {
	s := netns.Shape{Delay: delay, Jitter: jitter}
	return netns.Link{Up: s, Down: s, PerPacket: true}
}

// System is a tunnel under test.
type System struct {
	Name string

	bin   build.Binaries
	rival *rival.System
}

// Bauxite is the system under test.
func Bauxite(bin build.Binaries) System { return System{Name: "bauxite", bin: bin} }

// Rival is a system to compare with.
func Rival(r rival.System) System { return System{Name: r.Name, rival: &r} }

// world is a lab with a router in the middle and, for Bauxite, a running hub.
type world struct {
	lab *netns.Lab
	sys System
	wan *netns.WAN
	hub *fleet.Hub
	// third is the hub's host where a rival runs.
	third rival.End
}

// newWorld makes a world; hub is the cable to the hub's host.
func newWorld(ctx context.Context, lab *netns.Lab, sys System, hub netns.Link) (*world, error) {
	w := &world{lab: lab, sys: sys, wan: lab.WAN("wan")}
	h := w.wan.Host("hub", hub)
	if sys.rival != nil {
		w.third = rival.End{Host: h, Addr: h.Addr4()}
		return w, nil
	}
	var err error
	// The lab's public addresses are those that a hub takes for private ones.
	w.hub, err = fleet.StartHub(ctx, h, sys.bin, filepath.Join(lab.LogDir(), "hub"), "--turn-allow", "198.18.0.0/15")
	return w, err
}

// join makes a host a member of the mesh.
func (w *world) join(ctx context.Context, h *netns.Host) (*fleet.Node, error) {
	n := fleet.NewNode(h, w.sys.bin, w.lab.LogDir(), h.Name())
	token, err := w.hub.Token(ctx)
	if err != nil {
		return nil, err
	}
	_, err = n.Join(ctx, token, w.hub.URL)
	return n, err
}

// pair is two hosts with a tunnel between them.
type pair struct {
	hosts   [2]*netns.Host
	virtual [2]netip.Addr
	procs   [2]*netns.Proc
	port    [2]uint16
	nodes   [2]*fleet.Node // of Bauxite only

	closers []func()
}

// connect makes a pair of two hosts and waits until the first hears from the
// second.
func (w *world) connect(ctx context.Context, a, b *netns.Host) (*pair, error) {
	p, err := w.tunnel(ctx, a, b)
	if err != nil {
		return nil, err
	}
	if err := p.echo(); err != nil {
		p.close()
		return nil, err
	}
	if _, err := p.answer(ctx); err != nil {
		tails := p.tails()
		p.close()
		return nil, fmt.Errorf("%w\n%s", err, tails)
	}
	return p, nil
}

func (w *world) tunnel(ctx context.Context, a, b *netns.Host) (*pair, error) {
	p := &pair{hosts: [2]*netns.Host{a, b}}
	if r := w.sys.rival; r != nil {
		t, err := r.Start(ctx, w.lab.LogDir(), rival.End{Host: a, Addr: a.Addr4()}, rival.End{Host: b, Addr: b.Addr4()}, w.third)
		if err != nil {
			return nil, err
		}
		p.virtual, p.procs, p.port = t.Virtual, t.Procs, [2]uint16{t.Port, t.Port}
		p.closers = append(p.closers, t.Stop)
		return p, nil
	}
	for i, h := range p.hosts {
		n, err := w.join(ctx, h)
		if err == nil {
			err = n.Start(ctx)
		}
		if err != nil {
			return nil, err
		}
		p.nodes[i], p.procs[i] = n, n.Proc
	}
	return p, p.ready(ctx)
}

// ready waits until both nodes know the hub and each other.
func (p *pair) ready(ctx context.Context) error {
	for i, n := range p.nodes {
		s, err := n.WaitReady(ctx, p.nodes[1-i].Name)
		if err != nil {
			return err
		}
		p.virtual[i], p.port[i], p.procs[i] = s.Node.VirtualIP, s.Node.Port, n.Proc
	}
	return nil
}

// close ends what the pair has opened. Its daemons end with the lab.
func (p *pair) close() {
	for _, f := range p.closers {
		f()
	}
	p.closers = nil
}

func (p *pair) tails() string {
	var b strings.Builder
	for i, proc := range p.procs {
		if proc != nil {
			fmt.Fprintf(&b, "--- %s:\n%s\n", p.hosts[i].Name(), proc.Tail(12))
		}
	}
	return b.String()
}

// udp opens a socket of a host until close.
func (p *pair) udp(host int, port int) (*net.UDPConn, error) {
	c, err := p.hosts[host].ListenUDP(fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, fmt.Errorf("open socket on %s: %w", p.hosts[host].Name(), err)
	}
	p.closers = append(p.closers, func() { _ = c.Close() })
	return c, nil
}

// echo answers at both ends.
func (p *pair) echo() error {
	for host := range p.hosts {
		c, err := p.udp(host, echoPort)
		if err != nil {
			return err
		}
		e := probe.StartEcho(c)
		p.closers = append(p.closers, func() { _ = e.Close() })
	}
	return nil
}

// answer returns how long it takes until the second host's echo answers the
// first.
func (p *pair) answer(ctx context.Context) (time.Duration, error) {
	c, err := p.udp(0, 0)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return probe.WaitAnswer(ctx, c, netip.AddrPortFrom(p.virtual[1], echoPort), interval)
}

// stream starts a Critical stream from a host to the other.
func (p *pair) stream(from int, r probe.Requests) (*probe.Stream, error) {
	at, err := p.udp(1-from, streamPort)
	if err != nil {
		return nil, err
	}
	c, err := p.udp(from, 0)
	if err != nil {
		return nil, err
	}
	if r.Interval == 0 {
		r.Interval = interval
	}
	if r.Size == 0 {
		r.Size = criticalSize
	}
	return probe.StartStream(c, at, netip.AddrPortFrom(p.virtual[1-from], streamPort), r)
}

// streams starts one each way. [0] is from the first host.
func (p *pair) streams(r probe.Requests) (s [2]*probe.Stream, err error) {
	for from := range s {
		if s[from], err = p.stream(from, r); err != nil {
			return s, err
		}
	}
	return s, nil
}

// await waits for both streams.
func await(ctx context.Context, s [2]*probe.Stream) (d [2]probe.Delivery, err error) {
	var errs [2]error
	for i := range s {
		d[i], errs[i] = s[i].Wait(ctx)
	}
	return d, errors.Join(errs[:]...)
}

// stopStreams is await without sending the rest.
func stopStreams(ctx context.Context, s [2]*probe.Stream) (d [2]probe.Delivery, err error) {
	var errs [2]error
	for i := range s {
		d[i], errs[i] = s[i].Stop(ctx)
	}
	return d, errors.Join(errs[:]...)
}

// tcp opens a connection through the tunnel, from the first host to the second.
func (p *pair) tcp(ctx context.Context) (a, b net.Conn, err error) {
	ln, err := p.hosts[1].ListenTCP(net.JoinHostPort(p.virtual[1].String(), "0"))
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
	a, err = p.hosts[0].DialTCP(ctx, ln.Addr().(*net.TCPAddr).AddrPort())
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

// flow starts a TCP flow through the tunnel; end 0 is the first host.
func (p *pair) flow(ctx context.Context) (*probe.Flow, error) {
	a, b, err := p.tcp(ctx)
	if err != nil {
		return nil, err
	}
	f := probe.StartFlow(a, b, probe.FlowConfig{})
	p.closers = append(p.closers, func() { _ = f.Close() })
	return f, nil
}

// pathTo waits until the first node's path is of one of the kinds.
func (p *pair) pathTo(ctx context.Context, kinds ...string) (string, error) {
	n := p.nodes[0]
	s, err := n.WaitStatus(ctx, "a path "+strings.Join(kinds, " or "), func(s fleet.Status) bool {
		q, ok := s.Peer(p.nodes[1].Name)
		for _, k := range kinds {
			if ok && q.Path.Type == k {
				return true
			}
		}
		return false
	})
	q, _ := s.Peer(p.nodes[1].Name)
	return q.Path.Type, err
}

// relays are the kinds of paths that are not direct.
var relays = []string{fleet.PathTurn, fleet.PathPeerRelay, fleet.PathHubRelay}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// rss is a process's resident memory in bytes.
func rss(pid int) (int64, error) {
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
