// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/mlkem"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

var update = flag.Bool("update", false, "write testdata/bx1.txt anew, with fresh keys; the old file must pass before")

// golden is testdata/bx1.txt: one handshake with all that went into it, so that
// another implementation can compute each line from those above it.
type golden struct {
	head   string
	names  []string
	values map[string][]byte
}

func (g *golden) add(name string, v []byte) {
	g.names = append(g.names, name)
	g.values[name] = v
}

const goldenHead = `# One handshake BX1 with suite 1, as docs/wire.md defines it. "name hex"; long values
# go on in lines that begin with a space. Private keys: ed25519 seeds, X25519 scalars,
# the ML-KEM seed (d || z). certificates.time is in seconds since 1970.
`

func (g *golden) String() string {
	var b strings.Builder
	b.WriteString(g.head)
	for _, n := range g.names {
		b.WriteString(n)
		for s := hex.EncodeToString(g.values[n]); s != ""; {
			k := min(len(s), 96)
			b.WriteString(" " + s[:k] + "\n")
			s = s[k:]
		}
	}
	return b.String()
}

func readGolden(t *testing.T, file string) *golden {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	g := &golden{values: map[string][]byte{}}
	name := ""
	for line := range strings.Lines(string(text)) {
		if line[0] == '#' {
			continue
		}
		label, value, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		if label != "" {
			name = label
			g.names = append(g.names, name)
		}
		b, err := hex.DecodeString(value)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		g.values[name] = append(g.values[name], b...)
	}
	return g
}

// makeGolden runs a handshake with fresh keys; B is the second implementation.
func makeGolden(t *testing.T) *golden {
	p := newPair(t, nil)
	g := &golden{head: goldenHead, values: map[string][]byte{}}
	x := func() *ecdh.PrivateKey {
		k, err := fips.GenerateX25519()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	kem, err := mlkem.GenerateKey768()
	if err != nil {
		t.Fatal(err)
	}
	g.add("certificates.time", binary.BigEndian.AppendUint64(nil, uint64(p.now.Unix())))
	g.add("certificates.root", p.ca.Root().Raw)
	g.add("psk", p.lo.cfg.PSK(1))
	g.add("a.ed25519", p.lo.keys.Ed25519.Seed())
	g.add("a.x25519", p.lo.keys.X25519.Bytes())
	g.add("a.peerid", idBytes(p.lo.keys))
	g.add("b.ed25519", p.hi.keys.Ed25519.Seed())
	g.add("b.x25519", p.hi.keys.X25519.Bytes())
	g.add("b.peerid", idBytes(p.hi.keys))
	a, b := p.lo.as(t, p.hi), p.hi.as(t, p.lo)
	a.eph, b.eph, a.kem = x(), x(), kem
	g.add("a.ephemeral", a.eph.Bytes())
	g.add("a.mlkem", kem.Bytes())
	g.add("b.ephemeral", b.eph.Bytes())
	m1 := a.invite(lie{})
	g.add("invite", m1)
	m2 := b.offer(m1, lie{})
	g.add("offer", m2)
	m3 := a.confirm(m2, lie{})
	g.add("confirm", m3)
	s := a.sched
	for i, v := range [][]byte{s.th, s.hs, s.hsA, s.hsB, s.finA, s.finB, s.sgA, s.sgB} {
		g.add([]string{"th", "HS", "hsA", "hsB", "finA", "finB", "sgA", "sgB"}[i], v)
	}
	tr := s.traffic(m2, m3)
	for i, side := range []string{"a", "b"} {
		for l, k := range [][packet.NumLanes]session.LaneKey{tr.a, tr.b}[i] {
			g.add(fmt.Sprintf("key.%s.%s", side, packet.Lane(l)), k.Key[:])
			g.add(fmt.Sprintf("iv.%s.%s", side, packet.Lane(l)), k.IV[:])
		}
	}
	g.add("rekey", tr.rekey)
	g.add("exporter", tr.exporter)
	return g
}

func idBytes(k *identity.Keys) []byte { id := k.ID(); return id[:] }

// The code still computes the handshake of the file: the same confirm from the
// same offer, the same keys. Deployed nodes would not understand another.
func TestGoldenHandshake(t *testing.T) {
	needChaCha(t)
	const file = "testdata/bx1.txt"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(makeGolden(t).String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g := readGolden(t, file)
	private := func(name string) *ecdh.PrivateKey {
		k, err := fips.NewX25519PrivateKey(g.values[name])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return k
	}
	keys := func(side string) *identity.Keys {
		return &identity.Keys{Ed25519: ed25519.NewKeyFromSeed(g.values[side+".ed25519"]), X25519: private(side + ".x25519")}
	}
	root, err := x509.ParseCertificate(g.values["certificates.root"])
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(int64(binary.BigEndian.Uint64(g.values["certificates.time"])), 0)
	kem, err := mlkem.NewDecapsulationKey768(g.values["a.mlkem"])
	if err != nil {
		t.Fatal(err)
	}
	a, b := keys("a"), keys("b")
	if !bytes.Equal(idBytes(a), g.values["a.peerid"]) || !bytes.Equal(idBytes(b), g.values["b.peerid"]) {
		t.Error("PeerIDs differ")
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	cfg := session.Config{
		Keys: a, Peer: b.ID(), PeerEd25519: b.Ed25519.Public().(ed25519.PublicKey), PeerX25519: b.X25519.PublicKey(),
		Roots: roots, PSK: func(uint8) []byte { return g.values["psk"] }, PSKEpoch: 1, Suites: []wire.Suite{wire.SuiteChaCha},
	}
	var body wire.ConfirmBody // to learn A's ICE credentials
	plain, err := refAEAD(t, wire.SuiteChaCha, g.values["hsA"]).Open(nil, make([]byte, 12), g.values["confirm"][18:], g.values["confirm"][:18])
	if err != nil {
		t.Fatal(err)
	}
	if err := body.Parse(plain); err != nil {
		t.Fatal(err)
	}
	est, m3, err := session.ReplayOffer(&cfg, g.values["invite"], private("a.ephemeral"), kem, body.ICE, g.values["offer"], now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m3, g.values["confirm"]) {
		t.Error("confirm differs")
	}
	for l := range packet.NumLanes {
		for side, k := range map[string]session.LaneKey{"a": est.Secrets.Send[l], "b": est.Secrets.Recv[l]} {
			name := side + "." + packet.Lane(l).String()
			if !bytes.Equal(k.Key[:], g.values["key."+name]) || !bytes.Equal(k.IV[:], g.values["iv."+name]) {
				t.Errorf("key or iv of %s differs", name)
			}
		}
	}
	if !bytes.Equal(est.Secrets.Rekey[:], g.values["rekey"]) || !bytes.Equal(est.Secrets.Exporter[:], g.values["exporter"]) {
		t.Error("rekey or exporter secret differs")
	}
	if !bytes.Equal(private("b.ephemeral").PublicKey().Bytes(), g.values["offer"][23:55]) {
		t.Error("b.ephemeral is not the key of the offer")
	}
}

// The schedule has a fixed answer for fixed secrets.
func TestGoldenSchedule(t *testing.T) {
	got := session.GoldenSchedule()
	const want = "d46eb86cdd987d48e7c33b8708a95cd9c712a0ddd4e75d335bf33b563c91e48d" // also computed from docs/wire.md by another program
	if h := hex.EncodeToString(got); h != want {
		t.Errorf("schedule gives %s, want %s: deployed nodes would not understand", h, want)
	}
}
