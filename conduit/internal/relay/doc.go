// SPDX-License-Identifier: Apache-2.0

// Package relay has the ways to a peer that lead over somebody else, each as a
// transport.Bind: a TURN server (TurnBind, kept by Turns), the hub's relay stream
// (HubBind) and another node (PeerBind). None of them can read what it carries.
//
// A relay is slower than a socket and may stand still. So Send never blocks: it
// copies into a short queue from which Critical leaves first and where the oldest
// packet of the lowest lane gives way.
//
// The hub and another node know peers by PeerID. On their binds the address of a
// peer is its virtual IPv4 address with port 1.
package relay

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/bauxite-mesh/bauxite/conduit/internal/relay/lanequeue"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

const (
	// maxPacket is the largest packet that a relay carries, in bytes.
	maxPacket = 1500
	// minPacket is the smallest packet of the mesh (docs/wire.md).
	minPacket = 16
	meshByte  = 0x80

	batchSize   = 32
	recvBufSize = 2048
)

// Counters count what a bind carried since it was made.
type Counters struct {
	TxPackets, TxBytes, RxPackets, RxBytes uint64
	// Dropped packets did not fit the queue, by lane.
	Dropped [lanequeue.Lanes]uint64
	// RxDropped packets came faster than they were received, or were none of the mesh.
	RxDropped uint64
	// Unknown packets were for or from somebody that is not known here.
	Unknown uint64
	// Stale packets waited for the relay until they were too old.
	Stale uint64
	// Refused packets were for an address that the relay does not serve.
	Refused uint64
}

type counters struct {
	txPackets, txBytes, rxPackets, rxBytes atomic.Uint64
	dropped                                [lanequeue.Lanes]atomic.Uint64
	rxDropped, unknown, stale, refused     atomic.Uint64
}

func (c *counters) get() Counters {
	out := Counters{
		TxPackets: c.txPackets.Load(), TxBytes: c.txBytes.Load(), RxPackets: c.rxPackets.Load(), RxBytes: c.rxBytes.Load(),
		RxDropped: c.rxDropped.Load(), Unknown: c.unknown.Load(), Stale: c.stale.Load(), Refused: c.refused.Load(),
	}
	for l := range out.Dropped {
		out.Dropped[l] = c.dropped[l].Load()
	}
	return out
}

// laneOf returns the lane of a packet of the mesh and whether it is one.
func laneOf(b []byte) (lane int, ok bool) {
	if len(b) < minPacket || len(b) > maxPacket || b[0] != meshByte {
		return 0, false
	}
	lane = int(b[1] & 3)
	return lane, lane < lanequeue.Lanes
}

type arrival struct {
	from netip.AddrPort
	data []byte
}

// inbox holds what came until it is received.
type inbox struct {
	count *counters
	wake  chan struct{} // holds a token where there may be something
	done  chan struct{} // closed by close

	mu     sync.Mutex // guards the following
	queue  *lanequeue.Queue[arrival]
	closed bool
}

func newInbox(limit int, count *counters) *inbox {
	return &inbox{count: count, wake: make(chan struct{}, 1), done: make(chan struct{}), queue: lanequeue.New[arrival](limit)}
}

// put adds a packet and keeps data.
func (x *inbox) put(lane int, from netip.AddrPort, data []byte) {
	x.mu.Lock()
	_, dropped := x.queue.Push(lane, arrival{from, data})
	x.mu.Unlock()
	if dropped >= 0 {
		x.count.rxDropped.Add(1)
	}
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// receive implements Bind.Receive.
func (x *inbox) receive(msgs []transport.Message) (int, error) {
	for {
		x.mu.Lock()
		if x.closed {
			x.mu.Unlock()
			return 0, net.ErrClosed
		}
		n := 0
		for n < len(msgs) {
			a, _, ok := x.queue.Pop()
			if !ok {
				break
			}
			m := &msgs[n]
			if len(m.Buf) < len(a.data) {
				x.count.rxDropped.Add(1)
				continue
			}
			m.N, m.Segment, m.Addr = copy(m.Buf, a.data), 0, a.from
			x.count.rxPackets.Add(1)
			x.count.rxBytes.Add(uint64(m.N)) //nolint:gosec // a length
			n++
		}
		x.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-x.wake:
		case <-x.done:
		}
	}
}

func (x *inbox) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.closed {
		x.closed = true
		close(x.done)
	}
}
