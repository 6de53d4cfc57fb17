// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"bytes"
	"crypto/fips140"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/stun/v2"
)

const testPwd = "abcdefghijklmnopqrstuvwx"

func TestParse(t *testing.T) {
	mapped4 := []byte{0, 1, 0x21, 0x12, 1, 2, 3, 4}
	mapped6 := append([]byte{0, 2, 0, 0}, make([]byte, 16)...)
	user := attr(attrUsername, []byte("aaaa:bbbb")...)
	integ := attr(attrMessageIntegrity, make([]byte, 20)...)
	short := raw(typeRequest)
	tests := []struct {
		name string
		b    []byte
		want bool
	}{
		{"empty", nil, false},
		{"header only", raw(typeRequest), true},
		{"success", raw(typeSuccess, attr(attrXORMappedAddress, mapped4...)), true},
		{"success v6", raw(typeSuccess, attr(attrXORMappedAddress, mapped6...)), true},
		{"request", raw(typeRequest, user, integ), true},
		{"with fingerprint", withFingerprint(raw(typeRequest, user, integ)), true},
		{"real check", check("aaaa:bbbb", testPwd), true},
		{"optional unknown", raw(typeRequest, attr(0xC057, 1, 2, 3)), true},
		{"indication", raw(0x0011), false},
		{"error response", raw(0x0111), false},
		{"allocate", raw(0x0003), false},
		{"top bits", raw(0x8001), false},
		{"truncated header", short[:19], false},
		{"length too large", append(bytes.Clone(short[:2]), append([]byte{0, 4}, short[4:]...)...), false},
		{"trailing bytes", append(raw(typeRequest), 0, 0, 0, 0), false},
		{"odd length", append(raw(typeRequest), 0), false},
		{"cookie", append(append(bytes.Clone(short[:4]), 0, 0, 0, 0), short[8:]...), false},
		{"attribute header cut", raw(typeRequest, []byte{0, 6}), false},
		{"attribute runs over", raw(typeRequest, []byte{0, 6, 0, 8, 1, 2, 3, 4}), false},
		{"required unknown", raw(typeRequest, attr(0x7000)), false},
		{"mapped of no length", raw(typeSuccess, attr(attrXORMappedAddress)), false},
		{"mapped v4 in v6", raw(typeSuccess, attr(attrXORMappedAddress, append([]byte{0, 2}, mapped4[2:]...)...)), false},
		{"mapped v6 in v4", raw(typeSuccess, attr(attrXORMappedAddress, append([]byte{0, 1}, mapped6[2:]...)...)), false},
		{"mapped under its old number", raw(typeSuccess, attr(attrOldXORMapped)), false},
		{"relayed length", raw(typeSuccess, attr(attrXORRelayedAddress, 0, 1, 2)), false},
		{"peer length", raw(typeSuccess, attr(attrXORPeerAddress, 0, 1, 2, 3)), false},
		{"username empty", raw(typeRequest, attr(attrUsername)), false},
		{"username longest", raw(typeRequest, attr(attrUsername, bytes.Repeat([]byte{'a'}, 513)...)), true},
		{"username too long", raw(typeRequest, attr(attrUsername, bytes.Repeat([]byte{'a'}, 514)...)), false},
		{"username twice", raw(typeRequest, user, user), false},
		{"integrity length", raw(typeRequest, user, attr(attrMessageIntegrity, make([]byte, 19)...)), false},
		{"integrity twice", raw(typeRequest, user, integ, integ), false},
		{"attribute after integrity", raw(typeRequest, integ, user), false},
		{"fingerprint wrong", raw(typeRequest, attr(attrFingerprint, 1, 2, 3, 4)), false},
		{"fingerprint length", raw(typeRequest, attr(attrFingerprint, 1, 2, 3)), false},
		{"attribute after fingerprint", append(withFingerprint(raw(typeRequest)), attr(0x8000)...), false},
		{"priority length", raw(typeRequest, attr(attrPriority, 1)), false},
		{"use-candidate length", raw(typeRequest, attr(attrUseCandidate, 1)), false},
		{"controlling length", raw(typeRequest, attr(attrICEControlling, 1)), false},
		{"too many attributes", raw(typeRequest, bytes.Repeat(attr(0x8000), 33)), false},
		{"too large", raw(typeRequest, attr(0x8000, make([]byte, 1600)...)), false},
	}
	for _, tt := range tests {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			var m message
			if got := parse(tt.b, &m); got != tt.want {
				t.Errorf("parse = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestParseMappedAddress(t *testing.T) {
	for _, s := range []string{"192.0.2.1:4242", "[2001:db8::7]:65535"} {
		want := netip.MustParseAddrPort(s)
		req, id := bindingRequest()
		var m message
		if !parse(req, &m) || m.tx != id {
			t.Fatalf("our own request was refused")
		}
		if !parse(stunAnswer(req, want), &m) || m.mapped != want {
			t.Errorf("mapped = %v, want %v", m.mapped, want)
		}
	}
}

func TestIntegrity(t *testing.T) {
	i := newIntegrity(testPwd)
	good := check("aaaa:bbbb", testPwd)
	var m message
	if !parse(good, &m) || !i.verify(good, m.integrity) {
		t.Fatal("a right check was refused")
	}
	if newIntegrity(testPwd+"x").verify(good, m.integrity) {
		t.Error("a wrong password was accepted")
	}
	for n := range m.integrity { // every byte that integrity covers
		bad := bytes.Clone(good)
		bad[n] ^= 1
		if n != 2 && n != 3 && i.verify(bad, m.integrity) { // the length is what parse checked
			t.Errorf("a change of byte %d was accepted", n)
		}
	}
	if i.verify(raw(typeRequest), 0) {
		t.Error("a missing MESSAGE-INTEGRITY was accepted")
	}
}

func TestRejectAllocs(t *testing.T) {
	m := newMux(t, MuxConfig{})
	e, err := m.register("aaaa", testPwd, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.unregister(e)
	from := netip.MustParseAddrPort("192.0.2.9:1000")
	for name, b := range map[string][]byte{
		"malformed":    raw(typeRequest, attr(0x7000)),
		"unknown":      check("zzzz:bbbb", testPwd),
		"bad password": check("aaaa:bbbb", "some other password of the peer"),
		"response":     raw(typeSuccess, attr(attrXORMappedAddress, 0, 1, 2, 3, 4, 5, 6, 7)),
	} {
		m.Handle(0, b, from) // the first use of an HMAC allocates its state
		if n := testing.AllocsPerRun(200, func() { m.Handle(0, b, from) }); n != 0 {
			t.Errorf("%s: Handle allocates %v times, want 0", name, n)
		}
	}
}

// FuzzValidate: what parse accepts, pion's parser must accept, and the attributes
// that matter must be the same.
func FuzzValidate(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(raw(typeRequest))
	f.Add(check("aaaa:bbbb", testPwd))
	f.Add(check("aaaa:bbbb", testPwd, stun.RawAttribute{Type: stun.AttrUseCandidate}))
	req, _ := bindingRequest()
	f.Add(req)
	f.Add(stunAnswer(req, netip.MustParseAddrPort("192.0.2.1:1")))
	f.Add(stunAnswer(req, netip.MustParseAddrPort("[2001:db8::1]:1")))
	f.Add(raw(typeSuccess, attr(attrXORMappedAddress)))
	f.Add(raw(typeRequest, attr(attrUsername, 'a'), attr(attrMessageIntegrity, make([]byte, 20)...), attr(attrFingerprint, 0, 0, 0, 0)))
	i := newIntegrity(testPwd)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		before := bytes.Clone(b)
		ok := parse(b, &m)
		if !bytes.Equal(before, b) {
			t.Fatal("parse changed its input")
		}
		if !ok {
			return
		}
		p := &stun.Message{Raw: bytes.Clone(b)}
		if err := p.Decode(); err != nil {
			t.Fatalf("pion refuses what parse accepted: %v", err)
		}
		if m.integrity != 0 {
			var want bool
			fips140.WithoutEnforcement(func() { want = stun.MessageIntegrity(testPwd).Check(p) == nil })
			if got := i.verify(b, m.integrity); got != want {
				t.Fatalf("integrity = %v, pion says %v", got, want)
			}
		}
		if user, err := p.Get(stun.AttrUsername); err == nil && !bytes.Equal(user, b[m.user:m.user+m.userLen]) {
			t.Fatalf("USERNAME = %q, pion says %q", b[m.user:m.user+m.userLen], user)
		}
		var x stun.XORMappedAddress
		if x.GetFrom(p) == nil {
			a, _ := netip.AddrFromSlice(x.IP)
			if want := netip.AddrPortFrom(a.Unmap(), uint16(x.Port)); m.mapped != want {
				t.Fatalf("mapped = %v, pion says %v", m.mapped, want)
			}
		}
	})
}
