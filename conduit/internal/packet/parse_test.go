// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// ip4 builds an IPv4 packet around l4.
func ip4(proto byte, frag uint16, l4 []byte) []byte {
	b := make([]byte, 20, 20+len(l4))
	b[0], b[1], b[9] = 0x45, 0xb8, proto
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(l4)))
	binary.BigEndian.PutUint16(b[4:], 0x1234)
	binary.BigEndian.PutUint16(b[6:], frag)
	copy(b[12:], []byte{10, 66, 0, 1})
	copy(b[16:], []byte{10, 66, 0, 2})
	return append(b, l4...)
}

// ip6 builds an IPv6 packet whose first header is next.
func ip6(next byte, rest []byte) []byte {
	b := make([]byte, 40, 40+len(rest))
	b[0], b[1], b[6] = 0x6b, 0x80, next
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	b[8], b[23], b[24], b[39] = 0xfd, 1, 0xfd, 2
	return append(b, rest...)
}

func udp(src, dst uint16, payload int) []byte {
	b := make([]byte, 8+payload)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	return b
}

func tcp(src, dst uint16, flags byte, payload int) []byte {
	b := make([]byte, 24+payload)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	b[12], b[13] = 6<<4, flags
	return b
}

func TestParse(t *testing.T) {
	a4, b4 := netip.MustParseAddr("10.66.0.1"), netip.MustParseAddr("10.66.0.2")
	a6, b6 := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	ext := append([]byte{17, 0, 0, 0, 0, 0, 0, 0}, udp(1, 2, 3)...)
	frag := func(off uint16, rest []byte) []byte {
		h := []byte{17, 0, 0, 0, 0, 0, 0x12, 0x34}
		binary.BigEndian.PutUint16(h[2:], off)
		return append(h, rest...)
	}
	for name, tc := range map[string]struct {
		b    []byte
		want Info
	}{
		"udp4":             {ip4(17, 0, udp(5006, 7400, 10)), Info{Src: a4, Dst: b4, Proto: 17, TOS: 0xb8, SrcPort: 5006, DstPort: 7400, Payload: 10, Transport: 20}},
		"tcp4":             {ip4(6, 0x4000, tcp(1, 22, 0x18, 5)), Info{Src: a4, Dst: b4, Proto: 6, TOS: 0xb8, SrcPort: 1, DstPort: 22, TCPFlags: 0x18, Payload: 5, Transport: 20}},
		"icmp":             {ip4(1, 0, []byte{8, 0, 0, 0}), Info{Src: a4, Dst: b4, Proto: 1, TOS: 0xb8, ICMPType: 8, Transport: 20}},
		"unknown protocol": {ip4(47, 0, nil), Info{Src: a4, Dst: b4, Proto: 47, TOS: 0xb8, Transport: 20}},
		"first fragment":   {ip4(17, 0x2000, udp(1, 2, 16)), Info{Src: a4, Dst: b4, Proto: 17, TOS: 0xb8, SrcPort: 1, DstPort: 2, Payload: 16, Fragment: FirstFragment, FragmentID: 0x1234, MoreFragments: true, Transport: 20}},
		"later fragment":   {ip4(17, 0x2003, []byte{1, 2}), Info{Src: a4, Dst: b4, Proto: 17, TOS: 0xb8, Fragment: LaterFragment, FragmentID: 0x1234, MoreFragments: true}},
		"last fragment":    {ip4(17, 0x0003, []byte{1, 2}), Info{Src: a4, Dst: b4, Proto: 17, TOS: 0xb8, Fragment: LaterFragment, FragmentID: 0x1234}},
		"udp6":             {ip6(17, udp(1, 2, 3)), Info{Src: a6, Dst: b6, Proto: 17, TOS: 0xb8, SrcPort: 1, DstPort: 2, Payload: 3, Transport: 40}},
		"extension":        {ip6(0, ext), Info{Src: a6, Dst: b6, Proto: 17, TOS: 0xb8, SrcPort: 1, DstPort: 2, Payload: 3, Transport: 48}},
		"atomic fragment":  {ip6(44, frag(0, udp(1, 2, 3))), Info{Src: a6, Dst: b6, Proto: 17, TOS: 0xb8, SrcPort: 1, DstPort: 2, Payload: 3, Transport: 48}},
		"reserved bits":    {ip6(44, frag(6, udp(1, 2, 3))), Info{Src: a6, Dst: b6, Proto: 17, TOS: 0xb8, SrcPort: 1, DstPort: 2, Payload: 3, Transport: 48}},
		"first fragment 6": {ip6(44, frag(1, udp(1, 2, 3))), Info{Src: a6, Dst: b6, Proto: 17, TOS: 0xb8, SrcPort: 1, DstPort: 2, Payload: 3, Fragment: FirstFragment, FragmentID: 0x1234, MoreFragments: true, Transport: 48}},
		"middle of 6":      {ip6(44, frag(9, []byte{9})), Info{Src: a6, Dst: b6, Proto: 17, TOS: 0xb8, Fragment: LaterFragment, FragmentID: 0x1234, MoreFragments: true}},
		"later fragment 6": {ip6(44, frag(8, []byte{9})), Info{Src: a6, Dst: b6, Proto: 17, TOS: 0xb8, Fragment: LaterFragment, FragmentID: 0x1234}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.want.Len = len(tc.b)
			var got Info
			if !Parse(tc.b, &got) {
				t.Fatal("refused")
			}
			if got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
			if Parse(append(tc.b, 0), &got) {
				t.Error("a trailing byte was accepted")
			}
			if Parse(tc.b[:len(tc.b)-1], &got) {
				t.Error("a cut packet was accepted")
			}
			if n := testing.AllocsPerRun(100, func() { Parse(tc.b, &got); got.Hash(); got.Datagram() }); n != 0 {
				t.Errorf("allocates %v times, want 0", n)
			}
		})
	}
	if !Parse(chain(maxExtensions), new(Info)) {
		t.Errorf("%d extension headers were refused", maxExtensions)
	}
	if Parse(chain(maxExtensions+1), new(Info)) {
		t.Errorf("%d extension headers were accepted", maxExtensions+1)
	}
}

