// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// states are machines in each state of the handshake, with a message that each
// waits for.
func states(t testing.TB) map[string]func() (p *pair, e *end, genuine []byte) {
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	return map[string]func() (*pair, *end, []byte){
		"idle lower": func() (*pair, *end, []byte) {
			p := newPair(t, nil)
			p.hi.connect(p.now)
			return p, p.lo, p.hi.take()
		},
		"idle higher": func() (*pair, *end, []byte) {
			p := newPair(t, nil)
			p.lo.connect(p.now)
			return p, p.hi, p.lo.take()
		},
		"invited": func() (*pair, *end, []byte) {
			p := newPair(t, nil)
			p.lo.connect(p.now)
			must(p.hi.step(p.lo.take(), p.now))
			return p, p.lo, p.hi.take()
		},
		"offered": func() (*pair, *end, []byte) {
			p := newPair(t, nil)
			p.lo.connect(p.now)
			must(p.hi.step(p.lo.take(), p.now))
			must(p.lo.step(p.hi.take(), p.now))
			return p, p.hi, p.lo.take()
		},
		"established": func() (*pair, *end, []byte) {
			p := newPair(t, nil)
			p.lo.connect(p.now)
			p.run()
			b, err := p.lo.est[0].SealCandidates([]string{"x"}, wire.CandidatesDone)
			must(err)
			return p, p.hi, b
		},
	}
}

var stateNames = []string{"idle lower", "idle higher", "invited", "offered", "established"}

// FuzzStates gives bytes to a machine in each state: as they are, or laid over
// the message that it waits for. Only that very message may move it.
func FuzzStates(f *testing.F) {
	makers := states(f)
	type fixture struct {
		p       *pair
		e       *end
		genuine []byte
	}
	fixtures := map[string]*fixture{}
	for _, n := range stateNames {
		p, e, b := makers[n]()
		fixtures[n] = &fixture{p, e, b}
	}
	for i := range stateNames {
		f.Add(byte(i), false, uint16(0), []byte{1})
		f.Add(byte(i), true, uint16(20), []byte{1, 2, 3})
		f.Add(byte(i), false, uint16(0), fixtures[stateNames[i]].genuine[:40])
	}
	f.Fuzz(func(t *testing.T, state byte, overlay bool, at uint16, b []byte) {
		name := stateNames[int(state)%len(stateNames)]
		x := fixtures[name]
		msg := b
		if overlay {
			msg = bytes.Clone(x.genuine)
			for i, v := range b {
				msg[(int(at)+i)%len(msg)] ^= v
			}
		}
		if bytes.Equal(msg, x.genuine) {
			return
		}
		est, cands, live := len(x.e.est), len(x.e.cands), len(x.e.idx.live)
		if err := x.e.step(msg, x.p.now); err == nil {
			t.Errorf("%s took %x", name, msg)
		}
		if len(x.e.est) != est || len(x.e.cands) != cands || len(x.e.idx.live) != live || len(x.e.out) != 0 || len(x.e.failed) != 0 {
			t.Errorf("%s was moved by %x", name, msg)
		}
	})
}

// script runs two machines over a hub that does what ops says: deliver, drop,
// duplicate, hold back, change and mix up messages, let time pass, and make both
// ends connect, cancel or hear from the hub.
func script(t testing.TB, ops []byte) {
	p := newPair(t, nil)
	ends := [2]*end{p.lo, p.hi}
	var old [2][][]byte // all that was ever sent to an end
	next := func(i *int) byte {
		if *i >= len(ops) {
			return 0
		}
		v := ops[*i]
		*i++
		return v
	}
	for i := 0; i < len(ops); {
		op := next(&i)
		side := int(op >> 7)
		from, to := ends[side], ends[1-side]
		for _, e := range ends {
			if len(e.out) > 64 {
				e.out = e.out[32:]
			}
		}
		if len(old[side]) > 64 {
			old[side] = old[side][32:]
		}
		switch op & 15 {
		case 0, 1, 2, 3: // deliver the oldest
			if len(from.out) > 0 {
				b := from.take()
				old[side] = append(old[side], b)
				_ = to.step(b, p.now)
			}
		case 4: // lose it
			if len(from.out) > 0 {
				old[side] = append(old[side], from.take())
			}
		case 5: // replay anything
			if n := len(old[side]); n > 0 {
				_ = to.step(old[side][int(next(&i))%n], p.now)
			}
		case 6: // change the oldest and keep the genuine one
			if len(from.out) > 0 {
				b := bytes.Clone(from.out[0])
				at := (int(next(&i))<<8 | int(next(&i))) % len(b)
				v := next(&i)
				if v == 0 {
					v = 1
				}
				b[at] ^= v
				est := len(to.est)
				if err := to.step(b, p.now); err == nil || len(to.est) != est {
					t.Fatalf("a changed message was taken: %x", b)
				}
			}
		case 7: // splice two messages
			if n := len(old[side]); n > 1 {
				x, y := old[side][int(next(&i))%n], old[side][int(next(&i))%n]
				cut := int(next(&i)) % min(len(x), len(y))
				_ = to.step(append(bytes.Clone(x[:cut]), y[cut:]...), p.now)
			}
		case 8: // mix up the order
			if n := len(from.out); n > 1 {
				k := int(next(&i)) % n
				from.out[0], from.out[k] = from.out[k], from.out[0]
			}
		case 9: // back at its sender
			if len(from.out) > 0 {
				_ = from.step(from.out[0], p.now)
			}
		case 10:
			p.now = p.now.Add(time.Duration(next(&i)) * 100 * time.Millisecond)
			p.lo.tick(p.now)
			p.hi.tick(p.now)
		case 11, 12:
			from.connect(p.now)
		case 13:
			from.m.Undeliverable([]string{"offline", "busy"}[next(&i)&1])
			from.collect()
		case 14:
			from.m.Cancel()
		case 15:
			if n := len(from.est); n > 0 {
				b, err := from.est[n-1].SealCandidates([]string{"c"}, wire.CandidateFlags(op>>4&3))
				if err != nil {
					t.Fatal(err)
				}
				from.out = append(from.out, b)
			}
		}
		invariants(t, p)
	}
	// Honest from now on, both come to terms.
	p.now = p.now.Add(time.Minute)
	p.lo.tick(p.now)
	p.hi.tick(p.now)
	p.lo.out, p.hi.out = nil, nil
	p.hi.connect(p.now)
	p.run()
	p.agreed()
	p.lo.m.Close()
	p.hi.m.Close()
	for _, e := range ends {
		if len(e.idx.live) != len(e.est) {
			t.Fatalf("%d indexes for %d sessions after Close", len(e.idx.live), len(e.est))
		}
	}
}

