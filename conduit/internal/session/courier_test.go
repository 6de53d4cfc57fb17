// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// post is one node's courier behind a socket.
type post struct {
	keys *identity.Keys
	c    *session.Courier
	at   netip.AddrPort
	got  []letter
}

type letter struct {
	from session.Addr
	peer identity.PeerID
	body []byte
}

// posts are nodes in one network that carries datagrams at once.
type posts struct {
	t   testing.TB
	now time.Time
	all []*post
	// lose decides over each datagram; nil: none is lost.
	lose func(from, to *post, b []byte) bool
	// datagrams that were sent, by kind.
	sent [3]int
}

func newPosts(t testing.TB, n int) *posts {
	ps := &posts{t: t, now: time.Now()}
	for i := range n {
		k, err := identity.GenerateKeys()
		if err != nil {
			t.Fatal(err)
		}
		ps.all = append(ps.all, &post{
			keys: k, at: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 4000),
			c: session.NewCourier(session.CourierConfig{ID: k.ID(), X25519: k.X25519.PublicKey()}),
		})
	}
	return ps
}

func (ps *posts) send(from, to *post, body []byte, at ...session.Addr) {
	ps.t.Helper()
	if len(at) == 0 {
		at = []session.Addr{{Bind: 1, Remote: to.at}}
	}
	if err := from.c.Send(to.keys.ID(), to.keys.X25519.PublicKey(), body, at, ps.now); err != nil {
		ps.t.Fatal(err)
	}
}

// run carries datagrams until none is in the air, and returns how many there were.
func (ps *posts) run() (n int) {
	for again := true; again; {
		again = false
		for _, p := range ps.all {
			for _, d := range p.c.Ready() {
				again = true
				n++
				if len(d.B) > 1232 {
					ps.t.Fatalf("a datagram of %d bytes", len(d.B))
				}
				ps.sent[d.B[15]]++
				for _, to := range ps.all {
					if to.at != netip.AddrPortFrom(d.To.Remote.Addr().Unmap(), d.To.Remote.Port()) || ps.lose != nil && ps.lose(p, to, d.B) {
						continue
					}
					_ = ps.receive(p.at, to, d.B)
				}
			}
		}
	}
	return n
}

func (ps *posts) receive(from netip.AddrPort, to *post, b []byte) error {
	at := session.Addr{Bind: 7, Remote: from}
	peer, body, err := to.c.Receive(at, bytes.Clone(b), ps.now)
	if body != nil {
		to.got = append(to.got, letter{at, peer, body})
	}
	return err
}

func (ps *posts) advance(d time.Duration) {
	ps.now = ps.now.Add(d)
	for _, p := range ps.all {
		p.c.Tick(ps.now)
	}
}

func body(t wire.MsgType, n int) []byte {
	b := bytes.Repeat([]byte{byte(n), byte(n >> 8), 3}, n/3+1)[:n]
	b[0] = byte(t)
	return b
}

func TestCourier(t *testing.T) {
	ps := newPosts(t, 2)
	a, b := ps.all[0], ps.all[1]
	invite, offer, confirm := body(1, 2500), body(2, session.MaxCourierBody), body(3, 200)
	ps.send(a, b, invite)
	ps.run()
	if len(b.got) != 1 || b.got[0].peer != a.keys.ID() || !bytes.Equal(b.got[0].body, invite) {
		t.Fatalf("B got %d messages", len(b.got))
	}
	if ps.sent != [3]int{3, 1, 1} {
		t.Errorf("pieces, hellos and cookies: %v", ps.sent)
	}
	// The answer needs no HELLO: the message brought a cookie.
	ps.send(b, a, offer, b.got[0].from)
	ps.run()
	if len(a.got) != 1 || !bytes.Equal(a.got[0].body, offer) || ps.sent != [3]int{6, 1, 1} {
		t.Fatalf("A got %d messages after %v datagrams", len(a.got), ps.sent)
	}
	ps.send(a, b, confirm, a.got[0].from)
	ps.run()
	if len(b.got) != 2 || !bytes.Equal(b.got[1].body, confirm) || ps.sent != [3]int{7, 1, 1} {
		t.Fatalf("B got %d messages after %v datagrams", len(b.got), ps.sent)
	}
	// INVITE and OFFER are answered; CONFIRM goes its rounds and then all is quiet.
	for range 5 {
		ps.advance(5 * time.Second)
		ps.run()
	}
	if !a.c.NextTick().IsZero() || !b.c.NextTick().IsZero() || len(a.got) != 1 || len(b.got) != 2 {
		t.Errorf("next ticks %v %v, messages %d %d", a.c.NextTick(), b.c.NextTick(), len(a.got), len(b.got))
	}
}

func TestCourierBounds(t *testing.T) {
	ps := newPosts(t, 2)
	a, b := ps.all[0], ps.all[1]
	to := []session.Addr{{Remote: b.at}}
	for name, f := range map[string]func() error{
		"empty":      func() error { return a.c.Send(b.keys.ID(), b.keys.X25519.PublicKey(), nil, to, ps.now) },
		"no address": func() error { return a.c.Send(b.keys.ID(), b.keys.X25519.PublicKey(), body(1, 9), nil, ps.now) },
		"too long": func() error {
			return a.c.Send(b.keys.ID(), b.keys.X25519.PublicKey(), body(1, session.MaxCourierBody+1), to, ps.now)
		},
	} {
		if err := f(); !errors.Is(err, session.ErrCourier) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(a.c.Ready()) != 0 {
		t.Error("something was sent")
	}
}
