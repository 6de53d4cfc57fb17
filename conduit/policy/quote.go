// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"net/netip"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// isError reports whether the packet is an ICMP error that quotes the packet it is
// about. Redirects are not: here is nobody who may redirect.
func isError(info *packet.Info) bool {
	switch info.Proto {
	case packet.ProtoICMP: // unreachable, time exceeded, parameter problem
		return info.ICMPType == 3 || info.ICMPType == 11 || info.ICMPType == 12
	case packet.ProtoICMPv6: // and too big
		return info.ICMPType >= 1 && info.ICMPType <= 4
	}
	return false
}

const (
	// maxError is the longest ICMP error that hosts send (RFC 4443; RFC 1812 has
	// 576). What is longer carries something else.
	maxError = 1280
	// quoteAt is where the quoted packet begins in an ICMP message.
	quoteAt = 8
	// maxExtensions bounds the IPv6 extension headers of a quoted packet.
	maxExtensions = 8
)

// quoted reads what an ICMP error quotes: addresses, protocol, ports, the type of
// an echo. The quoted packet must be one that went from the error's receiver to
// its sender. It may be cut off behind its ports. pkt is the whole error, to which
// info belongs; pkt may be nil.
func quoted(pkt []byte, info, q *packet.Info) bool {
	if info.Fragment != packet.NotFragment || len(pkt) > maxError || info.Transport <= 0 || len(pkt) < info.Transport+quoteAt {
		return false
	}
	b := pkt[info.Transport+quoteAt:]
	var rest []byte
	if info.Proto == packet.ProtoICMP {
		rest = quoted4(b, q)
	} else {
		rest = quoted6(b, q)
	}
	if len(rest) < 8 || q.Src != info.Dst || q.Dst != info.Src {
		return false
	}
	switch q.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		q.SrcPort, q.DstPort = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		return true
	case packet.ProtoICMP:
		q.ICMPType = rest[0]
		return info.Proto == packet.ProtoICMP && (rest[0] == 8 || rest[0] == 0)
	case packet.ProtoICMPv6:
		q.ICMPType = rest[0]
		return info.Proto == packet.ProtoICMPv6 && (rest[0] == 128 || rest[0] == 129)
	}
	return false
}

// quoted4 returns the transport header, nil where there is none. Nobody reports
// later fragments (RFC 1122).
func quoted4(b []byte, q *packet.Info) []byte {
	if len(b) < 20 || b[0]>>4 != 4 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return nil
	}
	ihl := int(b[0]&15) * 4
	if ihl < 20 || ihl > len(b) {
		return nil
	}
	*q = packet.Info{Proto: b[9], Src: netip.AddrFrom4([4]byte(b[12:16])), Dst: netip.AddrFrom4([4]byte(b[16:20]))}
	return b[ihl:]
}

func quoted6(b []byte, q *packet.Info) []byte {
	if len(b) < 40 || b[0]>>4 != 6 {
		return nil
	}
	*q = packet.Info{Src: netip.AddrFrom16([16]byte(b[8:24])), Dst: netip.AddrFrom16([16]byte(b[24:40]))}
	next, rest := b[6], b[40:]
	for range maxExtensions + 1 {
		n := 0
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) < 8 {
				return nil
			}
			n = 8 + 8*int(rest[1])
		case 44: // fragment
			if len(rest) < 8 || binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0 {
				return nil
			}
			n = 8
		default:
			q.Proto = next
			return rest
		}
		if len(rest) < n {
			return nil
		}
		next, rest = rest[0], rest[n:]
	}
	return nil
}
