// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// This file is BX1 a second time, written from docs/wire.md section 4 and without
// the code under test (but for the layouts of package wire and the AEADs). It
// proves that the page says enough, and it can lie where the real one cannot.

// refSchedule is section 4.1.
type refSchedule struct{ th, hs, hsA, hsB, finA, finB, sgA, sgB []byte }

func refHash(parts ...[]byte) []byte {
	h := sha256.Sum256(slices.Concat(parts...))
	return h[:]
}

func refExtract(salt, ikm []byte) []byte {
	k, err := hkdf.Extract(sha256.New, ikm, salt)
	if err != nil {
		panic(err)
	}
	return k
}

func refX(prk []byte, label string, context []byte, n int) []byte {
	k, err := hkdf.Expand(sha256.New, prk, "bx1 "+label+string(context), n)
	if err != nil {
		panic(err)
	}
	return k
}

func newRefSchedule(suite wire.Suite, psk, ikm, m1, m2c []byte) *refSchedule {
	if psk == nil {
		psk = make([]byte, 32)
	}
	th := refHash([]byte("bauxite-hs-v1/"), []byte{byte(suite)}, m1, m2c)
	hs := refExtract(refX(refExtract(make([]byte, 32), psk), "derived", nil, 32), ikm)
	return &refSchedule{
		th: th, hs: hs, hsA: refX(hs, "hs a", th, 32), hsB: refX(hs, "hs b", th, 32),
		finA: refX(hs, "fin a", th, 32), finB: refX(hs, "fin b", th, 32),
		sgA: refX(hs, "signal a", th, 32), sgB: refX(hs, "signal b", th, 32),
	}
}

// refTraffic is what a session's keys should be.
type refTraffic struct {
	a, b            [3]session.LaneKey
	rekey, exporter []byte
}

func (s *refSchedule) traffic(m2, m3 []byte) *refTraffic {
	thF := refHash(refHash(s.th, m2, m3[:18]), m3)
	ms := refExtract(refX(s.hs, "derived", nil, 32), make([]byte, 32))
	out := &refTraffic{rekey: refX(ms, "rekey", thF, 32), exporter: refX(ms, "exporter", thF, 32)}
	for i, lane := range []string{"critical", "telemetry", "bulk"} {
		for side, k := range map[string]*session.LaneKey{"a": &out.a[i], "b": &out.b[i]} {
			k.Key = [32]byte(refX(ms, "key "+side+" "+lane, thF, 32))
			k.IV = [12]byte(refX(ms, "iv "+side+" "+lane, thF, 12))
		}
	}
	return out
}

func refSign(k ed25519.PrivateKey, role string, hash []byte) (sig [64]byte) {
	in := make([]byte, 64)
	for i := range in {
		in[i] = ' '
	}
	copy(sig[:], ed25519.Sign(k, slices.Concat(in, []byte("bauxite-hs-v1 "+role), []byte{0}, hash)))
	return sig
}

func refMAC(key, hash []byte) (out [32]byte) {
	m := hmac.New(sha256.New, key)
	m.Write(hash)
	m.Sum(out[:0])
	return out
}

// sizedNonce takes of a nonce what the AEAD wants: nothing in suite 3, which draws
// its own and puts it in front.
type sizedNonce struct{ cipher.AEAD }

func (a sizedNonce) Seal(dst, nonce, plain, aad []byte) []byte {
	return a.AEAD.Seal(dst, nonce[:a.NonceSize()], plain, aad)
}

func (a sizedNonce) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	return a.AEAD.Open(dst, nonce[:a.NonceSize()], sealed, aad)
}

func refAEAD(t testing.TB, suite wire.Suite, key []byte) interface {
	Seal(dst, nonce, plain, aad []byte) []byte
	Open(dst, nonce, sealed, aad []byte) ([]byte, error)
} {
	t.Helper()
	a, err := session.NewAEAD(suite, key)
	if err != nil {
		t.Fatal(err)
	}
	return sizedNonce{a}
}

// lie is where the second implementation departs from the truth. Zero is honest.
type lie struct {
	signer   ed25519.PrivateKey // another's
	role     string             // of the signature
	suite    wire.Suite         // of OFFER
	sid      *wire.SID          // of OFFER and CONFIRM
	chain    [][]byte
	static   *ecdh.PrivateKey // in place of our X25519 key
	psk      []byte
	sigHash  byte // XORed into what is signed
	mac      byte // XORed into the MAC
	otherFin bool // MAC with the other side's key
	point    *[32]byte
	trailing bool // a byte after the sealed body
	invite   func(*wire.Invite)
}

// ref is one end, run by docs/wire.md.
type ref struct {
	t     testing.TB
	keys  *identity.Keys
	chain [][]byte
	peer  *identity.Keys // public halves are used
	psk   []byte
	ice   wire.ICE

	suite  wire.Suite
	eph    *ecdh.PrivateKey
	kem    *mlkem.DecapsulationKey768
	m1, m2 []byte
	sched  *refSchedule
}

