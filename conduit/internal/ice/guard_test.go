// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"bytes"
	"crypto/fips140"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	pion "github.com/pion/ice/v3"
	"github.com/pion/stun/v2"
)

// Every address attribute has the length that its family asks for, or the message
// is none: pion's parser of this age reads past a shorter one.
func TestAddressLengths(t *testing.T) {
	for _, typ := range []uint16{
		attrXORMappedAddress, attrMappedAddress, attrAlternateServer, attrResponseOrigin, attrOtherAddress,
		attrOldXORMapped, attrXORPeerAddress, attrXORRelayedAddress,
	} {
		never := typ == attrOldXORMapped || typ == attrXORPeerAddress || typ == attrXORRelayedAddress
		for family := range byte(4) {
			for size := range 40 {
				v := make([]byte, size)
				if size > 1 {
					v[1] = family
				}
				want := !never && (family == 1 && size == 8 || family == 2 && size == 20)
				var m message
				if got := parse(raw(typeSuccess, attr(typ, v...)), &m); got != want {
					t.Errorf("attribute %#04x, family %d, %d bytes: parse = %v, want %v", typ, family, size, got, want)
				}
			}
		}
	}
}

// None of the attributes that the parser knows may come twice, nor after
// MESSAGE-INTEGRITY, where it would be read without being covered.
func TestOncePerAttribute(t *testing.T) {
	a4 := []byte{0, 1, 0, 9, 1, 2, 3, 4}
	known := map[uint16][]byte{
		attrMappedAddress: a4, attrUsername: []byte("a:b"), attrErrorCode: {0, 0, 4, 0}, attrUnknownAttributes: {0, 9},
		attrRealm: []byte("r"), attrNonce: []byte("n"), attrXORMappedAddress: a4, attrPriority: {1, 2, 3, 4}, attrUseCandidate: {},
		attrSoftware: []byte("s"), attrAlternateServer: a4, attrICEControlled: make([]byte, 8), attrICEControlling: make([]byte, 8),
		attrResponseOrigin: a4, attrOtherAddress: a4, attrMessageIntegrity: make([]byte, integritySize),
	}
	integ := attr(attrMessageIntegrity, make([]byte, integritySize)...)
	for typ, v := range known {
		var m message
		one := attr(typ, v...)
		if !parse(raw(typeSuccess, one), &m) {
			t.Errorf("attribute %#04x alone was refused", typ)
		}
		if parse(raw(typeSuccess, one, attr(0xC000), one), &m) {
			t.Errorf("attribute %#04x was accepted twice", typ)
		}
		if parse(raw(typeSuccess, integ, one), &m) || parse(withFingerprint(raw(typeSuccess, integ, one)), &m) {
			t.Errorf("attribute %#04x was accepted after MESSAGE-INTEGRITY", typ)
		}
	}
	var m message
	if !parse(withFingerprint(raw(typeSuccess, integ)), &m) {
		t.Error("FINGERPRINT after MESSAGE-INTEGRITY was refused")
	}
	// One attribute inside the value of another is no attribute.
	if nested := raw(typeSuccess, attr(0xC000, attr(attrXORMappedAddress, a4...)...)); !parse(nested, &m) || m.mapped.IsValid() {
		t.Errorf("a nested attribute was read: %v", m.mapped)
	}
}

// Of all types of messages two are taken: what TURN and others send is not for
// this port.
func TestMessageTypes(t *testing.T) {
	for typ := range 1 << 16 {
		var m message
		want := typ == typeRequest || typ == typeSuccess
		if got := parse(raw(uint16(typ), attr(attrXORMappedAddress, 0, 1, 0, 9, 1, 2, 3, 4)), &m); got != want {
			t.Fatalf("type %#04x: parse = %v, want %v", typ, got, want)
		}
	}
	for typ := range uint16(0x8000) { // comprehension required
		var m message
		if !parse(raw(typeRequest, attr(typ)), &m) {
			continue
		}
		switch typ {
		case attrUseCandidate, attrUnknownAttributes, attrRealm, attrNonce:
		default:
			t.Errorf("empty attribute %#04x was accepted", typ)
		}
	}
}

// Lengths that lie are refused, whatever is behind.
func TestLengthsThatLie(t *testing.T) {
	good := check("aaaa:bbbb", testPwd)
	for _, at := range []int{2, headerSize + 2} { // of the message, of the first attribute
		for l := range 1 << 16 {
			b := bytes.Clone(good)
			if int(binary.BigEndian.Uint16(b[at:])) == l {
				continue
			}
			binary.BigEndian.PutUint16(b[at:], uint16(l))
			var m message
			ok := parse(b, &m)
			if ok && at == 2 {
				t.Fatalf("message length %d was accepted", l)
			}
			// A username of another length with the same padding is well formed;
			// MESSAGE-INTEGRITY is then wrong.
			if ok && newIntegrity(testPwd).verify(b, m.integrity) {
				t.Fatalf("attribute length %d was accepted", l)
			}
		}
	}
	for n := range good { // every truncation
		var m message
		if parse(good[:n], &m) {
			t.Fatalf("the first %d bytes were accepted", n)
		}
	}
}

