// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const (
	// mappedLife is how long a learned mapping is used again: well below the 30 s
	// after which common NATs forget an unused one, with room for the peer's checks.
	mappedLife = 25 * time.Second
	// mappedRetry is how long a STUN server that was silent is left alone.
	mappedRetry = 3 * time.Second
	lookupLife  = time.Minute
	lookupRetry = 3 * time.Second
	lookupLimit = 3 * time.Second

	defaultSTUNPort = 3478
)

// stunWaits are the pauses after each request to a STUN server: quicker than RFC
// 8489 section 6.2.1, because every peer waits for it, 3 s in all.
var stunWaits = [...]time.Duration{
	100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 400 * time.Millisecond,
	500 * time.Millisecond, 500 * time.Millisecond, 500 * time.Millisecond, 500 * time.Millisecond,
}

var (
	// ErrNoAnswer means that a STUN server did not answer in about three seconds.
	ErrNoAnswer = errors.New("no answer from the STUN server")
	// ErrForbidden means an address that must not be an end of a path: loopback,
	// unspecified, link-local, multicast, broadcast, or inside the overlay.
	ErrForbidden = errors.New("forbidden address")
)

type flightKey struct {
	sock   int
	server netip.AddrPort
}

// flight is one question to a STUN server and, once done, its answer.
type flight struct {
	got  chan netip.AddrPort // capacity 1
	done chan struct{}

	// Valid after done.
	addr netip.AddrPort
	err  error
	at   time.Time
}

func (f *flight) answer(a netip.AddrPort) {
	select {
	case f.got <- a:
	default:
	}
}

// fresh tells whether a question under way or its answer can be used.
func (f *flight) fresh(now time.Time) bool {
	select {
	case <-f.done:
	default:
		return true
	}
	if f.err != nil {
		return now.Sub(f.at) < mappedRetry
	}
	return now.Sub(f.at) < mappedLife
}

// Mapped returns the address that server sees the socket at: its server-reflexive
// address. It asks from the socket itself, with retransmissions for 3 s, and
// remembers the answer for 25 s; callers at the same time share one question.
func (m *Mux) Mapped(ctx context.Context, sock int, server netip.AddrPort) (netip.AddrPort, error) {
	server = unmap(server)
	if server.Port() == 0 || m.forbidden(server.Addr()) {
		return netip.AddrPort{}, fmt.Errorf("ask STUN server %v: %w", server, ErrForbidden)
	}
	key := flightKey{sock, server}
	now := time.Now()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return netip.AddrPort{}, net.ErrClosed
	}
	f := m.flights[key]
	if f == nil || !f.fresh(now) {
		for k, old := range m.flights {
			if !old.fresh(now) {
				delete(m.flights, k)
			}
		}
		f = &flight{got: make(chan netip.AddrPort, 1), done: make(chan struct{})}
		m.flights[key] = f
		m.wg.Go(func() { m.ask(key, f) })
	}
	m.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return netip.AddrPort{}, ctx.Err()
	}
	if f.err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask STUN server %v: %w", server, f.err)
	}
	return f.addr, nil
}

// FlushSocket forgets the mappings that were learned through one socket. Call it
// when the socket's uplink moved.
func (m *Mux) FlushSocket(sock int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushLocked(sock)
}

func (m *Mux) flushLocked(sock int) {
	for k := range m.flights {
		if k.sock == sock {
			delete(m.flights, k)
		}
	}
}

// Flush forgets learned mappings and names. Call it when the network changed.
func (m *Mux) Flush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.flights)
	clear(m.lookups)
}

// ask sends one request again and again until it is answered.
func (m *Mux) ask(key flightKey, f *flight) {
	defer close(f.done)
	req, id := bindingRequest()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	f.err = ErrNoAnswer
	for _, wait := range stunWaits {
		m.remember(id, transaction{sock: key.sock, to: key.server, flight: f})
		m.send(key.sock, req, key.server)
		timer.Reset(wait)
		select {
		case a := <-f.got:
			f.addr, f.err = a, nil
			if a.Port() == 0 || m.forbidden(a.Addr()) {
				f.addr, f.err = netip.AddrPort{}, fmt.Errorf("mapped address %v: %w", a, ErrForbidden)
			}
			f.at = time.Now()
			return
		case <-timer.C:
		case <-m.ctx.Done():
			f.err, f.at = net.ErrClosed, time.Now()
			return
		}
	}
	f.at = time.Now()
}

// lookup is the resolution of a name, under way or done.
type lookup struct {
	done chan struct{}

	// Valid after done.
	addrs []netip.Addr
	err   error
	at    time.Time
}

func (l *lookup) fresh(now time.Time) bool {
	select {
	case <-l.done:
	default:
		return true
	}
	if l.err != nil {
		return now.Sub(l.at) < lookupRetry
	}
	return now.Sub(l.at) < lookupLife
}

// resolve returns the addresses of a STUN server, at most one per family.
func (m *Mux) resolve(ctx context.Context, server string) ([]netip.AddrPort, error) {
	host, port, err := splitServer(server)
	if err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), port)}, nil
	}
	now := time.Now()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, net.ErrClosed
	}
	l := m.lookups[host]
	if l == nil || !l.fresh(now) {
		l = &lookup{done: make(chan struct{})}
		m.lookups[host] = l
		m.wg.Go(func() {
			defer close(l.done)
			ctx, cancel := context.WithTimeout(m.ctx, lookupLimit)
			defer cancel()
			l.addrs, l.err = m.cfg.LookupHost(ctx, host)
			l.at = time.Now()
		})
	}
	m.mu.Unlock()
	select {
	case <-l.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l.err != nil {
		return nil, fmt.Errorf("resolve STUN server %s: %w", host, l.err)
	}
	var out []netip.AddrPort
	var have4, have6 bool
	for _, a := range l.addrs {
		a = a.Unmap()
		have := &have6
		if a.Is4() {
			have = &have4
		}
		if !*have && !m.forbidden(a) {
			*have = true
			out = append(out, netip.AddrPortFrom(a, port))
		}
	}
	return out, nil
}

// splitServer takes "host:port", "host", an IP literal with or without port and
// brackets, each with or without "stun:" in front.
func splitServer(s string) (host string, port uint16, err error) {
	s = strings.TrimPrefix(s, "stun:")
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.String(), defaultSTUNPort, nil
	}
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		host, text = s, strconv.Itoa(defaultSTUNPort)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || host == "" || strings.ContainsAny(host, " /?#@[]") ||
		(strings.Contains(host, ":") && !isAddr(host)) {
		return "", 0, fmt.Errorf("STUN server %q: want host:port", s)
	}
	return host, uint16(n), nil
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}