// as returns e's double, which speaks with other.
func (e *end) as(t testing.TB, other *end) *ref {
	t.Helper()
	eph, err := fips.GenerateX25519()
	if err != nil {
		t.Fatal(err)
	}
	kem, err := mlkem.GenerateKey768()
	if err != nil {
		t.Fatal(err)
	}
	r := &ref{
		t: t, keys: e.keys, chain: e.cfg.Chain, peer: other.keys, eph: eph, kem: kem,
		suite: suites()[0], ice: wire.ICE{Ufrag: "ref", Pwd: "ref-password"},
	}
	if e.cfg.PSK != nil {
		r.psk = e.cfg.PSK(e.cfg.PSKEpoch)
	}
	return r
}

func (r *ref) dh(k *ecdh.PrivateKey, p *ecdh.PublicKey) []byte {
	z, err := k.ECDH(p)
	if err != nil {
		return make([]byte, 32) // a lie with a degenerate key
	}
	return z
}

func (r *ref) point(b []byte) *ecdh.PublicKey {
	r.t.Helper()
	p, err := fips.NewX25519PublicKey(b)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (l *lie) signWith(own ed25519.PrivateKey, role string, hash []byte) [64]byte {
	if l.signer != nil {
		own = l.signer
	}
	if l.role != "" {
		role = l.role
	}
	hash = slices.Clone(hash)
	hash[0] ^= l.sigHash
	return refSign(own, role, hash)
}

func (r *ref) secrets(l *lie) (psk []byte, static *ecdh.PrivateKey) {
	psk, static = r.psk, r.keys.X25519
	if l.psk != nil {
		psk = l.psk
	}
	if l.static != nil {
		static = l.static
	}
	return psk, static
}

func (r *ref) invite(l lie) []byte {
	m := wire.Invite{
		Index: 77, Suites: []wire.Suite{r.suite}, PSKEpoch: 1, From: r.keys.ID(), To: r.peer.ID(), Chain: r.chain,
	}
	_, _ = rand.Read(m.SID[:])
	copy(m.X25519[:], r.eph.PublicKey().Bytes())
	if l.point != nil {
		m.X25519 = *l.point
	}
	copy(m.EncapKey[:], r.kem.EncapsulationKey().Bytes())
	if l.chain != nil {
		m.Chain = l.chain
	}
	if l.invite != nil {
		l.invite(&m)
	}
	m.Sig = l.signWith(r.keys.Ed25519, "invite", refHash(m.AppendUnsigned(nil)))
	r.m1 = m.Append(nil)
	return r.m1
}

// offer answers m1.
func (r *ref) offer(m1 []byte, l lie) []byte {
	r.t.Helper()
	var in wire.Invite
	if err := in.Parse(m1); err != nil {
		r.t.Fatal(err)
	}
	m := wire.Offer{SID: in.SID, Index: 78, Suite: r.suite}
	if l.suite != 0 {
		m.Suite = l.suite
	}
	if l.sid != nil {
		m.SID = *l.sid
	}
	ek, err := mlkem.NewEncapsulationKey768(in.EncapKey[:])
	if err != nil {
		r.t.Fatal(err)
	}
	ss, ct := ek.Encapsulate()
	copy(m.Ciphertext[:], ct)
	copy(m.X25519[:], r.eph.PublicKey().Bytes())
	if l.point != nil {
		m.X25519 = *l.point
	}
	psk, static := r.secrets(&l)
	eA := r.point(in.X25519[:])
	ikm := slices.Concat(ss, r.dh(r.eph, eA), r.dh(static, eA), r.dh(r.eph, r.peer.X25519.PublicKey()))
	clr := m.AppendClear(nil)
	r.m1, r.suite = m1, m.Suite
	r.sched = newRefSchedule(m.Suite, psk, ikm, m1, clr)
	body := wire.OfferBody{ICE: r.ice, Chain: r.chain}
	if l.chain != nil {
		body.Chain = l.chain
	}
	u := body.AppendUnsigned(nil)
	body.Sig = l.signWith(r.keys.Ed25519, "offer", refHash(r.sched.th, u))
	fin := r.sched.finB
	if l.otherFin {
		fin = r.sched.finA
	}
	body.MAC = refMAC(fin, refHash(r.sched.th, u, body.Sig[:]))
	body.MAC[31] ^= l.mac
	plain := body.Append(nil)
	if l.trailing {
		plain = append(plain, 0)
	}
	m.Sealed = refAEAD(r.t, m.Suite, r.sched.hsB).Seal(nil, make([]byte, 12), plain, clr)
	r.m2 = m.Append(nil)
	return r.m2
}

// confirm answers m2.
func (r *ref) confirm(m2 []byte, l lie) []byte {
	r.t.Helper()
	var in wire.Offer
	if err := in.Parse(m2); err != nil {
		r.t.Fatal(err)
	}
	ss, err := r.kem.Decapsulate(in.Ciphertext[:])
	if err != nil {
		r.t.Fatal(err)
	}
	psk, static := r.secrets(&l)
	eB := r.point(in.X25519[:])
	ikm := slices.Concat(ss, r.dh(r.eph, eB), r.dh(r.eph, r.peer.X25519.PublicKey()), r.dh(static, eB))
	r.sched = newRefSchedule(in.Suite, psk, ikm, r.m1, m2[:len(m2)-len(in.Sealed)])
	r.suite, r.m2 = in.Suite, m2
	plain, err := refAEAD(r.t, in.Suite, r.sched.hsB).Open(nil, make([]byte, 12), in.Sealed, in.AppendClear(nil))
	var got wire.OfferBody
	if err == nil {
		err = got.Parse(plain)
	}
	if l.static == nil && l.psk == nil {
		if err != nil {
			r.t.Fatalf("offer by the page: %v", err)
		}
		u := got.AppendUnsigned(nil)
		if got.Sig != refSign(r.peer.Ed25519, "offer", refHash(r.sched.th, u)) || got.MAC != refMAC(r.sched.finB, refHash(r.sched.th, u, got.Sig[:])) {
			r.t.Error("signature or MAC of OFFER is not that of the page")
		}
	}
	m := wire.Confirm{SID: in.SID}
	if l.sid != nil {
		m.SID = *l.sid
	}
	th3 := refHash(r.sched.th, m2, m.AppendClear(nil))
	body := wire.ConfirmBody{ICE: r.ice}
	u := body.AppendUnsigned(nil)
	body.Sig = l.signWith(r.keys.Ed25519, "confirm", refHash(th3, u))
	fin := r.sched.finA
	if l.otherFin {
		fin = r.sched.finB
	}
	body.MAC = refMAC(fin, refHash(th3, u, body.Sig[:]))
	body.MAC[0] ^= l.mac
	plain = body.Append(nil)
	if l.trailing {
		plain = append(plain, 0)
	}
	m.Sealed = refAEAD(r.t, in.Suite, r.sched.hsA).Seal(nil, make([]byte, 12), plain, m.AppendClear(nil))
	return m.Append(nil)
}

// same checks a real end's keys; lower tells that the real end is A.
func (tr *refTraffic) same(t *testing.T, s *session.Secrets, lower bool) {
	t.Helper()
	send, recv := tr.b, tr.a
	if lower {
		send, recv = recv, send
	}
	if s.Send != send || s.Recv != recv || s.Rekey != [32]byte(tr.rekey) || s.Exporter != [32]byte(tr.exporter) {
		t.Error("session keys are not those of docs/wire.md")
	}
}

// The code and docs/wire.md agree, from both sides and with both suites.
func TestReferencePeer(t *testing.T) {
	for _, suite := range suites() {
		t.Run(suite.String(), func(t *testing.T) {
			p := newPair(t, nil)
			a := p.lo.as(t, p.hi)
			a.suite = suite
			if err := p.hi.step(a.invite(lie{}), p.now); err != nil {
				t.Fatal(err)
			}
			m2 := p.hi.take()
			m3 := a.confirm(m2, lie{})
			if err := p.hi.step(m3, p.now); err != nil {
				t.Fatal(err)
			}
			a.sched.traffic(m2, m3).same(t, p.hi.est[0].Secrets, false)
			a.candidates(t, p.hi, a.sched.sgA, a.sched.sgB)

			b := p.hi.as(t, p.lo)
			b.suite = suite
			p.lo.connect(p.now)
			m2 = b.offer(p.lo.take(), lie{})
			if err := p.lo.step(m2, p.now); err != nil {
				t.Fatal(err)
			}
			b.sched.traffic(m2, p.lo.take()).same(t, p.lo.est[0].Secrets, true)
			b.candidates(t, p.lo, b.sched.sgB, b.sched.sgA)
		})
	}
}

// candidates exchanges sealed candidates with a real end, by the page.
func (r *ref) candidates(t *testing.T, e *end, send, recv []byte) {
	t.Helper()
	m := wire.Candidates{SID: e.est[0].SID, Seq: 0x0102030405060708}
	nonce := []byte{0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}
	body := wire.CandidatesBody{Lines: []string{"hello"}, Flags: wire.CandidatesDone | wire.CandidatesFresh}
	m.Sealed = refAEAD(t, r.suite, send).Seal(nil, nonce, body.Append(nil), m.AppendClear(nil)[:26])
	if err := e.step(m.Append(nil), time.Time{}); err != nil || len(e.cands) != 1 || e.cands[0].Lines[0] != "hello" || !e.cands[0].Done || !e.cands[0].Fresh {
		t.Errorf("candidates by the page: %v, got %+v", err, e.cands)
	}
	b, err := e.est[0].SealCandidates([]string{"there"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := refAEAD(t, r.suite, recv).Open(nil, make([]byte, 12), b[26:], b[:26])
	if err != nil || string(plain) != "\x00\x01\x00\x05there" {
		t.Errorf("sealed candidates open to %q, %v", plain, err)
	}
}
