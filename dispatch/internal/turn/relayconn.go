// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	pstun "github.com/pion/stun/v3"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/stun"
)

// relayConn is the relayed side of one allocation, as pion sees it. Every packet
// passes here, whichever way a node sends it, so here the peer is checked and the
// rate kept.
type relayConn struct {
	s      *Server
	sock   *socket
	c      *net.UDPConn
	node   identity.PeerID
	client netip.AddrPort
	local  stun.Local
	addr   netip.AddrPort // public
	family int
	once   sync.Once
	closed atomic.Bool

	up, down bucket

	mu       sync.Mutex // guards the following
	peers    map[netip.Addr]struct{}
	channels map[uint16]struct{}
}

// WriteTo sends a node's packet to a peer. A packet that is dropped is no error:
// neither is one that the network loses.
func (r *relayConn) WriteTo(p []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, net.InvalidAddrError("not a UDP address")
	}
	a := u.AddrPort()
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	c := &r.s.count
	dst := a
	switch {
	case family(a.Addr()) != r.family || a.Port() == 0:
		c.droppedPeer.Add(1)
		return len(p), nil
	case r.s.live(a):
		// Within the machine: where a NAT holds the public address, it may not turn
		// packets around.
		dst = netip.AddrPortFrom(r.s.inside(r.family), a.Port())
	case r.s.table.Load().refuses(a.Addr()):
		c.droppedPeer.Add(1)
		return len(p), nil
	}
	if !r.up.take(time.Now(), float64(len(p)), float64(r.s.cfg.Rate), float64(r.s.cfg.Burst)) {
		c.droppedRate.Add(1)
		return len(p), nil
	}
	if _, err := r.c.WriteToUDPAddrPort(p, dst); err != nil {
		return 0, err
	}
	c.upPackets.Add(1)
	c.upBytes.Add(uint64(len(p)))
	return len(p), nil
}

// inside returns the address at which relay sockets of a family reach each other.
func (s *Server) inside(f int) netip.Addr {
	if a := s.bind[f]; !a.IsUnspecified() {
		return a
	}
	if f == 1 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// ReadFrom waits for a peer's packet.
func (r *relayConn) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := r.c.ReadFromUDPAddrPort(p)
		if errors.Is(err, net.ErrClosed) {
			return 0, nil, err
		}
		if err != nil {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if r.s.table.Load().isOwn(from.Addr()) {
			// Another allocation, under the address that peers know; nothing else of this
			// machine speaks through the relay.
			if from = netip.AddrPortFrom(r.addr.Addr(), from.Port()); !r.s.live(from) {
				r.s.count.droppedPeer.Add(1)
				continue
			}
		}
		if !r.down.take(time.Now(), float64(n), float64(r.s.cfg.Rate), float64(r.s.cfg.Burst)) {
			r.s.count.droppedRate.Add(1)
			continue
		}
		r.s.count.downPackets.Add(1)
		r.s.count.downBytes.Add(uint64(n))
		return n, net.UDPAddrFromAddrPort(from), nil
	}
}

// Close ends the allocation. pion calls it as well.
func (r *relayConn) Close() error {
	var err error
	r.once.Do(func() {
		r.closed.Store(true)
		err = r.c.Close()
		r.sock.forget(r)
		r.s.forget(r)
	})
	return err
}

// LocalAddr implements net.PacketConn.
func (r *relayConn) LocalAddr() net.Addr { return r.c.LocalAddr() }

// SetDeadline implements net.PacketConn.
func (r *relayConn) SetDeadline(t time.Time) error { return r.c.SetDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (r *relayConn) SetReadDeadline(t time.Time) error { return r.c.SetReadDeadline(t) }

// SetWriteDeadline implements net.PacketConn.
func (r *relayConn) SetWriteDeadline(t time.Time) error { return r.c.SetWriteDeadline(t) }

// fits tells whether a permission for a, or the channel that raw asks for, is one
// that exists or is within maxPeers.
func (r *relayConn) fits(a netip.Addr, bind bool, raw []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.peers[a]; !ok && len(r.peers) >= maxPeers {
		return false
	}
	if !bind || len(r.channels) < maxPeers {
		return true
	}
	m := &pstun.Message{Raw: append([]byte(nil), raw...)}
	if m.Decode() != nil {
		return false
	}
	v, err := m.Get(pstun.AttrChannelNumber)
	if err != nil || len(v) != 4 {
		return false
	}
	_, ok := r.channels[uint16(v[0])<<8|uint16(v[1])]
	return ok
}

func (r *relayConn) notePeer(a netip.Addr, add bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if add {
		r.peers[a] = struct{}{}
	} else {
		delete(r.peers, a)
	}
}

func (r *relayConn) noteChannel(n uint16, add bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if add {
		r.channels[n] = struct{}{}
	} else {
		delete(r.channels, n)
	}
}