// invariants hold at any time, whatever the hub does.
func invariants(t testing.TB, p *pair) {
	t.Helper()
	// A session of B has its half at A, with the same keys; one of A may still
	// wait for its confirm.
	halves := map[wire.SID]*session.Established{}
	for _, a := range p.lo.est {
		if halves[a.SID] != nil {
			t.Fatal("a sid made two sessions of A")
		}
		halves[a.SID] = a
	}
	seen := map[wire.SID]bool{}
	for _, b := range p.hi.est {
		a := halves[b.SID]
		if a == nil || seen[b.SID] {
			t.Fatal("B has a session that A does not have, or twice")
		}
		seen[b.SID] = true
		if a.Secrets.Send != b.Secrets.Recv || a.Secrets.Recv != b.Secrets.Send || a.LocalIndex != b.RemoteIndex || a.RemoteIndex != b.LocalIndex {
			t.Fatal("the halves of a session differ")
		}
	}
	for i, e := range []*end{p.lo, p.hi} {
		if n := len(e.idx.live) - len(e.est); n < 0 || n > []int{2, 3}[i] {
			t.Fatalf("end %d has %d attempts open", i, n)
		}
		if e.m.Connecting() && e.m.NextTick().IsZero() {
			t.Fatalf("end %d waits for nothing", i)
		}
	}
}

// FuzzScript is the same by any sequence of operations.
func FuzzScript(f *testing.F) {
	f.Add([]byte{11, 0, 0x80, 0})                                       // a handshake
	f.Add([]byte{0x8b, 0x80, 0, 0x80, 0})                               // by a knock
	f.Add([]byte{11, 6, 1, 2, 3, 0, 0x86, 0, 40, 1, 0x80, 5, 0, 0, 15}) // changed and replayed
	f.Add([]byte{11, 10, 10, 0, 0, 0x80, 0x80, 0, 0, 10, 60, 11, 0})    // late
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) > 400 {
			return
		}
		script(t, ops)
	})
}

// Many random scripts are run on every test, without a fuzzer.
func TestScripts(t *testing.T) {
	n := uint64(60)
	if testing.Short() {
		n = 15
	}
	for seed := range n {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			ops := make([]byte, 300)
			for i := range ops {
				ops[i] = byte(rng.Uint32())
			}
			script(t, ops)
		})
	}
}

// Whatever the hub does to the messages, the ends agree in the end or fail, and
// no index is lost.
func TestLossyHub(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p := newPair(t, nil)
		start := p.now
		p.lo.connect(p.now)
		p.hi.connect(p.now)
		for p.now.Sub(start) < 20*time.Second {
			for _, ends := range [][2]*end{{p.lo, p.hi}, {p.hi, p.lo}} {
				from, to := ends[0], ends[1]
				rng.Shuffle(len(from.out), func(i, j int) { from.out[i], from.out[j] = from.out[j], from.out[i] })
				for _, b := range from.out {
					switch rng.IntN(6) {
					case 0: // lost
					case 1: // twice
						_ = to.step(b, p.now)
						_ = to.step(b, p.now)
					case 2: // changed
						bad := bytes.Clone(b)
						bad[rng.IntN(len(bad))] ^= byte(1 + rng.IntN(255))
						_ = to.step(bad, p.now)
					default:
						_ = to.step(b, p.now)
					}
				}
				from.out = nil
				from.tick(p.now)
			}
			p.now = p.now.Add(100 * time.Millisecond)
		}
		// Now it is honest, and both want a session once more.
		p.now = p.now.Add(40 * time.Second)
		p.lo.tick(p.now)
		p.hi.tick(p.now)
		p.lo.out, p.hi.out = nil, nil
		p.hi.connect(p.now)
		p.run()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		p.agreed()
	}
}

// FuzzStep gives bytes to an end that waits for a confirm or an offer.
func FuzzStep(f *testing.F) {
	p := newPair(f, nil)
	p.lo.connect(p.now)
	invite := p.lo.take()
	if err := p.hi.step(invite, p.now); err != nil {
		f.Fatal(err)
	}
	offer := p.hi.take()
	f.Add(invite, false)
	f.Add(offer, true)
	f.Add((&wire.Confirm{Sealed: make([]byte, 40)}).Append(nil), false)
	f.Add((&wire.Candidates{Sealed: make([]byte, 40)}).Append(nil), true)
	f.Add((&wire.Knock{}).Append(nil), true)
	f.Fuzz(func(t *testing.T, b []byte, low bool) {
		e := p.hi
		if low {
			e = p.lo
		}
		if bytes.Equal(b, offer) || bytes.Equal(b, invite) {
			return
		}
		before := len(e.est)
		_ = e.step(b, p.now)
		if len(e.est) != before {
			t.Errorf("%x made a session", b)
		}
		e.out = nil
	})
}
