// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/fips140"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/pion/stun/v2"
	"github.com/pion/turn/v3"
)

// dataIndication is one as servers send it.
func dataIndication(tb testing.TB, peer netip.AddrPort, data []byte) []byte {
	tb.Helper()
	x := stun.XORMappedAddress{IP: net.IP(peer.Addr().AsSlice()), Port: int(peer.Port())}
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodData, stun.ClassIndication),
		setter(func(m *stun.Message) error { return x.AddToAs(m, stun.AttrXORPeerAddress) }),
		setter(func(m *stun.Message) error { m.Add(stun.AttrData, data); return nil }))
	if err != nil {
		tb.Fatal(err)
	}
	return m.Raw
}

type setter func(*stun.Message) error

func (s setter) AddTo(m *stun.Message) error { return s(m) }

func TestParseSTUN(t *testing.T) {
	for _, peer := range []string{"192.0.2.1:5", "[2001:db8::7]:9"} {
		want := netip.MustParseAddrPort(peer)
		var m stunMessage
		b := dataIndication(t, want, []byte("hello"))
		if !parseSTUN(b, &m) || m.peer != want || string(m.data) != "hello" || m.class != classIndication || m.method != methodData {
			t.Errorf("%s: %+v", peer, m)
		}
		for i := range b { // no cut and no stretch is well-formed
			if parseSTUN(b[:i], &stunMessage{}) {
				t.Errorf("%s: %d of %d bytes pass", peer, i, len(b))
			}
		}
		if parseSTUN(append(b, 0, 0, 0, 0), &stunMessage{}) {
			t.Errorf("%s: with a tail it passes", peer)
		}
	}
}

func TestParseSTUNRefuses(t *testing.T) {
	attr := func(typ uint16, v ...byte) []byte {
		b := binary.BigEndian.AppendUint16(nil, typ)
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...) //nolint:gosec // a length
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	for _, tc := range []struct {
		name  string
		attrs [][]byte
		want  bool
	}{
		{"nothing", nil, true},
		{"IPv4 address of 20 bytes", [][]byte{attr(attrXORPeerAddress, append([]byte{0, 1}, make([]byte, 18)...)...)}, false},
		{"IPv6 address of 8 bytes", [][]byte{attr(attrXORRelayedAddress, 0, 2, 0, 0, 0, 0, 0, 0)}, false},
		{"empty address", [][]byte{attr(attrXORMappedAddress)}, false},
		{"old alias", [][]byte{attr(attrOldXORMapped, 0, 1, 0, 0, 0, 0, 0, 0)}, false},
		{"twice", [][]byte{attr(attrLifetime, 0, 0, 0, 1), attr(attrLifetime, 0, 0, 0, 1)}, false},
		{"short lifetime", [][]byte{attr(attrLifetime, 0)}, false},
		{"unknown and required", [][]byte{attr(0x0077)}, false},
		{"unknown", [][]byte{attr(0x8077)}, true},
		{"short error", [][]byte{attr(attrErrorCode, 0, 0, 4)}, false},
		{"error 199", [][]byte{attr(attrErrorCode, 0, 0, 1, 99)}, false},
		{"after integrity", [][]byte{attr(attrMessageIntegrity, make([]byte, 20)...), attr(attrLifetime, 0, 0, 0, 1)}, false},
		{"short integrity", [][]byte{attr(attrMessageIntegrity, make([]byte, 19)...)}, false},
		{"wrong fingerprint", [][]byte{attr(attrFingerprint, 0, 0, 0, 0)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := make([]byte, headerSize)
			binary.BigEndian.PutUint16(b, classSuccess|methodRefresh)
			binary.BigEndian.PutUint32(b[4:], magicCookie)
			for _, a := range tc.attrs {
				b = append(b, a...)
			}
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerSize)) //nolint:gosec // a length
			if got := parseSTUN(b, &stunMessage{}); got != tc.want {
				t.Errorf("parseSTUN = %v, want %v", got, tc.want)
			}
		})
	}
}

// TestIntegrity compares with pion, which makes what servers send.
func TestIntegrity(t *testing.T) { fips140.WithoutEnforcement(func() { testIntegrity(t) }) }

