// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// ringSize bounds what waits for one agent on one socket; the oldest goes first,
// because checks are repeated and the newest tells most.
const ringSize = 64

// muxConn is one agent's share of one socket: the net.PacketConn under a host
// candidate of pion.
type muxConn struct {
	mux   *Mux
	entry *entry
	sock  int
	label *net.UDPAddr

	ready chan struct{} // capacity 1: something was queued
	done  chan struct{} // closed by Close

	mu     sync.Mutex // guards the rest
	ring   [ringSize]queued
	head   int // oldest
	count  int
	closed bool
}

type queued struct {
	buf  []byte // reused by the slot
	from netip.AddrPort
}

func newMuxConn(m *Mux, e *entry, sock int, label *net.UDPAddr) *muxConn {
	return &muxConn{mux: m, entry: e, sock: sock, label: label, ready: make(chan struct{}, 1), done: make(chan struct{})}
}

// push queues a copy of b and reports whether an older message had to go.
func (c *muxConn) push(b []byte, from netip.AddrPort) (evicted bool) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	if c.count == ringSize {
		c.head = (c.head + 1) % ringSize
		c.count--
		evicted = true
	}
	slot := &c.ring[(c.head+c.count)%ringSize]
	slot.buf = append(slot.buf[:0], b...)
	slot.from = from
	c.count++
	c.mu.Unlock()
	select {
	case c.ready <- struct{}{}:
	default:
	}
	return evicted
}

// ReadFrom waits for a message. After Close it returns io.EOF at once, which is
// what ends pion's receive loop.
func (c *muxConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return 0, nil, io.EOF
		}
		if c.count > 0 {
			slot := &c.ring[c.head]
			n, from := copy(b, slot.buf), slot.from
			c.head = (c.head + 1) % ringSize
			c.count--
			c.mu.Unlock()
			return n, net.UDPAddrFromAddrPort(from), nil
		}
		c.mu.Unlock()
		select {
		case <-c.ready:
		case <-c.done:
		}
	}
}

// WriteTo notes the transaction of a request and hands b to the socket. A socket
// that cannot send now is no error: checks are repeated.
func (c *muxConn) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, net.InvalidAddrError("not a UDP address")
	}
	select {
	case <-c.done:
		return 0, io.ErrClosedPipe
	default:
	}
	dst := unmap(udp.AddrPort())
	if len(b) >= headerSize && binary.BigEndian.Uint16(b) == typeRequest {
		if !c.entry.mayCheck(c.sock, dst) {
			return len(b), nil // as good as lost; the peer's next check earns another
		}
		c.mux.remember(txID(b[8:headerSize]), transaction{sock: c.sock, to: dst, conn: c})
	}
	c.mux.send(c.sock, b, dst)
	return len(b), nil
}

// LocalAddr returns the label that pion knows the socket by.
func (c *muxConn) LocalAddr() net.Addr { return c.label }

// Close ends a pending read. It is idempotent.
func (c *muxConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.count = 0
		c.ring = [ringSize]queued{}
		close(c.done)
	}
	return nil
}

// The deadlines are not kept: Close ends a read, and writes never block. pion
// takes an error here for a connection that cannot be closed.

func (c *muxConn) SetDeadline(time.Time) error      { return nil }
func (c *muxConn) SetReadDeadline(time.Time) error  { return nil }
func (c *muxConn) SetWriteDeadline(time.Time) error { return nil }
