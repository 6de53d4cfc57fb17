// SPDX-License-Identifier: Apache-2.0

package relay

import "github.com/bauxite-mesh/bauxite/conduit/identity"

const (
	// QueueLen is how many packets wait for one receiver, in all lanes.
	QueueLen = 32
	// MinPacket is the size of the smallest packet, in bytes.
	MinPacket = 16
	// MaxPacket is the size of the largest packet, in bytes.
	MaxPacket = 1500
	// Lanes is the number of lanes: Critical, Telemetry and Bulk.
	Lanes = 3

	magic = 0x80
)

// Packet is a packet with the node that sent it.
type Packet struct {
	From identity.PeerID
	Data []byte
}

// Lane returns the lane of a packet of the data plane (docs/wire.md §2) and
// whether it is one. The rest of the packet is not read.
func Lane(b []byte) (lane int, ok bool) {
	if len(b) < MinPacket || len(b) > MaxPacket || b[0] != magic {
		return 0, false
	}
	lane = int(b[1] & 3)
	return lane, lane < Lanes
}

// ring is a FIFO of QueueLen+1 packets: one more than is kept, for the moment
// between an arrival and the drop that it causes.
type ring struct {
	buf  [QueueLen + 1]Packet
	head int
	n    int
}

func (r *ring) push(p Packet) {
	r.buf[(r.head+r.n)%len(r.buf)] = p
	r.n++
}

func (r *ring) pop() Packet {
	p := r.buf[r.head]
	r.buf[r.head] = Packet{} // the collector's
	r.head = (r.head + 1) % len(r.buf)
	r.n--
	return p
}

// queue holds at most QueueLen packets. Its zero value is empty.
type queue struct {
	lanes [Lanes]ring
	n     int
}

// push adds a packet. Where that is one too many, the oldest of the lowest lane
// goes, which can be the new one: robots want the newest state, and a stop before
// a picture. It returns the lane of what was dropped, or -1.
func (q *queue) push(p Packet, lane int) (dropped int) {
	q.lanes[lane].push(p)
	if q.n++; q.n <= QueueLen {
		return -1
	}
	q.n--
	for l := Lanes - 1; ; l-- {
		if q.lanes[l].n > 0 {
			q.lanes[l].pop()
			return l
		}
	}
}

// pop takes the oldest packet of the highest lane.
func (q *queue) pop() (p Packet, lane int, ok bool) {
	for l := range q.lanes {
		if q.lanes[l].n > 0 {
			q.n--
			return q.lanes[l].pop(), l, true
		}
	}
	return Packet{}, 0, false
}
