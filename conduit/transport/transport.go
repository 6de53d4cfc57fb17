// SPDX-License-Identifier: Apache-2.0

// Package transport moves datagrams: one UDP port that carries mesh traffic and
// STUN together, read and written in batches.
package transport

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

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
	// Time is when it was received, by the system's real-time clock in nanoseconds
	// since 1970: taken by the kernel when the datagram, or the first of a run,
	// came from the interface. 0: unknown. Send ignores it.
	Time int64
	// Alone has Send put nothing else into the same UDP_SEGMENT send, so that the
	// datagram has a time of arrival of its own. Receive ignores it.
	Alone bool
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
	// waiting for more. It sets N, Segment, Addr and Time. Each Buf must have room for
	// 64 KiB where the bind coalesces; RecvBufSize says what it needs. After Close
	// it returns an error that Is net.ErrClosed.
	Receive(socket int, msgs []Message) (n int, err error)
	// RecvBufSize is the least length of a Buf given to Receive.
	RecvBufSize() int
	// Send transmits msgs in order in the given lane (0 Critical, 1 Telemetry,
	// 2 Bulk), with its mark where Config.DSCP asks for it. It returns how many were handed to the kernel; a message that the
	// kernel refuses (no route, too large) is skipped, counted as not sent and
	// reported in err, a *SendError, after the rest was tried. It keeps no
	// reference. Neighbours of equal size to one address may leave as one
	// UDP_SEGMENT send. Any other type of error is about the whole port: after
	// Close it Is net.ErrClosed.
	Send(lane int, msgs []Message) (n int, err error)
	// Close ends pending receives and is idempotent.
	Close() error
}

// Waiter is what a Bind has whose Send can wait for room.
type Waiter interface {
	// SetSendWait bounds how long Send waits for room in a full socket before it
	// gives up with ErrFull: 0 means DefaultSendWait, negative not at all. It counts
	// from the next Send on. A caller with a queue of its own, whose oldest packets
	// are worth least, does not wait.
	SetSendWait(d time.Duration)
}

// Backlog is what a Bind has that can tell how much waits in its system.
type Backlog interface {
	// Queued returns what Send gave the system and the network device has not taken
	// yet, in bytes of kernel memory: each datagram counts with its buffer, which is
	// some 1.6 times a full packet. It waits in the qdisc or the driver of this host,
	// so it says how full the own interface is, not the links beyond. 0 also where
	// the port is closed. It does not wait for a Send that does.
	Queued() (bytes int)
}

// DefaultSendWait is how long Send waits for a full socket to make room.
const DefaultSendWait = 100 * time.Millisecond

// ErrFull means that the socket's buffer had no room in time.
var ErrFull = errors.New("socket buffer is full")

// SendError says which messages of one Send did not leave, and why. It is made
// only when there is something to say. errors.Is sees through to ErrFull and each
// errno; errors.As finds the SendError itself.
type SendError struct {
	// Refused are the messages that the kernel did not take, by rising Index.
	Refused []Refusal
	// Left is how many at the end of msgs were not tried because the buffer was
	// full: msgs[len(msgs)-Left:] can be sent again later.
	Left int
}

// Refusal is one message that the kernel did not take.
type Refusal struct {
	// Index is its place in the msgs of Send.
	Index int
	// Errno is why. EMSGSIZE: larger than the interface takes (DF is set, so this
	// is never about a router further on). ENETDOWN, ENETUNREACH, EHOSTUNREACH,
	// ENODEV, EADDRNOTAVAIL: nothing can leave by this socket to that address now,
	// see Unreachable. EPERM: a packet filter of this host.
	Errno syscall.Errno
}

// TooBig tells whether the datagram was larger than the interface takes.
func (r Refusal) TooBig() bool { return r.Errno == syscall.EMSGSIZE }

// Unreachable tells whether the socket has no way to the address at the moment:
// the link is down or there is no route.
func (r Refusal) Unreachable() bool {
	return slices.Contains(unreachable, r.Errno)
}

var unreachable = []syscall.Errno{
	syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENODEV, syscall.ENXIO, syscall.EADDRNOTAVAIL,
}

func (e *SendError) Error() string {
	switch {
	case len(e.Refused) == 0:
		return fmt.Sprintf("send: %d messages left: %v", e.Left, ErrFull)
	case e.Left == 0:
		return fmt.Sprintf("send: %d messages refused, the first: %v", len(e.Refused), e.Refused[0].Errno)
	}
	return fmt.Sprintf("send: %d messages refused, the first: %v; %d left: %v", len(e.Refused), e.Refused[0].Errno, e.Left, ErrFull)
}

// Unwrap returns the reasons.
func (e *SendError) Unwrap() []error {
	var out []error
	for _, r := range e.Refused {
		out = append(out, r.Errno)
	}
	if e.Left > 0 {
		out = append(out, ErrFull)
	}
	return out
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
