// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// slowSum is the Internet checksum as RFC 1071 defines it, one word at a time.
func slowSum(parts ...[]byte) uint16 {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	acc := uint64(0)
	for i := 0; i < len(all); i += 2 {
		acc += uint64(all[i])<<8 | uint64(all[i+1])
		if acc > 0xffff {
			acc = acc&0xffff + 1
		}
	}
	return ^uint16(acc)
}

// pseudo is the pseudo-header of a packet's transport checksum.
func pseudo(b []byte, proto byte, n int) []byte {
	if b[0]>>4 == 4 {
		return append(append([]byte(nil), b[12:20]...), 0, proto, byte(n>>8), byte(n))
	}
	return append(append([]byte(nil), b[8:40]...), 0, 0, byte(n>>8), byte(n), 0, 0, 0, proto)
}

// syn is a TCP packet with options and a right checksum.
func syn(v6 bool, flags byte, options []byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	b := make([]byte, 20+len(options))
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], 22)
	b[12], b[13] = byte(5+len(options)/4)<<4, flags
	copy(b[20:], options)
	var p []byte
	at := 20
	if v6 {
		p, at = ip6(ProtoTCP, b), 40
	} else {
		p = ip4(ProtoTCP, 0x4000, b)
	}
	binary.BigEndian.PutUint16(p[at+16:], slowSum(pseudo(p, ProtoTCP, len(b)), p[at:]))
	return p
}

func TestClampMSS(t *testing.T) {
	const synAck = TCPSYN | 0x10
	for name, c := range map[string]struct {
		b    []byte
		at   int // of the option's value
		want uint16
	}{
		"v4":           {syn(false, TCPSYN, []byte{2, 4, 0x05, 0xb4, 1, 3, 3, 7}), 42, 1160},
		"v6":           {syn(true, TCPSYN, []byte{2, 4, 0x05, 0xb4}), 62, 1140},
		"syn-ack":      {syn(false, synAck, []byte{2, 4, 0x05, 0xb4}), 42, 1160},
		"odd place":    {syn(false, TCPSYN, []byte{1, 2, 4, 0x05, 0xb4}), 43, 1160},
		"behind sack":  {syn(false, TCPSYN, []byte{4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 0xff, 0xff}), 54, 1160},
		"small enough": {syn(false, TCPSYN, []byte{2, 4, 0x02, 0x18}), 42, 0x218},
		"no syn":       {syn(false, 0x10, []byte{2, 4, 0x05, 0xb4}), 42, 0x5b4},
		"broken":       {syn(false, TCPSYN, []byte{8, 1, 2, 4, 0x05, 0xb4, 0, 0}), 44, 0x5b4},
		"ended":        {syn(false, TCPSYN, []byte{0, 0, 2, 4, 0x05, 0xb4, 0, 0}), 44, 0x5b4},
		"over the end": {syn(false, TCPSYN, []byte{1, 1, 2, 5, 0x05, 0xb4, 1, 2}), 44, 0x5b4},
		"no room":      {syn(false, TCPSYN, []byte{1, 1, 1, 2}), 40, 0x101},
	} {
		t.Run(name, func(t *testing.T) {
			var info Info
			if !Parse(c.b, &info) {
				t.Fatal("refused")
			}
			before := bytes.Clone(c.b)
			changed := ClampMSS(c.b, &info, 1200)
			if changed == bytes.Equal(before, c.b) {
				t.Errorf("changed = %v", changed)
			}
			if got := binary.BigEndian.Uint16(c.b[c.at:]); got != c.want {
				t.Errorf("mss = %d, want %d", got, c.want)
			}
			seg := c.b[info.Transport:]
			if sum := slowSum(pseudo(c.b, ProtoTCP, len(seg)), seg); sum != 0 {
				t.Errorf("checksum is off by %04x", sum)
			}
		})
	}
}

func FuzzClampMSS(f *testing.F) {
	f.Add(syn(false, TCPSYN, []byte{2, 4, 0x05, 0xb4}), uint16(1200))
	f.Add(syn(true, TCPSYN, []byte{1, 2, 4, 0x05, 0xb4}), uint16(1280))
	f.Add(syn(false, TCPSYN, []byte{8, 0, 2}), uint16(68))
	f.Fuzz(func(t *testing.T, b []byte, mtu uint16) {
		var info Info
		if !Parse(b, &info) {
			return
		}
		seg := b[min(info.Transport, len(b)):]
		before := slowSum(pseudo(b, ProtoTCP, len(seg)), seg)
		old := bytes.Clone(b)
		if !ClampMSS(b, &info, int(mtu)) {
			if !bytes.Equal(b, old) {
				t.Fatal("changed, but did not say so")
			}
			return
		}
		// A sum that was wrong stays wrong by as much; 0 and ffff are the same number.
		after := slowSum(pseudo(b, ProtoTCP, len(seg)), seg)
		if before%0xffff != after%0xffff {
			t.Fatalf("the checksum is off by %04x, was %04x", after, before)
		}
		diff := 0
		for i := range b {
			if b[i] != old[i] {
				diff++
			}
		}
		if diff > 4 {
			t.Fatalf("%d bytes changed", diff)
		}
	})
}

