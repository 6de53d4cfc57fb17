// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// maxHosts leaves room for reflexive candidates in what a peer takes.
const maxHosts = maxCandidates - 8

// Gather finds our candidates and gives each to each, one at a time: first the
// addresses of the interfaces, then, as servers answer, the addresses that those
// see us at, per socket and family. Those are at most 32. It returns when all
// servers answered or are given up (3 s), with an error only if ctx ended or the
// mux was closed. only limits it to some sockets; nil means all.
//
// A mapping that was learned through a socket less than 25 s ago is used again;
// where that socket's uplink moved, call FlushSocket before.
func (m *Mux) Gather(ctx context.Context, servers []string, only func(sock int) bool, each func(Candidate)) error {
	order := m.order()
	g := gathering{mux: m, each: each, seen: make(map[netip.AddrPort]bool)}
	var picked []int
	for _, i := range order {
		if only == nil || only(i) {
			picked = append(picked, i)
		}
	}
	for _, h := range m.hostAddrs(picked) {
		if len(g.seen) < maxHosts {
			g.add(Candidate{Addr: h.Addr, Type: TypeHost, Sock: h.Socket, Rank: len(g.seen)})
		}
	}
	var wg sync.WaitGroup
	for n, server := range servers {
		wg.Go(func() {
			addrs, err := m.resolve(ctx, server)
			if err != nil {
				m.log.Debug("resolve STUN server", "server", server, "err", err)
			}
			for _, i := range picked {
				s := m.socket(i)
				for _, to := range addrs {
					if s == nil || family4(s) != to.Addr().Is4() {
						continue
					}
					// By uplink first, then by server: the place in the order of all.
					rank := slices.Index(order, i)*max(len(servers), 1) + n
					wg.Go(func() { g.ask(ctx, i, to, rank) })
				}
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.ctx.Err() != nil {
		return net.ErrClosed
	}
	return nil
}

// gathering is one call of Gather.
type gathering struct {
	mux  *Mux
	each func(Candidate)

	mu   sync.Mutex // guards the rest, and calls of each
	seen map[netip.AddrPort]bool
}

// add passes c on unless its address is known: two devices can share one, and a
// mapping that is a host address says that there is no NAT.
func (g *gathering) add(c Candidate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.seen[c.Addr] || len(g.seen) >= maxCandidates {
		return
	}
	g.seen[c.Addr] = true
	g.each(c)
}

func (g *gathering) ask(ctx context.Context, sock int, server netip.AddrPort, rank int) {
	mapped, err := g.mux.Mapped(ctx, sock, server)
	if err != nil {
		g.mux.log.Debug("gather reflexive address", "socket", sock, "server", server, "err", err)
		return
	}
	g.add(Candidate{Addr: mapped, Type: TypeSrflx, Sock: sock, Rank: rank})
}

// Remote reads a candidate of a peer and returns its address and type: host,
// srflx or relay. Errors are ErrBadCandidate and ErrForbidden. How many to take is
// the caller's business.
func (m *Mux) Remote(line string) (addr netip.AddrPort, typ string, err error) {
	c, err := m.remote(line)
	return c.addr, c.typ, err
}

func (m *Mux) remote(line string) (candidate, error) {
	c, err := parseCandidate(line)
	if err != nil {
		return candidate{}, err
	}
	if c.addr.Port() == 0 || m.forbidden(c.addr.Addr()) {
		return candidate{}, fmt.Errorf("candidate %v: %w", c.addr, ErrForbidden)
	}
	return c, nil
}
