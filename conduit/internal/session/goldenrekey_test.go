// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const rekeyHead = `# One rekey, begun by A, of the session of bx1.txt, as docs/wire.md section 5 defines
# it. "name hex"; long values go on in lines that begin with a space. i is A, r is B.
`

const courierHead = `# A HANDSHAKE exchange as docs/wire.md section 2.9 defines it: A (192.0.2.1:4000) sends
# a short message to B (192.0.2.2:4000), which answers. Private keys are X25519 scalars;
# secrets are those of the cookies.
`

// bx1 is the session of bx1.txt as A has it after the handshake.
func bx1(t *testing.T) (a, b *session.Established) {
	t.Helper()
	g := readGolden(t, "testdata/bx1.txt")
	s := &session.Secrets{Suite: wire.SuiteChaCha, Rekey: [32]byte(g.values["rekey"])}
	_, sid, err := wire.ParseMsgHeader(g.values["invite"])
	if err != nil {
		t.Fatal(err)
	}
	a = &session.Established{
		SID: sid, Initiator: true, LocalCaps: wire.CapRekey, PeerCaps: wire.CapRekey, Secrets: s,
		LocalIndex: binary.BigEndian.Uint32(g.values["invite"][18:]), RemoteIndex: binary.BigEndian.Uint32(g.values["offer"][18:]),
	}
	other := *a
	other.Initiator, other.LocalIndex, other.RemoteIndex = false, a.RemoteIndex, a.LocalIndex
	return a, &other
}

func makeRekeyGolden(t *testing.T) *golden {
	g := &golden{head: rekeyHead, values: map[string][]byte{}}
	a, b := bx1(t)
	i, r := newRefRekey(t, a, 'a'), newRefRekey(t, b, 'a')
	g.add("rekey", i.rekey)
	g.add("sid", a.SID[:])
	g.add("indexA", binary.BigEndian.AppendUint32(nil, a.LocalIndex))
	g.add("indexB", binary.BigEndian.AppendUint32(nil, a.RemoteIndex))
	g.add("i.ephemeral", i.eph.Bytes())
	g.add("i.mlkem", i.kem.Bytes())
	g.add("r.ephemeral", r.eph.Bytes())
	r1 := i.first(0x11121314)
	r2 := r.second(r1, 0x21222324)
	g.add("R1", r1)
	g.add("R2", r2)
	g.add("R3", i.third(r2))
	for k, v := range [][]byte{i.tr1, i.tr2, i.hs} {
		g.add([]string{"tr1", "tr2", "HS"}[k], v)
	}
	tr := i.traffic()
	for k, side := range []string{"a", "b"} {
		for l, key := range [][packet.NumLanes]session.LaneKey{tr.a, tr.b}[k] {
			g.add(fmt.Sprintf("key.%s.%s", side, packet.Lane(l)), key.Key[:])
			g.add(fmt.Sprintf("iv.%s.%s", side, packet.Lane(l)), key.IV[:])
		}
	}
	g.add("rekey.next", tr.rekey)
	g.add("exporter", tr.exporter)
	return g
}

func written(t *testing.T, file string, g func(*testing.T) *golden) *golden {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(g(t).String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return readGolden(t, file)
}

// The code still computes the rekey of the file.
func TestGoldenRekey(t *testing.T) {
	needChaCha(t)
	g := written(t, "testdata/rekey.txt", makeRekeyGolden)
	eph, err := fips.NewX25519PrivateKey(g.values["i.ephemeral"])
	if err != nil {
		t.Fatal(err)
	}
	kem, err := mlkem.NewDecapsulationKey768(g.values["i.mlkem"])
	if err != nil {
		t.Fatal(err)
	}
	a, _ := bx1(t)
	if !bytes.Equal(a.SID[:], g.values["sid"]) || !bytes.Equal(a.Secrets.Rekey[:], g.values["rekey"]) {
		t.Fatal("rekey.txt is not of the session of bx1.txt")
	}
	now := time.Now()
	e := &rekeyEnd{
		r:    session.NewRekeyer(a, &indexes{live: map[uint32]bool{}}, now),
		keys: map[uint32]*session.Established{a.LocalIndex: a}, send: a.LocalIndex,
	}
	session.ReplayRekey(e.r, eph, kem, binary.BigEndian.Uint32(g.values["R1"][18:]), now)
	e.collect(t)
	if got := whole(t, e.out[0]); !bytes.Equal(got, g.values["R1"]) {
		t.Errorf("R1 differs: %x", got)
	}
	if err := e.stepMsg(t, g.values["R2"], now); err != nil {
		t.Fatal(err)
	}
	if got := whole(t, e.out[1]); !bytes.Equal(got, g.values["R3"]) {
		t.Errorf("R3 differs: %x", got)
	}
	s := e.keys[e.send].Secrets
	for l := range packet.NumLanes {
		for side, k := range map[string]session.LaneKey{"a": s.Send[l], "b": s.Recv[l]} {
			name := side + "." + packet.Lane(l).String()
			if !bytes.Equal(k.Key[:], g.values["key."+name]) || !bytes.Equal(k.IV[:], g.values["iv."+name]) {
				t.Errorf("key or iv of %s differs", name)
			}
		}
	}
	if !bytes.Equal(s.Rekey[:], g.values["rekey.next"]) || !bytes.Equal(s.Exporter[:], g.values["exporter"]) {
		t.Error("rekey or exporter secret differs")
	}
}

var courierAddrs = [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:4000"), netip.MustParseAddrPort("192.0.2.2:4000")}

func makeCourierGolden(t *testing.T) *golden {
	g := &golden{head: courierHead, values: map[string][]byte{}}
	var refs [2]*refPost
	random := func(n int) []byte { return refHash([]byte(time.Now().String()), []byte{byte(len(g.names))})[:n] }
	for i, side := range []string{"a", "b"} {
		k, err := identity.GenerateKeys()
		if err != nil {
			t.Fatal(err)
		}
		refs[i] = &refPost{id: idBytes(k), public: k.X25519.PublicKey().Bytes(), secret: random(32)}
		g.add(side+".peerid", refs[i].id)
		g.add(side+".x25519", k.X25519.Bytes())
		g.add(side+".secret", refs[i].secret)
	}
	g.add("a.token", random(16))
	g.add("a.id", random(4))
	g.add("b.id", random(4))
	a, b := refs[0], refs[1]
	atA, atB := a.cookie([4]byte{192, 0, 2, 2}, 4000), b.cookie([4]byte{192, 0, 2, 1}, 4000)
	g.add("a.body", []byte("\x03\x01 a message of A"))
	g.add("b.body", []byte("\x05\x01 an answer of B"))
	g.add("hello", b.hello(g.values["a.token"]))
	g.add("cookie", slices.Concat(refKind(2), g.values["a.token"], atB))
	g.add("piece", b.piece(a, binary.BigEndian.Uint32(g.values["a.id"]), atB, atA, g.values["a.body"]))
	g.add("answer", a.piece(b, binary.BigEndian.Uint32(g.values["b.id"]), atA, atB, g.values["b.body"]))
	return g
}

// The code still sends the datagrams of the file.
func TestGoldenCourier(t *testing.T) {
	g := written(t, "testdata/courier.txt", makeCourierGolden)
	now := time.Now()
	var ends [2]*session.Courier
	var ids [2]identity.PeerID
	var keys [2]*ecdh.PublicKey
	for i, random := range [][][]byte{
		{g.values["a.id"], make([]byte, 32), g.values["a.secret"], g.values["a.token"]},
		{make([]byte, 32), g.values["b.secret"], g.values["b.id"]},
	} {
		side := string(rune('a' + i))
		k, err := fips.NewX25519PrivateKey(g.values[side+".x25519"])
		if err != nil {
			t.Fatal(err)
		}
		copy(ids[i][:], g.values[side+".peerid"])
		keys[i] = k.PublicKey()
		ends[i] = session.NewCourierRandom(session.CourierConfig{ID: ids[i], X25519: keys[i]}, func(b []byte) {
			if len(random) == 0 || len(random[0]) != len(b) {
				t.Fatalf("%s wants %d random bytes", side, len(b))
			}
			copy(b, random[0])
			random = random[1:]
		})
	}
	want := func(from int, name string) {
		t.Helper()
		out := ends[from].Ready()
		if len(out) != 1 || !bytes.Equal(out[0].B, g.values[name]) || out[0].To.Remote != courierAddrs[1-from] {
			t.Fatalf("%s differs: %x", name, out)
		}
		peer, body, err := ends[1-from].Receive(session.Addr{Remote: courierAddrs[from]}, out[0].B, now)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if body != nil && (peer != ids[from] || !bytes.Equal(body, g.values[[]string{"a.body", "b.body"}[from]])) {
			t.Errorf("%s brings %q from %v", name, body, peer)
		}
	}
	if err := ends[0].Send(ids[1], keys[1], g.values["a.body"], []session.Addr{{Remote: courierAddrs[1]}}, now); err != nil {
		t.Fatal(err)
	}
	want(0, "hello")
	want(1, "cookie")
	want(0, "piece")
	if err := ends[1].Send(ids[0], keys[0], g.values["b.body"], []session.Addr{{Remote: courierAddrs[0]}}, now); err != nil {
		t.Fatal(err)
	}
	want(1, "answer")
}
