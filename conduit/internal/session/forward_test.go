// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// capture is all that went over the network between two ends.
type capture struct {
	suite                  wire.Suite
	m1, m2, m3, candidates []byte
	packets                [][]byte // sealed under the keys of the handshake, by A and B in each lane
	indexA, indexB         uint32
	r1, r2, r3             []byte
	later                  [][]byte // the same under the keys of the rekey
}

// sealPackets seals one packet in each lane and direction.
func sealPackets(t *testing.T, suite wire.Suite, dirs ...[3]session.LaneKey) (out [][]byte) {
	t.Helper()
	for _, dir := range dirs {
		for lane, k := range dir {
			h := make([]byte, 16)
			(&wire.Header{Type: wire.TypeData, Index: 1, Counter: uint64(lane)}).Put(h)
			nonce := bytes.Clone(k.IV[:])
			nonce[11] ^= byte(lane)
			out = append(out, refAEAD(t, suite, k.Key[:]).Seal(h, nonce, []byte("move the arm"), h))
		}
	}
	return out
}

// opens counts the packets that open with keys.
func (c *capture) opens(t *testing.T, packets [][]byte, tr *refTraffic) (n int) {
	t.Helper()
	for i, p := range packets {
		k := [][3]session.LaneKey{tr.a, tr.b}[i/3][i%3]
		nonce := bytes.Clone(k.IV[:])
		nonce[11] ^= byte(i % 3)
		if _, err := refAEAD(t, c.suite, k.Key[:]).Open(nil, nonce, p[16:], p[:16]); err == nil {
			n++
		}
	}
	return n
}

// handshake counts what of the handshake and of the packets after it opens with
// what somebody believes to be the secrets.
func (c *capture) handshake(t *testing.T, psk, ss, ee, es, se []byte) (n int, tr *refTraffic) {
	t.Helper()
	s := newRefSchedule(c.suite, psk, slices.Concat(ss, ee, es, se), c.m1, c.m2[:1143])
	zero := make([]byte, 12)
	if _, err := refAEAD(t, c.suite, s.hsB).Open(nil, zero, c.m2[1143:], c.m2[:1143]); err == nil {
		n++
	}
	if _, err := refAEAD(t, c.suite, s.hsA).Open(nil, zero, c.m3[18:], c.m3[:18]); err == nil {
		n++
	}
	for _, key := range [][]byte{s.sgA, s.sgB} {
		if _, err := refAEAD(t, c.suite, key).Open(nil, zero, c.candidates[26:], c.candidates[:26]); err == nil {
			n++
		}
	}
	tr = s.traffic(c.m2, c.m3)
	return n + c.opens(t, c.packets, tr), tr
}

// rekey counts what opens of the packets after the rekey.
func (c *capture) rekey(t *testing.T, rekey, ss, ee []byte) int {
	t.Helper()
	r := refRekey{t: t, suite: c.suite, side: 'a', indexA: c.indexA, indexB: c.indexB, rekey: rekey}
	r.seed(c.r1[:1238])
	r.hs = refExtract(rekey, slices.Concat(ss, ee))
	r.tr2 = refHash(r.tr1, c.r1, c.r2[:1142])
	r.r2 = c.r2
	return c.opens(t, c.later, r.traffic())
}

