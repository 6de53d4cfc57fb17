// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	pstun "github.com/pion/stun/v3"
	"github.com/pion/turn/v4"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/stun"
)

func randN(n int) int { return rand.IntN(n) }

// The message types that pass to pion. Bindings are answered here.
const (
	allocate   = 0x0003
	refresh    = 0x0004
	permission = 0x0008
	channel    = 0x0009
	send       = 0x0016
)

// request is the packet that pion handles. It handles one after the other, in the
// goroutine that called ReadFrom, and its callbacks tell less than they must know.
type request struct {
	raw    []byte // of the reader's buffer
	typ    uint16
	from   netip.AddrPort
	local  stun.Local
	family byte            // 4 or 6 where the client asked for one
	gen    uint64          // revocations before node was admitted
	node   identity.PeerID // set by quota
	quota  bool
}

// socket is one UDP socket as pion sees it: a net.PacketConn that yields only what
// is worth its time and answers from the right address.
type socket struct {
	s    *Server
	c    *stun.Conn
	addr *net.UDPAddr

	req request // owned by the reader

	mu      sync.RWMutex // guards the following
	clients map[netip.AddrPort]*relayConn
	// asked is where the reader's present request came from, for its answer.
	asked      netip.AddrPort
	askedLocal stun.Local
}

func newSocket(s *Server, c *stun.Conn) *socket {
	return &socket{s: s, c: c, addr: net.UDPAddrFromAddrPort(c.Addr()), clients: make(map[netip.AddrPort]*relayConn)}
}

func (k *socket) client(a netip.AddrPort) *relayConn {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.clients[a]
}

// ReadFrom implements net.PacketConn for pion's reader.
func (k *socket) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, local, err := k.c.Read(p)
		if errors.Is(err, net.ErrClosed) {
			k.s.wg.Done()
			return 0, nil, err
		}
		if err != nil {
			continue // an ICMP error that an answer brought back
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if stun.IsBinding(p[:n]) {
			if res := stun.Respond(p[:n], from); res == nil || k.c.Write(res, from, local) != nil {
				k.s.count.droppedAny.Add(1)
			} else {
				k.s.count.bindings.Add(1)
			}
			continue
		}
		if !k.take(p[:n], from, local) {
			continue
		}
		k.mu.Lock()
		k.asked, k.askedLocal = from, local
		k.mu.Unlock()
		return n, net.UDPAddrFromAddrPort(from), nil
	}
}

// take decides whether pion gets a packet, and notes what its callbacks need.
func (k *socket) take(b []byte, from netip.AddrPort, local stun.Local) bool {
	typ, ok := classify(b)
	r := k.client(from)
	switch {
	case !ok || from.Port() == 0 || typ != allocate && r == nil || r != nil && r.local != local:
		// Noise, or the traffic of an allocation that is not. One address of the machine
		// and another are two 5-tuples, which pion cannot tell apart.
		k.s.count.droppedAny.Add(1)
		return false
	case typ != 0 && typ != send && !k.s.sources.take(time.Now(), from.Addr()):
		k.s.count.rate.Add(1)
		return false
	}
	k.req = request{raw: b, typ: typ, from: from, local: local}
	return true
}

// classify returns the message type of what a TURN server may be sent, 0 for
// channel data.
func classify(b []byte) (typ uint16, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	typ = binary.BigEndian.Uint16(b)
	if typ >= 0x4000 && typ <= 0x4fff { // RFC 8656 §12
		return 0, 4+int(binary.BigEndian.Uint16(b[2:])) <= len(b)
	}
	switch typ {
	case allocate, refresh, permission, channel, send:
		return typ, stun.WellFormed(b)
	}
	return 0, false
}

// WriteTo implements net.PacketConn for answers and for relayed packets.
func (k *socket) WriteTo(p []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, net.InvalidAddrError("not a UDP address")
	}
	a := u.AddrPort()
	var from stun.Local
	k.mu.RLock()
	if r := k.clients[a]; r != nil {
		from = r.local
	} else if a == k.asked {
		from = k.askedLocal
	}
	k.mu.RUnlock()
	if err := k.c.Write(p, a, from); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements net.PacketConn.
func (k *socket) Close() error { return k.c.Close() }

// LocalAddr implements net.PacketConn.
func (k *socket) LocalAddr() net.Addr { return k.addr }

// SetDeadline implements net.PacketConn; it does nothing, and pion never calls it.
func (k *socket) SetDeadline(time.Time) error { return nil }

// SetReadDeadline is like SetDeadline.
func (k *socket) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is like SetDeadline.
func (k *socket) SetWriteDeadline(time.Time) error { return nil }

