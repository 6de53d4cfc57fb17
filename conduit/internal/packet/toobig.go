// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// Lengths of the ICMP messages that TooBig makes.
const (
	icmpLen  = 8
	max4Quot = 576 - ip4Len - icmpLen // RFC 1812, section 4.3.2.3
	max6     = 1280                   // RFC 4443, section 2.4 (c)
)

// TooBig writes into dst the ICMP message that tells the sender of an IP packet to
// send no more than mtu bytes: destination unreachable, fragmentation needed (RFC
// 1191) or packet too big (RFC 4443). It is from where the packet went to. It
// returns the message's length; 0 where none may be sent: to who is nobody or many,
// about another error, or about a fragment that is not the first. info must be that
// of Parse; dst must have room for 1280 bytes.
func TooBig(dst, pkt []byte, info *Info, mtu int) int {
	if info.Src.IsUnspecified() || info.Src.IsMulticast() || info.Dst.IsMulticast() || info.Fragment == LaterFragment || mtu <= 0 || mtu > 0xffff {
		return 0
	}
	if info.Src.Is6() {
		return tooBig6(dst, pkt, info, mtu)
	}
	if info.Proto == ProtoICMP {
		switch info.ICMPType {
		case 3, 4, 5, 11, 12: // errors (RFC 1122, section 3.2.2)
			return 0
		}
	}
	n := min(len(pkt), max4Quot)
	total := ip4Len + icmpLen + n
	if total > len(dst) {
		return 0
	}
	b := dst[:total]
	clear(b[:ip4Len+icmpLen])
	b[0], b[1] = 0x45, 0xc0
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	b[8], b[9] = 64, ProtoICMP
	copy(b[12:16], pkt[16:20])
	copy(b[16:20], pkt[12:16])
	binary.BigEndian.PutUint16(b[10:], fold(sum(0, b[:ip4Len])))
	icmp := b[ip4Len:]
	icmp[0], icmp[1] = 3, 4
	binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
	copy(icmp[icmpLen:], pkt[:n])
	binary.BigEndian.PutUint16(icmp[2:], fold(sum(0, icmp)))
	return total
}

func tooBig6(dst, pkt []byte, info *Info, mtu int) int {
	if info.Proto == ProtoICMPv6 && info.ICMPType < 128 { // an error (RFC 4443, section 2.1)
		return 0
	}
	n := min(len(pkt), max6-ip6Len-icmpLen)
	total := ip6Len + icmpLen + n
	if total > len(dst) {
		return 0
	}
	b := dst[:total]
	clear(b[:ip6Len+icmpLen])
	b[0], b[6], b[7] = 0x60, ProtoICMPv6, 64
	binary.BigEndian.PutUint16(b[4:], uint16(icmpLen+n))
	copy(b[8:24], pkt[24:40])
	copy(b[24:40], pkt[8:24])
	icmp := b[ip6Len:]
	icmp[0] = 2
	binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	copy(icmp[icmpLen:], pkt[:n])
	binary.BigEndian.PutUint16(icmp[2:], fold(sum(sum(ProtoICMPv6+uint32(icmpLen+n), b[8:40]), icmp)))
	return total
}