func testIntegrity(t *testing.T) {
	t.Helper()
	key := turn.GenerateAuthKey("robot", "test", "secret")
	if got := longTermKey("robot", []byte("test"), "secret"); string(got) != string(key) {
		t.Fatalf("key %x, want %x", got, key)
	}
	msg, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodRefresh, stun.ClassSuccessResponse),
		stun.NewSoftware("x"), stun.MessageIntegrity(key), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	var m stunMessage
	if !parseSTUN(msg.Raw, &m) || !checkIntegrity(key, msg.Raw, m.integrity) {
		t.Fatal("a good message does not pass")
	}
	if checkIntegrity(nil, msg.Raw, m.integrity) || checkIntegrity(key[1:], msg.Raw, m.integrity) || checkIntegrity(key, msg.Raw, 0) {
		t.Error("it passes without the key")
	}
	for i := range m.integrity + attrHeader + integritySize {
		if i == 2 || i == 3 { // the length is replaced
			continue
		}
		bad := append([]byte(nil), msg.Raw...)
		bad[i] ^= 1
		if i >= m.integrity && i < m.integrity+attrHeader {
			continue // parseSTUN's
		}
		if checkIntegrity(key, bad, m.integrity) {
			t.Errorf("byte %d is not covered", i)
		}
	}
}

func FuzzSTUN(f *testing.F) {
	f.Add(dataIndication(f, netip.MustParseAddrPort("192.0.2.1:5"), meshPacket(0, "x")))
	f.Add(dataIndication(f, netip.MustParseAddrPort("[2001:db8::7]:9"), nil))
	f.Add([]byte{0x40, 0, 0, 2, 0x80, 7, 0, 0})
	var msg *stun.Message
	var err error
	fips140.WithoutEnforcement(func() {
		msg, err = stun.Build(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse),
			stun.ErrorCodeAttribute{Code: 401}, stun.NewRealm("test"), stun.NewNonce("n"), stun.MessageIntegrity("key"), stun.Fingerprint)
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg.Raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, data, ok := parseChannelData(b); ok && (len(data) > len(b)-4 || len(b)-4-len(data) > 3) {
			t.Errorf("%d bytes of data in %d", len(data), len(b))
		}
		var m stunMessage
		if !parseSTUN(b, &m) {
			return
		}
		fips140.WithoutEnforcement(func() { checkIntegrity([]byte("key"), b, m.integrity) })
		// What passes here must not upset pion.
		p := &stun.Message{Raw: append([]byte(nil), b...)}
		if err := p.Decode(); err != nil {
			t.Errorf("pion refuses it: %v", err)
		}
		var x stun.XORMappedAddress
		for _, a := range []stun.AttrType{stun.AttrXORPeerAddress, stun.AttrXORRelayedAddress, stun.AttrXORMappedAddress} {
			_ = x.GetFromAs(p, a)
		}
	})
}

func TestParseTurnURL(t *testing.T) {
	for _, tc := range []struct {
		in, host string
		port     uint16
	}{
		{"turn:192.0.2.1:3478?transport=udp", "192.0.2.1", 3478},
		{"turn:hub.example", "hub.example", 3478},
		{"turn:hub.example:5000", "hub.example", 5000},
		{"turn:[2001:db8::1]:5000?transport=udp", "2001:db8::1", 5000},
		{"turn:[2001:db8::1]", "2001:db8::1", 3478},
		{"turns:hub.example:5349?transport=udp", "", 0},
		{"turn:hub.example:3478?transport=tcp", "", 0},
		{"stun:hub.example", "", 0},
		{"turn:", "", 0},
		{"turn:hub.example:0", "", 0},
		{"turn:hub.example:x", "", 0},
		{"turn:a b:1", "", 0},
		{"turn:a:b:1", "", 0},
	} {
		host, port, err := ParseTurnURL(tc.in)
		if host != tc.host || port != tc.port || (err != nil) != (tc.host == "") {
			t.Errorf("%s: %q, %d, %v", tc.in, host, port, err)
		}
	}
}

func FuzzTurnURL(f *testing.F) {
	for _, s := range []string{"turn:192.0.2.1:3478?transport=udp", "turn:[::1]", "turns:x", "turn:x:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if host, port, err := ParseTurnURL(s); err == nil && (host == "" || port == 0) {
			t.Errorf("%q: %q, %d", s, host, port)
		}
	})
}
