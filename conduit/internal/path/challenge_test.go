// SPDX-License-Identifier: Apache-2.0

package path

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// ready returns what the Set wants, by kind.
func ready(s *Set) (probes, challenges []Output, ways *Ways) {
	for out := s.Ready(); len(out) > 0; out = s.Ready() {
		for _, o := range out {
			switch o.Kind {
			case SendProbe:
				probes = append(probes, o)
			case SendChallenge:
				challenges = append(challenges, o)
			case UseWays:
				ways = o.Ways
			}
		}
	}
	return probes, challenges, ways
}

// steady is a Set with one valid path, to b1.
func steady(t *testing.T, r io.Reader) (*Set, time.Time) {
	t.Helper()
	s, now := New(Config{Rand: r}), start
	s.SetLocals([]Local{udp(1, 1), udp(2, 2)}, now)
	id := ID{1, ap(b1)}
	s.AddPath(id, now)
	p, _, _ := ready(s)
	for _, o := range p {
		if o.ID == id {
			now = now.Add(20 * time.Millisecond)
			s.Acked(id, wire.ProbeAck{Probe: o.Probe, Size: 48}, now, now)
		}
	}
	if _, _, w := ready(s); w == nil || !slices.Equal(w.Critical, []ID{id}) {
		t.Fatalf("ways %+v, want %v", w, id)
	}
	return s, now
}

var attacker = ID{1, ap("203.0.113.66:666")}

// drive lets time pass in small steps and collects.
func drive(s *Set, now *time.Time, d time.Duration) (probes, challenges []Output, ways *Ways) {
	for end := now.Add(d); now.Before(end); {
		*now = now.Add(10 * time.Millisecond)
		s.Tick(*now)
		p, c, w := ready(s)
		probes, challenges = append(probes, p...), append(challenges, c...)
		if w != nil {
			ways = w
		}
	}
	return probes, challenges, ways
}

func uses(w *Ways, id ID) bool {
	return w != nil && (slices.Contains(w.Critical, id) || slices.Contains(w.Telemetry, id) || slices.Contains(w.Bulk, id))
}

// An authenticated packet from a new address moves nothing, and earns it no more
// than three times its bytes.
func TestStrangerIsChallenged(t *testing.T) {
	s, now := steady(t, nil)
	if s.Heard(attacker, now, now) {
		t.Error("known at once")
	}
	p, c, w := drive(s, &now, 10*time.Second)
	if len(c) == 0 || len(c)*price > earned {
		t.Errorf("%d challenges for one packet, want 1 or 2", len(c))
	}
	for _, o := range p {
		if o.ID == attacker {
			t.Fatal("probed an address that proved nothing")
		}
	}
	if uses(w, attacker) {
		t.Fatal("moved to an address that proved nothing")
	}
	for _, st := range s.Status(now) {
		if st.ID == attacker {
			t.Errorf("still kept after 10 s: %s", st.State)
		}
	}
}