// chain builds an IPv6 packet with n extension headers before UDP.
func chain(n int) []byte {
	next, b := byte(17), udp(1, 2, 3)
	for range n {
		b = append([]byte{next, 0, 0, 0, 0, 0, 0, 0}, b...)
		next = 60
	}
	return ip6(next, b)
}

// naive is a second reading of the same rules, written for clarity.
func naive(b []byte) (proto int, sport, dport uint16, later, ok bool) {
	if len(b) < 20 {
		return
	}
	var l4 []byte
	switch b[0] / 16 {
	case 4:
		h := int(b[0]%16) * 4
		if h < 20 || len(b) < h || int(b[2])*256+int(b[3]) != len(b) {
			return
		}
		proto, l4 = int(b[9]), b[h:]
		later = (int(b[6])*256+int(b[7]))%8192 != 0
	case 6:
		if len(b) < 40 || int(b[4])*256+int(b[5]) != len(b)-40 {
			return
		}
		proto, l4 = int(b[6]), b[40:]
		for n := 0; !later && (proto == 0 || proto == 43 || proto == 60 || proto == 44); n++ {
			if n == maxExtensions || len(l4) < 8 {
				return 0, 0, 0, false, false
			}
			size := 8
			if proto != 44 {
				size += int(l4[1]) * 8
			} else if (int(l4[2])*256+int(l4[3]))/8 != 0 {
				later = true
			}
			if len(l4) < size {
				return 0, 0, 0, false, false
			}
			proto, l4 = int(l4[0]), l4[size:]
		}
	default:
		return
	}
	if later {
		return proto, 0, 0, true, true
	}
	need := map[int]int{1: 4, 58: 4, 6: 20, 17: 8}[proto]
	if len(l4) < need {
		return 0, 0, 0, false, false
	}
	if proto == 6 {
		if h := int(l4[12]/16) * 4; h < 20 || h > len(l4) {
			return 0, 0, 0, false, false
		}
	}
	if proto == 6 || proto == 17 {
		sport, dport = uint16(l4[0])*256+uint16(l4[1]), uint16(l4[2])*256+uint16(l4[3])
	}
	return proto, sport, dport, false, true
}

func FuzzParse(f *testing.F) {
	f.Add(ip4(17, 0, udp(1, 2, 3)))
	f.Add(ip4(6, 0x2000, tcp(1, 2, 2, 0)))
	f.Add(chain(maxExtensions))
	f.Add(chain(maxExtensions + 1))
	f.Add(ip6(0, append([]byte{44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 0}, udp(1, 2, 3)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var i Info
		got := Parse(b, &i)
		proto, sport, dport, later, ok := naive(b)
		if got != ok {
			t.Fatalf("Parse = %v, naive = %v for %x", got, ok, b)
		}
		if got && (i.Fragment == NotFragment) != (i.Datagram() == 0) {
			t.Fatalf("%+v has the key %x", i, i.Datagram())
		}
		if got && (int(i.Proto) != proto || i.SrcPort != sport || i.DstPort != dport || (i.Fragment == LaterFragment) != later) {
			t.Fatalf("Parse = %+v, naive = %d %d %d %v for %x", i, proto, sport, dport, later, b)
		}
	})
}

func TestReleaseTwice(t *testing.T) {
	b := Get()
	b.Release()
	defer func() {
		if recover() == nil {
			t.Error("releasing twice did not panic")
		}
	}()
	b.Release()
}

func TestLaneText(t *testing.T) {
	for l := range Lane(NumLanes) {
		if got, err := ParseLane(l.String()); err != nil || got != l {
			t.Errorf("ParseLane(%q) = %v, %v", l.String(), got, err)
		}
	}
	if _, err := ParseLane("urgent"); err == nil {
		t.Error("an unknown lane was accepted")
	}
}
