// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/relay"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/stun"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/turn"
)

// lookupTime bounds finding the address of the node URL's host.
const lookupTime = 3 * time.Second

// TURN is how the TURN server behaves, which relays UDP between nodes that have no
// direct path. The zero value of each field is its documented default.
type TURN struct {
	// Off leaves only STUN.
	Off bool
	// Addrs are the addresses that peers see, one of a family at most; they may be
	// those of a NAT that passes the ports on. Empty means those of the node URL's
	// host.
	Addrs []netip.Addr
	// MinPort and MaxPort bound the UDP ports of allocations, inclusive; zero means
	// 50000 and 50999.
	MinPort, MaxPort uint16
	// AllowPeers are private ranges that a relay may send to. By default they are
	// refused: a hub may stand in a network that no robot should reach through it.
	AllowPeers []netip.Prefix
	// Rate is what an allocation may carry in each direction, in bytes per second;
	// zero means 1,000,000 (8 Mbit/s).
	Rate int
}

func (t TURN) check() error {
	var v4, v6 int
	for _, a := range t.Addrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("TURN address %v: want one that peers can reach", a)
		}
		if a.Unmap().Is4() {
			v4++
		} else {
			v6++
		}
	}
	switch {
	case v4 > 1 || v6 > 1:
		return errors.New("TURN addresses: want one of a family at most")
	case (t.MinPort == 0) != (t.MaxPort == 0) || t.MaxPort < t.MinPort:
		return fmt.Errorf("TURN ports %d to %d: want a range above 0", t.MinPort, t.MaxPort)
	case t.Rate < 0:
		return errors.New("TURN rate is below zero")
	}
	for _, p := range t.AllowPeers {
		if !p.IsValid() {
			return errors.New("TURN peers: a range is no prefix")
		}
	}
	return nil
}

// newRelay returns the registry of relay streams, nil where they are off.
func (s *Server) newRelay() *relay.Registry {
	if s.cfg.RelayRate < 0 {
		return nil
	}
	return relay.New(relay.Config{Rate: s.cfg.RelayRate, Allowed: func(a, b identity.PeerID) bool {
		return s.api.MayTalk(context.Background(), a, b)
	}})
}

// turnCredentials makes credentials for a node; without a TURN server they are
// empty.
func (s *Server) turnCredentials(id identity.PeerID) turn.Credentials {
	if s.turn == nil {
		return turn.Credentials{}
	}
	return s.turn.Credentials(id)
}

// revoked cuts what a node's packets travel on.
func (s *Server) revoked(id identity.PeerID) {
	if s.relay != nil {
		s.relay.Revoke(id)
	}
	if s.turn != nil {
		s.turn.Revoke(id)
	}
}

// listenUDP opens the STUN port, with TURN where it is on.
func (s *Server) listenUDP(ctx context.Context, st *store.Store) (io.Closer, error) {
	if s.cfg.TURN.Off {
		ss, err := stun.Listen(ctx, s.cfg.STUNListen, s.log)
		if err != nil {
			return nil, err
		}
		s.addrs.stun = ss.Addr()
		return ss, nil
	}
	u, err := url.Parse(s.url)
	if err != nil {
		return nil, fmt.Errorf("node URL: %w", err)
	}
	addrs := s.cfg.TURN.Addrs
	if len(addrs) == 0 {
		if addrs, err = s.guessRelayAddrs(ctx, u.Hostname()); err != nil {
			return nil, err
		}
	}
	ts, err := turn.Listen(ctx, turn.Config{
		Listen: s.cfg.STUNListen, Host: u.Hostname(), RelayAddrs: addrs,
		MinPort: s.cfg.TURN.MinPort, MaxPort: s.cfg.TURN.MaxPort,
		Rate: s.cfg.TURN.Rate, AllowPeers: s.cfg.TURN.AllowPeers,
		Mesh: []netip.Prefix{st.Meta().CIDR, st.Meta().CIDR6},
		Admit: func(ctx context.Context, id identity.PeerID) error {
			have, err := st.Admit(ctx, id, nil)
			if err == nil && have.ServerKey {
				err = store.ErrRekey
			}
			return err
		},
		Logger: s.log,
	})
	if err != nil {
		return nil, err
	}
	s.turn, s.addrs.stun = ts, ts.Addr()
	return ts, nil
}

// guessRelayAddrs returns the addresses of the node URL's host, one of a family.
func (s *Server) guessRelayAddrs(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(found) == 0 {
		// The name may be known to the nodes only.
		s.log.WarnContext(ctx, "TURN: the name in the node URL has no address here, this machine's own are used: set --turn-addr", "host", host, "err", err)
		found = localAddrs()
	}
	var out []netip.Addr
	for _, a := range found {
		a = a.Unmap().WithZone("")
		if !slices.ContainsFunc(out, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("TURN: this machine has no address: set --turn-addr, or --turn=false")
	}
	return out, nil
}
