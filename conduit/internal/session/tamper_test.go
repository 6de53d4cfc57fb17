// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"crypto/mlkem"
	"slices"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// variants calls f with each bit flip, each truncation and extensions of 1 to 64
// bytes of msg. In short tests it leaves most flips out, but none of the fields'
// borders that the step would always miss.
func variants(msg []byte, f func(what string, at int, bad []byte)) {
	step := 1
	if testing.Short() {
		step = 41
	}
	for bit := 0; bit < 8*len(msg); bit += step {
		bad := bytes.Clone(msg)
		bad[bit/8] ^= 1 << (bit % 8)
		f("flip of bit", bit, bad)
	}
	for n := 0; n < len(msg); n += max(1, step/8) {
		f("truncation to", n, bytes.Clone(msg[:n]))
	}
	for n := 1; n <= 64; n++ {
		f("extension with zeros by", n, append(bytes.Clone(msg), make([]byte, n)...))
		f("extension with itself by", n, append(bytes.Clone(msg), msg[:min(n, len(msg))]...))
	}
}

// Whatever is done to a message of the handshake, it makes no session, gets no
// answer, and the genuine one still works afterwards.
func TestTampered(t *testing.T) {
	for _, which := range []string{"invite", "offer", "confirm", "knock"} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, nil)
			if which == "knock" {
				p.hi.connect(p.now)
				p.lo, p.hi = p.hi, p.lo // lo is who has sent
			} else {
				p.lo.connect(p.now)
			}
			to, msg := p.hi, p.lo.take()
			if which == "offer" || which == "confirm" {
				if err := p.hi.step(msg, p.now); err != nil {
					t.Fatal(err)
				}
				to, msg = p.lo, p.hi.take()
			}
			if which == "confirm" {
				if err := p.lo.step(msg, p.now); err != nil {
					t.Fatal(err)
				}
				to, msg = p.hi, p.lo.take()
			}
			est, live := len(to.est), len(to.idx.live)
			n := 0
			variants(msg, func(what string, at int, bad []byte) {
				n++
				if err := to.step(bad, p.now); err == nil {
					t.Fatalf("%s %d: accepted", what, at)
				}
				if len(to.out) > 0 || len(to.est) != est || len(to.idx.live) != live || len(to.failed) > 0 {
					t.Fatalf("%s %d: %d answers, %d sessions, %d indexes", what, at, len(to.out), len(to.est), len(to.idx.live))
				}
			})
			t.Logf("%d variants", n)
			if err := to.step(msg, p.now); err != nil {
				t.Fatalf("genuine message afterwards: %v", err)
			}
			p.run()
			if which == "knock" {
				p.lo, p.hi = p.hi, p.lo
			}
			p.agreed()
		})
	}
}

// The same for the messages of a rekey, which packets protect as well: here they
// are changed inside of those.
func TestRekeyTampered(t *testing.T) {
	for _, which := range []string{"R1", "R2", "R3"} {
		t.Run(which, func(t *testing.T) {
			t.Parallel()
			r := newRekeyPair(t, nil)
			r.advance(session.RekeyAfter)
			from, to := r.a, r.b
			for range map[string]int{"R1": 0, "R2": 1, "R3": 2}[which] {
				if err := r.deliver(from); err != nil {
					t.Fatal(err)
				}
				from, to = to, from
			}
			o := from.out[0]
			msg := whole(t, o)
			at := r.arrives(from, o.On)
			send, have := to.send, len(to.keys)
			n := 0
			variants(msg, func(what string, i int, bad []byte) {
				n++
				ok := true
				for _, b := range wire.Split(uint32(n), bad) {
					if err := to.r.Step(at, b, r.now); err != nil {
						ok = false
					}
				}
				if len(bad) > 0 && ok {
					t.Fatalf("%s %d: accepted", what, i)
				}
				to.collect(t)
				if to.send != send || len(to.keys) != have || len(to.out) != 0 || len(to.idx.live) != have+live(to, which) {
					t.Fatalf("%s %d moved it: %d answers, %d keys, %d indexes", what, i, len(to.out), len(to.keys), len(to.idx.live))
				}
			})
			t.Logf("%d variants", n)
			r.data(r.a)
			r.data(r.b)
			r.settle()
			r.same()
			if r.a.send == r.a.keys[r.a.send].RemoteIndex || len(r.a.keys) != 2 || len(r.b.keys) != 2 {
				t.Errorf("genuine messages afterwards: keys %v and %v", r.a.keys, r.b.keys)
			}
		})
	}
}

// live is how many indexes to has reserved besides those of its keys.
func live(_ *rekeyEnd, which string) int {
	if which == "R2" {
		return 1
	}
	return 0
}

