// SPDX-License-Identifier: Apache-2.0

// Package packet holds what every stage of the packet path shares: the buffer
// that carries one inner packet, the lane it travels in, and the decoder of its
// IP and transport headers.
package packet

import (
	"sync"
	"sync/atomic"
)

// Headroom is the space kept before a packet for the outer header, and Tailroom
// the space after it for the AEAD's nonce and tag (12 + 16 bytes in FIPS mode,
// rounded up). MaxInner is the largest inner packet a Buf holds.
const (
	Headroom = 16
	Tailroom = 32
	MaxInner = 2048 - Headroom - Tailroom
)

// Buf is a pooled buffer with one packet in it. Whoever holds it passes it on or
// calls Release; Retain makes one more holder. Only a sole holder may write to it.
type Buf struct {
	// N is the length of the inner packet, which starts at Headroom.
	N int
	// Lane is where the packet waits; the classify stage sets it.
	Lane Lane
	// Type is the type it is sealed with on the wire; 0 means plain data.
	Type uint8
	// FlowHash tells the flows apart that must keep their order; 0 where none was
	// computed.
	FlowHash uint32
	// Enqueued is the monotonic time in nanoseconds at which the packet began to wait
	// for a session.
	Enqueued int64
	// Dest is whatever the route stage resolved; only the seal stage reads it.
	Dest any

	// Datagram names the IP datagram that this is a fragment of; 0: not a fragment.
	// Two datagrams of one path that are on their way together differ in it. It is
	// that of the classify stage.
	Datagram uint64
	// FirstFragment and LastFragment tell of the two ends of Datagram.
	FirstFragment, LastFragment bool
	// Demoted is Bulk that policy lets pass only behind all other Bulk.
	Demoted bool

	// Next links packets that wait; only the queue that holds this one uses it.
	Next *Buf
	// Queued is when the packet entered its lane, in nanoseconds of the packet path's
	// clock. The lanes set it.
	Queued int64

	refs atomic.Int32
	data [Headroom + MaxInner + Tailroom]byte
}

var pool = sync.Pool{New: func() any { return new(Buf) }}

// Get takes a buffer from the pool.
func Get() *Buf {
	b := pool.Get().(*Buf)
	b.refs.Store(1)
	return b
}

// Retain adds a holder, who must call Release too.
func (b *Buf) Retain() { b.refs.Add(1) }

// Release gives up one hold; the last returns b to the pool. Releasing too often
// panics: it is a bug in the caller and would hand one packet to two peers.
func (b *Buf) Release() {
	switch n := b.refs.Add(-1); {
	case n > 0:
		return
	case n < 0:
		panic("packet: Buf released twice")
	}
	b.N, b.Lane, b.Type, b.FlowHash, b.Enqueued, b.Dest = 0, 0, 0, 0, 0, nil
	b.Datagram, b.FirstFragment, b.LastFragment, b.Demoted = 0, false, false, false
	b.Next, b.Queued = nil, 0
	pool.Put(b)
}

// Raw returns the whole buffer: Headroom, room for the packet, Tailroom.
func (b *Buf) Raw() []byte { return b.data[:] }

// Bytes returns the inner packet.
func (b *Buf) Bytes() []byte { return b.data[Headroom : Headroom+b.N] }
