// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// known returns what a stranger sends that knows p's public key; of p the secrets of
// its cookies are known too, which only a test knows.
func known(t testing.TB) (c *session.Courier, double *refPost) {
	t.Helper()
	ps := newPosts(t, 1)
	k := ps.all[0].keys
	double = &refPost{id: idBytes(k), public: k.X25519.PublicKey().Bytes(), secret: bytes.Repeat([]byte{7}, 32)}
	c = session.NewCourierRandom(session.CourierConfig{ID: k.ID(), X25519: k.X25519.PublicKey()}, func(b []byte) {
		copy(b, double.secret)
	})
	return c, double
}

// pieces cuts a message for p as from would.
func (p *refPost) pieces(from *refPost, id uint32, cookie, body []byte) (out [][]byte) {
	for _, f := range wire.Split(id, slices.Concat(from.id, make([]byte, 16), body)) {
		b := append(refKind(0), f...)
		b = append(b, p.mac1(b)...)
		out = append(out, append(b, refHMAC(cookie, b)[:16]...))
	}
	return out
}

func at4(d byte, port uint16) session.Addr {
	return session.Addr{Bind: 1, Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, d}), port)}
}

func (p *refPost) cookieAt(a session.Addr) []byte {
	return p.cookie(a.Remote.Addr().As4(), a.Remote.Port())
}

// Strangers get silence, who knows the key a cookie of no more bytes than it sent,
// and nobody memory without the right cookie.
func TestCourierSilence(t *testing.T) {
	c, p := known(t)
	stranger := &refPost{id: bytes.Repeat([]byte{9}, 32), public: make([]byte, 32), secret: make([]byte, 32)}
	from := at4(1, 4000)
	now := time.Now()
	hello := p.hello(bytes.Repeat([]byte{5}, 16))
	cookie := p.cookieAt(from)
	long := p.pieces(stranger, 1, cookie, body(1, 2000))
	piece := p.piece(stranger, 2, cookie, make([]byte, 16), body(3, 100))
	change := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] ^= v
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":                  nil,
		"47 bytes":                 hello[:47],
		"hello too long":           append(bytes.Clone(hello), 0),
		"1233 bytes":               append(bytes.Clone(long[0]), make([]byte, 1233-len(long[0]))...),
		"STUN":                     change(hello, 0, 0x80),
		"another type":             change(hello, 1, 0x04),
		"another lane":             change(hello, 1, 0x01),
		"a time":                   change(hello, 3, 1),
		"an index":                 change(hello, 7, 1),
		"kind 3":                   change(hello, 15, 2),
		"a high counter":           change(hello, 8, 1),
		"hello to another":         stranger.hello(make([]byte, 16)),
		"hello of another token":   change(hello, 20, 1),
		"a cookie nobody wants":    slices.Concat(refKind(2), make([]byte, 32)),
		"a long cookie":            slices.Concat(refKind(2), make([]byte, 33)),
		"piece to another":         stranger.piece(p, 3, cookie, cookie, body(3, 50)),
		"piece without cookie":     p.piece(stranger, 4, make([]byte, 16), cookie, body(3, 50)),
		"piece with another's":     p.piece(stranger, 5, p.cookieAt(at4(2, 4000)), cookie, body(3, 50)),
		"piece of another port":    p.piece(stranger, 6, p.cookieAt(at4(1, 4001)), cookie, body(3, 50)),
		"piece changed":            change(piece, 60, 1),
		"piece, first MAC":         change(piece, len(piece)-17, 1),
		"piece, second MAC":        change(piece, len(piece)-1, 1),
		"long piece without":       p.pieces(stranger, 7, make([]byte, 16), body(1, 2000))[0],
		"piece of no piece":        p.piece(&refPost{}, 8, cookie, nil, nil),
		"message without a body":   p.piece(stranger, 9, cookie, make([]byte, 16), nil),
		"message without a sender": p.piece(&refPost{id: make([]byte, 16)}, 10, cookie, nil, nil),
		"our own message":          p.piece(p, 11, cookie, make([]byte, 16), body(3, 50)),
	} {
		now = now.Add(100 * time.Millisecond)
		_, body, err := c.Receive(from, b, now)
		if !errors.Is(err, session.ErrCourier) && !errors.Is(err, wire.ErrMalformed) || body != nil || len(c.Ready()) != 0 || session.Assemblies(c) != 0 || session.Ways(c) != 0 {
			t.Errorf("%s: %v, %d assemblies, %d ways", name, err, session.Assemblies(c), session.Ways(c))
		}
	}
	if _, _, err := c.Receive(from, hello, now); err != nil {
		t.Fatal(err)
	}
	out := c.Ready()
	if len(out) != 1 || out[0].To != from || len(out[0].B) > len(hello) || !bytes.Equal(out[0].B, slices.Concat(refKind(2), bytes.Repeat([]byte{5}, 16), cookie)) {
		t.Fatalf("answer to a HELLO: %x", out)
	}
	got := func(b []byte) []byte {
		t.Helper()
		now = now.Add(100 * time.Millisecond)
		id, msg, err := c.Receive(from, b, now)
		if err != nil {
			t.Fatal(err)
		}
		if msg != nil && id != [32]byte(stranger.id) {
			t.Errorf("from %v", id)
		}
		return msg
	}
	if !bytes.Equal(got(piece), body(3, 100)) {
		t.Error("the genuine piece afterwards")
	}
	if _, _, err := c.Receive(from, piece, now); err == nil {
		t.Error("a piece twice: delivered")
	}
	if got(long[1]) != nil || session.Assemblies(c) != 1 || !bytes.Equal(got(long[0]), body(1, 2000)) || session.Assemblies(c) != 0 {
		t.Error("a message of two pieces")
	}
	if _, _, err := c.Receive(from, long[0], now); err == nil || session.Assemblies(c) != 0 {
		t.Error("a piece of what was delivered: kept")
	}
	// IPv4 is the same address however the socket writes it.
	mapped := session.Addr{Remote: netip.AddrPortFrom(netip.AddrFrom16(from.Remote.Addr().As16()), 4000)}
	if _, _, err := c.Receive(mapped, p.piece(stranger, 20, cookie, cookie, body(3, 9)), now); err != nil {
		t.Errorf("IPv4-mapped: %v", err)
	}
}

