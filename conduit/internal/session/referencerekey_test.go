// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// This file is the rekey and the datagrams a second time, from docs/wire.md
// sections 5 and 2.9, without the code under test.

// refRekey is one end of a rekey by the page.
type refRekey struct {
	t              testing.TB
	suite          wire.Suite
	side           byte
	indexA, indexB uint32
	sid            wire.SID
	rekey          []byte
	eph            *ecdh.PrivateKey
	kem            *mlkem.DecapsulationKey768
	encapsulate    func(*mlkem.EncapsulationKey768) (ss, ct []byte)

	r1, r2, hs, tr1, tr2 []byte
}

// newRefRekey is the double of the end that has est.
func newRefRekey(t testing.TB, est *session.Established, side byte) *refRekey {
	t.Helper()
	eph, err := fips.GenerateX25519()
	if err != nil {
		t.Fatal(err)
	}
	kem, err := mlkem.GenerateKey768()
	if err != nil {
		t.Fatal(err)
	}
	r := &refRekey{
		t: t, suite: est.Secrets.Suite, side: side, sid: est.SID, rekey: slices.Clone(est.Secrets.Rekey[:]), eph: eph, kem: kem,
		indexA: est.LocalIndex, indexB: est.RemoteIndex, encapsulate: (*mlkem.EncapsulationKey768).Encapsulate,
	}
	if !est.Initiator {
		r.indexA, r.indexB = r.indexB, r.indexA
	}
	return r
}

func (r *refRekey) header(t byte) []byte { return slices.Concat([]byte{t, 1}, r.sid[:]) }

