// SPDX-License-Identifier: Apache-2.0

// Package transport moves datagrams: one UDP port that carries mesh traffic and
// STUN together, read and written in batches.
package transport

import "net/netip"

// Message is one datagram, or on receive a run of equal-sized datagrams from one
// sender that the kernel coalesced (UDP_GRO).
type Message struct {
	// Buf is the room to receive into or the datagram to send.
	Buf []byte
	// N is the number of bytes received.
	N int
	// Segment is the size of each datagram of a received run but the last, which
	// may be shorter; 0 means that Buf holds one datagram.
	Segment int
	// Addr is the remote address. IPv4 is never in its IPv6-mapped form.
	Addr netip.AddrPort
}

// Bind is one UDP port. All methods are safe for concurrent use; Receive is
// called by one goroutine per socket.
type Bind interface {
	// LocalAddr returns the bound address; it may be unspecified, the port not.
	LocalAddr() netip.AddrPort
	// Sockets returns how many sockets share the port: 1, or one per lane. Every
	// socket accepts every lane.
	Sockets() int
	// BatchSize returns the most messages that one call moves; at least 1.
	BatchSize() int
	// Receive blocks until a datagram is there, then takes what is there without
	// waiting for more. It sets N, Segment and Addr. Each Buf must have room for
	// 64 KiB where the bind coalesces; RecvBufSize says what it needs. After Close
	// it returns an error that Is net.ErrClosed.
	Receive(socket int, msgs []Message) (n int, err error)
	// RecvBufSize is the least length of a Buf given to Receive.
	RecvBufSize() int
	// Send transmits msgs in order in the given lane (0 Critical, 1 Telemetry,
	// 2 Bulk). It returns how many were handed to the kernel; a message that the
	// kernel refuses (no route, too large) is skipped, counted as not sent and
	// reported in err after the rest was tried. It keeps no reference. Neighbours
	// of equal size to one address may leave as one UDP_SEGMENT send.
	Send(lane int, msgs []Message) (n int, err error)
	// Close ends pending receives and is idempotent.
	Close() error
}

// Kind is what the first byte says of a datagram (RFC 7983, with the range of
// RTP taken for the mesh).
type Kind uint8

// The kinds of datagrams on one port.
const (
	KindUnknown Kind = iota
	KindMesh
	KindSTUN
)

// Demux tells mesh traffic from STUN by the first byte: 0x80 is the mesh's, 0 to
// 3 with room for a STUN header is STUN, everything else is dropped.
func Demux(b []byte) Kind {
	switch {
	case len(b) >= 16 && b[0] == 0x80:
		return KindMesh
	case len(b) >= 20 && b[0] <= 3:
		return KindSTUN
	}
	return KindUnknown
}
