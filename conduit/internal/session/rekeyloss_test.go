// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
)

// R1 is repeated, more and more seldom, and answered with the same bytes each time.
func TestRekeyRepeats(t *testing.T) {
	for _, c := range []struct {
		rtt  time.Duration
		gaps []time.Duration // in ms
	}{
		{0, []time.Duration{250, 500, 1000, 2000, 4000, 4000}},
		{125, []time.Duration{250, 500, 1000, 2000, 4000}},
		{400, []time.Duration{800, 1600, 3200, 4000, 4000}},
		{3000, []time.Duration{6000, 6000}},
	} {
		r := newRekeyPair(t, nil)
		r.a.r.SetRTT(c.rtt * time.Millisecond)
		r.advance(session.RekeyAfter)
		first := r.a.out[0]
		for _, gap := range c.gaps {
			if next := r.a.r.NextTick(); !next.Equal(r.now.Add(gap * time.Millisecond)) {
				t.Fatalf("round trip %v: next tick after %v, want %v ms", c.rtt, next.Sub(r.now), gap)
			}
			r.now = r.now.Add(gap * time.Millisecond)
			r.a.r.Tick(r.now) // B's time would come
			r.a.collect(t)
			last := r.a.out[len(r.a.out)-1]
			if !bytes.Equal(whole(t, last), whole(t, first)) || !bytes.Equal(last.Send[0][:4], first.Send[0][:4]) {
				t.Error("a repetition differs")
			}
		}
		n := len(r.a.out)
		for range n {
			if err := r.deliver(r.a); err != nil {
				t.Fatal(err)
			}
		}
		if len(r.b.out) != n || len(r.b.keys) != 2 || len(r.b.idx.live) != 2 {
			t.Fatalf("%d answers to %d R1, %d keys", len(r.b.out), n, len(r.b.keys))
		}
		for _, o := range r.b.out[1:] {
			if !bytes.Equal(whole(t, o), whole(t, r.b.out[0])) {
				t.Error("another R2 for the same R1")
			}
		}
		r.settle()
		r.data(r.a)
		r.same()
		if len(r.a.keys) != 2 || len(r.b.keys) != 2 {
			t.Errorf("%d and %d keys", len(r.a.keys), len(r.b.keys))
		}
	}
}

// R3 is repeated under the old keys until something opens under the new ones.
func TestRekeyConfirmationRepeats(t *testing.T) {
	r := newRekeyPair(t, nil)
	r.advance(session.RekeyAfter)
	old := r.a.send
	if r.deliver(r.a) != nil || r.deliver(r.b) != nil {
		t.Fatal("no rekey")
	}
	for _, gap := range []time.Duration{250, 500, 1000, 2000, 4000, 4000} {
		if next := r.a.r.NextTick(); !next.Equal(r.now.Add(gap * time.Millisecond)) {
			t.Fatalf("next tick after %v, want %v ms", next.Sub(r.now), gap)
		}
		r.advance(gap * time.Millisecond)
	}
	if n := len(r.a.out); n != 7 {
		t.Fatalf("R3 was sent %d times", n)
	}
	for _, o := range r.a.out {
		if o.On != old {
			t.Errorf("R3 under keys %d", o.On)
		}
	}
	// The old keys are B's only ones to seal with: they live.
	if r.data(r.b) != old || len(r.a.keys) != 2 {
		t.Error("B's packets do not open under the old keys")
	}
	if err := r.deliver(r.a); err != nil {
		t.Fatal(err)
	}
	r.data(r.b)
	at := r.now
	r.advance(time.Minute - 1)
	if len(r.a.keys) != 1 || len(r.b.keys) != 1 {
		t.Errorf("%d and %d keys", len(r.a.keys), len(r.b.keys))
	}
	if n := len(r.a.out); n != 6 {
		t.Errorf("R3 was repeated after it was heard: %d", n)
	}
	r.settle() // late copies do no harm
	r.same()
	if next := r.a.r.NextTick(); !next.Equal(at.Add(session.RekeyAfter - 11750*time.Millisecond)) {
		t.Errorf("next tick of A after %v", next.Sub(at))
	}
}

