// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// An attempt is over for both ends after 5 s, not for one of them.
func TestAttemptExpires(t *testing.T) {
	const life = 5 * time.Second
	for _, late := range []bool{false, true} {
		p := newPair(t, nil)
		p.lo.connect(p.now)
		p.lo.tick(p.now.Add(time.Second))
		p.lo.tick(p.now.Add(3 * time.Second)) // the third attempt is not repeated within its life
		p.now = p.now.Add(3 * time.Second)
		m1 := p.lo.out[len(p.lo.out)-1]
		p.lo.out = nil
		at := p.now.Add(life - time.Millisecond)
		if late {
			at = p.now.Add(life)
		}
		m2 := p.hi.as(t, p.lo).offer(m1, lie{})
		if late {
			p.lo.quiet(t, m2, at, "late")
		} else if err := p.lo.step(m2, at); err != nil {
			t.Errorf("offer in time: %v", err)
		}

		p = newPair(t, nil)
		a := p.lo.as(t, p.hi)
		if err := p.hi.step(a.invite(lie{}), p.now); err != nil {
			t.Fatal(err)
		}
		m3 := a.confirm(p.hi.take(), lie{})
		at = p.now.Add(life - time.Millisecond)
		if late {
			at = p.now.Add(life)
		}
		p.hi.tick(at)
		if err := p.hi.step(m3, at); (err != nil) != late {
			t.Errorf("confirm late=%t: %v", late, err)
		}
		if n := len(p.hi.idx.live); n != len(p.hi.est) {
			t.Errorf("late=%t: %d indexes for %d sessions", late, n, len(p.hi.est))
		}
	}
}

// A confirm that a newer invite overtook ends the older attempts and leaves the
// newer one alone: the other end holds that session for the current one.
func TestConfirmOvertaken(t *testing.T) {
	p := newPair(t, nil)
	p.lo.connect(p.now)
	if err := p.hi.step(p.lo.take(), p.now); err != nil {
		t.Fatal(err)
	}
	if err := p.lo.step(p.hi.take(), p.now); err != nil {
		t.Fatal(err)
	}
	late := p.lo.take()
	p.lo.connect(p.now)
	if err := p.hi.step(p.lo.take(), p.now); err != nil {
		t.Fatal(err)
	}
	if err := p.hi.step(late, p.now); err != nil {
		t.Fatal(err)
	}
	p.run()
	if len(p.hi.est) != 2 {
		t.Fatalf("%d sessions, want 2", len(p.hi.est))
	}
	p.agreed()
	// The other way round the older one is gone.
	p = newPair(t, nil)
	a, b := p.lo.as(t, p.hi), p.lo.as(t, p.hi)
	var m3 [2][]byte
	for i, r := range []*ref{a, b} {
		if err := p.hi.step(r.invite(lie{}), p.now); err != nil {
			t.Fatal(err)
		}
		m3[i] = r.confirm(p.hi.take(), lie{})
	}
	if err := p.hi.step(m3[1], p.now); err != nil {
		t.Fatal(err)
	}
	p.hi.quiet(t, m3[0], p.now, "no open offer")
	if len(p.hi.idx.live) != 1 {
		t.Errorf("indexes %v, want one", p.hi.idx.live)
	}
}

// A configured PSK whose epoch is unknown must not become a session without one.
func TestPSKFailsClosed(t *testing.T) {
	p := newPair(t, func(lo, hi *session.Config) { lo.PSKEpoch, hi.PSK = 9, nil })
	p.lo.connect(p.now)
	p.run()
	if len(p.lo.est)+len(p.hi.est) != 0 || len(p.lo.failed) != 1 || !strings.Contains(p.lo.failed[0].Error(), "epoch 9") {
		t.Errorf("established %d %d, failed %v", len(p.lo.est), len(p.hi.est), p.lo.failed)
	}
	if p.lo.m.Connecting() || len(p.lo.idx.live) != 0 {
		t.Errorf("left behind: %v", p.lo.idx.live)
	}
}

// B knows its own epochs only, and says so to A, which knows more.
func TestPSKEpochUnknown(t *testing.T) {
	p := newPair(t, func(lo, _ *session.Config) {
		lo.PSKEpoch, lo.PSK = 2, func(uint8) []byte { return bytes.Repeat([]byte{2}, 32) }
	})
	p.lo.connect(p.now)
	p.run()
	if len(p.lo.failed) != 1 || !strings.Contains(p.lo.failed[0].Error(), "peer does not know") || len(p.lo.idx.live)+len(p.hi.idx.live) != 0 {
		t.Errorf("failed %v, indexes %v %v", p.lo.failed, p.lo.idx.live, p.hi.idx.live)
	}
}