// authenticate returns the key of a user. Only for a request whose integrity holds
// does it ask whether the node is admitted, so that strangers cost no look-up.
func (k *socket) authenticate(user, rlm string, _ net.Addr) ([]byte, bool) {
	id, exp, err := parseUsername(user)
	if err != nil || rlm != realm || !time.Now().Before(exp) {
		k.s.count.auth.Add(1)
		return nil, false
	}
	key := turn.GenerateAuthKey(user, realm, password(k.s.cfg.Key, user))
	m := &pstun.Message{Raw: append([]byte(nil), k.req.raw...)}
	if m.Decode() != nil || pstun.MessageIntegrity(key).Check(m) != nil {
		k.s.count.auth.Add(1)
		return nil, false
	}
	// RFC 8656 §5: an allocation belongs to who made it.
	if r := k.client(k.req.from); r != nil && r.node != id {
		k.s.count.auth.Add(1)
		return nil, false
	}
	k.s.mu.Lock()
	k.req.gen = k.s.revocations
	k.s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), admitTime)
	defer cancel()
	if err := k.s.cfg.Admit(ctx, id); err != nil {
		k.s.count.node.Add(1)
		return nil, false
	}
	if v, err := m.Get(pstun.AttrRequestedAddressFamily); err == nil && len(v) == 4 {
		k.req.family = map[byte]byte{1: 4, 2: 6}[v[0]]
	}
	return key, true
}

// quota is asked before an allocation is made.
func (k *socket) quota(user, _ string, _ net.Addr) bool {
	id, _, err := parseUsername(user)
	k.s.mu.Lock()
	ok := err == nil && k.s.admitsLocked(id)
	k.s.mu.Unlock()
	if !ok {
		k.s.count.quota.Add(1)
		return false
	}
	k.req.node, k.req.quota = id, true
	return true
}

// permit is asked before an allocation gets a permission or a channel.
func (k *socket) permit(_ net.Addr, ip net.IP) bool {
	k.s.refreshTable(time.Now())
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	r := k.client(k.req.from)
	// The relay's own address stands for the other allocations; each packet is
	// checked for the port.
	if !ok || r == nil || k.s.table.Load().refuses(a) && a != k.s.relay[family(a)] {
		k.s.count.peer.Add(1)
		return false
	}
	if !r.fits(a, k.req.typ == channel, k.req.raw) {
		k.s.count.quota.Add(1)
		return false
	}
	return true
}

// Validate implements turn.RelayAddressGenerator.
func (k *socket) Validate() error { return nil }

// AllocatePacketConn implements turn.RelayAddressGenerator. pion asks for udp4
// always; the family is the one that the client asked for.
func (k *socket) AllocatePacketConn(_ string, port int) (net.PacketConn, net.Addr, error) {
	if port != 0 || !k.req.quota {
		// EVEN-PORT, which pion tries out before it asks for the quota: RTP's need.
		return nil, nil, errors.New("no even ports")
	}
	k.req.quota = false
	r, err := k.s.open(k, &k.req)
	if err != nil {
		return nil, nil, err
	}
	k.mu.Lock()
	k.clients[r.client] = r
	k.mu.Unlock()
	if r.closed.Load() { // revoked in between
		k.forget(r)
	}
	return r, net.UDPAddrFromAddrPort(r.addr), nil
}

// AllocateConn implements turn.RelayAddressGenerator: there is no relaying of TCP.
func (k *socket) AllocateConn(string, int) (net.Conn, net.Addr, error) {
	return nil, nil, errors.ErrUnsupported
}

func (k *socket) forget(r *relayConn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.clients[r.client] == r {
		delete(k.clients, r.client)
	}
}

// events keeps count of the permissions and channels that time out.
func (k *socket) events() turn.EventHandler {
	of := func(src net.Addr) *relayConn {
		if u, ok := src.(*net.UDPAddr); ok {
			return k.client(u.AddrPort())
		}
		return nil
	}
	peer := func(add bool) func(net.Addr, net.Addr, string, string, string, net.Addr, net.IP) {
		return func(src, _ net.Addr, _, _, _ string, _ net.Addr, ip net.IP) {
			if a, ok := netip.AddrFromSlice(ip); ok {
				of(src).notePeer(a.Unmap(), add)
			}
		}
	}
	chann := func(add bool) func(net.Addr, net.Addr, string, string, string, net.Addr, net.Addr, uint16) {
		return func(src, _ net.Addr, _, _, _ string, _, _ net.Addr, n uint16) { of(src).noteChannel(n, add) }
	}
	return turn.EventHandler{
		OnPermissionCreated: peer(true), OnPermissionDeleted: peer(false),
		OnChannelCreated: chann(true), OnChannelDeleted: chann(false),
	}
}
