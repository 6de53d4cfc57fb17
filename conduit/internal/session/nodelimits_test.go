// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// All peers of a node together have 64 unconfirmed attempts; the oldest makes room,
// whoever's it is, and 3 of them are one peer's.
func TestHalfOpenOfAllPeers(t *testing.T) {
	limits := session.NewLimits()
	var pairs []*pair
	now := time.Now()
	for range 30 {
		p := newPair(t, func(_, hi *session.Config) { hi.Limits = limits })
		a := p.lo.as(t, p.hi)
		for range 4 {
			now = now.Add(20 * time.Millisecond)
			if err := p.hi.step(a.invite(lie{}), now); err != nil {
				t.Fatal(err)
			}
		}
		if len(p.hi.idx.live) != 3 {
			t.Fatalf("%d attempts of one peer", len(p.hi.idx.live))
		}
		pairs = append(pairs, p)
	}
	if n := limits.HalfOpen(); n != 64 {
		t.Errorf("%d attempts, want 64", n)
	}
	live := 0
	for i, p := range pairs {
		live += len(p.hi.idx.live)
		// 90 were open: the 26 oldest are gone, 8 peers' and two of the ninth.
		if want := []int{0, 1, 3}[min(2, max(0, i-7))]; len(p.hi.idx.live) != want {
			t.Errorf("peer %d has %d attempts, want %d", i, len(p.hi.idx.live), want)
		}
	}
	if live != 64 {
		t.Errorf("%d indexes for 64 attempts", live)
	}
	for i, end := range []func(p *pair){
		func(p *pair) { p.hi.m.Close() },
		func(p *pair) { p.hi.tick(now.Add(5 * time.Second)) },
	} {
		end(pairs[29-i])
		if n := limits.HalfOpen(); n != 64-3*(i+1) {
			t.Errorf("%d attempts are counted after the end of some", n)
		}
	}
	// A confirmed one is no longer counted either.
	p := newPair(t, func(_, hi *session.Config) { hi.Limits = limits })
	before := limits.HalfOpen()
	p.now = now
	p.lo.connect(now)
	p.run()
	p.agreed()
	if n := limits.HalfOpen(); n != before {
		t.Errorf("%d attempts are counted after a handshake, %d before", n, before)
	}
}

// A node looks at 50 signatures of strangers a second. What it has seen, and what
// is not for it, costs none of them.
func TestHandshakeBudget(t *testing.T) {
	p := newPair(t, func(lo, hi *session.Config) { lo.Limits, hi.Limits = session.NewLimits(), session.NewLimits() })
	a := p.lo.as(t, p.hi)
	first := a.invite(lie{})
	if err := p.hi.step(first, p.now); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if err := p.hi.step(first, p.now); err == nil {
			t.Fatal("an invite twice: accepted")
		}
	}
	ghost, _ := p.stranger(p.ca)
	looked := 1
	for range 500 {
		if !refusedFor(p.hi.step(a.invite(lie{signer: ghost.Ed25519}), p.now), "too often") {
			looked++
		}
	}
	if looked != 64 {
		t.Errorf("looked at %d signatures at once, want 64", looked)
	}
	p.hi.out = nil
	p.hi.quiet(t, a.invite(lie{}), p.now.Add(19*time.Millisecond), "too often")
	if err := p.hi.step(a.invite(lie{}), p.now.Add(20*time.Millisecond)); err != nil {
		t.Errorf("after a fiftieth of a second: %v", err)
	}
	// Knocks count as well.
	looked = 0
	for i := range 100 {
		k := wire.Knock{SID: wire.SID{byte(i)}, From: p.hi.keys.ID(), To: p.lo.keys.ID()}
		k.Sig = refSign(ghost.Ed25519, "knock", refHash(k.AppendUnsigned(nil)))
		if !refusedFor(p.lo.step(k.Append(nil), p.now), "too often") {
			looked++
		}
	}
	if looked != 64 {
		t.Errorf("looked at %d knocks at once, want 64", looked)
	}
}

// An invite that was rejected costs no second signature.
func TestRejectedInviteReplayed(t *testing.T) {
	p := newPair(t, func(lo, hi *session.Config) { lo.Suites, hi.Suites = lo.Suites[:1], lo.Suites[1:] })
	p.lo.connect(p.now)
	m1 := p.lo.take()
	if err := p.hi.step(m1, p.now); err == nil || len(p.hi.out) != 1 {
		t.Fatalf("no suite in common: %v, %d answers", err, len(p.hi.out))
	}
	p.hi.out = nil
	p.hi.quiet(t, m1, p.now, "before")
}

