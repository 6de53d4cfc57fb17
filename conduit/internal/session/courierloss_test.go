// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// What is not answered goes out again, four times in all.
func TestCourierRounds(t *testing.T) {
	ps := newPosts(t, 2)
	a, b := ps.all[0], ps.all[1]
	ps.lose = func(*post, *post, []byte) bool { return true }
	ps.send(a, b, body(1, 2000))
	start := ps.now
	for _, ms := range []int{0, 250, 750, 1750} {
		if ms > 0 {
			if next := a.c.NextTick(); next.Sub(start) != time.Duration(ms)*time.Millisecond {
				t.Fatalf("next tick after %v, want %d ms", next.Sub(start), ms)
			}
			ps.advance(a.c.NextTick().Sub(ps.now) - 1)
			if ps.run() != 0 {
				t.Fatal("sent too early")
			}
			ps.advance(1)
		}
		if n := ps.run(); n != 1 {
			t.Fatalf("%d datagrams after %d ms, want a HELLO", n, ms)
		}
	}
	ps.advance(a.c.NextTick().Sub(ps.now))
	if ps.run() != 0 || !a.c.NextTick().IsZero() || ps.now.Sub(start) != 3750*time.Millisecond {
		t.Errorf("given up after %v", ps.now.Sub(start))
	}
	// One HELLO may be lost, one COOKIE, one piece: the message comes.
	for kind := range 3 {
		ps := newPosts(t, 2)
		a, b := ps.all[0], ps.all[1]
		lost := false
		ps.lose = func(_, _ *post, d []byte) bool {
			if int(d[15]) != kind || lost {
				return false
			}
			lost = true
			return true
		}
		ps.send(a, b, body(1, 2000))
		ps.run()
		ps.advance(250 * time.Millisecond)
		ps.run()
		if len(b.got) != 1 {
			t.Errorf("kind %d lost: %d messages", kind, len(b.got))
		}
	}
}

// A peer that restarted knows none of its old cookies.
func TestCourierRestart(t *testing.T) {
	ps := newPosts(t, 2)
	a, b := ps.all[0], ps.all[1]
	ps.send(a, b, body(3, 50))
	ps.run()
	b.c = session.NewCourier(session.CourierConfig{ID: b.keys.ID(), X25519: b.keys.X25519.PublicKey()})
	b.got = nil
	ps.advance(time.Minute)
	ps.run()
	b.got = nil
	ps.send(a, b, body(1, 2000))
	ps.run()
	if len(b.got) != 0 {
		t.Fatal("an old cookie was taken")
	}
	ps.advance(250 * time.Millisecond)
	ps.run()
	if len(b.got) != 1 {
		t.Errorf("%d messages after a restart", len(b.got))
	}
	// A cookie is used for 100 s.
	for _, c := range []struct {
		age    time.Duration
		hellos int
	}{{100*time.Second - 1, 0}, {100 * time.Second, 1}} {
		ps := newPosts(t, 2)
		a, b := ps.all[0], ps.all[1]
		ps.send(a, b, body(3, 50))
		ps.run()
		for range 5 {
			ps.advance(4 * time.Second)
			ps.run()
		}
		ps.sent = [3]int{}
		ps.now = ps.now.Add(c.age - 20*time.Second)
		ps.send(a, b, body(3, 51))
		ps.run()
		if ps.sent[1] != c.hellos || len(b.got) != 2 {
			t.Errorf("cookie of %v: %d HELLOs, %d messages", c.age, ps.sent[1], len(b.got))
		}
	}
}

// Of many addresses the first two that answer get the message, and the answer may
// come to another socket.
func TestCourierAddresses(t *testing.T) {
	ps := newPosts(t, 2)
	a, b := ps.all[0], ps.all[1]
	var to []session.Addr
	for i := range 40 {
		to = append(to, session.Addr{Bind: i, Remote: b.at})
	}
	ps.send(a, b, body(3, 100), to...)
	ps.run()
	if ps.sent != [3]int{2, 32, 32} {
		t.Errorf("pieces, hellos and cookies: %v", ps.sent)
	}
	if len(b.got) != 1 {
		t.Errorf("%d messages", len(b.got))
	}
	// From another address than the one that was asked a cookie is nothing.
	ps = newPosts(t, 3)
	a, b = ps.all[0], ps.all[1]
	ps.send(a, b, body(3, 100))
	hello := a.c.Ready()[0].B
	if err := ps.receive(a.at, b, hello); err != nil {
		t.Fatal(err)
	}
	cookie := b.c.Ready()[0].B
	if err := ps.receive(ps.all[2].at, a, cookie); err == nil || len(a.c.Ready()) != 0 {
		t.Error("a cookie from elsewhere: taken")
	}
	late := ps.now
	ps.now = ps.now.Add(5 * time.Second)
	if err := ps.receive(b.at, a, cookie); err == nil {
		t.Error("a cookie after 5 s: taken")
	}
	ps.now = late.Add(5*time.Second - 1)
	mapped := netip.AddrPortFrom(netip.AddrFrom16(b.at.Addr().As16()), b.at.Port())
	if err := ps.receive(mapped, a, cookie); err != nil || len(a.c.Ready()) != 1 {
		t.Errorf("cookie: %v", err)
	}
	ps.send(b, a, body(2, 60)) // and so is the answer's
	ps.lose = func(_, to *post, d []byte) bool {
		if to == a {
			_ = ps.receive(mapped, to, d)
		}
		return to == a
	}
	ps.run()
	if len(a.got) != 1 || !a.c.NextTick().IsZero() {
		t.Errorf("%d answers, next tick %v", len(a.got), a.c.NextTick())
	}
	ps.lose = nil
	if err := ps.receive(b.at, a, cookie); err == nil {
		t.Error("a cookie twice: taken")
	}
}