// Invites that were seen are remembered, but not without bound, and the oldest is
// the one that is forgotten.
func TestSeenIsBounded(t *testing.T) {
	for _, gap := range []time.Duration{0, time.Second} {
		p := newPair(t, nil)
		a := p.lo.as(t, p.hi)
		var first, last []byte
		for i := range session.MaxSeen + 10 {
			p.now = p.now.Add(gap)
			last = a.invite(lie{})
			if i == 0 {
				first = last
			}
			if err := p.hi.step(last, p.now); err != nil {
				t.Fatal(err)
			}
			p.hi.out = nil
		}
		if n := session.Seen(p.hi.m); n != session.MaxSeen {
			t.Errorf("gap %v: %d invites remembered, want %d", gap, n, session.MaxSeen)
		}
		if gap == 0 {
			continue
		}
		p.hi.quiet(t, last, p.now, "before")
		// The forgotten one costs an offer, and nobody can confirm it.
		if err := p.hi.step(first, p.now); err != nil || len(p.hi.idx.live) > 3 {
			t.Errorf("forgotten invite: %v, %d indexes", err, len(p.hi.idx.live))
		}
	}
}

// The last sequence number would let all others in again.
func TestCandidatesSeqWraps(t *testing.T) {
	p := newPair(t, nil)
	b := p.hi.as(t, p.lo)
	p.lo.connect(p.now)
	if err := p.lo.step(b.offer(p.lo.take(), lie{}), p.now); err != nil {
		t.Fatal(err)
	}
	p.lo.out = nil
	m := wire.Candidates{SID: p.lo.est[0].SID, Seq: math.MaxUint64}
	nonce := append(make([]byte, 4), bytes.Repeat([]byte{0xff}, 8)...)
	m.Sealed = refAEAD(t, b.suite, b.sched.sgB).Seal(nil, nonce, (&wire.CandidatesBody{}).Append(nil), m.AppendClear(nil))
	p.lo.quiet(t, m.Append(nil), p.now, "before")
}

// The retries of both ends over a slow hub neither starve each other nor end in
// different sessions.
func TestSlowHub(t *testing.T) {
	for _, delay := range []time.Duration{20 * time.Millisecond, 600 * time.Millisecond, 1100 * time.Millisecond, 2 * time.Second} {
		for name, who := range map[string]func(p *pair){
			"lower":  func(p *pair) { p.lo.connect(p.now) },
			"higher": func(p *pair) { p.hi.connect(p.now) },
			"both":   func(p *pair) { p.lo.connect(p.now); p.hi.connect(p.now) },
		} {
			p := newPair(t, nil)
			type flight struct {
				to  *end
				b   []byte
				due time.Time
			}
			var air []flight
			start := p.now
			who(p)
			for p.now.Sub(start) < 40*time.Second {
				for _, ends := range [][2]*end{{p.lo, p.hi}, {p.hi, p.lo}} {
					for _, b := range ends[0].out {
						air = append(air, flight{ends[1], b, p.now.Add(delay)})
					}
					ends[0].out = nil
				}
				p.now = p.now.Add(10 * time.Millisecond)
				for len(air) > 0 && !air[0].due.After(p.now) {
					_ = air[0].to.step(air[0].b, p.now)
					air = air[1:]
				}
				p.lo.tick(p.now)
				p.hi.tick(p.now)
			}
			if len(p.lo.failed)+len(p.hi.failed) != 0 {
				t.Errorf("%s connects, %v one way: failed %v %v", name, delay, p.lo.failed, p.hi.failed)
				continue
			}
			p.agreed()
			t.Logf("%s, %v one way: %d and %d sessions", name, delay, len(p.lo.est), len(p.hi.est))
		}
	}
}

// What the hub says ends a Connect only when it means that waiting is in vain.
func TestUndeliverable(t *testing.T) {
	for reason, ends := range map[string]bool{"offline": true, "unknown": true, "denied": true, "queue full": false, "": false} {
		for _, lower := range []bool{true, false} {
			p := newPair(t, nil)
			e := p.hi
			if lower {
				e = p.lo
			}
			e.m.Undeliverable(reason) // nobody asked
			e.collect()
			if len(e.failed) != 0 {
				t.Errorf("%q without a Connect: failed %v", reason, e.failed)
			}
			e.connect(p.now)
			e.m.Undeliverable(reason)
			e.collect()
			if (len(e.failed) == 1) != ends || e.m.Connecting() == ends {
				t.Errorf("%q: failed %v, connecting %t", reason, e.failed, e.m.Connecting())
			}
			if ends {
				if len(e.idx.live) != 0 {
					t.Errorf("%q: indexes %v", reason, e.idx.live)
				}
				continue
			}
			p.now = p.now.Add(31 * time.Second)
			e.tick(p.now)
			if len(e.failed) != 1 || errors.Is(e.failed[0], session.ErrNoAnswer) || !strings.Contains(e.failed[0].Error(), "hub could not") {
				t.Errorf("%q: gave up with %v, want the hub's word", reason, e.failed)
			}
		}
	}
}

