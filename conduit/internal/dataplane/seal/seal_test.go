// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// suites are those that this build has.
func suites() []wire.Suite {
	if fips.Only() {
		return []wire.Suite{wire.SuiteFIPS}
	}
	return []wire.Suite{wire.SuiteChaCha, wire.SuiteAES, wire.SuiteFIPS}
}

func pair(tb testing.TB, suite wire.Suite) (*Sender, *Receiver) {
	tb.Helper()
	k := &session.LaneKey{Key: [32]byte{1}, IV: [12]byte{2, 3}}
	s, r := new(Sender), new(Receiver)
	if err := errors.Join(s.Init(suite, k), r.Init(suite, k)); err != nil {
		tb.Fatal(err)
	}
	return s, r
}

// sealed returns a fresh datagram with body.
func sealed(tb testing.TB, s *Sender, body string) ([]byte, uint64) {
	tb.Helper()
	raw := make([]byte, wire.HeaderLen+len(body)+packet.Tailroom)
	copy(raw[wire.HeaderLen:], body)
	h := wire.Header{Type: wire.TypeData, Lane: packet.Critical, Index: 9}
	b, err := s.Seal(raw, len(body), &h)
	if err != nil {
		tb.Fatal(err)
	}
	return b, h.Counter
}

func TestSealOpen(t *testing.T) {
	for _, suite := range suites() {
		s, r := pair(t, suite)
		var nonce Nonce
		for i := range 3 {
			b, c := sealed(t, s, "hello")
			if c != uint64(i) {
				t.Errorf("counter = %d, want %d", c, i)
			}
			if len(b) != len("hello")+session.Overhead(suite) {
				t.Errorf("%v: datagram of %d bytes, want %d more than the body", suite, len(b), session.Overhead(suite))
			}
			if bytes.Contains(b, []byte("hello")) {
				t.Error("datagram holds the plaintext")
			}
			again := bytes.Clone(b)
			got, err := r.Open(b, c, &nonce)
			if err != nil || string(got) != "hello" {
				t.Fatalf("%v: open = %q, %v", suite, got, err)
			}
			if _, err := r.Open(again, c, &nonce); !errors.Is(err, ErrReplay) {
				t.Errorf("replay: %v, want ErrReplay", err)
			}
		}
	}
}

// Each byte of a datagram is protected, the nonce too, and a forgery moves no
// window.
func TestForged(t *testing.T) {
	for _, suite := range suites() {
		t.Run(suite.String(), func(t *testing.T) {
			s, r := pair(t, suite)
			var nonce Nonce
			b, c := sealed(t, s, "x")
			for i := range b {
				bad := bytes.Clone(b)
				bad[i] ^= 1
				counter := c
				if i >= 8 && i < 16 {
					counter = 1 << 31
				}
				if _, err := r.Open(bad, counter, &nonce); !errors.Is(err, ErrForged) {
					t.Errorf("byte %d changed: %v, want ErrForged", i, err)
				}
			}
			for n := wire.Overhead; n < len(b); n++ {
				if _, err := r.Open(bytes.Clone(b[:n]), c, &nonce); !errors.Is(err, ErrForged) {
					t.Errorf("cut to %d bytes: %v, want ErrForged", n, err)
				}
			}
			if _, err := r.Open(b, c, &nonce); err != nil {
				t.Errorf("genuine packet after forgeries: %v", err)
			}
		})
	}
}

// A key ends at the limit of its suite, at both ends.
func TestLimit(t *testing.T) {
	for _, suite := range suites() {
		s, r := pair(t, suite)
		limit := session.MaxPackets(suite)
		if limit > MaxCounter || session.RekeyPackets(suite) > limit/256 {
			t.Errorf("%v: limits %d and %d", suite, session.RekeyPackets(suite), limit)
		}
		s.next.Store(limit - 1)
		b, c := sealed(t, s, "last")
		if _, err := r.Open(b, c, new(Nonce)); err != nil {
			t.Errorf("%v: last packet: %v", suite, err)
		}
		if _, err := s.Seal(make([]byte, 100), 0, new(wire.Header)); !errors.Is(err, ErrExhausted) {
			t.Errorf("%v: seal at the limit: %v, want ErrExhausted", suite, err)
		}
		s.limit++ // a sender that does not know the limit
		b, c = sealed(t, s, "one more")
		if _, err := r.Open(b, c, new(Nonce)); !errors.Is(err, ErrReplay) {
			t.Errorf("%v: open at the limit: %v, want ErrReplay", suite, err)
		}
	}
}

// Suite 3's bytes can't be chosen, so the vector is opened, not made.
func TestVectorFIPS(t *testing.T) {
	b, err := hex.DecodeString("80440007" + "00000009" + "0000000000000005" + // header
		"a0a1a2a3a4a5a6a7a8a9aaab" + // nonce
		"2e487d6dc80d17397f38621816ac0fa2f57187721b5f7686c1cb445576817115") // body, tag
	if err != nil {
		t.Fatal(err)
	}
	var h wire.Header
	if !h.Parse(b) {
		t.Fatal("header does not parse")
	}
	_, r := pair(t, wire.SuiteFIPS)
	got, err := r.Open(b, h.Counter, new(Nonce))
	if err != nil || string(got) != "Bauxite, suite 3" {
		t.Errorf("open = %q, %v", got, err)
	}
}

// Two packets with one counter, were there ever two, share no nonce.
func TestNonceFIPS(t *testing.T) {
	s, _ := pair(t, wire.SuiteFIPS)
	seen := make(map[string]bool)
	for range 1000 {
		s.next.Store(0)
		b, _ := sealed(t, s, "x")
		seen[string(b[wire.HeaderLen:wire.HeaderLen+12])] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d nonces in 1000 packets", len(seen))
	}
}

// The window agrees with a set that forgets nothing inside WindowSize.
func TestWindowModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var w window
		seen := map[uint64]bool{}
		var top uint64
		for range 20000 {
			var c uint64
			switch rng.IntN(10) {
			case 0:
				c = top + rng.Uint64N(3*windowBits)
			case 1:
				c = top - min(top, rng.Uint64N(2*windowBits))
			default:
				c = top + rng.Uint64N(200) - min(top, 100)
			}
			want := !seen[c] && (c > top || top-c < WindowSize)
			if got := w.commit(c); got != want {
				t.Fatalf("commit(%d) with top %d = %v, want %v", c, top, got, want)
			}
			if want {
				seen[c] = true
				top = max(top, c)
			}
		}
	}
	var w window
	if w.commit(MaxCounter) {
		t.Error("a counter at the limit was accepted")
	}
}

func TestAllocs(t *testing.T) {
	for _, suite := range suites() {
		s, r := pair(t, suite)
		raw := make([]byte, 2048)
		var nonce Nonce
		var h wire.Header
		if n := testing.AllocsPerRun(1000, func() {
			b, err := s.Seal(raw, 1350, &h)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Open(b, h.Counter, &nonce); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v: seal and open allocate %v times per packet, want 0", suite, n)
		}
	}
}

func BenchmarkSealOpen(b *testing.B) {
	for _, suite := range suites() {
		b.Run(suite.String(), func(b *testing.B) {
			s, r := pair(b, suite)
			raw := make([]byte, 2048)
			var nonce Nonce
			h := wire.Header{Type: wire.TypeData}
			b.SetBytes(1350)
			b.ReportAllocs()
			for b.Loop() {
				p, _ := s.Seal(raw, 1350, &h)
				if _, err := r.Open(p, h.Counter, &nonce); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
