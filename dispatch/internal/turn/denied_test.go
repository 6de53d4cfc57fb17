// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"hash/maphash"
	"net/netip"
	"strconv"
	"testing"
	"time"

	pstun "github.com/pion/stun/v3"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestRefuses(t *testing.T) {
	cfg := &Config{
		RelayAddrs: []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")},
		Mesh:       prefixes("10.66.0.0/16", "fd42::/64"),
		AllowPeers: prefixes("10.0.0.0/8", "fd00::/8", "127.0.0.0/8"),
	}
	tab := newTable(cfg, prefixes("203.0.113.5/24", "2001:db8:1::5/64", "fe80::1/64"))
	for _, tt := range []struct {
		addr string
		want bool
	}{
		{"192.0.2.1", false},
		{"2001:db8:2::1", false},
		{"::ffff:192.0.2.1", false},
		{"0.0.0.0", true},
		{"0.1.2.3", true},
		{"::", true},
		{"127.0.0.1", true},
		{"127.9.9.9", true},
		{"::1", true},
		{"::ffff:127.0.0.1", true},
		{"169.254.169.254", true},
		{"::ffff:169.254.169.254", true},
		{"fe80::2", true},
		{"fe80::2%eth0", true},
		{"fec0::1", true},
		{"224.0.0.1", true},
		{"239.255.0.1", true},
		{"ff02::1", true},
		{"255.255.255.255", true},
		{"240.0.0.1", true},
		{"198.51.100.1", true},
		{"2001:db8::1", true},
		{"::ffff:198.51.100.1", true}, // the relay
		{"203.0.113.5", true},
		{"203.0.113.255", true},
		{"203.0.113.0", true},
		{"203.0.113.6", false},
		{"2001:db8:1::5", true},
		{"2001:db8:1::6", false},
		{"10.66.0.9", true},
		{"fd42::9", true}, // the mesh, though 10/8 is allowed
		{"10.1.2.3", false},
		{"fd01::1", false},
		{"172.16.0.1", true},
		{"192.168.1.1", true},
		{"100.64.0.1", true},
		{"198.18.0.1", true},
		{"fc00::1", true},
		{"::ffff:192.168.1.1", true},
		{"64:ff9b::c0a8:101", true},
		{"64:ff9b:1::1", true},
		{"2002:c0a8:101::1", true},
		{"2001:0:1::1", true},
		{"::c0a8:101", true},
		{"::ffff:0:c0a8:101", true},
		{"100::1", true},
		{"192.0.0.8", true},
	} {
		if got := tab.refuses(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("refuses(%s) = %v, want %v", tt.addr, got, tt.want)
		}
	}
	if !tab.refuses(netip.Addr{}) {
		t.Error("the invalid address passed")
	}
	// Without the allowance the private ranges are refused.
	cfg.AllowPeers = nil
	for _, a := range []string{"10.1.2.3", "fd01::1"} {
		if !newTable(cfg, nil).refuses(netip.MustParseAddr(a)) {
			t.Errorf("%s passed", a)
		}
	}
}

func TestBucket(t *testing.T) {
	var b bucket
	now := time.Unix(1000, 0)
	for i := range 10 {
		if !b.take(now, 100, 1000, 1000) {
			t.Fatalf("take %d refused", i)
		}
	}
	if b.take(now, 1, 1000, 1000) {
		t.Error("an empty bucket gave")
	}
	if now = now.Add(100 * time.Millisecond); !b.take(now, 100, 1000, 1000) || b.take(now, 1, 1000, 1000) {
		t.Error("after 100 ms want 100 tokens")
	}
	if now = now.Add(time.Hour); !b.take(now, 1000, 1000, 1000) || b.take(now, 1, 1000, 1000) {
		t.Error("a bucket holds its burst and no more")
	}
	if b.take(now.Add(-time.Hour), 1, 1000, 1000) {
		t.Error("time ran backwards and gave")
	}
}

func TestSources(t *testing.T) {
	s := &sources{seed: maphash.MakeSeed()}
	now := time.Unix(1000, 0)
	n := 0
	for i := range 2 * sourceBurst { // one IPv6 network with many addresses
		if s.take(now, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 8: byte(i >> 8), 9: byte(i)})) {
			n++
		}
	}
	if n != sourceBurst {
		t.Errorf("%d requests of one network passed, want %d", n, sourceBurst)
	}
}

func FuzzParseUsername(f *testing.F) {
	f.Add("1700000000:" + identity.PeerID{1}.String())
	f.Add("01700000000:x")
	f.Add(":")
	f.Fuzz(func(t *testing.T, user string) {
		id, exp, err := parseUsername(user)
		if err == nil && user != strconv.FormatInt(exp.Unix(), 10)+":"+id.String() {
			t.Errorf("%q parsed as %v, %v", user, id, exp)
		}
	})
}

func FuzzClassify(f *testing.F) {
	f.Add([]byte{0x40, 0, 0, 4, 1, 2, 3, 4})
	f.Add([]byte{0x4f, 0xff, 0, 5, 1, 2, 3, 4})
	f.Add(pstun.MustBuild(pstun.TransactionID, pstun.NewType(pstun.MethodAllocate, pstun.ClassRequest), udpTransport).Raw)
	f.Add(pstun.MustBuild(pstun.TransactionID, pstun.NewType(pstun.MethodSend, pstun.ClassIndication), xorPeer("192.0.2.1:9")).Raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		typ, ok := classify(b)
		if !ok {
			return
		}
		if typ == 0 {
			if n := int(b[2])<<8 | int(b[3]); b[0]>>4 != 4 || n+4 > len(b) {
				t.Errorf("%x is channel data", b)
			}
			return
		}
		m := &pstun.Message{Raw: append([]byte(nil), b...)}
		if err := m.Decode(); err != nil {
			t.Errorf("%x passed: %v", b, err)
		}
	})
}
