// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var peer = netip.MustParseAddrPort("192.0.2.7:40000")

func build(tb testing.TB, set ...stun.Setter) []byte {
	tb.Helper()
	m, err := stun.Build(append([]stun.Setter{stun.NewTransactionIDSetter([12]byte{1, 2, 3})}, set...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return m.Raw
}

func TestRespond(t *testing.T) {
	odd := stun.RawAttribute{Type: 0x7001, Value: []byte("x")}
	broken := build(t, stun.BindingRequest, stun.Fingerprint)
	broken[len(broken)-1] ^= 1
	for _, tt := range []struct {
		name string
		req  []byte
		from netip.AddrPort
		want stun.MessageType // zero: no answer
	}{
		{"plain", build(t, stun.BindingRequest), peer, stun.BindingSuccess},
		{"ipv6", build(t, stun.BindingRequest), netip.MustParseAddrPort("[2001:db8::1]:9"), stun.BindingSuccess},
		{"mapped", build(t, stun.BindingRequest), netip.MustParseAddrPort("[::ffff:192.0.2.7]:9"), stun.BindingSuccess},
		{"software", build(t, stun.BindingRequest, stun.NewSoftware("pion")), peer, stun.BindingSuccess},
		{"fingerprint", build(t, stun.BindingRequest, stun.Fingerprint), peer, stun.BindingSuccess},
		{"unknown_attribute", build(t, stun.BindingRequest, odd), peer, stun.BindingError},
		{"bad_fingerprint", broken, peer, stun.MessageType{}},
		{"fingerprint_not_last", build(t, stun.BindingRequest, stun.Fingerprint, stun.NewSoftware("x")), peer, stun.MessageType{}},
		{"answer", build(t, stun.BindingSuccess), peer, stun.MessageType{}},
		{"indication", build(t, stun.NewType(stun.MethodBinding, stun.ClassIndication)), peer, stun.MessageType{}},
		{"allocate", build(t, stun.NewType(stun.MethodAllocate, stun.ClassRequest)), peer, stun.MessageType{}},
		{"trailing", append(build(t, stun.BindingRequest), 0, 0, 0, 0), peer, stun.MessageType{}},
		{"short", build(t, stun.BindingRequest)[:19], peer, stun.MessageType{}},
		{"empty", nil, peer, stun.MessageType{}},
		{"port_0", build(t, stun.BindingRequest), netip.MustParseAddrPort("192.0.2.7:0"), stun.MessageType{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res := Respond(tt.req, tt.from)
			if tt.want == (stun.MessageType{}) {
				if res != nil {
					t.Fatalf("answered %x", res)
				}
				return
			}
			m := &stun.Message{Raw: res}
			if err := m.Decode(); err != nil || m.Type != tt.want || m.TransactionID != [12]byte{1, 2, 3} {
				t.Fatalf("answer = %v, %v; want %v", m, err, tt.want)
			}
			var a stun.XORMappedAddress
			if tt.want == stun.BindingSuccess && (a.GetFrom(m) != nil || a.Port != int(tt.from.Port()) || !a.IP.Equal(tt.from.Addr().AsSlice())) {
				t.Errorf("address = %v, want %v", a, tt.from)
			}
		})
	}
}

func TestServer(t *testing.T) {
	s, err := Listen(context.Background(), ":0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range s.conns {
		network, host := "udp4", "127.0.0.1"
		if !c.Addr().Addr().Unmap().Is4() {
			network, host = "udp6", "::1"
		}
		conn, err := net.DialUDP(network, nil, &net.UDPAddr{IP: net.ParseIP(host), Port: int(s.Addr().Port())})
		if err != nil {
			t.Logf("%s: %v", network, err)
			continue
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		for _, b := range [][]byte{[]byte("noise"), build(t, stun.BindingRequest)} {
			if _, err := conn.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 1500)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		var a stun.XORMappedAddress
		m := &stun.Message{Raw: buf[:n]}
		if m.Decode() != nil || a.GetFrom(m) != nil || a.Port != conn.LocalAddr().(*net.UDPAddr).Port {
			t.Errorf("%s: address = %v, want %v", network, a, conn.LocalAddr())
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if answered, dropped := s.Counters(); answered == 0 || dropped == 0 {
		t.Errorf("counters = %d, %d", answered, dropped)
	}
}

func FuzzRespond(f *testing.F) {
	f.Add(build(f, stun.BindingRequest))
	f.Add(build(f, stun.BindingRequest, stun.NewSoftware("pion"), stun.Fingerprint))
	f.Add(build(f, stun.BindingRequest, stun.RawAttribute{Type: 3, Value: []byte{0, 0, 0, 4}}))
	f.Add(build(f, stun.BindingSuccess, &stun.XORMappedAddress{IP: net.IPv4(1, 2, 3, 4), Port: 5}))
	f.Fuzz(func(t *testing.T, b []byte) {
		res := Respond(b, netip.MustParseAddrPort("[2001:db8::1]:9"))
		if res == nil {
			return
		}
		// An address and a fingerprint at most, or an error that lists what was sent.
		if len(res) > len(b)+36 {
			t.Errorf("answer of %d bytes to %d", len(res), len(b))
		}
		if again := Respond(res, peer); again != nil {
			t.Errorf("an answer was answered: %x", again)
		}
	})
}
