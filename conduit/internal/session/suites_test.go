// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// setting is one node's choice.
type setting struct {
	cipher   string
	hardware bool
}

// Both settings decide together which cipher a session has, or that there is none.
func TestSuites(t *testing.T) {
	if fips.Only() {
		t.Skip("a FIPS build has one suite")
	}
	chacha, auto, slow, strict := setting{"", true}, setting{"auto", true}, setting{"auto", false}, setting{"aes256gcm", false}
	for _, c := range []struct {
		lo, hi setting
		want   wire.Suite
	}{
		{chacha, chacha, wire.SuiteChaCha},
		{auto, auto, wire.SuiteAES},
		{auto, slow, wire.SuiteChaCha},
		{slow, auto, wire.SuiteChaCha},
		{slow, slow, wire.SuiteChaCha},
		{auto, chacha, wire.SuiteChaCha},
		{chacha, auto, wire.SuiteChaCha},
		{strict, chacha, wire.SuiteAES},
		{chacha, strict, wire.SuiteAES},
		{strict, slow, wire.SuiteAES},
		{auto, strict, wire.SuiteAES},
		{strict, strict, wire.SuiteAES},
	} {
		p := newPair(t, func(lo, hi *session.Config) {
			for cfg, s := range map[*session.Config]setting{lo: c.lo, hi: c.hi} {
				var err error
				if cfg.Suites, err = session.Suites(s.cipher, s.hardware); err != nil {
					t.Fatal(err)
				}
			}
		})
		p.lo.connect(p.now)
		p.run()
		p.agreed()
		for _, e := range []*end{p.lo, p.hi} {
			if got := e.est[0].Secrets.Suite; got != c.want {
				t.Errorf("%v and %v: suite %v, want %v", c.lo, c.hi, got, c.want)
			}
		}
	}
	// A FIPS build has one suite, and each plain one has that too.
	for _, c := range []setting{chacha, auto, slow, strict} {
		p := newPair(t, func(lo, hi *session.Config) {
			lo.Suites, _ = session.Suites(c.cipher, c.hardware)
			hi.Suites = []wire.Suite{wire.SuiteFIPS}
		})
		p.lo.connect(p.now)
		p.run()
		p.agreed()
		if got := p.lo.est[0].Secrets.Suite; got != wire.SuiteFIPS {
			t.Errorf("%v and a FIPS build: suite %v", c, got)
		}
	}
	if s, err := session.Suites("chacha20poly1305", true); err != nil || !slices.Equal(s, []wire.Suite{wire.SuiteChaCha, wire.SuiteAES, wire.SuiteFIPS}) {
		t.Errorf("chacha20poly1305: %v, %v", s, err)
	}
	if _, err := session.Suites("des", true); err == nil {
		t.Error("an unknown cipher: accepted")
	}
	// None in common: both fail, and neither takes another.
	p := newPair(t, func(lo, hi *session.Config) { lo.Suites, hi.Suites = lo.Suites[:1], []wire.Suite{wire.SuiteAES} })
	p.lo.connect(p.now)
	p.run()
	if len(p.lo.failed) != 1 || !strings.Contains(p.lo.failed[0].Error(), "cipher") || len(p.lo.idx.live)+len(p.hi.idx.live) != 0 {
		t.Errorf("no suite in common: %v, indexes %v %v", p.lo.failed, p.lo.idx.live, p.hi.idx.live)
	}
}
