// SPDX-License-Identifier: Apache-2.0

package path

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

func TestNames(t *testing.T) {
	for m := range numModes {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("ParseMode(%q) = %v, %v", m, got, err)
		}
	}
	if m, err := ParseMode(""); m != DefaultMode || err != nil {
		t.Errorf(`ParseMode("") = %v, %v`, m, err)
	}
	if _, err := ParseMode("bond"); err == nil {
		t.Error("ParseMode took a name that is none")
	}
	for got, want := range map[string]string{
		Direct.String(): "direct", Turn.String(): "turn", Peer.String(): "peer-relay", Hub.String(): "hub-relay", Kind(9).String(): "kind(9)",
		StateNew.String(): "new", StateProbing.String(): "probing", StateValid.String(): "valid", StateSuspect.String(): "suspect",
		StateDead.String(): "dead", State(9).String(): "state(9)", Mode(99).String(): "mode(99)",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// How many probes a second each demand may cost.
func TestProbeRates(t *testing.T) {
	for _, tc := range []struct {
		name  string
		world func(*testing.T, uint64) *world
		d     Demand
		max   float64 // a second, of one side
	}{
		{"bond", bond, Idle, 0.2},
		{"bond", bond, Warm, 3},
		{"bond", bond, Active, 42},
		{"single", single, Idle, 0.2},
		{"single", single, Warm, 1.5},
		{"single", single, Active, 11},
	} {
		w := tc.world(t, 1)
		w.run(3 * time.Second)
		w.demand(tc.d)
		w.run(20 * time.Second)
		count := func() (n int) {
			for _, l := range w.a().probes {
				n += len(l)
			}
			return n
		}
		from := count()
		w.run(5 * time.Minute)
		if got := float64(count()-from) / 300; got > tc.max {
			t.Errorf("%s, demand %d: %.2f probes a second, want %.2f at most", tc.name, tc.d, got, tc.max)
		}
	}
}

// A peer with 32 candidates of which none answers, on four sockets.
func TestSilentCandidates(t *testing.T) {
	s, now := New(Config{}), start
	var l []Local
	for i := range 4 {
		l = append(l, udp(i, uint8(i+1)))
	}
	s.SetLocals(l, now)
	for i := range byte(40) {
		s.AddRemote(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 1), []string{"relay", "srflx", "host"}[i%3], now)
	}
	p, _, _ := ready(s)
	if len(p) != burst {
		t.Errorf("%d probes at once, want %d", len(p), burst)
	}
	for _, o := range p[:40] {
		if o.ID.Remote.Addr().As4()[3]%3 != 2 {
			t.Errorf("%v was probed before the hosts", o.ID)
		}
	}
	per := map[int64]int{}
	total := 0
	for end := now.Add(40 * time.Second); now.Before(end); {
		next := s.NextTick()
		if next.IsZero() || next.After(end) {
			break
		}
		if !next.After(now) {
			t.Fatal("busy loop")
		}
		now = next
		s.Tick(now)
		p, _, _ = ready(s)
		per[now.Unix()] += len(p)
		total += len(p)
	}
	if first := per[start.Unix()] + burst; first < 32*4 {
		t.Errorf("%d probes in the first second, want each pair asked", first)
	}
	for sec, n := range per {
		if n > 101+burst*int(start.Unix()+1-min(sec, start.Unix()+1)) {
			t.Errorf("%d probes in second %d", n, sec-start.Unix())
		}
	}
	if total < 32*4*len(findGaps)/2 || len(s.paths) > MaxPaths {
		t.Errorf("%d probes of %d paths", total, len(s.paths))
	}
	for _, st := range s.Status(now) {
		if st.State != StateDead || st.Why != "no answer" {
			t.Errorf("%v is %s: %s", st.ID, st.State, st.Why)
		}
	}
	if !s.NextTick().IsZero() || s.Usable() {
		t.Errorf("next tick %v, want none", s.NextTick())
	}
	s.ResetRemotes(now)
	if n := len(s.Status(now)); n != 0 {
		t.Errorf("%d paths after the reset", n)
	}
	s.AddRemote(ap("192.0.2.200:1"), "host", now)
	if p, _, _ = ready(s); len(p) != 4 {
		t.Errorf("%d probes of a fresh candidate, want 4", len(p))
	}
}

