// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
)

// IP protocol numbers that rules name.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// FragmentKind says whether a packet is a piece of a larger one.
type FragmentKind uint8

// The kinds of fragments.
const (
	NotFragment FragmentKind = iota
	// FirstFragment has the transport header.
	FirstFragment
	// LaterFragment has no transport header: ports are 0.
	LaterFragment
)

// Info is what the stages need to know of an inner packet.
type Info struct {
	Src, Dst netip.Addr
	// Proto is the transport protocol, behind any IPv6 extension headers.
	Proto            uint8
	TOS              uint8
	Fragment         FragmentKind
	ICMPType         uint8
	TCPFlags         uint8
	SrcPort, DstPort uint16
	// FragmentID is that of a fragment; 0 where the packet is none.
	FragmentID uint32
	// MoreFragments tells that a fragment is not the last one of its datagram.
	MoreFragments bool
	// Len is the length of the whole packet, Payload that behind the transport
	// header; 0 where there is none.
	Len, Payload int
	// Transport is where the transport header begins; 0 in a later fragment.
	Transport int
}

// maxExtensions bounds the IPv6 extension headers that Parse walks.
const maxExtensions = 8

// Parse decodes the IP and transport headers of b, which must be exactly one
// packet: headers that are cut off, lengths that do not match b and a transport
// header that is not whole are refused. Unknown transport protocols are fine.
func Parse(b []byte, info *Info) bool {
	*info = Info{Len: len(b)}
	if len(b) < 20 {
		return false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b, info)
	case 6:
		return parse6(b, info)
	}
	return false
}

func parse4(b []byte, info *Info) bool {
	ihl := int(b[0]&15) * 4
	if ihl < 20 || ihl > len(b) || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return false
	}
	info.TOS, info.Proto = b[1], b[9]
	info.Src = netip.AddrFrom4([4]byte(b[12:16]))
	info.Dst = netip.AddrFrom4([4]byte(b[16:20]))
	frag := binary.BigEndian.Uint16(b[6:])
	if frag&0x3fff != 0 { // more fragments, or an offset
		info.FragmentID = uint32(binary.BigEndian.Uint16(b[4:]))
		info.MoreFragments = frag&moreFragments != 0
		if frag&offsetMask != 0 {
			info.Fragment = LaterFragment
			return true
		}
		info.Fragment = FirstFragment
	}
	info.Transport = ihl
	return transport(b[ihl:], info)
}

func parse6(b []byte, info *Info) bool {
	if len(b) < 40 || int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) {
		return false
	}
	info.TOS = b[0]<<4 | b[1]>>4
	info.Src = netip.AddrFrom16([16]byte(b[8:24]))
	info.Dst = netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := b[6], b[40:]
	for n := 0; ; n++ {
		switch next {
		case 0, 43, 44, 60:
			if n == maxExtensions {
				return false // a chain that long hides something
			}
		}
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) < 8 || len(rest) < 8+8*int(rest[1]) {
				return false
			}
			next, rest = rest[0], rest[8+8*int(rest[1]):]
		case 44: // fragment
			if len(rest) < 8 {
				return false
			}
			frag := binary.BigEndian.Uint16(rest[2:])
			if frag&0xfff9 != 0 { // else an atomic fragment (RFC 6946)
				info.FragmentID = binary.BigEndian.Uint32(rest[4:])
				info.MoreFragments = frag&1 != 0
				info.Fragment = FirstFragment
				if frag&0xfff8 != 0 {
					info.Fragment = LaterFragment
				}
			}
			next, rest = rest[0], rest[8:]
			if info.Fragment == LaterFragment {
				info.Proto = next
				return true
			}
		default:
			info.Proto = next
			info.Transport = len(b) - len(rest)
			return transport(rest, info)
		}
	}
}

// transport decodes ports and flags.
func transport(b []byte, info *Info) bool {
	switch info.Proto {
	case ProtoTCP:
		if len(b) < 20 {
			return false
		}
		hl := int(b[12]>>4) * 4
		if hl < 20 || hl > len(b) {
			return false
		}
		info.TCPFlags = b[13]
		info.Payload = len(b) - hl
	case ProtoUDP:
		if len(b) < 8 {
			return false
		}
		info.Payload = len(b) - 8
	case ProtoICMP, ProtoICMPv6:
		if len(b) < 4 {
			return false
		}
		info.ICMPType = b[0]
		return true
	default:
		return true
	}
	info.SrcPort, info.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	return true
}

var flowSeed, datagramSeed = maphash.MakeSeed(), maphash.MakeSeed()

// Hash returns a hash of the flow: addresses, protocol and ports, keyed per
// process so that nobody can aim at a bucket. All fragments of a datagram have one
// hash, so that of a fragment leaves out what only the first one tells.
func (i *Info) Hash() uint32 {
	b := i.ends()
	if i.Fragment == NotFragment {
		binary.NativeEndian.PutUint32(b[32:], uint32(i.SrcPort)<<16|uint32(i.DstPort))
	}
	h := maphash.Bytes(flowSeed, b[:])
	return uint32(h ^ h>>32)
}

// Datagram returns a key of the datagram that a fragment belongs to, the same for
// all of its fragments and never 0; 0 where i is no fragment. It is keyed per
// process.
func (i *Info) Datagram() uint64 {
	if i.Fragment == NotFragment {
		return 0
	}
	b := i.ends()
	binary.NativeEndian.PutUint32(b[32:], i.FragmentID)
	return maphash.Bytes(datagramSeed, b[:]) | 1
}

// Mark writes into b which part of which datagram it is.
func (i *Info) Mark(b *Buf) {
	b.Datagram = i.Datagram()
	b.FirstFragment = i.Fragment == FirstFragment
	b.LastFragment = i.Fragment == LaterFragment && !i.MoreFragments
}

// ends returns addresses, room for 4 bytes, and the protocol. A fragment of IPv6 has
// none there: Proto may differ from that of the first one, where destination options
// stand between, and RFC 8200, section 4.5, identifies a datagram without it.
func (i *Info) ends() (b [40]byte) {
	src, dst := i.Src.As16(), i.Dst.As16()
	copy(b[:], src[:])
	copy(b[16:], dst[:])
	if i.Fragment == NotFragment || i.Src.Is4() {
		b[36] = i.Proto
	}
	return b
}