func TestTooBig(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want int
	}{
		"v4":                     {ip4(ProtoUDP, 0x4000, udp(1, 2, 1300)), 576},
		"v4, short":              {ip4(ProtoUDP, 0x4000, udp(1, 2, 9)), 28 + 37},
		"v6":                     {ip6(ProtoUDP, udp(1, 2, 1300)), 1280},
		"echo":                   {ip4(ProtoICMP, 0x4000, make([]byte, 1300)), 576},
		"about an error":         {ip4(ProtoICMP, 0x4000, append([]byte{3, 4}, make([]byte, 1300)...)), 0},
		"about an error of IPv6": {ip6(ProtoICMPv6, append([]byte{2}, make([]byte, 1300)...)), 0},
		"about a later fragment": {ip4(ProtoUDP, 0x4003, make([]byte, 1300)), 0},
	} {
		t.Run(name, func(t *testing.T) {
			var info Info
			if !Parse(c.b, &info) {
				t.Fatal("refused")
			}
			dst := make([]byte, 1280)
			n := TooBig(dst, c.b, &info, 1200)
			if n != c.want {
				t.Fatalf("%d bytes, want %d", n, c.want)
			}
			checkTooBig(t, dst[:n], c.b, 1200)
		})
	}
}

// checkTooBig checks every field of a message.
func checkTooBig(t *testing.T, msg, pkt []byte, mtu uint32) {
	t.Helper()
	if len(msg) == 0 {
		return
	}
	var info, orig Info
	if !Parse(msg, &info) || !Parse(pkt, &orig) || info.Src != orig.Dst || info.Dst != orig.Src {
		t.Fatalf("message is %+v", info)
	}
	icmp := msg[info.Transport:]
	got, sum, typ := uint32(0), uint16(0), icmp[0]
	if orig.Src.Is6() {
		got, sum = binary.BigEndian.Uint32(icmp[4:]), slowSum(pseudo(msg, ProtoICMPv6, len(icmp)), icmp)
		if typ != 2 || icmp[1] != 0 || info.Proto != ProtoICMPv6 {
			t.Errorf("type %d code %d", typ, icmp[1])
		}
	} else {
		got, sum = uint32(binary.BigEndian.Uint16(icmp[6:])), slowSum(icmp)
		if typ != 3 || icmp[1] != 4 || info.Proto != ProtoICMP || slowSum(msg[:20]) != 0 {
			t.Errorf("type %d code %d, header sum %04x", typ, icmp[1], slowSum(msg[:20]))
		}
	}
	if got != mtu || sum != 0 {
		t.Errorf("mtu = %d, want %d; checksum is off by %04x", got, mtu, sum)
	}
	if !bytes.HasPrefix(pkt, icmp[8:]) || len(icmp) < 8+28 && len(icmp) < 8+len(pkt) {
		t.Error("does not quote the packet")
	}
}

func FuzzTooBig(f *testing.F) {
	f.Add(ip4(ProtoUDP, 0x4000, udp(1, 2, 100)), uint16(1200))
	f.Add(ip6(ProtoUDP, udp(1, 2, 100)), uint16(1280))
	f.Fuzz(func(t *testing.T, b []byte, mtu uint16) {
		var info Info
		if !Parse(b, &info) {
			return
		}
		dst := make([]byte, 1280)
		checkTooBig(t, dst[:TooBig(dst, b, &info, int(mtu))], b, uint32(mtu))
	})
}

