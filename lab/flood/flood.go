// SPDX-License-Identifier: Apache-2.0

// Package flood is an attacker of the lab: it sends many forged datagrams a
// second to one port, in batches, from a socket of a host of its own.
package flood

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
)

// batch is how many datagrams a system call sends.
const batch = 64

// maxPacket bounds a forged datagram, in bytes.
const maxPacket = 2048

// Maker writes one forged datagram into b, of maxPacket bytes, and returns its
// length. It is called from one goroutine.
type Maker func(b []byte) int

// Run sends what next makes, rate a second, until ctx ends, and returns how many
// it sent. An end by ctx is no error. It catches up after a stall, by at most a
// tenth of a second.
func Run(ctx context.Context, conn *net.UDPConn, to netip.AddrPort, rate int, next Maker) (sent int, err error) {
	pc := ipv4.NewPacketConn(conn)
	msgs := make([]ipv4.Message, batch)
	bufs := make([][]byte, batch)
	for i := range msgs {
		bufs[i] = make([]byte, maxPacket)
		msgs[i].Addr = net.UDPAddrFromAddrPort(to)
		msgs[i].Buffers = [][]byte{nil}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	skipped := 0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return sent, nil
		}
		due := int(time.Since(began).Seconds()*float64(rate)) - sent - skipped
		if late := due - rate/10; late > 0 {
			skipped += late
			due -= late
		}
		for due > 0 {
			n := min(due, batch)
			for i := range n {
				msgs[i].Buffers[0] = bufs[i][:next(bufs[i])]
			}
			k, err := pc.WriteBatch(msgs[:n], 0)
			if err != nil {
				if ctx.Err() != nil {
					return sent, nil
				}
				return sent, fmt.Errorf("flood %v: %w", to, err)
			}
			sent += k
			due -= k
		}
	}
}

// The wire format of Bauxite (docs/wire.md §2), as far as a stranger can know.
const (
	magic         = 0x80
	version       = 1
	TypeData      = 1  // TypeData is sealed payload.
	TypeHandshake = 15 // TypeHandshake opens a session without the hub.
	headerLen     = 16
	tagLen        = 16
)

// Header is what a watcher of the wire reads in a mesh packet.
type Header struct {
	Type    byte
	Lane    byte
	Index   uint32
	Counter uint64
}

// ParseHeader reads the head of a mesh packet; false for what is none.
func ParseHeader(b []byte) (Header, bool) {
	if len(b) < headerLen+tagLen || b[0] != magic || b[1]>>6 != version {
		return Header{}, false
	}
	return Header{
		Type: b[1] >> 2 & 15, Lane: b[1] & 3,
		Index: binary.BigEndian.Uint32(b[4:]), Counter: binary.BigEndian.Uint64(b[8:]),
	}, true
}

func (h Header) put(b []byte) {
	b[0], b[1] = magic, version<<6|h.Type<<2|h.Lane
	binary.BigEndian.PutUint16(b[2:], uint16(rand.Uint32()))
	binary.BigEndian.PutUint32(b[4:], h.Index)
	binary.BigEndian.PutUint64(b[8:], h.Counter)
}

// bodyLen makes forged packets as long as small Critical ones.
const bodyLen = 92

func noise(b []byte) {
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, rand.Uint64())
		b = b[8:]
	}
	clear(b)
}

// UnknownIndex forges DATA packets of sessions that do not exist.
func UnknownIndex() Maker {
	return func(b []byte) int {
		b = b[:headerLen+bodyLen+tagLen]
		noise(b[headerLen:])
		Header{Type: TypeData, Index: rand.Uint32() | 1, Counter: rand.Uint64N(1 << 20)}.put(b)
		return len(b)
	}
}

// BadTag forges DATA packets of a living session, seen on the wire, with
// counters a little above the last one seen.
func BadTag(seen Header) Maker {
	return func(b []byte) int {
		b = b[:headerLen+bodyLen+tagLen]
		noise(b[headerLen:])
		h := seen
		h.Counter += rand.Uint64N(1 << 14)
		h.put(b)
		return len(b)
	}
}

// HighCounter is BadTag with counters that would push the replay window out of
// reach of all real packets, if they were believed.
func HighCounter(seen Header) Maker {
	return func(b []byte) int {
		b = b[:headerLen+bodyLen+tagLen]
		noise(b[headerLen:])
		h := seen
		h.Counter = 1<<60 - 1 - rand.Uint64N(1<<20)
		h.put(b)
		return len(b)
	}
}

// Invite forges HANDSHAKE packets: first fragments of INVITEs that nobody signed.
func Invite() Maker {
	const fragment, data = 8, 1100
	return func(b []byte) int {
		b = b[:headerLen+fragment+data+tagLen]
		noise(b[headerLen:])
		Header{Type: TypeHandshake}.put(b)
		b[2], b[3] = 0, 0
		f := b[headerLen:]
		f[4], f[5], f[6], f[7] = 0, byte(1+rand.IntN(3)), 0, 0
		f[8] = 1 // the first byte of an INVITE: its type
		return len(b)
	}
}
