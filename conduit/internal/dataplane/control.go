// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// Event says why Config.Control is called.
type Event uint8

// The events.
const (
	// EventPacket is an authenticated control packet: PROBE and PATH_CHALLENGE, both
	// answered by then, PROBE_ACK, PATH_RESPONSE, REKEY, SIGNAL and CLOSE.
	EventPacket Event = iota
	// EventFirst is the first authenticated packet of a session, of any type. If it
	// is a control packet, its EventPacket follows.
	EventFirst
	// EventSource is an authenticated packet, of any type, from a path that is not
	// tracked; at most 20 a second for each peer.
	EventSource
)

// Control is an event of a session.
type Control struct {
	Event   Event
	Session *Session
	// Type and Body are set for EventPacket only.
	Type wire.Type
	Body []byte
	// Path is what the packet came on, Size the length of its datagram.
	Path Path
	Size int
	// At is when it arrived, on the clock of Now.
	At int64
}

// SendSTUN queues a STUN datagram as Critical. It does not block.
func (d *Dataplane) SendSTUN(bind int, b []byte, to netip.AddrPort) {
	d.enqueueRaw(b, &rawDest{path: Path{Bind: bind, Remote: to}, stun: true})
}

// SendRaw queues a HANDSHAKE datagram as Critical. It does not block.
func (d *Dataplane) SendRaw(b []byte, to Path) { d.enqueueRaw(b, &rawDest{path: to}) }

// SendControl queues a control packet of a session as Critical: sealed once and
// sent on each of paths, or where none is given on the ways of the peer's Critical
// packets. It is not kept for paths that come later. It does not block.
func (d *Dataplane) SendControl(s *Session, t wire.Type, body []byte, paths ...Path) {
	d.enqueueRaw(body, &controlDest{session: s, typ: t, paths: paths})
}

// SendRelay queues a packet, sealed between two other peers or between us and
// other, in the session with a peer that relays it or that it is for: to the relay
// other is the receiver, from the relay it is the sender. It does not block and
// does not keep b.
func (d *Dataplane) SendRelay(relay *Peer, lane packet.Lane, other identity.PeerID, b []byte) {
	if wire.RelayHeaderLen+len(b) > packet.MaxInner || lane >= packet.NumLanes {
		d.stats.tx[TxTooBig].Add(1)
		return
	}
	buf := packet.Get()
	raw := buf.Raw()[packet.Headroom:]
	n := copy(raw, other[:])
	buf.N = n + copy(raw[n:], b)
	buf.Lane, buf.Dest, buf.Type = lane, relay, uint8(wire.TypeRelay)
	buf.FlowHash = relayFlow(b)
	d.classify.Queued(buf.FlowHash, lane)
	d.queue([]*packet.Buf{buf}, nil)
}

// relayFlow tells relayed sessions apart: their packets keep their order.
func relayFlow(b []byte) uint32 {
	var h wire.Header
	if !h.Parse(b) {
		return 0
	}
	return uint32(mix(uint64(h.Index)))
}

func (d *Dataplane) enqueueRaw(b []byte, dest any) {
	if len(b) > packet.MaxInner {
		d.stats.tx[TxTooBig].Add(1)
		return
	}
	buf := packet.Get()
	buf.N = copy(buf.Raw()[packet.Headroom:], b)
	buf.Lane, buf.Dest = packet.Critical, dest
	d.lanes.Enqueue([]*packet.Buf{buf}, []*lane.Pipe{nil})
}

// Flush waits until what is in the Critical lane now was handed to the kernel,
// but for what a full socket has no room for, or for limit.
func (d *Dataplane) Flush(limit time.Duration) {
	f := &flushDest{done: make(chan struct{})}
	d.enqueueRaw(nil, f)
	select {
	case <-f.done:
	case <-d.done:
	case <-time.After(limit):
	}
}

// Destinations of what no application sent.
type (
	controlDest struct {
		session *Session
		typ     wire.Type
		paths   []Path
	}
	rawDest struct {
		path Path
		stun bool
	}
	// flushDest is closed when everything before it was sent.
	flushDest struct{ done chan struct{} }
	// kickDest makes the sealing goroutine look at a peer's ways.
	kickDest struct{ peer *Peer }
	// sweepDest makes it look through the resend rings.
	sweepDest struct{}
)

// armSweep has the resend rings looked through soon, so that an idle peer keeps
// nothing.
func (d *Dataplane) armSweep() {
	if !d.sweeping.Load() && d.sweeping.CompareAndSwap(false, true) {
		d.sweeper.Reset(time.Duration(ringLife) + time.Millisecond)
	}
}
