// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/transport/v3"

	btransport "github.com/bauxite-mesh/bauxite/conduit/transport"
)

// turnConn is the socket to the TURN server as pion sees it, and the gate before
// pion: nothing passes that is not from the server and well-formed, no answer to an
// authenticated request without the server's integrity, and no packet of the mesh,
// which goes straight to the inbox.
type turnConn struct {
	bind   btransport.Bind
	server netip.AddrPort
	user   string
	pass   string

	closed atomic.Bool
	heard  atomic.Int64 // when the server last sent something good, in Unix ns
	sent   atomic.Bool  // something was sent to a peer since the watch looked last

	mu       sync.Mutex // guards the following
	key      []byte     // of the long-term credentials, once the realm is known
	channels map[uint16]netip.AddrPort
	asked    map[txID]time.Time // requests that wait for an answer
}

// txID is a STUN transaction id.
type txID [12]byte

const (
	// maxAsked bounds the requests under way; those older than askedFor are given up.
	maxAsked = 128
	askedFor = 10 * time.Second
)

func newTurnConn(bind btransport.Bind, server netip.AddrPort, user, pass string) *turnConn {
	return &turnConn{bind: bind, server: server, user: user, pass: pass, channels: make(map[uint16]netip.AddrPort), asked: make(map[txID]time.Time)}
}

// verdict is what to do with a datagram.
type verdict uint8

const (
	drop    verdict = iota
	deliver         // data from peer
	toPion
	fatal // for pion as well: the allocation is gone
)

// inspect judges a datagram that came from the server. data is part of b.
func (c *turnConn) inspect(b []byte) (v verdict, peer netip.AddrPort, data []byte, code int) {
	if channel, data, ok := parseChannelData(b); ok {
		c.mu.Lock()
		peer, ok = c.channels[channel]
		c.mu.Unlock()
		if !ok {
			return drop, peer, nil, 0
		}
		return deliver, peer, data, 0
	}
	var m stunMessage
	if !parseSTUN(b, &m) {
		return drop, peer, nil, 0
	}
	if m.class == classIndication {
		if m.method != methodData || !m.peer.IsValid() || m.data == nil {
			return drop, peer, nil, 0
		}
		return deliver, m.peer, m.data, 0
	}
	switch m.method {
	case methodAllocate, methodRefresh, methodPermission, methodChannel:
	default:
		return drop, peer, nil, 0
	}
	switch m.class {
	case classSuccess:
		// pion allocates only with credentials, so every success is signed.
		if !c.signed(b, &m) || !c.answers(b) {
			return drop, peer, nil, 0
		}
		return toPion, peer, nil, 0
	case classError:
		// Most errors are not signed. They must at least answer what was asked, which
		// nobody off the path can know. pion's server leaves the code out where it
		// refuses a peer, and signs that.
		if (m.code == 0 || m.integrity != 0) && !c.signed(b, &m) || !c.answers(b) {
			return drop, peer, nil, 0
		}
		c.learnRealm(&m)
		lost := m.code == codeMismatch || m.code == codeUnauthorized || m.method == methodRefresh && m.code != codeStaleNonce && m.code != 0
		if m.method != methodAllocate && lost {
			return fatal, peer, nil, m.code
		}
		return toPion, peer, nil, m.code
	}
	return drop, peer, nil, 0
}

func (c *turnConn) signed(b []byte, m *stunMessage) bool {
	c.mu.Lock()
	key := c.key
	c.mu.Unlock()
	return checkIntegrity(key, b, m.integrity)
}

// learnRealm makes the key when the server first asks for credentials.
func (c *turnConn) learnRealm(m *stunMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.key == nil && m.method == methodAllocate && m.code == codeUnauthorized && len(m.realm) > 0 {
		c.key = longTermKey(c.user, m.realm, c.pass)
	}
}

// learn reads off pion's requests what is asked, and which channel is bound to whom.
func (c *turnConn) learn(b []byte) {
	var m stunMessage
	if len(b) < headerSize || b[0]&0xC0 != 0 || b[0]&1 != 0 || b[1]&classIndication != 0 || !parseSTUN(b, &m) {
		return // channel data and indications, which have no answer
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.method == methodChannel {
		c.channels[m.channel] = m.peer
	}
	if len(c.asked) >= maxAsked {
		for id, at := range c.asked {
			if now.Sub(at) > askedFor {
				delete(c.asked, id)
			}
		}
	}
	c.asked[txID(b[8:headerSize])] = now
}

// answers tells whether b is the first answer to a request.
func (c *turnConn) answers(b []byte) bool {
	id := txID(b[8:headerSize])
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.asked[id]
	delete(c.asked, id)
	return ok
}

// WriteTo implements net.PacketConn.
func (c *turnConn) WriteTo(b []byte, _ net.Addr) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	c.learn(b)
	msg := [1]btransport.Message{{Buf: b, Addr: c.server}}
	// What the kernel refuses now, for want of a route or of room, is lost like on
	// the way: pion would give up a transaction over it.
	if _, err := c.bind.Send(0, msg[:]); err != nil && c.closed.Load() {
		return 0, net.ErrClosed
	}
	return len(b), nil
}

// ReadFrom implements net.PacketConn; pion is given what comes by HandleInbound.
func (c *turnConn) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, net.ErrClosed }

// Close implements net.PacketConn.
func (c *turnConn) Close() error {
	c.closed.Store(true)
	return c.bind.Close()
}

// LocalAddr implements net.PacketConn.
func (c *turnConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.bind.LocalAddr()) }

// SetDeadline implements net.PacketConn; pion never calls it.
func (c *turnConn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline is like SetDeadline.
func (c *turnConn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is like SetDeadline.
func (c *turnConn) SetWriteDeadline(time.Time) error { return nil }

// literalNet is all of the network that pion's client asks for once it has a
// socket: the address of the server, which is no name any more.
type literalNet struct{ transport.Net }

// ResolveUDPAddr implements transport.Net.
func (literalNet) ResolveUDPAddr(_, address string) (*net.UDPAddr, error) {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	return net.UDPAddrFromAddrPort(a), nil
}