// A cookie dies with the second turn of the secret.
func TestCourierCookieDies(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		good  bool
	}{{0, true}, {119 * time.Second, true}, {121 * time.Second, true}, {239 * time.Second, true}, {240 * time.Second, false}, {time.Hour, false}} {
		ps := newPosts(t, 2)
		a, b := ps.all[0], ps.all[1]
		ps.lose = func(_, _ *post, d []byte) bool { return d[15] == 0 } // the piece is kept
		ps.send(a, b, body(3, 80))
		var piece []byte
		lose := ps.lose
		ps.lose = func(from, to *post, d []byte) bool {
			if d[15] == 0 {
				piece = bytes.Clone(d)
			}
			return lose(from, to, d)
		}
		ps.run()
		ps.now = ps.now.Add(c.after / 2)
		_ = ps.receive(netip.MustParseAddrPort("192.0.2.77:1"), b, refKind(1)) // malformed; time passes all the same
		_ = ps.receive(netip.MustParseAddrPort("192.0.2.77:1"), b, append(refKind(1), make([]byte, 32)...))
		ps.now = ps.now.Add(c.after - c.after/2)
		if err := ps.receive(a.at, b, piece); (err == nil) != c.good {
			t.Errorf("after %v: %v", c.after, err)
		}
	}
	// The secret changes when 120 s have passed, not before.
	ps := newPosts(t, 2)
	a, b := ps.all[0], ps.all[1]
	cookie := func() []byte {
		double := &refPost{public: b.keys.X25519.PublicKey().Bytes()}
		if err := ps.receive(a.at, b, double.hello(make([]byte, 16))); err != nil {
			t.Fatal(err)
		}
		return b.c.Ready()[0].B[32:]
	}
	first := cookie()
	ps.now = ps.now.Add(120*time.Second - 1)
	if !bytes.Equal(cookie(), first) {
		t.Error("the secret changed early")
	}
	ps.now = ps.now.Add(1)
	if bytes.Equal(cookie(), first) {
		t.Error("the secret did not change")
	}
}

// A flood of one host reaches nobody else, and one of all costs no more than 2,000
// looks a second.
func TestCourierRates(t *testing.T) {
	c, p := known(t)
	now := time.Now()
	answered := func(from session.Addr, n int) (got int) {
		for range n {
			if _, _, err := c.Receive(from, p.hello(make([]byte, 16)), now); err == nil {
				got++
			}
		}
		c.Ready()
		return got
	}
	if n := answered(at4(1, 1), 40) + answered(at4(1, 2), 40); n != 64 {
		t.Errorf("%d of one host at once, want 64", n)
	}
	if n := answered(at4(2, 1), 1); n != 1 {
		t.Error("another host was refused")
	}
	now = now.Add(time.Second / 64)
	if n := answered(at4(1, 3), 5); n != 1 {
		t.Errorf("%d a 64th of a second later, want 1", n)
	}
	six := func(s string) session.Addr { return session.Addr{Remote: netip.MustParseAddrPort(s)} }
	if n := answered(six("[2001:db8:1:2::1]:9"), 60) + answered(six("[2001:db8:1:2:f::2]:9"), 60); n != 64 {
		t.Errorf("%d of one /64, want 64", n)
	}
	now = now.Add(time.Minute)
	all := 0
	for i := range 4000 {
		a := netip.AddrFrom4([4]byte{203, byte(i >> 12), byte(i >> 4), byte(i)})
		all += answered(session.Addr{Remote: netip.AddrPortFrom(a, 1)}, 1)
	}
	if all != 512 {
		t.Errorf("%d of all at once, want 512", all)
	}
	now = now.Add(time.Second)
	all = 0
	for i := range 4000 {
		if i%8 == 0 {
			now = now.Add(time.Millisecond)
		}
		a := netip.AddrFrom4([4]byte{204, byte(i >> 12), byte(i >> 4), byte(i)})
		all += answered(session.Addr{Remote: netip.AddrPortFrom(a, 1)}, 1)
	}
	if all < 1450 || all > 1515 {
		t.Errorf("%d of 4,000 in half a second, want the burst and 1,000", all)
	}
}