func TestResponseProves(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(s *Set, c Output, now time.Time)
		valid  bool
	}{
		"right":     {func(s *Set, c Output, now time.Time) { s.Responded(c.ID, c.Challenge, now) }, true},
		"elsewhere": {func(s *Set, c Output, now time.Time) { s.Responded(ID{1, ap(b1)}, c.Challenge, now) }, false},
		"other socket": {func(s *Set, c Output, now time.Time) {
			s.Heard(ID{2, c.ID.Remote}, now, now)
			s.Responded(ID{2, c.ID.Remote}, c.Challenge, now)
		}, false},
		"one bit": {func(s *Set, c Output, now time.Time) {
			c.Challenge[7] ^= 1
			s.Responded(c.ID, c.Challenge, now)
		}, false},
		"zeros": {func(s *Set, c Output, now time.Time) { s.Responded(c.ID, wire.PathChallenge{}, now) }, false},
		"foreign probe": {func(s *Set, c Output, now time.Time) {
			s.Acked(c.ID, wire.ProbeAck{Probe: wire.Probe{Seq: 1}}, now, now)
		}, false},
		"probe of zero": {func(s *Set, c Output, now time.Time) { s.Acked(c.ID, wire.ProbeAck{}, now, now) }, false},
		"its own probe": {func(s *Set, c Output, now time.Time) {
			s.Probed(c.ID, wire.Probe{Seq: 9, Uplink: 1, Flags: wire.ProbeMoved}, now)
		}, false},
		"late": {func(s *Set, c Output, now time.Time) {
			s.Tick(now.Add(9 * time.Second))
			s.Responded(c.ID, c.Challenge, now.Add(9*time.Second))
		}, false},
		"after more data": {func(s *Set, c Output, now time.Time) { s.Heard(c.ID, now, now); s.Responded(c.ID, c.Challenge, now) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, now := steady(t, nil)
			s.Heard(attacker, now, now)
			_, c, _ := ready(s)
			if len(c) != 1 || c[0].ID != attacker || c[0].Challenge == (wire.PathChallenge{}) {
				t.Fatalf("challenges %+v", c)
			}
			now = now.Add(20 * time.Millisecond)
			tc.answer(s, c[0], now)
			for _, st := range s.Status(now) {
				if st.ID == c[0].ID && (st.State == StateValid) != tc.valid || st.ID == (ID{2, c[0].ID.Remote}) && st.State == StateValid {
					t.Errorf("%v is %s", st.ID, st.State)
				}
			}
		})
	}
}

