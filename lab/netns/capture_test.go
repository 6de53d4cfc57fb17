// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestCapture(t *testing.T) {
	lab := New(t)
	wan := lab.WAN("wan")
	hub := wan.Host("hub", Link{})
	robot := wan.Host("robot", Link{PerPacket: true})
	ln, err := hub.ListenTCP(net.JoinHostPort(hub.Addr4().String(), "8440"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, peer := mirror(t, hub)

	capture, err := robot.Iface(0).Capture()
	if err != nil {
		t.Fatal(err)
	}
	c := udp(t, robot, "")
	send := func(payload string) {
		t.Helper()
		if _, err := c.WriteToUDPAddrPort([]byte(payload), peer); err != nil {
			t.Fatal(err)
		}
		receive(t, c)
	}
	send("\x80mesh")
	send("\x00\x01\x00\x00\x21\x12\xa4\x42123456789012")
	send("the marker in clear")
	conn, err := robot.DialTCP(t.Context(), netip.AddrPortFrom(hub.Addr4(), 8440))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := capture.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := capture.Missed(); n != 0 {
		t.Errorf("missed %d frames", n)
	}
	tally, odd := Classifier{Hubs: []netip.AddrPort{netip.AddrPortFrom(hub.Addr4(), 8440)}}.Count(capture.Frames())
	t.Logf("%v; other: %v", tally, odd)
	// One marked datagram each way is mesh or STUN; the answers are text.
	if tally[ClassMesh] != 1 || tally[ClassSTUN] != 1 || tally[ClassHub] < 3 || tally[ClassOther] != 4 {
		t.Errorf("tally = %v, want 1 mesh, 1 stun, 3 or more hub, 4 other", tally)
	}
	found := capture.Find([]byte("the marker"))
	if len(found) != 1 || !found[0].Outgoing {
		t.Errorf("marker found in %d frames, want one outgoing", len(found))
	}
	if len(capture.Find([]byte("no such thing"))) != 0 {
		t.Error("found a marker that was never sent")
	}
	b, err := os.ReadFile(capture.Path())
	if err != nil {
		t.Fatal(err)
	}
	if want := 24; len(b) < want || binary.LittleEndian.Uint32(b) != 0xa1b23c4d {
		t.Errorf("pcap file of %d bytes does not start with its magic number", len(b))
	}
	frames := 0
	for rest := b[24:]; len(rest) > 0; frames++ {
		rest = rest[16+binary.LittleEndian.Uint32(rest[8:]):]
	}
	if frames != len(capture.Frames()) {
		t.Errorf("pcap file has %d frames, memory %d", frames, len(capture.Frames()))
	}
}

// udp4 builds an Ethernet frame with an IPv4 UDP datagram.
func udp4(sport, dport uint16, payload string) []byte {
	b := make([]byte, 14+20+8, 14+20+8+len(payload))
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	b[14] = 0x45
	binary.BigEndian.PutUint16(b[16:], uint16(28+len(payload)))
	b[23] = unix.IPPROTO_UDP
	copy(b[26:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(b[34:], sport)
	binary.BigEndian.PutUint16(b[36:], dport)
	return append(b, payload...)
}

// ip6 builds an Ethernet frame with an IPv6 packet.
func ip6(next byte, body ...byte) []byte {
	b := make([]byte, 14+40)
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IPV6)
	b[14] = 0x60
	binary.BigEndian.PutUint16(b[18:], uint16(len(body)))
	b[20] = next
	return append(b, body...)
}

func TestClassify(t *testing.T) {
	stun := "\x01\x01\x00\x00\x21\x12\xa4\x42123456789012"
	fragment := udp4(1, 2, "\x80")
	fragment[21] = 1
	arp := make([]byte, 42)
	binary.BigEndian.PutUint16(arp[12:], unix.ETH_P_ARP)
	for _, tt := range []struct {
		name    string
		data    []byte
		segment int
		want    Class
	}{
		{"arp", arp, 0, ClassARP},
		{"short", []byte{1, 2}, 0, ClassOther},
		{"mesh", udp4(1, 2, "\x80abc"), 0, ClassMesh},
		{"empty datagram", udp4(1, 2, ""), 0, ClassOther},
		{"stun", udp4(1, 2, stun), 0, ClassSTUN},
		{"stun without cookie", udp4(1, 2, "\x00\x01\x00\x00123456789012abcd"), 0, ClassOther},
		{"dns", udp4(5000, 53, "q"), 0, ClassDNS},
		{"fragment", fragment, 0, ClassOther},
		{"offloaded mesh", udp4(1, 2, "\x80a\x80b\x80"), 2, ClassMesh},
		{"offloaded mix", udp4(1, 2, "\x80a\x80bxx"), 2, ClassOther},
		{"neighbour solicitation", ip6(unix.IPPROTO_ICMPV6, 135, 0, 0, 0), 0, ClassND},
		{"router solicitation", ip6(unix.IPPROTO_ICMPV6, 133, 0, 0, 0), 0, ClassND},
		{"mld behind hop-by-hop", ip6(0, unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0), 0, ClassMulticast},
		{"ping6", ip6(unix.IPPROTO_ICMPV6, 128, 0, 0, 0), 0, ClassOther},
		{"unreachable6", ip6(unix.IPPROTO_ICMPV6, 1, 0, 0, 0), 0, ClassICMPError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := (Classifier{}).Classify(Frame{Data: tt.data, Segment: tt.segment}).Class; got != tt.want {
				t.Errorf("class = %s, want %s", got, tt.want)
			}
		})
	}
	p := Classifier{}.Classify(Frame{Data: udp4(7, 9, "\x80")})
	got := []string{p.Src.String(), p.Dst.String(), string(p.Payload)}
	if diff := cmp.Diff([]string{"10.0.0.1:7", "10.0.0.2:9", "\x80"}, got); diff != "" {
		t.Errorf("packet (-want +got):\n%s", diff)
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(udp4(1, 2, "\x80abc"), 0)
	f.Add(udp4(1, 2, "\x80abc"), 2)
	f.Add(ip6(0, unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143), 0)
	f.Add(ip6(unix.IPPROTO_FRAGMENT, 17, 0, 0, 0, 0, 0, 0, 0), 0)
	f.Fuzz(func(t *testing.T, b []byte, segment int) {
		p := Classifier{}.Classify(Frame{Data: b, Segment: segment})
		if p.Class == ClassMesh && (len(p.Payload) == 0 || p.Payload[0] != 0x80) {
			t.Errorf("mesh packet with payload %x", p.Payload)
		}
	})
}
