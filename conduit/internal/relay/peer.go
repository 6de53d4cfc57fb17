// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"net"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// PeerBind is another node that relays for us. It has no socket: what it sends
// leaves sealed in the session with that node, and what comes over it is told by
// the packet path itself.
type PeerBind struct {
	send func(lane int, to netip.AddrPort, b []byte)
	addr netip.AddrPort
	in   *inbox

	count counters
}

var (
	_ transport.Bind   = (*PeerBind)(nil)
	_ transport.Waiter = (*PeerBind)(nil)
)

// NewPeer returns a bind whose packets are handed to send, which must neither
// block nor keep b. addr names the relaying node.
func NewPeer(addr netip.AddrPort, send func(lane int, to netip.AddrPort, b []byte)) *PeerBind {
	b := &PeerBind{send: send, addr: addr}
	b.in = newInbox(1, &b.count)
	return b
}

// LocalAddr returns the address of the relaying node.
func (b *PeerBind) LocalAddr() netip.AddrPort { return b.addr }

// Sockets returns 0: nothing is received here.
func (b *PeerBind) Sockets() int { return 0 }

// BatchSize implements transport.Bind.
func (b *PeerBind) BatchSize() int { return batchSize }

// RecvBufSize implements transport.Bind.
func (b *PeerBind) RecvBufSize() int { return recvBufSize }

// Receive blocks until Close.
func (b *PeerBind) Receive(int, []transport.Message) (int, error) {
	<-b.in.done
	return 0, net.ErrClosed
}

// SetSendWait implements transport.Waiter: Send never waits.
func (b *PeerBind) SetSendWait(time.Duration) {}

// Send implements transport.Bind.
func (b *PeerBind) Send(lane int, msgs []transport.Message) (int, error) {
	select {
	case <-b.in.done:
		return 0, net.ErrClosed
	default:
	}
	for i := range msgs {
		b.count.txPackets.Add(1)
		b.count.txBytes.Add(uint64(len(msgs[i].Buf)))
		b.send(lane, msgs[i].Addr, msgs[i].Buf)
	}
	return len(msgs), nil
}

// Counters returns what was carried.
func (b *PeerBind) Counters() Counters { return b.count.get() }

// Close implements transport.Bind.
func (b *PeerBind) Close() error {
	b.in.close()
	return nil
}