// Before the challenge was sent nobody can know it, whatever the random source.
func TestResponseBeforeChallenge(t *testing.T) {
	s, now := steady(t, zeros{})
	s.Heard(attacker, now, now)
	s.Responded(attacker, wire.PathChallenge{}, now)
	for _, st := range s.Status(now) {
		if st.ID == attacker && st.State == StateValid {
			t.Error("valid without a challenge")
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestNoRandomness(t *testing.T) {
	s, now := steady(t, io.MultiReader(bytes.NewReader([]byte{1, 2, 3}), failing{}))
	s.Heard(attacker, now, now)
	if _, c, _ := drive(s, &now, time.Second); len(c) > 0 {
		t.Error("challenged without randomness")
	}
	if st := s.Status(now); len(st) != 2 {
		t.Errorf("%d paths, want the two of the candidate", len(st))
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("no") }

func TestChallengeIsRepeated(t *testing.T) {
	s, now := steady(t, nil)
	var at []time.Duration
	from := now
	var data wire.PathChallenge
	for range 600 {
		now = now.Add(10 * time.Millisecond)
		s.Heard(attacker, now, now)
		s.Tick(now)
		_, c, _ := ready(s)
		for _, o := range c {
			if now.Sub(from) < challengeLife {
				at = append(at, now.Sub(from).Round(10*time.Millisecond))
				if len(at) > 1 && o.Challenge != data {
					t.Error("another challenge to the same address while it waits")
				}
				data = o.Challenge
			}
		}
	}
	want := []time.Duration{10, 110, 310, 710, 1510, 3110}
	for i := range want {
		want[i] *= time.Millisecond
	}
	if !slices.Equal(at, want) {
		t.Errorf("sent at %v, want %v", at, want)
	}
}

// Credit is bounded, however much came before.
func TestChallengeCredit(t *testing.T) {
	var c challenge
	for range 1000 {
		c.earn()
	}
	if c.credit != maxCredit {
		t.Errorf("credit %d, want %d", c.credit, maxCredit)
	}
}

// At most three addresses wait at once; a new one takes the place of one that had
// its time.
func TestUnprovenBound(t *testing.T) {
	s, now := steady(t, nil)
	from := func(i byte) ID { return ID{1, netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, i}), 7)} }
	for i := range byte(10) {
		s.Heard(from(i), now, now)
	}
	_, c, _ := ready(s)
	var got []ID
	for _, o := range c {
		got = append(got, o.ID)
	}
	if !slices.Equal(got, []ID{from(0), from(1), from(2)}) {
		t.Errorf("challenged %v, want the first three", got)
	}
	now = now.Add(evictAfter - time.Millisecond)
	s.Heard(from(20), now, now)
	if _, c, _ = ready(s); slices.ContainsFunc(c, func(o Output) bool { return o.ID == from(20) }) {
		t.Error("evicted too early")
	}
	now = now.Add(time.Millisecond)
	if s.Heard(from(3), now, now) {
		t.Error("known at once")
	}
	if !s.Heard(from(3), now, now) || s.Heard(from(0), now, now) {
		t.Error("the oldest did not make room")
	}
	n := 0
	for _, st := range s.Status(now) {
		if st.State == StateProbing && st.ID.Remote.Addr().As4()[0] == 203 {
			n++
		}
	}
	if n != MaxUnproven {
		t.Errorf("%d wait, want %d", n, MaxUnproven)
	}
}

func TestStrangerRefused(t *testing.T) {
	s, now := steady(t, nil)
	for _, id := range []ID{{77, attacker.Remote}, {1, netip.AddrPort{}}} {
		s.Heard(id, now, now)
		s.Probed(id, wire.Probe{Seq: 1}, now)
	}
	if _, c, _ := ready(s); len(c) > 0 {
		t.Errorf("challenged %v", c)
	}
}

// A candidate that comes later says the same as a challenge, and more: the
// address may be probed.
func TestCandidateReplacesChallenge(t *testing.T) {
	s, now := steady(t, nil)
	s.Heard(attacker, now, now)
	ready(s)
	now = now.Add(50 * time.Millisecond)
	s.AddRemote(attacker.Remote, "srflx", now)
	p, c, _ := drive(s, &now, time.Second)
	if len(c) > 0 || !slices.ContainsFunc(p, func(o Output) bool { return o.ID == attacker }) {
		t.Errorf("%d challenges; probed: %v", len(c), p)
	}
}

// A proven address is paired with our other sockets too, and probed.
func TestProvenAddressBecomesCandidate(t *testing.T) {
	s, now := steady(t, nil)
	s.Heard(attacker, now, now)
	_, c, _ := ready(s)
	s.Responded(attacker, c[0].Challenge, now)
	p, _, _ := ready(s)
	for _, id := range []ID{attacker, {2, attacker.Remote}} {
		if !slices.ContainsFunc(p, func(o Output) bool { return o.ID == id }) {
			t.Errorf("%v was not probed", id)
		}
	}
}

// Only addresses of the uplink that moved are given up, and only by a proven one.
func TestMovedSupersedes(t *testing.T) {
	s, now := steady(t, nil)
	old := ID{1, ap(b1)}
	s.Probed(old, wire.Probe{Seq: 1, Uplink: 3}, now)
	other := ID{2, ap(b1)}
	s.Probed(other, wire.Probe{Seq: 2, Uplink: 4}, now)
	p, _, _ := drive(s, &now, 200*time.Millisecond)
	i := slices.IndexFunc(p, func(o Output) bool { return o.ID == other })
	if i < 0 {
		t.Fatal("no probe on the other path")
	}
	s.Acked(other, wire.ProbeAck{Probe: p[i].Probe, Size: 48}, now, now)
	now = now.Add(50 * time.Millisecond)
	s.Heard(attacker, now, now)
	s.Probed(attacker, wire.Probe{Seq: 3, Uplink: 3, Flags: wire.ProbeMoved}, now)
	_, c, _ := ready(s)
	state := func(id ID) State {
		for _, st := range s.Status(now) {
			if st.ID == id {
				return st.State
			}
		}
		return StateNew
	}
	if state(old) != StateValid {
		t.Fatalf("old path %s before the new one was proven", state(old))
	}
	now = now.Add(20 * time.Millisecond)
	s.Responded(attacker, c[0].Challenge, now)
	if state(attacker) != StateValid || state(old) != StateDead || state(other) != StateValid {
		t.Errorf("new %s, old %s, other uplink %s; want valid, dead, valid", state(attacker), state(old), state(other))
	}
}