// An invite says which knock it answers, so one that was kept makes no session:
// the lower peer begins nothing of its own, and the higher has not knocked.
func TestKnockKeptByHub(t *testing.T) {
	p := newPair(t, nil)
	p.hi.connect(p.now)
	knock := p.hi.take()
	p.hi.m.Cancel()
	// A is a node that has never seen the knock.
	if err := p.lo.step(knock, p.now); err != nil {
		t.Fatal(err)
	}
	if p.lo.m.Connecting() {
		t.Error("a knock made the lower peer want a session")
	}
	p.hi.quiet(t, p.lo.take(), p.now, "no knock of ours")
	if next := p.lo.m.NextTick(); !next.Equal(p.now.Add(5 * time.Second)) {
		t.Errorf("next tick after %v", next.Sub(p.now))
	}
	p.lo.tick(p.now.Add(5*time.Second - 1))
	if len(p.lo.idx.live) != 1 {
		t.Error("the attempt ended too early")
	}
	p.lo.tick(p.now.Add(5 * time.Second))
	if len(p.lo.out) != 0 || len(p.lo.idx.live) != 0 || !p.lo.m.NextTick().IsZero() {
		t.Errorf("left behind: %d messages, indexes %v", len(p.lo.out), p.lo.idx.live)
	}
	// The knock does not disturb an attempt of A's own either.
	p = newPair(t, nil)
	p.hi.connect(p.now)
	knock = p.hi.take()
	p.hi.m.Cancel()
	p.lo.connect(p.now)
	m1 := p.lo.take()
	p.now = p.now.Add(999 * time.Millisecond)
	if err := p.lo.step(knock, p.now); err != nil || len(p.lo.out) != 0 {
		t.Errorf("a knock while an invite is out: %v, %d messages", err, len(p.lo.out))
	}
	if err := p.hi.step(m1, p.now); err != nil {
		t.Fatal(err)
	}
	p.run()
	p.agreed()
	if len(p.lo.idx.live) != 1 {
		t.Errorf("indexes %v", p.lo.idx.live)
	}
}

// A's own invite may be lost; a knock that comes later is answered beside it.
func TestKnockBesideOwnAttempt(t *testing.T) {
	p := newPair(t, nil)
	p.lo.connect(p.now)
	own := p.lo.take()
	p.now = p.now.Add(time.Second - time.Millisecond)
	p.hi.connect(p.now)
	p.now = p.now.Add(time.Millisecond)
	if err := p.lo.step(p.hi.take(), p.now); err != nil {
		t.Fatal(err)
	}
	if len(p.lo.out) != 1 || len(p.lo.idx.live) != 2 {
		t.Fatalf("%d invites, indexes %v", len(p.lo.out), p.lo.idx.live)
	}
	// Either can win, and the other is over.
	if err := p.hi.step(own, p.now); err != nil {
		t.Fatal(err)
	}
	p.run()
	p.hi.tick(p.now.Add(5 * time.Second)) // what B made of the other
	p.agreed()
	if len(p.lo.est) != 1 || len(p.lo.idx.live) != 1 || len(p.hi.idx.live) != 1 {
		t.Errorf("%d sessions, indexes %v %v", len(p.lo.est), p.lo.idx.live, p.hi.idx.live)
	}
}

// While the mesh changes its key, the answer to a knock is made again under the
// epoch before, once.
func TestKnockUnderOldPSK(t *testing.T) {
	for _, known := range []bool{true, false} {
		p := newPair(t, func(lo, hi *session.Config) {
			old := lo.PSK
			lo.PSKEpoch, lo.PSKBefore = 2, func() (uint8, bool) { return 1, true }
			lo.PSK = func(epoch uint8) []byte {
				if epoch == 2 {
					return make([]byte, 32)
				}
				return old(epoch)
			}
			if !known {
				hi.PSK = func(uint8) []byte { return nil }
			}
		})
		p.hi.connect(p.now)
		p.run()
		if !known {
			if len(p.lo.est)+len(p.hi.est)+len(p.lo.failed) != 0 || len(p.lo.idx.live) != 0 {
				t.Errorf("no epoch in common: %d %d sessions, failed %v, indexes %v", len(p.lo.est), len(p.hi.est), p.lo.failed, p.lo.idx.live)
			}
			continue
		}
		p.agreed()
		if p.lo.m.Connecting() || p.hi.m.Connecting() {
			t.Error("an end still wants a session")
		}
	}
}

// A knock cannot take the name of an attempt or a session that there is.
func TestKnockTakenSID(t *testing.T) {
	p := newPair(t, nil)
	p.lo.connect(p.now)
	_, sid, _ := wire.ParseMsgHeader(p.lo.out[0])
	knock := func() []byte {
		k := wire.Knock{SID: sid, From: p.hi.keys.ID(), To: p.lo.keys.ID()}
		k.Sig = refSign(p.hi.keys.Ed25519, "knock", refHash(k.AppendUnsigned(nil)))
		return k.Append(nil)
	}
	m1 := p.lo.take()
	p.lo.quiet(t, knock(), p.now, "something else")
	if err := p.hi.step(m1, p.now); err != nil {
		t.Fatal(err)
	}
	p.run()
	p.agreed()
	q := newPair(t, nil) // another machine that has not seen that knock
	q.lo.connect(q.now)
	q.run()
	p, sid = q, q.lo.est[0].SID
	p.lo.quiet(t, knock(), p.now, "something else")
}