// A hostile relay takes away, or changes, what makes a handshake strong. It cannot
// sign, so whatever it offers in its place is nothing.
func TestStripped(t *testing.T) {
	kem, err := mlkem.GenerateKey768()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(m *wire.Invite){
		"best suite gone":      func(m *wire.Invite) { m.Suites = m.Suites[1:] },
		"weaker suite first":   func(m *wire.Invite) { slices.Reverse(m.Suites) },
		"suite of nobody":      func(m *wire.Invite) { m.Suites = []wire.Suite{99} },
		"suite added":          func(m *wire.Invite) { m.Suites = append(m.Suites, wire.SuiteFIPS) },
		"other PSK epoch":      func(m *wire.Invite) { m.PSKEpoch = 0 },
		"later PSK epoch":      func(m *wire.Invite) { m.PSKEpoch++ },
		"other capability":     func(m *wire.Invite) { m.Caps ^= wire.CapRekey },
		"knock answered":       func(m *wire.Invite) { m.Caps |= wire.CapAnswersKnock },
		"KEM key of zeros":     func(m *wire.Invite) { m.EncapKey = [wire.EncapKeyLen]byte{} },
		"KEM key of the relay": func(m *wire.Invite) { copy(m.EncapKey[:], kem.EncapsulationKey().Bytes()) },
		"point of zeros":       func(m *wire.Invite) { m.X25519 = [32]byte{} },
		"older lock":           func(m *wire.Invite) { m.Lock.Seq++ },
		"statement":            func(m *wire.Invite) { m.Statement = []byte{1} },
		"other index":          func(m *wire.Invite) { m.Index++ },
		"other sid":            func(m *wire.Invite) { m.SID[0]++ },
	} {
		t.Run("invite: "+name, func(t *testing.T) {
			if name == "weaker suite first" {
				needChaCha(t)
			}
			p := newPair(t, nil)
			p.lo.connect(p.now)
			m1 := p.lo.take()
			var m wire.Invite
			if err := m.Parse(bytes.Clone(m1)); err != nil {
				t.Fatal(err)
			}
			change(&m)
			p.hi.quiet(t, m.Append(nil), p.now, "")
			if err := p.hi.step(m1, p.now); err != nil {
				t.Fatal(err)
			}
			p.run()
			p.agreed()
			if s := p.lo.est[0].Secrets.Suite; s != suites()[0] {
				t.Errorf("suite %v", s)
			}
		})
	}
	for name, change := range map[string]func(m *wire.Offer){
		"other suite of the invite": func(m *wire.Offer) { m.Suite = wire.SuiteAES },
		"suite of nobody":           func(m *wire.Offer) { m.Suite = 99 },
		"suite 0":                   func(m *wire.Offer) { m.Suite = 0 },
		"ciphertext of zeros":       func(m *wire.Offer) { m.Ciphertext = [wire.CiphertextLen]byte{} },
		"ciphertext of the relay": func(m *wire.Offer) {
			_, ct := kem.EncapsulationKey().Encapsulate()
			copy(m.Ciphertext[:], ct)
		},
		"point of zeros": func(m *wire.Offer) { m.X25519 = [32]byte{} },
		"other index":    func(m *wire.Offer) { m.Index++ },
		"empty body":     func(m *wire.Offer) { m.Sealed = make([]byte, 17) },
	} {
		t.Run("offer: "+name, func(t *testing.T) {
			p := newPair(t, nil)
			p.lo.connect(p.now)
			if err := p.hi.step(p.lo.take(), p.now); err != nil {
				t.Fatal(err)
			}
			m2 := p.hi.take()
			var m wire.Offer
			if err := m.Parse(bytes.Clone(m2)); err != nil {
				t.Fatal(err)
			}
			change(&m)
			p.lo.quiet(t, m.Append(nil), p.now, "")
			if err := p.lo.step(m2, p.now); err != nil {
				t.Fatal(err)
			}
			p.run()
			p.agreed()
		})
	}
	// Another version is no version.
	for _, version := range []byte{0, 2, 255} {
		p := newPair(t, nil)
		p.lo.connect(p.now)
		m1 := p.lo.take()
		bad := bytes.Clone(m1)
		bad[1] = version
		p.hi.quiet(t, bad, p.now, "header")
	}
	// What times out is not tried again with less.
	p := newPair(t, nil)
	p.lo.connect(p.now)
	for range 6 {
		var m wire.Invite
		if err := m.Parse(p.lo.take()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m.Suites, p.lo.cfg.Suites) || m.PSKEpoch != 1 || m.EncapKey == [wire.EncapKeyLen]byte{} {
			t.Errorf("a repetition offers %v, epoch %d", m.Suites, m.PSKEpoch)
		}
		p.lo.tick(p.lo.m.NextTick())
	}
}