// The handshake keys go with the attempt, however it ends.
func TestErased(t *testing.T) {
	for name, end := range map[string]func(p *pair, a *ref, m2 []byte){
		"confirmed": func(p *pair, a *ref, m2 []byte) { _ = p.hi.step(a.confirm(m2, lie{}), p.now) },
		"expired":   func(p *pair, _ *ref, _ []byte) { p.hi.tick(p.now.Add(5 * time.Second)) },
		"closed":    func(p *pair, _ *ref, _ []byte) { p.hi.m.Close() },
	} {
		p := newPair(t, nil)
		a := p.lo.as(t, p.hi)
		if err := p.hi.step(a.invite(lie{}), p.now); err != nil {
			t.Fatal(err)
		}
		erased := session.NewestErased(p.hi.m)
		if erased() {
			t.Fatalf("%s: erased before", name)
		}
		end(p, a, p.hi.take())
		if !erased() {
			t.Errorf("%s: keys are still there", name)
		}
	}
}

func TestConnectTwice(t *testing.T) {
	p := newPair(t, nil)
	for _, e := range []*end{p.lo, p.hi} {
		e.connect(p.now)
		e.connect(p.now.Add(100 * time.Millisecond))
		if len(e.out) != 1 || !e.m.NextTick().Equal(p.now.Add(time.Second)) {
			t.Errorf("%d messages, next tick %v", len(e.out), e.m.NextTick())
		}
	}
}

// NextTick names each moment at which Tick has something to do, and no other.
func TestNextTick(t *testing.T) {
	p := newPair(t, nil)
	p.lo.connect(p.now)
	for _, s := range []int{1, 3, 7, 15, 23, 30} {
		next := p.lo.m.NextTick()
		if want := p.now.Add(time.Duration(s) * time.Second); !next.Equal(want) {
			t.Fatalf("next tick after %v, want %d s", next.Sub(p.now), s)
		}
		p.lo.tick(next)
	}
	if len(p.lo.out) != 6 || len(p.lo.failed) != 1 || !p.lo.m.NextTick().IsZero() {
		t.Errorf("%d invites, failed %v, next tick %v", len(p.lo.out), p.lo.failed, p.lo.m.NextTick())
	}
	if err := p.hi.step(p.lo.out[0], p.now); err != nil {
		t.Fatal(err)
	}
	if next := p.hi.m.NextTick(); !next.Equal(p.now.Add(5 * time.Second)) {
		t.Errorf("half-open attempt: next tick after %v", next.Sub(p.now))
	}
	p.hi.tick(p.hi.m.NextTick())
	if !p.hi.m.NextTick().IsZero() || len(p.hi.idx.live) != 0 {
		t.Error("half-open attempt outlived its tick")
	}
}

// A Connect fails for its own reasons.
func TestLastErrorIsOfThisConnect(t *testing.T) {
	p := newPair(t, nil)
	for _, hub := range []bool{true, false} {
		p.lo.connect(p.now)
		if hub {
			p.lo.m.Undeliverable("queue full")
		}
		p.now = p.now.Add(30 * time.Second)
		p.lo.tick(p.now)
		if err := p.lo.failed[len(p.lo.failed)-1]; errors.Is(err, session.ErrNoAnswer) == hub {
			t.Errorf("hub spoke %t: %v", hub, err)
		}
	}
}

// While a PSK is replaced the two ends may begin under different epochs; that of
// the invite counts.
func TestPSKEpochOfInvite(t *testing.T) {
	p := newPair(t, func(_, hi *session.Config) {
		old := hi.PSK
		hi.PSKEpoch, hi.PSK = 2, func(epoch uint8) []byte {
			if epoch == 2 {
				return bytes.Repeat([]byte{2}, 32)
			}
			return old(epoch)
		}
	})
	p.hi.connect(p.now)
	p.run()
	p.agreed()
}

// Each knock makes the lower peer begin anew, so there is a least time between.
func TestKnockRate(t *testing.T) {
	p := newPair(t, nil)
	knock := func(n byte) []byte {
		k := wire.Knock{SID: wire.SID{n}, From: p.hi.keys.ID(), To: p.lo.keys.ID()}
		k.Sig = refSign(p.hi.keys.Ed25519, "knock", refHash(k.AppendUnsigned(nil)))
		return k.Append(nil)
	}
	for i, c := range []struct {
		after time.Duration
		taken bool
	}{{0, true}, {0, false}, {499 * time.Millisecond, false}, {time.Millisecond, true}, {499 * time.Millisecond, false}, {time.Second, true}} {
		p.now = p.now.Add(c.after)
		before := len(p.lo.out)
		err := p.lo.step(knock(byte(i)), p.now)
		if (err == nil) != c.taken || (len(p.lo.out) > before) != c.taken {
			t.Errorf("knock %d: %v, %d invites", i, err, len(p.lo.out)-before)
		}
		if n := len(p.lo.idx.live); n != 1 {
			t.Errorf("knock %d: %d attempts open", i, n)
		}
	}
}

// The hub cannot make us begin by a knock that it kept.
func TestKnockReplayed(t *testing.T) {
	p := newPair(t, nil)
	p.hi.connect(p.now)
	knock := p.hi.take()
	if err := p.lo.step(knock, p.now); err != nil {
		t.Fatal(err)
	}
	p.run()
	p.agreed()
	p.now = p.now.Add(10 * time.Minute)
	p.lo.quiet(t, knock, p.now, "before")
	p.hi.connect(p.now) // a new one is welcome
	p.run()
	p.agreed()
}