// Unfinished messages are few, for each host and in all, and short-lived; a genuine
// one that comes in one go gets through a crowd of them.
func TestCourierAssemblies(t *testing.T) {
	c, p := known(t)
	now := time.Now()
	stranger := &refPost{id: bytes.Repeat([]byte{9}, 32)}
	give := func(from session.Addr, id uint32, pieces ...int) (msg []byte) {
		t.Helper()
		all := p.pieces(stranger, id, p.cookieAt(from), body(1, 2000))
		for _, i := range pieces {
			var err error
			if _, msg, err = c.Receive(from, all[i], now); err != nil {
				t.Fatal(err)
			}
		}
		return msg
	}
	if _, _, err := c.Receive(at4(1, 1), p.hello(make([]byte, 16)), now); err != nil { // makes the secrets
		t.Fatal(err)
	}
	for port := range uint16(6) {
		now = now.Add(time.Millisecond)
		give(at4(1, port+1), uint32(port), 0)
	}
	if n := session.Assemblies(c); n != 4 {
		t.Errorf("%d unfinished messages of one host, want 4", n)
	}
	// The two oldest are gone, the others wait for their rest.
	if give(at4(1, 2), 1, 1) != nil || give(at4(1, 6), 5, 1) == nil {
		t.Error("not the oldest went")
	}
	for i := range byte(60) {
		now = now.Add(time.Millisecond)
		give(at4(100+i, 1), 1000+uint32(i), 0)
	}
	if n := session.Assemblies(c); n != 32 {
		t.Errorf("%d unfinished messages, want 32", n)
	}
	if give(at4(99, 1), 5000, 1, 0) == nil {
		t.Error("a genuine message did not get through")
	}
	if give(at4(100, 1), 1000, 1) != nil || give(at4(159, 1), 1059, 1) == nil {
		t.Error("not the oldest went")
	}
	// They live two seconds.
	now = now.Add(2*time.Second - 2*time.Millisecond)
	if give(at4(158, 1), 1058, 1) == nil {
		t.Error("an unfinished message died early")
	}
	now = now.Add(2 * time.Millisecond)
	if give(at4(157, 1), 1057, 1) != nil || session.Assemblies(c) != 1 {
		t.Errorf("%d unfinished messages after 2 s", session.Assemblies(c))
	}
	// Too long a message ends its assembly.
	from := at4(3, 3)
	for i, want := range []int{2, 2, 1} {
		f := wire.Fragment{ID: 77, Index: uint8(i), Count: 3, Data: make([]byte, 1176)}
		b := f.Append(refKind(0))
		if i == 2 { // another count: the one before ends
			binary.BigEndian.PutUint16(b[20:], 0x0002)
			want = 2
		}
		b = append(b, p.mac1(b)...)
		b = append(b, refHMAC(p.cookieAt(from), b)[:16]...)
		_, _, _ = c.Receive(from, b, now)
		if n := session.Assemblies(c); n != want {
			t.Errorf("piece %d: %d assemblies, want %d", i, n, want)
		}
	}
}

// FuzzCourier gives bytes to a courier that waits for a cookie and has an
// unfinished message, as they are and with right MACs.
func FuzzCourier(f *testing.F) {
	c, p := known(f)
	from := at4(1, 4000)
	now := time.Now()
	stranger := &refPost{id: bytes.Repeat([]byte{9}, 32)}
	f.Add(p.hello(make([]byte, 16)), false)
	for _, b := range p.pieces(stranger, 1, p.cookieAt(from), body(1, 2000)) {
		f.Add(b, false)
		f.Add(b[:len(b)-32], true)
	}
	f.Fuzz(func(t *testing.T, b []byte, macs bool) {
		now = now.Add(time.Second / 64)
		if macs {
			b = append(bytes.Clone(b), p.mac1(b)...)
			b = append(b, refHMAC(p.cookieAt(from), b)[:16]...)
		}
		_, msg, err := c.Receive(from, bytes.Clone(b), now)
		sent := 0
		for _, d := range c.Ready() {
			sent += len(d.B)
		}
		if sent > len(b) || msg != nil && err != nil || session.Assemblies(c) > 1 {
			t.Errorf("%x: %d bytes sent, message %x, %v", b, sent, msg, err)
		}
	})
}
