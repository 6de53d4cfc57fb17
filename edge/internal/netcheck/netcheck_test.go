// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answerTo is what a server says that saw the client at an address.
func answerTo(req []byte, seen netip.AddrPort) []byte {
	a := seen.Addr().AsSlice()
	b := make([]byte, stunHeader, 64)
	copy(b, req)
	binary.BigEndian.PutUint16(b, bindingSuccess)
	// A SOFTWARE attribute first, with padding.
	b = append(b, 0x80, 0x22, 0, 3, 'a', 'b', 'c', 0)
	b = append(b, 0, xorMapped, 0, byte(4+len(a)), 0, 1)
	if len(a) == 16 {
		b[len(b)-1] = 2
	}
	b = binary.BigEndian.AppendUint16(b, seen.Port()^(magicCookie>>16))
	for i := range a {
		b = append(b, a[i]^req[4+i])
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-stunHeader))
	return b
}

// serve runs a STUN server that drops the first questions and tells what saw
// returns.
func serve(t *testing.T, ip string, drop int, saw func(netip.AddrPort) netip.AddrPort) string {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0)))
	if err != nil {
		if runtime.GOOS != "linux" {
			t.Skipf("no address %s here: %v", ip, err)
		}
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, maxSTUN)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if drop--; drop >= 0 {
				continue
			}
			_, _ = c.WriteToUDPAddrPort([]byte("noise"), from)
			_, _ = c.WriteToUDPAddrPort(answerTo(b[:n], saw(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))), from)
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c.LocalAddr().String()
}

func TestRun(t *testing.T) {
	same := func(a netip.AddrPort) netip.AddrPort { return a }
	mapped := func(s string) func(netip.AddrPort) netip.AddrPort {
		return func(netip.AddrPort) netip.AddrPort { return netip.MustParseAddrPort(s) }
	}
	loopback := []Uplink{{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}}
	for _, tc := range []struct {
		name    string
		servers []string
		want    string
		mapped  string
	}{
		{"None", []string{serve(t, "127.0.0.1", 0, same)}, None, "127.0.0.1:"},
		{"Lossy", []string{serve(t, "127.0.0.1", 2, same)}, None, "127.0.0.1:"},
		{"One", []string{serve(t, "127.0.0.1", 0, mapped("198.51.100.7:4"))}, Unknown, "198.51.100.7:4"},
		{"OneAddress", []string{serve(t, "127.0.0.1", 0, mapped("198.51.100.7:4")), serve(t, "127.0.0.1", 0, mapped("198.51.100.7:4"))}, Unknown, "198.51.100.7:4"},
		{"Same", []string{serve(t, "127.0.0.1", 0, mapped("198.51.100.7:4")), serve(t, "127.0.0.2", 0, mapped("198.51.100.7:4"))}, EndpointIndependent, "198.51.100.7:4"},
		{"Differ", []string{serve(t, "127.0.0.1", 0, mapped("198.51.100.7:4")), serve(t, "127.0.0.2", 0, mapped("198.51.100.7:5"))}, Symmetric, "198.51.100.7:4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Run(t.Context(), Config{Uplinks: loopback, Servers: tc.servers})
			if len(got) != 1 || got[0].NAT != tc.want || len(got[0].Answers) != len(tc.servers) || !got[0].Answered() {
				t.Fatalf("checks %+v, want NAT %s", got, tc.want)
			}
			if a := got[0].Answers[0]; !strings.HasPrefix(a.Mapped, tc.mapped) || a.RTT <= 0 || a.Error != "" || a.Address != tc.servers[0] {
				t.Errorf("answer %+v", a)
			}
		})
	}
}

func TestRunFails(t *testing.T) {
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	at := time.Now()
	got := Run(t.Context(), Config{
		Uplinks: []Uplink{
			{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
			{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.99")}}, // not ours
			{Name: "linklocal", Addresses: []netip.Addr{netip.MustParseAddr("fe80::1")}},
		},
		Servers: []string{silent.LocalAddr().String(), "nowhere.invalid:3478", "bad", "x:http"},
		Timeout: 300 * time.Millisecond,
		Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			if a, err := netip.ParseAddr(host); err == nil {
				return []netip.Addr{a}, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		},
	})
	if d := time.Since(at); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if len(got) != 2 || got[0].NAT != "" || got[0].Answered() || got[1].Error == "" || got[1].Local != "203.0.113.99" {
		t.Fatalf("checks %+v", got)
	}
	var texts []string
	for _, a := range got[0].Answers {
		texts = append(texts, a.Server+": "+a.Error)
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{silent.LocalAddr().String() + ": no answer", "nowhere.invalid:3478: name not resolved: no such host", "bad: ", `x:http: port "http"`} {
		if !strings.Contains(all, want) {
			t.Errorf("answers\n%s\nlack %q", all, want)
		}
	}
}

func TestResponse(t *testing.T) {
	id := transaction{1, 2, 3}
	req := request(id)
	for _, s := range []string{"198.51.100.7:41641", "[2001:db8::7]:1"} {
		want := netip.MustParseAddrPort(s)
		good := answerTo(req, want)
		if got, err := response(good, id); err != nil || got != want {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
		for n := range good {
			if a, err := response(good[:n], id); err == nil {
				t.Errorf("the first %d bytes give %v", n, a)
			}
		}
		for i := range good[:stunHeader] {
			b := append([]byte(nil), good...)
			b[i] ^= 0x40
			if a, err := response(b, id); err == nil {
				t.Errorf("byte %d of the header flipped: %v", i, a)
			}
		}
	}
	refused := request(id)
	binary.BigEndian.PutUint16(refused, bindingError)
	if _, err := response(refused, id); !errors.Is(err, errRefused) {
		t.Errorf("an error response gives %v", err)
	}
	for _, bad := range []string{"0.0.0.0:1", "192.0.2.1:0", "224.0.0.1:1"} {
		if a, err := response(answerTo(req, netip.MustParseAddrPort(bad)), id); err == nil {
			t.Errorf("took %v", a)
		}
	}
}

func TestSystem(t *testing.T) {
	all, err := System(func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range all {
		for _, a := range u.Addresses {
			if a.IsLoopback() || a.IsLinkLocalUnicast() {
				t.Errorf("%s has %v", u.Name, a)
			}
		}
	}
	if none, err := System(func(string) bool { return true }); err != nil || len(none) != 0 {
		t.Errorf("skipped everything and got %v, %v", none, err)
	}
}

func FuzzResponse(f *testing.F) {
	id := transaction{1, 2, 3}
	f.Add(answerTo(request(id), netip.MustParseAddrPort("198.51.100.7:41641")))
	f.Add(answerTo(request(id), netip.MustParseAddrPort("[2001:db8::7]:1")))
	f.Add(request(id))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := response(b, id)
		if (err == nil) != a.IsValid() || err != nil && !errors.Is(err, errNotOurs) && !errors.Is(err, errRefused) {
			t.Errorf("%v, %v", a, err)
		}
	})
}
