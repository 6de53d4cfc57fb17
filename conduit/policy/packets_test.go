// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// spec is a packet as the generator means it: what Parse and the Engine must find
// out from its bytes.
type spec struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
	flags, typ   uint8 // TCP flags, ICMP type
	frag         packet.FragmentKind
	id           uint32
	ext          []uint8 // IPv6 extension headers
	quote        *spec   // of an ICMP error
	spoil        uint8   // what is wrong with the quote: see the constants
}

const (
	whole   = iota
	cutOff  // behind the ports: nothing is wrong
	cutPort // before them
	tooLong
	noQuote
)

func (s *spec) icmp() bool { return s.proto == packet.ProtoICMP || s.proto == packet.ProtoICMPv6 }

func (s *spec) ported() bool { return s.proto == packet.ProtoTCP || s.proto == packet.ProtoUDP }

// bytes appends the packet to b.
func (s *spec) bytes(b []byte) []byte {
	at := len(b)
	if s.src.Is4() {
		b = append(b, make([]byte, 20)...)
		h := b[at:]
		h[0], h[8], h[9] = 0x45, 64, s.proto
		if s.frag != packet.NotFragment {
			binary.BigEndian.PutUint16(h[4:], uint16(s.id))
			h[6] = 0x20
			if s.frag == packet.LaterFragment {
				h[7] = 3
			}
		}
		src, dst := s.src.As4(), s.dst.As4()
		copy(h[12:], src[:])
		copy(h[16:], dst[:])
		b = s.payload(b)
		binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at))
		return b
	}
	b = append(b, make([]byte, 40)...)
	h := b[at:]
	h[0], h[7] = 0x60, 64
	src, dst := s.src.As16(), s.dst.As16()
	copy(h[8:], src[:])
	copy(h[24:], dst[:])
	next := at + 6 // where the type of the next header goes
	for _, x := range s.ext {
		b[next], next = x, len(b)
		b = append(b, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	if s.frag != packet.NotFragment {
		b[next], next = 44, len(b)
		b = append(b, 0, 0, 0, 1, byte(s.id>>24), byte(s.id>>16), byte(s.id>>8), byte(s.id))
		if s.frag == packet.LaterFragment {
			b[next+3] = 24
		}
	}
	b[next] = s.proto
	b = s.payload(b)
	binary.BigEndian.PutUint16(b[at+4:], uint16(len(b)-at-40))
	return b
}

func (s *spec) payload(b []byte) []byte {
	if s.frag == packet.LaterFragment {
		return append(b, 0xff, 0xff, 0, 22, 0xff, 0xff, 0, 22) // looks like ports
	}
	at := len(b)
	switch {
	case s.proto == packet.ProtoTCP:
		b = append(b, make([]byte, 20)...)
		b[at+12], b[at+13] = 0x50, s.flags
	case s.icmp():
		b = append(b, s.typ, 0, 0, 0, 0, 0, 0, 0)
		if s.quote == nil {
			return b
		}
		q := len(b)
		b = s.quote.bytes(b)
		switch s.spoil {
		case cutOff:
			b = b[:q+s.quote.head()+8]
		case cutPort:
			b = b[:q+s.quote.head()+7]
		case tooLong:
			b = append(b, make([]byte, maxError)...)
		case noQuote:
			b = b[:q]
		}
		return b
	default:
		b = append(b, make([]byte, 12)...)
	}
	if s.ported() {
		binary.BigEndian.PutUint16(b[at:], s.sport)
		binary.BigEndian.PutUint16(b[at+2:], s.dport)
	}
	return b
}

// head is the length of the IP header.
func (s *spec) head() int {
	if s.src.Is4() {
		return 20
	}
	n := 40 + 16*len(s.ext)
	if s.frag != packet.NotFragment {
		n += 8
	}
	return n
}

// answer is what the other side sends back.
func (s *spec) answer() *spec {
	a := *s
	a.src, a.dst, a.sport, a.dport = s.dst, s.src, s.dport, s.sport
	a.frag, a.quote = packet.NotFragment, nil
	switch a.typ {
	case 8:
		a.typ = 0
	case 128:
		a.typ = 129
	}
	return &a
}

// randomSpec makes a packet from src to dst; past are some that were sent before.
func randomSpec(r *rand.Rand, src, dst netip.Addr, past []*spec) *spec {
	s := &spec{src: src, dst: dst, proto: pick[uint8](r, 6, 6, 17, 17, 17, 1, 132)}
	if src.Is6() {
		for range r.IntN(3) {
			s.ext = append(s.ext, pick[uint8](r, 0, 43, 60))
		}
	}
	switch s.proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		s.sport, s.dport = uint16(1000+r.IntN(3)), uint16(r.IntN(8))
		if r.IntN(4) == 0 {
			s.sport, s.dport = s.dport, s.sport // as of an answer
		}
		if s.proto == packet.ProtoTCP {
			s.flags = pick[uint8](r, 0x02, 0x12, 0x10, 0x04)
		}
	case packet.ProtoICMP:
		types := []uint8{8, 0, 3, 11, 5, 13, 14, 9}
		if src.Is6() {
			s.proto, types = packet.ProtoICMPv6, []uint8{128, 129, 1, 2, 3, 4, 135, 137}
		}
		s.typ = types[r.IntN(len(types))]
	}
	if (s.ported() || s.icmp()) && r.IntN(4) == 0 {
		s.frag, s.id = pick(r, packet.FirstFragment, packet.LaterFragment), uint32(1+r.IntN(3))
		if s.frag == packet.LaterFragment {
			s.sport, s.dport, s.flags, s.typ = 0, 0, 0, 0
		}
	}
	if s.icmp() && len(past) > 0 && s.frag != packet.LaterFragment {
		if i := (&packet.Info{Proto: s.proto, ICMPType: s.typ}); isError(i) && r.IntN(8) > 0 {
			s.quote, s.spoil = past[r.IntN(len(past))], pick[uint8](r, whole, whole, whole, cutOff, cutPort, tooLong, noQuote)
			if s.quote.frag == packet.LaterFragment && s.spoil == cutPort {
				s.spoil = whole
			}
		}
	}
	return s
}