// The messages under way are bounded, and those of one peer do not push out
// another's.
func TestCourierQueue(t *testing.T) {
	ps := newPosts(t, 3)
	a, b, other := ps.all[0], ps.all[1], ps.all[2]
	ps.send(a, other, body(3, 60))
	for i := range 20 {
		ps.send(a, b, body(5, 100+i))
	}
	ps.run()
	if len(other.got) != 1 || len(b.got) != 8 || len(b.got[0].body) != 112 {
		t.Errorf("%d messages at one, %d at the other", len(other.got), len(b.got))
	}
	for range 5 {
		ps.advance(4 * time.Second)
		ps.run()
	}
	if len(b.got) != 8 { // copies are not delivered
		t.Errorf("%d messages after the repetitions", len(b.got))
	}
	// Who is answered is quiet; candidates go their rounds, for nobody answers them.
	ps = newPosts(t, 2)
	a, b = ps.all[0], ps.all[1]
	ps.send(a, b, body(1, 60))
	ps.send(a, b, body(5, 60))
	ps.run()
	ps.send(b, a, body(2, 60), b.got[0].from)
	ps.run()
	ps.sent = [3]int{}
	a.c.Tick(ps.now.Add(250 * time.Millisecond))
	for _, d := range a.c.Ready() {
		if len(d.B) != 16+8+48+60+32 {
			t.Errorf("%d bytes", len(d.B))
		}
		ps.sent[0]++
	}
	if ps.sent[0] != 1 {
		t.Errorf("%d messages are repeated, want the candidates", ps.sent[0])
	}
	// An answer of another, or from elsewhere, is none.
	ps = newPosts(t, 4)
	a, b, other = ps.all[0], ps.all[1], ps.all[2]
	ps.send(a, b, body(1, 60))
	ps.send(a, ps.all[3], body(1, 60))
	ps.send(other, a, body(2, 60))
	a.c.Forget(ps.all[2].keys.ID()) // nothing to forget
	ps.run()
	if len(a.got) != 1 || a.c.NextTick().IsZero() {
		t.Error("the answer of another ended the repetition")
	}
	ways := session.Ways(a.c)
	a.c.Forget(b.keys.ID())
	if session.Ways(a.c) != ways-1 {
		t.Errorf("%d ways of %d after Forget", session.Ways(a.c), ways)
	}
	a.c.Forget(ps.all[3].keys.ID())
	if !a.c.NextTick().IsZero() || session.Ways(a.c) != 1 {
		t.Errorf("after Forget: next tick %v, %d ways", a.c.NextTick(), session.Ways(a.c))
	}
	// All together are bounded, and so are the addresses.
	ps = newPosts(t, 300)
	for i, to := range ps.all[1:] {
		var at []session.Addr
		for port := range uint16(3) {
			at = append(at, session.Addr{Bind: i, Remote: netip.AddrPortFrom(to.at.Addr(), 4000+port)})
		}
		ps.now = ps.now.Add(time.Microsecond)
		ps.send(ps.all[0], to, body(3, 60), at...)
	}
	ps.all[0].c.Ready()
	ps.advance(time.Second)
	if n := len(ps.all[0].c.Ready()); n != 3*256 || session.Ways(ps.all[0].c) != 512 {
		t.Errorf("%d datagrams in the second round, %d ways", n, session.Ways(ps.all[0].c))
	}
}

// A network that loses, doubles and changes datagrams delivers what was sent or
// nothing, and couriers of many nodes keep apart.
func TestCourierLossy(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		ps := newPosts(t, 4)
		want := map[string]bool{}
		ps.lose = func(from, to *post, b []byte) bool {
			switch rng.IntN(5) {
			case 0:
				return true
			case 1:
				bad := bytes.Clone(b)
				bad[rng.IntN(len(bad))] ^= byte(1 + rng.IntN(255))
				if err := ps.receive(from.at, to, bad); err == nil && bad[15] == 0 {
					t.Fatal("a changed piece was taken")
				}
			case 2:
				_ = ps.receive(from.at, to, b)
			}
			return false
		}
		got := 0
		for i := range 30 {
			f, to := rng.IntN(4), rng.IntN(3)
			from, other := ps.all[f], ps.all[(f+1+to)%4]
			msg := body(wire.MsgType(1+rng.IntN(6)), 100+rng.IntN(3000))
			msg[1] = byte(i)
			want[string(msg)] = true
			ps.send(from, other, msg)
			for range 4 {
				ps.run()
				ps.advance(time.Second)
			}
		}
		seen := map[string]bool{}
		for _, p := range ps.all {
			for _, l := range p.got {
				if !want[string(l.body)] || seen[string(l.body)] {
					t.Fatalf("seed %d: a message of %d bytes that nobody sent, or twice", seed, len(l.body))
				}
				seen[string(l.body)] = true
				got++
			}
		}
		if got < 25 {
			t.Errorf("seed %d: %d of 30 messages", seed, got)
		}
	}
}
