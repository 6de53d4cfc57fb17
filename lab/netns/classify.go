// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Class is what a captured frame is.
type Class string

// The classes. Everything that fits none of them is ClassOther.
const (
	ClassARP       Class = "arp"
	ClassND        Class = "nd"         // ICMPv6 neighbour and router discovery
	ClassMulticast Class = "igmp/mld"   // group membership, sent by the kernel
	ClassDNS       Class = "dns"        // UDP and TCP port 53
	ClassHub       Class = "hub"        // TCP with a hub's address and port
	ClassSTUN      Class = "stun"       // UDP with STUN's cookie and first byte
	ClassMesh      Class = "mesh"       // UDP payload that starts with 0x80
	ClassICMPError Class = "icmp error" // unreachable, time exceeded, too big
	ClassOther     Class = "other"
)

// stunCookie is at bytes 4–7 of every STUN message (RFC 8489 §5).
const stunCookie = 0x2112A442

// Classifier sorts frames. Its zero value knows no hub.
type Classifier struct {
	// Hubs are the addresses whose TCP connections are ClassHub.
	Hubs []netip.AddrPort
}

// Packet is what Classify found out about a frame.
type Packet struct {
	Class    Class
	Src, Dst netip.AddrPort // port 0 if there is none
	Proto    byte           // IP protocol, 0 if not IP
	Payload  []byte         // of UDP and TCP
}

// Classify sorts one frame. When the frame carries several wire packets, all
// must be of one class; otherwise it is ClassOther.
func (k Classifier) Classify(f Frame) Packet {
	p := Packet{Class: ClassOther}
	if len(f.Data) < 14 {
		return p
	}
	switch binary.BigEndian.Uint16(f.Data[12:]) {
	case unix.ETH_P_ARP:
		p.Class = ClassARP
		return p
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
	default:
		return p
	}
	proto, src, dst, body, ok := parseIP(f.Data[14:])
	if !ok {
		return p
	}
	p.Proto, p.Src, p.Dst = proto, netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	switch proto {
	case unix.IPPROTO_IGMP:
		p.Class = ClassMulticast
	case unix.IPPROTO_ICMP:
		if len(body) > 0 && (body[0] == 3 || body[0] == 11) {
			p.Class = ClassICMPError
		}
	case unix.IPPROTO_ICMPV6:
		p.Class = classifyICMPv6(body)
	case unix.IPPROTO_UDP:
		k.classifyUDP(&p, body, f.Segment)
	case unix.IPPROTO_TCP:
		k.classifyTCP(&p, body)
	}
	return p
}

func classifyICMPv6(body []byte) Class {
	if len(body) == 0 {
		return ClassOther
	}
	switch t := body[0]; {
	case t >= 133 && t <= 137:
		return ClassND
	case t >= 130 && t <= 132 || t == 143:
		return ClassMulticast
	case t >= 1 && t <= 4:
		return ClassICMPError
	}
	return ClassOther
}

func (k Classifier) classifyUDP(p *Packet, body []byte, segment int) {
	if len(body) < 8 {
		return
	}
	p.setPorts(body)
	p.Payload = body[8:]
	if p.Src.Port() == 53 || p.Dst.Port() == 53 {
		p.Class = ClassDNS
		return
	}
	if segment <= 0 {
		segment = len(p.Payload)
	}
	rest := p.Payload
	for first := true; ; first = false {
		n := min(segment, len(rest))
		class := classifyDatagram(rest[:n])
		if !first && class != p.Class {
			p.Class = ClassOther
			return
		}
		p.Class = class
		if rest = rest[n:]; len(rest) == 0 {
			return
		}
	}
}

func classifyDatagram(b []byte) Class {
	switch {
	case len(b) > 0 && b[0] == 0x80:
		return ClassMesh
	case len(b) >= 20 && b[0] <= 3 && binary.BigEndian.Uint32(b[4:]) == stunCookie:
		return ClassSTUN
	}
	return ClassOther
}

func (k Classifier) classifyTCP(p *Packet, body []byte) {
	if len(body) < 20 {
		return
	}
	p.setPorts(body)
	if off := int(body[12]>>4) * 4; off >= 20 && off <= len(body) {
		p.Payload = body[off:]
	}
	switch {
	case p.Src.Port() == 53 || p.Dst.Port() == 53:
		p.Class = ClassDNS
	case slices.Contains(k.Hubs, p.Src) || slices.Contains(k.Hubs, p.Dst):
		p.Class = ClassHub
	}
}

// setPorts reads the ports, which UDP and TCP have at the same place.
func (p *Packet) setPorts(body []byte) {
	p.Src = netip.AddrPortFrom(p.Src.Addr(), binary.BigEndian.Uint16(body))
	p.Dst = netip.AddrPortFrom(p.Dst.Addr(), binary.BigEndian.Uint16(body[2:]))
}

// parseIP finds the upper protocol of an IP packet. Fragments after the first
// have none and are not ok, so that they end up in ClassOther.
func parseIP(b []byte) (proto byte, src, dst netip.Addr, body []byte, ok bool) {
	if len(b) >= 20 && b[0]>>4 == 4 {
		hdr, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		fragment := binary.BigEndian.Uint16(b[6:])&0x1fff != 0
		if total == 0 || total > len(b) { // 0: longer than the field can say
			total = len(b)
		}
		if hdr < 20 || hdr > total || fragment {
			return 0, src, dst, nil, false
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		return b[9], src, dst, b[hdr:total], true
	}
	if len(b) < 40 || b[0]>>4 != 6 {
		return 0, src, dst, nil, false
	}
	src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	proto, body = b[6], b[40:]
	if n := int(binary.BigEndian.Uint16(b[4:])); n != 0 && n < len(body) {
		body = body[:n]
	}
	for { // extension headers
		switch proto {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(body) < 8 {
				return 0, src, dst, nil, false
			}
			n := 8 + int(body[1])*8
			if n > len(body) {
				return 0, src, dst, nil, false
			}
			proto, body = body[0], body[n:]
		case unix.IPPROTO_FRAGMENT:
			if len(body) < 8 || binary.BigEndian.Uint16(body[2:])&0xfff8 != 0 {
				return 0, src, dst, nil, false
			}
			proto, body = body[0], body[8:]
		default:
			return proto, src, dst, body, true
		}
	}
}

// Tally counts the frames of each class.
type Tally map[Class]int

// Count sorts all frames of a capture and returns the packets of ClassOther,
// and of the classes named, apart.
func (k Classifier) Count(frames []Frame, apart ...Class) (Tally, []Packet) {
	t := Tally{}
	var odd []Packet
	for _, f := range frames {
		p := k.Classify(f)
		t[p.Class]++
		if p.Class == ClassOther || slices.Contains(apart, p.Class) {
			odd = append(odd, p)
		}
	}
	return t, odd
}

// String lists the classes in alphabetical order.
func (t Tally) String() string {
	var parts []string
	for _, c := range slices.Sorted(maps.Keys(t)) {
		parts = append(parts, fmt.Sprintf("%s %d", c, t[c]))
	}
	return strings.Join(parts, ", ")
}

// String describes the packet in one line.
func (p Packet) String() string {
	return fmt.Sprintf("%s proto %d %v > %v, %d bytes: %.16x", p.Class, p.Proto, p.Src, p.Dst, len(p.Payload), p.Payload)
}