// strangers are addresses that no path may have, with the overlay's.
var strangers = []string{
	"127.0.0.1:9", "127.1.2.3:9", "0.0.0.0:9", "0.1.2.3:9", "224.0.0.251:9", "239.255.255.255:9", "240.0.0.1:9", "255.255.255.255:9",
	"169.254.169.254:9", "100.64.0.9:9", "[::1]:9", "[::]:9", "[ff02::1]:9", "[fe80::1]:9", "[fec0::1]:9", "[fd00:b::9]:9",
	"[::ffff:127.0.0.1]:9", "[::ffff:100.64.0.9]:9", "[::127.0.0.1]:9", "[64:ff9b::7f00:1]:9", "[64:ff9b::6440:9]:9", "192.0.2.1:0",
}

var overlayPrefixes = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00:b::/32")}

// The same ranges are forbidden however an address comes to us: signalled, by the
// source of a check, from a STUN server, as a STUN server.
func TestForbiddenEverywhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(time.Millisecond)
		s := w.socket("192.0.2.7:4000", nil)
		m := newMux(t, MuxConfig{ExcludePrefixes: overlayPrefixes})
		if err := m.SetSocket(3, s); err != nil {
			t.Fatal(err)
		}
		w.attach(s, m, 3)
		p := newPeer(t, m, true)
		p.start(t)
		for i, text := range strangers {
			bad := netip.MustParseAddrPort(text)
			line := fmt.Sprintf("1 1 udp 1 %s %d typ host", bad.Addr(), bad.Port())
			if _, _, err := m.Remote(line); err == nil {
				t.Errorf("signalled %v was taken", bad)
			}
			if err := p.AddRemote(line); err == nil {
				t.Errorf("the agent took %v", bad)
			}
			before := m.Stats()
			m.Handle(3, check(p.ufrag+":bbbb", p.pwd), bad)
			if after := m.Stats(); after.Forbidden != before.Forbidden+1 || after.Requests != before.Requests {
				t.Errorf("a check from %v was taken", bad)
			}
			if _, err := m.Mapped(t.Context(), 3, bad); err == nil {
				t.Errorf("STUN server %v was asked", bad)
			}
			// A server that lies about our address.
			server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), 3478)
			w.mu.Lock()
			w.hosts[server] = func(b []byte, from netip.AddrPort) {
				ans := stunAnswer(b, bad)
				time.AfterFunc(w.delay, func() { w.receive(ans, server, from) })
			}
			w.mu.Unlock()
			if a, err := m.Mapped(t.Context(), 3, server); err == nil {
				t.Errorf("mapped address %v became %v", bad, a)
			}
		}
	})
}

// FuzzValidatorGuardsPion: nothing that pion does with a message that we let
// through panics.
func FuzzValidatorGuardsPion(f *testing.F) {
	req, _ := bindingRequest()
	f.Add(req)
	f.Add(check("aaaa:bbbb", testPwd, stun.RawAttribute{Type: stun.AttrPriority, Value: []byte{1, 2, 3, 4}}))
	f.Add(stunAnswer(req, netip.MustParseAddrPort("192.0.2.1:1")))
	f.Add(stunAnswer(req, netip.MustParseAddrPort("[2001:db8::1]:1")))
	for _, size := range []int{0, 1, 2, 3, 7, 8, 9, 19, 20, 21} {
		for _, typ := range []uint16{attrXORMappedAddress, attrMappedAddress, attrOldXORMapped, attrXORRelayedAddress, attrXORPeerAddress, attrErrorCode, attrUnknownAttributes} {
			v := make([]byte, size)
			for i := range min(size, 2) {
				v[i] = byte(i)
			}
			f.Add(raw(typeSuccess, attr(typ, v...)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		if !parse(b, &m) {
			return
		}
		p := &stun.Message{Raw: bytes.Clone(b)}
		if err := p.Decode(); err != nil {
			t.Fatalf("pion refuses what parse accepted: %v", err)
		}
		_ = p.String()
		for _, typ := range []stun.AttrType{stun.AttrXORMappedAddress, stun.AttrXORPeerAddress, stun.AttrXORRelayedAddress, 0x8020} {
			var x stun.XORMappedAddress
			_ = x.GetFromAs(p, typ)
		}
		for _, typ := range []stun.AttrType{stun.AttrMappedAddress, stun.AttrAlternateServer, stun.AttrResponseOrigin, stun.AttrOtherAddress} {
			var x stun.MappedAddress
			_ = x.GetFromAs(p, typ)
		}
		for _, g := range []stun.Getter{
			new(stun.Username), new(stun.Realm), new(stun.Nonce), new(stun.Software), new(stun.ErrorCodeAttribute), new(stun.UnknownAttributes),
			new(pion.PriorityAttr), new(pion.AttrControlled), new(pion.AttrControlling), new(pion.AttrControl),
		} {
			_ = g.GetFrom(p)
		}
		_ = stun.Fingerprint.Check(p)
		fips140.WithoutEnforcement(func() { _ = stun.MessageIntegrity(testPwd).Check(p) })
		_ = pion.UseCandidate().IsSet(p)
		// What pion answers to it is a message again.
		if m.typ == typeRequest {
			var err error
			fips140.WithoutEnforcement(func() {
				_, err = stun.Build(p, stun.BindingSuccess, &stun.XORMappedAddress{IP: []byte{192, 0, 2, 1}, Port: 9}, stun.NewShortTermIntegrity(testPwd), stun.Fingerprint)
			})
			if err != nil {
				t.Fatalf("pion cannot answer: %v", err)
			}
		}
	})
}