// Who has recorded everything and gets hold of the long-term keys of both ends and
// of the PSK can read nothing of it, and who has the secrets of the handshake
// nothing of what follows a rekey. With the ephemeral keys everything opens, which
// shows that the test could tell.
func TestForwardSecrecy(t *testing.T) {
	p := newPair(t, func(lo, hi *session.Config) { lo.Caps, hi.Caps = wire.CapRekey, wire.CapRekey })
	a := p.lo.as(t, p.hi)
	c := &capture{suite: a.suite}
	c.m1 = a.invite(lie{invite: func(m *wire.Invite) { m.Caps = wire.CapRekey }})
	if err := p.hi.step(c.m1, p.now); err != nil {
		t.Fatal(err)
	}
	c.m2 = p.hi.take()
	c.m3 = a.confirm(c.m2, lie{})
	if err := p.hi.step(c.m3, p.now); err != nil {
		t.Fatal(err)
	}
	b := p.hi.est[0]
	var err error
	if c.candidates, err = b.SealCandidates([]string{"1 1 udp 1 192.0.2.1 4000 typ host"}, 0); err != nil {
		t.Fatal(err)
	}
	c.packets = sealPackets(t, c.suite, b.Secrets.Recv, b.Secrets.Send)
	c.indexA, c.indexB = b.RemoteIndex, b.LocalIndex
	ra := newRefRekey(t, b, 'a')
	end := &rekeyEnd{r: session.NewRekeyer(b, p.hi.idx, p.now), idx: p.hi.idx, send: b.LocalIndex, keys: map[uint32]*session.Established{b.LocalIndex: b}}
	p.now = p.now.Add(session.RekeyAfter)
	c.r1 = ra.first(99)
	if err := end.stepMsg(t, c.r1, p.now); err != nil {
		t.Fatal(err)
	}
	c.r2 = whole(t, end.out[0])
	c.r3 = ra.third(c.r2)
	if err := end.stepMsg(t, c.r3, p.now); err != nil {
		t.Fatal(err)
	}
	now := end.keys[end.send]
	if now == b {
		t.Fatal("no rekey")
	}
	c.later = sealPackets(t, c.suite, now.Secrets.Recv, now.Secrets.Send)

	// What the attacker computes from captured public values and stolen private ones.
	dh := func(k *ecdh.PrivateKey, pub []byte) []byte {
		p, err := fips.NewX25519PublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		z, err := k.ECDH(p)
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	at := 132 + int(c.m1[22])
	eA, eB := c.m1[at:at+32], c.m2[23:55]
	sA, sB := p.lo.keys.X25519, p.hi.keys.X25519
	psk := p.hi.cfg.PSK(1)
	es, se := dh(sB, eA), dh(sA, eB)
	zero, one := make([]byte, 32), bytes.Repeat([]byte{1}, 32)
	other, err := mlkem.GenerateKey768() // not the one of the capture
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := other.Decapsulate(c.m2[55:1143])
	if err != nil {
		t.Fatal(err)
	}
	guesses := map[string][]byte{
		"zeros": zero, "ones": one, "static": dh(sA, sB.PublicKey().Bytes()), "eA sB": es, "sA eB": se,
		"eA": eA, "eB": eB, "hash of ct": refHash(c.m2[55:1143]), "another KEM key": wrong, "PSK": psk,
		"seed of A": p.lo.keys.Ed25519.Seed(), "seed of B": p.hi.keys.Ed25519.Seed(),
	}
	tried := 0
	for nss, ss := range guesses {
		for nee, ee := range guesses {
			for _, key := range [][]byte{psk, nil} {
				tried++
				n, tr := c.handshake(t, key, ss, ee, es, se)
				if n != 0 {
					t.Errorf("%d bodies open with %s for ML-KEM and %s for DH(eA,eB)", n, nss, nee)
				}
				for _, prk := range [][]byte{tr.rekey, b.Secrets.Rekey[:]} { // also: the session's secrets are stolen
					if n := c.rekey(t, prk, ss, ee); n != 0 {
						t.Errorf("%d packets after the rekey open with %s and %s", n, nss, nee)
					}
				}
			}
		}
	}
	t.Logf("%d derivations", tried)

	// The ephemeral keys open it, both and together only.
	ss, err := a.kem.Decapsulate(c.m2[55:1143])
	if err != nil {
		t.Fatal(err)
	}
	ee := dh(a.eph, eB)
	all := 3 + len(c.packets)
	for name, x := range map[string]struct {
		psk, ss, ee []byte
		want        int
	}{
		"both ephemeral keys":      {psk, ss, ee, all},
		"that of ML-KEM alone":     {psk, ss, zero, 0},
		"that of X25519 alone":     {psk, wrong, ee, 0},
		"both, but not the PSK":    {nil, ss, ee, 0},
		"both, mixed up":           {psk, ee, ss, 0},
		"both, and another's PSK ": {one, ss, ee, 0},
	} {
		if n, _ := c.handshake(t, x.psk, x.ss, x.ee, es, se); n != x.want {
			t.Errorf("%s: %d bodies open, want %d", name, n, x.want)
		}
	}
	// Without the static keys they do not do either.
	if n, _ := c.handshake(t, psk, ss, ee, zero, zero); n != 0 {
		t.Errorf("%d bodies open without the static keys", n)
	}
	ss2, err := ra.kem.Decapsulate(c.r2[54:1142])
	if err != nil {
		t.Fatal(err)
	}
	ee2 := dh(ra.eph, c.r2[22:54])
	for name, x := range map[string]struct {
		rekey, ss, ee []byte
		want          int
	}{
		"all":                           {b.Secrets.Rekey[:], ss2, ee2, len(c.later)},
		"the chain alone":               {b.Secrets.Rekey[:], zero, zero, 0},
		"no chain":                      {zero, ss2, ee2, 0},
		"ML-KEM alone":                  {b.Secrets.Rekey[:], ss2, zero, 0},
		"X25519 alone":                  {b.Secrets.Rekey[:], wrong, ee2, 0},
		"those of the handshake before": {b.Secrets.Rekey[:], ss, ee, 0},
	} {
		if n := c.rekey(t, x.rekey, x.ss, x.ee); n != x.want {
			t.Errorf("rekey, %s: %d packets open, want %d", name, n, x.want)
		}
	}
	if binary.BigEndian.Uint32(c.r1[18:]) != now.RemoteIndex {
		t.Error("not the keys of this rekey")
	}
}