// Candidates that fill all places do not keep out an address from which the peer
// really sends.
func TestFullOfCandidates(t *testing.T) {
	s, now := New(Config{}), start
	s.SetLocals([]Local{udp(0, 1), udp(1, 2), udp(2, 3), udp(3, 4), udp(4, 5)}, now)
	for i := range byte(32) {
		s.AddRemote(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 1), "host", now)
	}
	if len(s.paths) != MaxPaths {
		t.Fatalf("%d paths", len(s.paths))
	}
	s.Heard(attacker, now, now)
	_, c, _ := ready(s)
	if len(c) != 1 || len(s.paths) != MaxPaths {
		t.Fatalf("%d challenges, %d paths", len(c), len(s.paths))
	}
	s.Responded(attacker, c[0].Challenge, now)
	if !s.Usable() {
		t.Error("not usable")
	}
}

// fuzzOps runs operations that bytes describe against a Set.
func fuzzOps(t *testing.T, ops []byte) {
	s := New(Config{Rand: zeros{}})
	now := start
	var sentOut []Output
	var locals []Local
	arg := func() byte {
		if len(ops) == 0 {
			return 0
		}
		b := ops[0]
		ops = ops[1:]
		return b
	}
	addr := func() netip.AddrPort {
		b := arg()
		if b&0x40 != 0 {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 15: b & 15}), 1)
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, b & 31}), uint16(b>>7))
	}
	id := func() ID {
		if b := arg(); b&1 != 0 && len(s.paths) > 0 {
			return s.paths[int(b>>1)%len(s.paths)].id
		}
		return ID{int(arg() & 7), addr()}
	}
	for len(ops) > 0 {
		switch op := arg(); op % 20 {
		case 0, 1:
			b := arg()
			l := Local{Bind: int(b & 7), Kind: Kind(b>>3) % numKinds, Uplink: arg() & 3, Fallback: b&0x40 != 0, Metered: b&0x80 != 0, Spent: op&0x80 != 0}
			l.V4, l.V6 = l.Kind <= Turn, l.Kind <= Turn
			locals = slices.DeleteFunc(locals, func(o Local) bool { return o.Bind == l.Bind })
			if op&0x40 == 0 {
				locals = append(locals, l)
			}
			s.SetLocals(locals, now)
		case 2, 3:
			s.AddRemote(addr(), []string{"host", "srflx", "prflx", "relay"}[arg()&3], now)
		case 4:
			s.ResetRemotes(now)
		case 5:
			s.AddPath(id(), now)
		case 6:
			s.Heard(id(), now.Add(-time.Duration(arg())*time.Millisecond), now)
		case 7:
			s.Probed(id(), wire.Probe{Flags: arg() & 1, Uplink: arg() & 3}, now)
		case 8:
			s.Acked(id(), wire.ProbeAck{Probe: wire.Probe{Seq: uint32(arg())}, Hold: uint32(arg()), Size: 1382}, now, now)
		case 9:
			s.Responded(id(), wire.PathChallenge{}, now)
		case 10:
			s.Lost(id(), now)
		case 11:
			s.TooBig(id(), now)
		case 12:
			s.Demand(Demand(arg()%3), now)
		case 13:
			s.Moved(arg()&3, now)
		case 14, 15, 16: // an answer to what was sent
			if n := len(sentOut); n > 0 {
				o := sentOut[n-1-int(arg())%min(n, 64)]
				if o.Kind == SendProbe {
					s.Acked(o.ID, wire.ProbeAck{Probe: o.Probe, Size: uint16(max(o.Size, 48))}, now, now)
				} else {
					s.Responded(o.ID, o.Challenge, now)
				}
			}
		case 17:
			now = now.Add(time.Duration(arg()) * time.Second)
		default:
			now = now.Add(time.Duration(arg()) * time.Millisecond)
		}
		s.Tick(now)
		for _, o := range s.Ready() {
			if o.Kind == UseWays {
				checkWays(t, s, o.Ways)
			} else {
				sentOut = append(sentOut, o)
			}
		}
		sentOut = sentOut[max(0, len(sentOut)-256):]
		check(t, s, now)
		if arg()&3 == 0 {
			if next := s.NextTick(); !next.IsZero() {
				now = next
			}
		}
	}
}