// reassemble puts fragments together again and checks each.
func reassemble(t *testing.T, b []byte, mtu int) []byte {
	t.Helper()
	dst := make([]byte, 2048)
	ihl := int(b[0]&15) * 4
	flags := binary.BigEndian.Uint16(b[6:])
	out := append([]byte(nil), b[:ihl]...)
	for off := 0; off >= 0; {
		at := off
		var n int
		n, off = Fragment(dst, b, mtu, off)
		f := dst[:n]
		head := int(f[0]&15) * 4
		if n > mtu || int(binary.BigEndian.Uint16(f[2:])) != n || slowSum(f[:head]) != 0 {
			t.Fatalf("fragment of %d bytes (mtu %d), header sum %04x", n, mtu, slowSum(f[:head]))
		}
		ff := binary.BigEndian.Uint16(f[6:])
		more := off >= 0 || flags&moreFragments != 0
		if ff&moreFragments != 0 != more || ff&offsetMask != (flags+uint16(at/8))&offsetMask || off >= 0 && (n-head)%8 != 0 {
			t.Fatalf("fragment at %d has flags %04x", at, ff)
		}
		if !bytes.Equal(f[4:6], b[4:6]) || !bytes.Equal(f[8:10], b[8:10]) || !bytes.Equal(f[12:20], b[12:20]) {
			t.Fatal("a field changed")
		}
		if len(out) != ihl+at {
			t.Fatalf("fragment at %d, want %d", at, len(out)-ihl)
		}
		out = append(out, f[head:]...)
	}
	return out
}

func TestFragment(t *testing.T) {
	b := ip4(ProtoUDP, 0, udp(1, 2, 1300))
	for i := range b[28:] {
		b[28+i] = byte(i)
	}
	for _, mtu := range []int{68, 576, 1199, 1200, 1327, 1328} {
		if got := reassemble(t, b, mtu); !bytes.Equal(got, b) {
			t.Errorf("mtu %d: differs", mtu)
		}
	}
	last := ip4(ProtoUDP, 0x2010, make([]byte, 1000)) // itself a fragment in the middle
	if got := reassemble(t, last, 576); !bytes.Equal(got, last) {
		t.Error("fragment of a fragment differs")
	}
	// Options: one that is copied (131) between two that are not.
	opt := []byte{1, 7, 3, 4, 131, 3, 4, 1, 68, 4, 5, 0}
	with := append(append(bytes.Clone(b[:20]), opt...), b[20:]...)
	with[0] = 0x48
	binary.BigEndian.PutUint16(with[2:], uint16(len(with)))
	dst := make([]byte, 2048)
	n, next := Fragment(dst, with, 600, 0)
	if !bytes.Equal(dst[20:32], opt) || n != 32+(600-32)&^7 {
		t.Errorf("the first has %x", dst[20:32])
	}
	if _, next = Fragment(dst, with, 600, next); dst[0] != 0x46 || !bytes.Equal(dst[20:24], []byte{131, 3, 4, 0}) || next < 0 {
		t.Errorf("the second has %x", dst[:24])
	}
	if Fragmentable(ip4(ProtoUDP, 0x4000, nil)) || Fragmentable(ip6(ProtoUDP, udp(1, 2, 0))) || !Fragmentable(b) {
		t.Error("fragmentable is wrong")
	}
}

func FuzzFragment(f *testing.F) {
	f.Add(ip4(ProtoUDP, 0, udp(1, 2, 300)), uint16(68))
	f.Fuzz(func(t *testing.T, b []byte, mtu uint16) {
		var info Info
		if len(b) > 2000 || !Parse(b, &info) || !Fragmentable(b) {
			return
		}
		if got := reassemble(t, b, 68+int(mtu)%1900); !bytes.Equal(got[20:], b[20:]) {
			t.Fatal("differs")
		}
	})
}

func TestIncremental(t *testing.T) {
	b := []byte{0, 0, 0x12, 0x34, 0xff, 0xff, 0, 0}
	for from := 0; from < 1<<16; from += 7 {
		for _, to := range []uint16{0, 1, 0x1234, 0xfffe, 0xffff} {
			binary.BigEndian.PutUint16(b, uint16(from))
			check := slowSum(b)
			binary.BigEndian.PutUint16(b, to)
			if got, want := update(check, uint16(from), to), slowSum(b); got != want {
				t.Fatalf("%04x to %04x: %04x, want %04x", from, to, got, want)
			}
		}
	}
}

func TestSizesDoNotAllocate(t *testing.T) {
	s, big, plain := syn(false, TCPSYN, []byte{2, 4, 0x05, 0xb4}), ip6(ProtoUDP, udp(1, 2, 1300)), ip4(ProtoUDP, 0, udp(1, 2, 1300))
	dst := make([]byte, 2048)
	if n := testing.AllocsPerRun(100, func() {
		var info Info
		Parse(s, &info)
		ClampMSS(s, &info, 1200)
		Parse(big, &info)
		TooBig(dst, big, &info, 1280)
		for off := 0; off >= 0; {
			_, off = Fragment(dst, plain, 600, off)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