// Where the confirmation never comes, B has both keys until the end of each.
func TestRekeyUnconfirmed(t *testing.T) {
	r := newRekeyPair(t, nil)
	start := r.now
	r.advance(session.RekeyAfter)
	if err := r.deliver(r.a); err != nil { // R2 is lost, for good
		t.Fatal(err)
	}
	old, next := r.b.send, r.b.keys
	r.b.out = nil
	if !r.b.r.NextTick().Equal(start.Add(session.RefuseAfter)) {
		t.Errorf("next tick of B after %v", r.b.r.NextTick().Sub(start))
	}
	r.a.out = nil
	r.advance(start.Add(session.RefuseAfter - 1).Sub(r.now))
	if r.a.over || r.b.over || len(next) != 2 || !r.a.r.Stuck(r.now) || !r.b.r.Stuck(r.now) {
		t.Error("over too early, or not stuck")
	}
	r.advance(1)
	if !r.a.over || !r.b.over || r.b.keys[old] != nil || len(r.b.keys) != 1 || len(r.a.keys) != 0 {
		t.Fatalf("after 180 s: over %t %t, %d and %d keys", r.a.over, r.b.over, len(r.a.keys), len(r.b.keys))
	}
	if len(r.a.idx.live) != 0 || !r.a.r.NextTick().IsZero() || !session.RekeyErased(r.a.r) {
		t.Errorf("A: indexes %v, next tick %v", r.a.idx.live, r.a.r.NextTick())
	}
	if !r.b.r.NextTick().Equal(start.Add(session.RekeyAfter + session.RefuseAfter)) {
		t.Errorf("next tick of B after %v", r.b.r.NextTick().Sub(start))
	}
	r.advance(session.RekeyAfter - 1)
	if len(r.b.keys) != 1 {
		t.Error("unconfirmed keys ended early")
	}
	r.advance(1)
	if len(r.b.keys) != 0 || len(r.b.idx.live) != 0 || !r.b.r.NextTick().IsZero() || !session.RekeyErased(r.b.r) {
		t.Errorf("B: %d keys, indexes %v, next tick %v", len(r.b.keys), r.b.idx.live, r.b.r.NextTick())
	}
	// Nothing begins any more.
	r.a.r.Begin(r.now)
	r.a.r.Tick(r.now)
	if len(r.a.r.Ready()) != 0 {
		t.Error("a dead session goes on")
	}
}

// A's packets under the new keys may be the first that B gets after its old ones
// are over: they bring it back.
func TestRekeyConfirmedLate(t *testing.T) {
	r := newRekeyPair(t, nil)
	r.advance(session.RekeyAfter + 59*time.Second)
	r.b.out = nil // B has begun too
	if r.deliver(r.a) != nil || r.deliver(r.b) != nil {
		t.Fatal("no rekey")
	}
	r.a.out = nil
	r.advance(2 * time.Second)
	if !r.b.over || r.a.over {
		t.Fatalf("over %t %t", r.a.over, r.b.over)
	}
	r.data(r.a)
	r.b.over = false
	r.data(r.b)
	r.same()
	if r.b.r.NextTick().Sub(r.now) != session.RekeyAfterB-2*time.Second {
		t.Errorf("next tick of B after %v", r.b.r.NextTick().Sub(r.now))
	}
}