func checkWays(t *testing.T, s *Set, w *Ways) {
	t.Helper()
	if len(w.Critical) > MaxCopies || len(w.Telemetry) > 2 && s.modes[1] == RedundantAdaptive {
		t.Fatalf("too many copies: %+v", w)
	}
	for _, l := range [][]ID{w.Critical, w.Telemetry, w.Bulk} {
		seen := map[ID]bool{}
		for _, id := range l {
			p := s.byID[id]
			if p == nil || p.state != StateValid && p.state != StateSuspect || !p.proven || seen[id] {
				t.Fatalf("ways use %v: %+v", id, p)
			}
			seen[id] = true
		}
	}
	if (len(w.Critical) == 0) != (len(w.Bulk) == 0) || (len(w.Critical) == 0) != (len(w.Telemetry) == 0) {
		t.Fatalf("a lane without ways: %+v", w)
	}
	if len(w.Critical) > 0 && (w.MTU < 1280-48-relayHeaders || w.MTU > 1500) {
		t.Fatalf("MTU %d", w.MTU)
	}
}

func check(t *testing.T, s *Set, now time.Time) {
	t.Helper()
	if len(s.paths) > MaxPaths || len(s.remotes) > MaxRemotes || len(s.byID) != len(s.paths) {
		t.Fatalf("%d paths, %d known, %d remotes", len(s.paths), len(s.byID), len(s.remotes))
	}
	unproven, usable := 0, false
	for _, p := range s.paths {
		if p.chal != nil {
			unproven++
		}
		usable = usable || p.state == StateValid || p.state == StateSuspect
		if s.byID[p.id] != p || p.gone {
			t.Fatalf("path %v is not where it should be", p.id)
		}
	}
	if unproven > MaxUnproven {
		t.Fatalf("%d unproven", unproven)
	}
	if usable != (len(s.use[packet.Critical]) > 0) || usable != s.Usable() {
		t.Fatalf("usable %v, but Critical has %d ways", usable, len(s.use[packet.Critical]))
	}
	for _, use := range s.use {
		for _, p := range use {
			if p.gone || p.state != StateValid && p.state != StateSuspect {
				t.Fatalf("%v is in use and %s", p.id, p.state)
			}
		}
	}
	if next := s.NextTick(); !next.IsZero() && !next.After(now) {
		t.Fatalf("next tick %v, now %v", next, now)
	}
	s.Status(now)
}

func FuzzSet(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(randomOps(seed, 400))
	}
	f.Fuzz(fuzzOps)
}

func randomOps(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b
}

func TestRandomOperations(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { fuzzOps(t, randomOps(seed, 4000)) })
	}
}

// settledBond is a bond that runs; heard keeps both paths alive.
func settledBond(tb testing.TB) (*Set, time.Time) {
	s, now := New(Config{}), start
	s.SetLocals([]Local{udp(1, 1), udp(2, 2)}, now)
	s.AddPath(ID{1, ap(b1)}, now)
	s.AddPath(ID{2, ap(b2)}, now)
	s.Demand(Active, now)
	for range 500 {
		now = now.Add(10 * time.Millisecond)
		s.Tick(now)
		serve(s, now)
	}
	if len(s.use[0]) != 2 || !s.bond {
		tb.Fatal("not bonded")
	}
	return s, now
}

// serve answers all probes.
func serve(s *Set, now time.Time) {
	for _, o := range s.Ready() {
		if o.Kind == SendProbe && (o.ID == ID{1, ap1} || o.ID == ID{2, ap2}) {
			s.Acked(o.ID, wire.ProbeAck{Probe: o.Probe, Size: uint16(max(o.Size, 48))}, now, now)
		}
	}
}

var ap1, ap2 = ap(b1), ap(b2)

func TestSteadyAllocs(t *testing.T) {
	s, now := settledBond(t)
	n := testing.AllocsPerRun(2000, func() {
		now = now.Add(10 * time.Millisecond)
		s.Heard(ID{1, ap1}, now, now)
		s.Heard(ID{2, ap2}, now, now)
		s.Tick(now)
		serve(s, now)
		s.NextTick()
	})
	if n >= 0.5 {
		t.Errorf("%v allocations a tick, want none", n)
	}
}

func BenchmarkTickBond(b *testing.B) {
	s, now := settledBond(b)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(50 * time.Millisecond)
		s.Tick(now)
		serve(s, now)
	}
}

func BenchmarkTickIdle(b *testing.B) {
	s, now := settledBond(b)
	s.Demand(Idle, now)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Second)
		s.Tick(now)
		serve(s, now)
	}
}

func BenchmarkTickSilentCandidates(b *testing.B) {
	s, now := settledBond(b)
	for i := range byte(30) {
		s.AddRemote(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 1), "host", now)
	}
	for range 500 {
		now = now.Add(100 * time.Millisecond)
		s.Tick(now)
		serve(s, now)
	}
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(50 * time.Millisecond)
		s.Tick(now)
		serve(s, now)
	}
}