func refHMAC(key []byte, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

func (r *refRekey) seed(unsigned []byte) {
	b := append([]byte("bauxite-rekey-v1/"), byte(r.suite), r.side)
	b = binary.BigEndian.AppendUint32(b, r.indexA)
	b = binary.BigEndian.AppendUint32(b, r.indexB)
	r.tr1 = refHash(b, unsigned)
}

// first is R1 with a receiver index.
func (r *refRekey) first(index uint32) []byte {
	u := binary.BigEndian.AppendUint32(r.header(8), index)
	u = slices.Concat(u, r.eph.PublicKey().Bytes(), r.kem.EncapsulationKey().Bytes())
	r.seed(u)
	r.r1 = append(u, refHMAC(refX(r.rekey, "rekey r1", nil, 32), r.tr1)...)
	return r.r1
}

func (r *refRekey) secret(ss, point []byte) {
	r.t.Helper()
	p, err := fips.NewX25519PublicKey(point)
	if err != nil {
		r.t.Fatal(err)
	}
	z, err := r.eph.ECDH(p)
	if err != nil {
		r.t.Fatal(err)
	}
	r.hs = refExtract(r.rekey, slices.Concat(ss, z))
}

// second answers R1.
func (r *refRekey) second(r1 []byte, index uint32) []byte {
	r.t.Helper()
	if len(r1) != 1270 {
		r.t.Fatalf("R1 has %d bytes", len(r1))
	}
	r.r1 = r1
	r.seed(r1[:1238])
	if !bytes.Equal(r1[1238:], refHMAC(refX(r.rekey, "rekey r1", nil, 32), r.tr1)) {
		r.t.Error("MAC of R1 is not that of the page")
	}
	ek, err := mlkem.NewEncapsulationKey768(r1[54:1238])
	if err != nil {
		r.t.Fatal(err)
	}
	ss, ct := r.encapsulate(ek)
	r.secret(ss, r1[22:54])
	u := binary.BigEndian.AppendUint32(r.header(9), index)
	u = slices.Concat(u, r.eph.PublicKey().Bytes(), ct)
	r.tr2 = refHash(r.tr1, r.r1, u)
	r.r2 = append(u, refHMAC(refX(r.hs, "rekey r2", r.tr2, 32), r.tr2)...)
	return r.r2
}

// third answers R2.
func (r *refRekey) third(r2 []byte) []byte {
	r.t.Helper()
	if len(r2) != 1174 {
		r.t.Fatalf("R2 has %d bytes", len(r2))
	}
	r.r2 = r2
	ss, err := r.kem.Decapsulate(r2[54:1142])
	if err != nil {
		r.t.Fatal(err)
	}
	r.secret(ss, r2[22:54])
	r.tr2 = refHash(r.tr1, r.r1, r2[:1142])
	if !bytes.Equal(r2[1142:], refHMAC(refX(r.hs, "rekey r2", r.tr2, 32), r.tr2)) {
		r.t.Error("MAC of R2 is not that of the page")
	}
	return r.confirmation()
}

func (r *refRekey) confirmation() []byte {
	u := r.header(10)
	return append(u, refHMAC(refX(r.hs, "rekey r3", r.tr2, 32), refHash(refHash(r.tr2, r.r2), u))...)
}

func (r *refRekey) traffic() *refTraffic {
	thR := refHash(r.tr2, r.r2)
	ms := refExtract(refX(r.hs, "derived", nil, 32), make([]byte, 32))
	out := &refTraffic{rekey: refX(ms, "rekey", thR, 32), exporter: refX(ms, "exporter", thR, 32)}
	for i, lane := range []string{"critical", "telemetry", "bulk"} {
		for side, k := range map[string]*session.LaneKey{"a": &out.a[i], "b": &out.b[i]} {
			k.Key = [32]byte(refX(ms, "key "+side+" "+lane, thR, 32))
			k.IV = [12]byte(refX(ms, "iv "+side+" "+lane, thR, 12))
		}
	}
	return out
}

// whole puts the fragments of an output together.
func whole(t testing.TB, o session.RekeyOutput) []byte {
	t.Helper()
	var msg []byte
	for i, b := range o.Send {
		if len(b) > 1232-44 || b[4] != byte(i) || int(b[5]) != len(o.Send) {
			t.Fatalf("piece %d of %d bytes: %x", i, len(b), b[:8])
		}
		msg = append(msg, b[8:]...)
	}
	return msg
}

// stepMsg hands a whole message to an end, under the keys in use.
func (e *rekeyEnd) stepMsg(t testing.TB, msg []byte, now time.Time) error {
	t.Helper()
	var err error
	for _, b := range wire.Split(7, msg) {
		err = e.r.Step(e.send, b, now)
	}
	e.collect(t)
	return err
}

// The code and the page agree on a rekey, from each role and with each suite.
func TestReferenceRekey(t *testing.T) {
	for _, suite := range append(suites(), wire.SuiteFIPS) {
		for _, aBegins := range []bool{true, false} {
			r := newRekeyPair(t, func(lo, hi *session.Config) { lo.Suites, hi.Suites = []wire.Suite{suite}, []wire.Suite{suite} })
			// The real end begins.
			e, side := r.a, byte('a')
			if !aBegins {
				e, side = r.b, 'b'
			}
			double := newRefRekey(t, r.other(e).keys[r.other(e).send], side)
			r.now = r.now.Add(session.RekeyAfterB)
			e.r.Begin(r.now)
			e.collect(t)
			r2 := double.second(whole(t, e.out[0]), 0x01020304)
			e.out = nil
			if err := e.stepMsg(t, r2, r.now); err != nil {
				t.Fatal(err)
			}
			if got := whole(t, e.out[0]); !bytes.Equal(got, double.confirmation()) {
				t.Error("R3 is not that of the page")
			}
			est := e.keys[e.send]
			double.traffic().same(t, est.Secrets, aBegins)
			if est.RemoteIndex != 0x01020304 {
				t.Errorf("remote index %x", est.RemoteIndex)
			}

			// The real end answers.
			r = newRekeyPair(t, func(lo, hi *session.Config) { lo.Suites, hi.Suites = []wire.Suite{suite}, []wire.Suite{suite} })
			e = r.b
			if !aBegins {
				e = r.a
			}
			double = newRefRekey(t, r.other(e).keys[r.other(e).send], side)
			r.now = r.now.Add(time.Minute)
			if err := e.stepMsg(t, double.first(0x0a0b0c0d), r.now); err != nil {
				t.Fatal(err)
			}
			old := e.send
			r3 := double.third(whole(t, e.out[0]))
			if err := e.stepMsg(t, r3, r.now); err != nil {
				t.Fatal(err)
			}
			est = e.keys[e.send]
			if e.send == old || est.RemoteIndex != 0x0a0b0c0d {
				t.Errorf("sends with %d after R3, before with %d; remote index %x", e.send, old, est.RemoteIndex)
			}
			double.traffic().same(t, est.Secrets, !aBegins)
		}
	}
}

// refPost is a courier by the page, of one key and one secret.
type refPost struct {
	id     []byte
	public []byte
	secret []byte
}

func (p *refPost) mac1(msg []byte) []byte {
	return refHMAC(refHash([]byte("bx-mac1"), p.public), msg)[:16]
}

// cookie is that of an IPv4 address.
func (p *refPost) cookie(ip4 [4]byte, port uint16) []byte {
	a := slices.Concat(make([]byte, 10), []byte{0xff, 0xff}, ip4[:])
	return refHMAC(p.secret, a, binary.BigEndian.AppendUint16(nil, port))[:16]
}

func refKind(kind byte) []byte {
	return []byte{0x80, 0x7c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, kind}
}

// hello is one to p.
func (p *refPost) hello(token []byte) []byte {
	b := append(refKind(1), token...)
	return append(b, p.mac1(b)...)
}

// piece is the only piece to p of a message of from.
func (p *refPost) piece(from *refPost, id uint32, cookie, back, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(refKind(0), id)
	b = slices.Concat(b, []byte{0, 1, 0, 0}, from.id, back, body)
	b = append(b, p.mac1(b)...)
	return append(b, refHMAC(cookie, b)[:16]...)
}
