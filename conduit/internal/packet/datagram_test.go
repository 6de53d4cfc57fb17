// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// pieces6 cuts what follows the IPv6 header of a packet, which starts with a header
// of type next, into fragments of at most size bytes each.
func pieces6(id uint32, next byte, body []byte, size int) (out [][]byte) {
	size &^= 7
	for off := 0; off < len(body); off += size {
		h := make([]byte, 8, 8+size)
		h[0] = next
		part := body[off:min(off+size, len(body))]
		field := uint16(off)
		if off+len(part) < len(body) {
			field |= 1
		}
		binary.BigEndian.PutUint16(h[2:], field)
		binary.BigEndian.PutUint32(h[4:], id)
		out = append(out, ip6(44, append(h, part...)))
	}
	return out
}

// pieces4 does so with a whole IPv4 packet.
func pieces4(pkt []byte, mtu int) (out [][]byte) {
	for off := 0; off >= 0; {
		b := make([]byte, mtu)
		var n int
		n, off = Fragment(b, pkt, mtu, off)
		out = append(out, b[:n])
	}
	return out
}

func TestDatagram(t *testing.T) {
	options := append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp(7400, 7410, 4000)...)
	other4 := ip4(17, 0, udp(1, 2, 4000))
	binary.BigEndian.PutUint16(other4[4:], 0x1235)
	otherProto := ip4(47, 0, make([]byte, 4000))
	sets := map[string][][]byte{
		"v4":                  pieces4(ip4(17, 0, udp(1, 2, 4000)), 1350),
		"v4, next":            pieces4(other4, 1350),
		"v4, other protocol":  pieces4(otherProto, 1350),
		"v6":                  pieces6(7, 17, udp(1, 2, 4000), 1300),
		"v6, next":            pieces6(8, 17, udp(1, 2, 4000), 1300),
		"v6, options inside":  pieces6(9, 60, options, 1300),
		"v6, of no transport": pieces6(10, 59, make([]byte, 4000), 1300),
	}
	seen := make(map[uint64]string)
	for name, set := range sets {
		if len(set) < 3 {
			t.Fatalf("%s: %d pieces", name, len(set))
		}
		var key uint64
		var hash uint32
		for i, b := range set {
			var info Info
			if !Parse(b, &info) {
				t.Fatalf("%s: piece %d is refused", name, i)
			}
			buf := Get()
			info.Mark(buf)
			if i == 0 {
				key, hash = buf.Datagram, info.Hash()
			}
			if buf.Datagram != key || key == 0 || info.Hash() != hash {
				t.Errorf("%s: piece %d has key %x and hash %x, the first %x and %x", name, i, buf.Datagram, info.Hash(), key, hash)
			}
			if buf.FirstFragment != (i == 0) || buf.LastFragment != (i == len(set)-1) {
				t.Errorf("%s: piece %d of %d: first %v, last %v", name, i, len(set), buf.FirstFragment, buf.LastFragment)
			}
			buf.Release()
		}
		if twin, ok := seen[key]; ok {
			t.Errorf("%q and %q have one key", name, twin)
		}
		seen[key] = name
	}
	var whole Info
	buf := Get()
	defer buf.Release()
	buf.Datagram, buf.FirstFragment, buf.LastFragment = 1, true, true
	if Parse(ip4(17, 0, udp(1, 2, 3)), &whole); true {
		whole.Mark(buf)
	}
	if buf.Datagram != 0 || buf.FirstFragment || buf.LastFragment {
		t.Errorf("a whole packet is marked: %+v", whole)
	}
}

// A fragment that is cut once more still belongs to its datagram.
func TestDatagramOfPieces(t *testing.T) {
	whole := pieces4(ip4(17, 0, udp(1, 2, 4000)), 1350)
	var first Info
	Parse(whole[0], &first)
	last := 0
	for i, b := range whole {
		for _, p := range pieces4(b, 700) {
			var info Info
			if !Parse(p, &info) || info.Datagram() != first.Datagram() || info.Hash() != first.Hash() {
				t.Errorf("piece of piece %d: %+v", i, info)
			}
			buf := Get()
			if info.Mark(buf); buf.LastFragment {
				last++
			}
			buf.Release()
		}
	}
	if last != 1 {
		t.Errorf("%d last fragments, want 1", last)
	}
}

// What makes flows differ makes their hashes differ.
func TestHash(t *testing.T) {
	base := Info{Src: netip.MustParseAddr("10.66.0.1"), Dst: netip.MustParseAddr("10.66.0.2"), Proto: 17, SrcPort: 1, DstPort: 2}
	seen := map[uint32]string{base.Hash(): "base"}
	for name, change := range map[string]func(*Info){
		"src":      func(i *Info) { i.Src = netip.MustParseAddr("10.66.0.3") },
		"dst":      func(i *Info) { i.Dst = netip.MustParseAddr("10.66.0.1") },
		"protocol": func(i *Info) { i.Proto = 6 },
		"src port": func(i *Info) { i.SrcPort = 3 },
		"dst port": func(i *Info) { i.DstPort = 3 },
		"fragment": func(i *Info) { i.Fragment = FirstFragment },
		"turned":   func(i *Info) { i.Src, i.Dst, i.SrcPort, i.DstPort = i.Dst, i.Src, i.DstPort, i.SrcPort },
	} {
		i := base
		change(&i)
		if twin, ok := seen[i.Hash()]; ok {
			t.Errorf("%s and %s have one hash", name, twin)
		}
		seen[i.Hash()] = name
	}
	same := base
	same.Len, same.TOS, same.TCPFlags, same.Payload = 9, 9, 9, 9
	if same.Hash() != base.Hash() {
		t.Error("what does not tell flows apart changes the hash")
	}
}

// Flows that differ in a few low bits spread over few buckets as chance would.
func TestHashSpreads(t *testing.T) {
	const flows, buckets = 4096, 128
	var counts [buckets]int
	for n := range flows {
		i := Info{
			Src: netip.AddrFrom4([4]byte{10, 66, 0, byte(n % 16)}), Dst: netip.AddrFrom4([4]byte{10, 66, 1, byte(n / 16 % 16)}),
			Proto: 17, SrcPort: 7400, DstPort: uint16(7400 + n/256),
		}
		counts[i.Hash()%buckets]++
	}
	chi := 0.0
	for _, c := range counts {
		d := float64(c) - flows/buckets
		chi += d * d / (flows / buckets)
	}
	if chi > 240 { // 127 degrees of freedom: 7 deviations
		t.Errorf("chi square %.0f over %d buckets: %v", chi, buckets, counts)
	}
}

func BenchmarkParse(b *testing.B) {
	pkt := ip4(17, 0, udp(1, 2, 1000))
	var info Info
	b.ReportAllocs()
	for b.Loop() {
		Parse(pkt, &info)
	}
}

func BenchmarkHash(b *testing.B) {
	var info Info
	Parse(ip4(17, 0, udp(1, 2, 1000)), &info)
	b.ReportAllocs()
	for b.Loop() {
		info.Hash()
	}
}

func BenchmarkDatagram(b *testing.B) {
	var info Info
	Parse(bytes.Clone(ip4(17, 0x2000, udp(1, 2, 1000))), &info)
	b.ReportAllocs()
	for b.Loop() {
		info.Datagram()
	}
}