// When A is silent B begins, 10 s later.
func TestRekeyByB(t *testing.T) {
	r := newRekeyPair(t, nil)
	start := r.now
	r.now = start.Add(session.RekeyAfterB - 1)
	r.b.r.Tick(r.now)
	if r.b.collect(t); len(r.b.out) != 0 {
		t.Fatal("B begins too early")
	}
	r.now = start.Add(session.RekeyAfterB)
	r.b.r.Tick(r.now)
	r.b.collect(t)
	if len(r.b.out) != 1 {
		t.Fatal("B does not begin")
	}
	if r.deliver(r.b) != nil {
		t.Fatal("A does not answer")
	}
	r.a.r.Tick(r.now) // it is A's time too, but it has answered
	r.a.collect(t)
	if len(r.a.out) != 1 {
		t.Errorf("A sends %d messages", len(r.a.out))
	}
	r.settle()
	r.data(r.b)
	r.data(r.a)
	r.same()
}

// When both begin, A's counts, whatever arrives first.
func TestRekeyGlare(t *testing.T) {
	for _, order := range []string{"ab", "ba", "b", "a"} {
		r := newRekeyPair(t, nil)
		r.now = r.now.Add(session.RekeyAfterB)
		r.a.r.Tick(r.now)
		r.b.r.Tick(r.now)
		r.a.collect(t)
		r.b.collect(t)
		if len(r.a.idx.live) != 2 || len(r.b.idx.live) != 2 {
			t.Fatalf("indexes %v %v", r.a.idx.live, r.b.idx.live)
		}
		oldR1 := r.b.out[0]
		for _, who := range order {
			if who == 'a' {
				if err := r.deliver(r.a); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := r.deliver(r.b); !refusedFor(err, "ours is under way") {
				t.Errorf("%s: A on B's R1: %v", order, err)
			}
			if order == "b" { // A's is lost and comes again
				r.a.out = nil
				r.advance(250 * time.Millisecond)
				r.b.out = nil
			}
		}
		if order == "a" {
			r.b.out = r.b.out[1:] // B's R1 is lost
		}
		r.settle()
		r.data(r.a)
		r.data(r.b)
		r.same()
		if len(r.a.idx.live) != 2 || len(r.b.idx.live) != 2 || len(r.a.keys) != 2 || len(r.b.keys) != 2 {
			t.Errorf("%s: indexes %v %v", order, r.a.idx.live, r.b.idx.live)
		}
		if err := r.give(r.b, oldR1); err != nil || len(r.a.out) != 0 { // much later, under the old keys
			t.Errorf("%s: an R1 of a rekey that is through: %v", order, err)
		}
	}
}

// So many packets ask for new keys at any age, but for one second.
func TestRekeyPackets(t *testing.T) {
	r := newRekeyPair(t, nil)
	limit := session.RekeyPackets(suites()[0])
	r.a.r.Sent(r.a.send, limit-1, r.now)
	r.a.r.Sent(r.a.send+99, limit, r.now) // other keys
	if r.a.collect(t); !r.a.r.NextTick().Equal(r.now.Add(session.RekeyAfter)) {
		t.Error("a rekey before the limit")
	}
	r.b.r.Sent(r.b.send, limit, r.now)
	if r.b.collect(t); len(r.b.out) != 0 || !r.b.r.NextTick().Equal(r.now.Add(time.Second)) {
		t.Errorf("%d messages, next tick after %v", len(r.b.out), r.b.r.NextTick().Sub(r.now))
	}
	r.advance(time.Second)
	r.b.r.Sent(r.b.send, limit+1, r.now)
	if r.b.collect(t); len(r.b.out) != 1 {
		t.Fatalf("%d messages at the limit", len(r.b.out))
	}
	r.settle()
	r.data(r.b)
	r.data(r.a)
	r.same()
	// The count is that of the keys: the new ones begin anew.
	if next := r.b.r.NextTick(); next.Sub(r.now) < session.OldKeysLive {
		t.Errorf("next tick after %v", next.Sub(r.now))
	}
	// At once after it is too soon for the other end.
	r.a.r.Begin(r.now)
	r.a.collect(t)
	if err := r.deliver(r.a); !refusedFor(err, "new") {
		t.Errorf("rekey of keys that are new: %v", err)
	}
	r.advance(time.Second)
	r.settle()
	r.data(r.a)
	r.data(r.b)
	r.same()
}

// Where no index is free the rekey waits, and harms nothing.
func TestRekeyWithoutIndex(t *testing.T) {
	r := newRekeyPair(t, nil)
	r.a.idx.full, r.b.idx.full = true, true
	r.advance(session.RekeyAfter)
	if len(r.a.out) != 0 || !r.a.r.NextTick().Equal(r.now.Add(time.Second)) {
		t.Fatalf("%d messages, next tick after %v", len(r.a.out), r.a.r.NextTick().Sub(r.now))
	}
	r.a.idx.full = false
	r.advance(time.Second)
	if err := r.deliver(r.a); !refusedFor(err, "no index") || len(r.b.out) != 0 || len(r.b.keys) != 1 {
		t.Fatalf("B without an index: %v", err)
	}
	r.b.idx.full = false
	r.advance(time.Second)
	r.settle()
	r.data(r.a)
	r.data(r.b)
	r.same()
}

func TestRekeyClose(t *testing.T) {
	r := newRekeyPair(t, nil)
	r.advance(session.RekeyAfter)
	if err := r.deliver(r.a); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*rekeyEnd{r.a, r.b} {
		if session.RekeyErased(e.r) {
			t.Error("erased before")
		}
		e.r.Close()
		e.r.Close()
		e.r.Tick(r.now.Add(time.Hour))
		if !session.RekeyErased(e.r) || !e.r.NextTick().IsZero() || len(e.idx.live) != len(e.keys) {
			t.Errorf("after Close: next tick %v, %d indexes for %d keys", e.r.NextTick(), len(e.idx.live), len(e.keys))
		}
		e.r.Begin(r.now)
		if e.r.Confirmed(e.send, r.now); len(e.idx.live) != len(e.keys) {
			t.Error("a closed one goes on")
		}
	}
	if r.b.r.Current() != r.b.send {
		t.Error("Current is not the keys in use")
	}
}

// Whatever the network loses, repeats and delays for an hour: no packet fails to
// open that a live end sends, keys are replaced in time, and nothing is left.
func TestRekeyLossy(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 3))
		r := newRekeyPair(t, nil)
		type flight struct {
			to  *rekeyEnd
			at  uint32 // the keys under which it opens
			o   session.RekeyOutput
			due time.Time
		}
		var air []flight
		generations := 0
		last := r.a.send
		loss := []int{2, 4, 10}[seed%3]
		for range 3600 * 4 {
			for _, e := range []*rekeyEnd{r.a, r.b} {
				for _, o := range e.out {
					for range 1 + rng.IntN(2) {
						if rng.IntN(loss) != 0 {
							air = append(air, flight{r.other(e), r.arrives(e, o.On), o, r.now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)})
						}
					}
				}
				e.out = nil
				if e.over {
					t.Fatalf("seed %d: over after %d generations", seed, generations)
				}
				if rng.IntN(8) == 0 {
					r.data(e)
				} else if r.arrives(e, e.send) == 0 {
					t.Fatalf("seed %d: what an end seals does not open", seed)
				}
			}
			for i := 0; i < len(air); {
				f := air[i]
				if f.due.After(r.now) {
					i++
					continue
				}
				air = append(air[:i], air[i+1:]...)
				if f.to.keys[f.at] == nil {
					continue
				}
				for _, b := range f.o.Send {
					_ = f.to.r.Step(f.at, b, r.now)
					f.to.collect(t)
				}
			}
			if r.a.send != last {
				last = r.a.send
				generations++
			}
			r.advance(250 * time.Millisecond)
			if len(r.a.keys) > 3 || len(r.b.keys) > 3 {
				t.Fatalf("seed %d: %d and %d keys", seed, len(r.a.keys), len(r.b.keys))
			}
		}
		if generations < 20 || generations > 31 {
			t.Errorf("seed %d: %d generations in an hour", seed, generations)
		}
	}
}
