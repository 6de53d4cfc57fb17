// SPDX-License-Identifier: Apache-2.0

// Package netcheck finds out what the network lets through: it asks STUN servers
// from each interface, and compares what they saw.
package netcheck

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Kinds of NAT, as far as two servers can tell.
const (
	// None: the server sees the address that we have.
	None = "none"
	// EndpointIndependent: all servers see the same one (RFC 4787), so peers can be
	// met directly.
	EndpointIndependent = "endpoint-independent"
	// Symmetric: each server sees another one. Two such peers need a relay.
	Symmetric = "symmetric"
	// Unknown: fewer than two servers of distinct addresses answered.
	Unknown = "unknown"
)

// Config says what is checked. Uplinks and Servers are required.
type Config struct {
	Uplinks []Uplink
	// Servers are "host:port" of STUN servers.
	Servers []string
	// Timeout bounds everything; zero means 3 s.
	Timeout time.Duration
	// Lookup resolves a host; nil means the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Uplink is an interface with its addresses.
type Uplink struct {
	Name      string
	Addresses []netip.Addr
}

// Check is what was found from one address.
type Check struct {
	Uplink string `json:"uplink"`
	// Local is the address and port that was asked from.
	Local string `json:"local"`
	// NAT is none, endpoint-independent, symmetric or unknown; empty where nobody
	// answered.
	NAT     string   `json:"nat,omitempty"`
	Answers []Answer `json:"answers"`
	// Error says why nothing could be asked.
	Error string `json:"error,omitempty"`
}

// Answer is what one server saw.
type Answer struct {
	Server  string  `json:"server"`
	Address string  `json:"address,omitempty"` // of the server
	Mapped  string  `json:"mapped,omitempty"`
	RTT     float64 `json:"rtt_ms,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// Answered reports whether some server answered.
func (c *Check) Answered() bool {
	return slices.ContainsFunc(c.Answers, func(a Answer) bool { return a.Mapped != "" })
}

// pauses are between the repetitions of a question.
var pauses = []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 500 * time.Millisecond, time.Second}

// Run asks all servers from one address of each family of each uplink at once. The
// order of the checks is that of the uplinks, IPv4 first.
func Run(ctx context.Context, cfg Config) []Check {
	if cfg.Timeout == 0 {
		cfg.Timeout = 3 * time.Second
	}
	if cfg.Lookup == nil {
		cfg.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	servers := resolve(ctx, cfg)
	var wg sync.WaitGroup
	var checks []*Check
	for _, u := range cfg.Uplinks {
		for _, v4 := range []bool{true, false} {
			i := slices.IndexFunc(u.Addresses, func(a netip.Addr) bool { return a.Is4() == v4 && !a.IsLinkLocalUnicast() })
			if i < 0 {
				continue
			}
			c := &Check{Uplink: u.Name}
			checks = append(checks, c)
			wg.Go(func() { c.run(ctx, u.Addresses[i], servers) })
		}
	}
	wg.Wait()
	out := make([]Check, len(checks))
	for i, c := range checks {
		out[i] = *c
	}
	return out
}

// server is one that was looked up.
type server struct {
	name  string
	addrs []netip.AddrPort
	err   error
}

func resolve(ctx context.Context, cfg Config) []server {
	// Names take their time where DNS is broken; addresses must not wait for that.
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout/2)
	defer cancel()
	out := make([]server, len(cfg.Servers))
	var wg sync.WaitGroup
	for i, name := range cfg.Servers {
		wg.Go(func() {
			s := &out[i]
			s.name = name
			host, port, err := net.SplitHostPort(name)
			if err != nil {
				s.err = err
				return
			}
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				s.err = fmt.Errorf("port %q", port)
				return
			}
			addrs, err := cfg.Lookup(ctx, host)
			if err != nil {
				s.err = plain(err)
				return
			}
			for _, a := range addrs {
				s.addrs = append(s.addrs, netip.AddrPortFrom(a.Unmap(), uint16(n)))
			}
		})
	}
	wg.Wait()
	return out
}

// plain makes a resolver's error short.
func plain(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer from DNS")
	}
	if de, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Errorf("name not resolved: %s", de.Err)
	}
	return err
}

// run asks every server of the family of local.
func (c *Check) run(ctx context.Context, local netip.Addr, servers []server) {
	c.Answers = make([]Answer, 0, len(servers))
	conn, err := listen(ctx, c.Uplink, local)
	if err != nil {
		c.Local, c.Error = local.String(), err.Error()
		return
	}
	defer conn.Close()
	me := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	me = netip.AddrPortFrom(me.Addr().Unmap().WithZone(""), me.Port())
	c.Local = me.String()

	a := &asker{conn: conn, open: make(map[transaction]*question)}
	for _, s := range servers {
		if s.err != nil {
			c.Answers = append(c.Answers, Answer{Server: s.name, Error: s.err.Error()})
			continue
		}
		i := slices.IndexFunc(s.addrs, func(x netip.AddrPort) bool { return x.Addr().Is4() == local.Is4() })
		if i < 0 {
			continue // has no address of this family
		}
		a.add(s.name, s.addrs[i])
	}
	a.run(ctx)
	seen := make(map[netip.Addr]netip.AddrPort)
	for _, q := range a.asked {
		ans := Answer{Server: q.name, Address: q.to.String()}
		switch {
		case q.mapped.IsValid():
			ans.Mapped, ans.RTT = q.mapped.String(), float64(q.rtt.Microseconds())/1000
			seen[q.to.Addr()] = q.mapped
		case q.err != nil:
			ans.Error = q.err.Error()
		default:
			ans.Error = "no answer"
		}
		c.Answers = append(c.Answers, ans)
	}
	c.NAT = guess(me, seen)
}

// guess names the NAT by what servers of distinct addresses saw.
func guess(me netip.AddrPort, seen map[netip.Addr]netip.AddrPort) string {
	var first netip.AddrPort
	for _, m := range seen {
		switch {
		case m == me:
			return None
		case !first.IsValid():
			first = m
		case m != first:
			return Symmetric
		}
	}
	switch len(seen) {
	case 0:
		return ""
	case 1:
		return Unknown
	}
	return EndpointIndependent
}

// listen opens a port on an address of an interface; where the system lets us, it
// is bound to the interface as well.
func listen(ctx context.Context, uplink string, local netip.Addr) (*net.UDPConn, error) {
	network := "udp4"
	if local.Is6() {
		network = "udp6"
	}
	lc := net.ListenConfig{Control: bindTo(uplink)}
	pc, err := lc.ListenPacket(ctx, network, net.JoinHostPort(local.String(), "0"))
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

// asker asks several servers from one socket.
type asker struct {
	conn  *net.UDPConn
	asked []*question

	mu   sync.Mutex // guards the rest, and the answers of the questions
	open map[transaction]*question
}

type question struct {
	id   transaction
	name string
	to   netip.AddrPort
	done chan struct{}

	sent   time.Time // the last time
	mapped netip.AddrPort
	rtt    time.Duration
	err    error
}

func (a *asker) add(name string, to netip.AddrPort) {
	q := &question{name: name, to: to, done: make(chan struct{})}
	_, _ = rand.Read(q.id[:]) // never fails since Go 1.24
	a.asked = append(a.asked, q)
	a.open[q.id] = q
}

func (a *asker) run(ctx context.Context) {
	if len(a.asked) == 0 {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = a.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var wg sync.WaitGroup
	for _, q := range a.asked {
		wg.Go(func() { a.ask(ctx, q) })
	}
	a.read()
	wg.Wait()
}

func (a *asker) ask(ctx context.Context, q *question) {
	for i := 0; ; i++ {
		a.mu.Lock()
		q.sent = time.Now()
		a.mu.Unlock()
		if _, err := a.conn.WriteToUDPAddrPort(request(q.id), q.to); err != nil {
			a.mu.Lock()
			q.err = err
			a.mu.Unlock() // a way may still come up
		}
		select {
		case <-time.After(pauses[min(i, len(pauses)-1)]):
		case <-q.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// read takes answers until all are there or the time is over.
func (a *asker) read() {
	b := make([]byte, maxSTUN)
	for {
		n, from, err := a.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || isTimeout(err) {
				return
			}
			continue // an ICMP error for one of them
		}
		if a.take(b[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())) {
			return
		}
	}
}

// take looks at a datagram and tells whether nothing is open any more.
func (a *asker) take(b []byte, from netip.AddrPort) (all bool) {
	if len(b) < stunHeader {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.open[transaction(b[8:stunHeader])]
	if q == nil || q.to != from {
		return false
	}
	mapped, err := response(b, q.id)
	if errors.Is(err, errNotOurs) {
		return false
	}
	q.mapped, q.err, q.rtt = mapped, err, time.Since(q.sent)
	close(q.done)
	delete(a.open, q.id)
	return len(a.open) == 0
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}
