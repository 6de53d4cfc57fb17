// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// LaneKey is one direction of one lane: an AEAD key and the IV that is XORed
// with the counter.
type LaneKey struct {
	Key [32]byte
	IV  [12]byte
}

// Secrets are what a finished handshake leaves.
type Secrets struct {
	Suite      wire.Suite
	Send, Recv [packet.NumLanes]LaneKey
	// Rekey chains the next in-band rekey to this handshake.
	Rekey [32]byte
	// Exporter keys things that want to be bound to the session.
	Exporter [32]byte
}

// Erase overwrites the keys. Go cannot promise that no copy is left elsewhere.
func (s *Secrets) Erase() { *s = Secrets{Suite: s.Suite} }

// schedule is the key schedule of BX1, in the shape of TLS 1.3's (RFC 8446,
// section 7.1): PSK first, then the concatenated shared secrets with ML-KEM in
// front (SP 800-56C r2), each key bound to the transcript.
type schedule struct {
	suite wire.Suite
	th    [32]byte
	hs    []byte

	hsA, hsB, finA, finB, sigA, sigB []byte // sig: signalling, for candidates
}

// transcript returns H("bauxite-hs-v1/" suite || M1 || M2.clear).
func transcript(suite wire.Suite, invite, offerClear []byte) (th [32]byte) {
	h := sha256.New()
	h.Write([]byte("bauxite-hs-v1/"))
	h.Write([]byte{byte(suite)})
	h.Write(invite)
	h.Write(offerClear)
	h.Sum(th[:0])
	return th
}

func hashAll(parts ...[]byte) (out [32]byte) {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(out[:0])
	return out
}

func extract(ikm, salt []byte) []byte {
	k, err := hkdf.Extract(sha256.New, ikm, salt)
	if err != nil {
		panic("session: hkdf extract: " + err.Error()) // only on a hash that FIPS forbids
	}
	return k
}

func expand(prk []byte, label string, context []byte, n int) []byte {
	k, err := hkdfExpand(prk, "bx1 "+label+string(context), n)
	if err != nil {
		panic("session: hkdf expand: " + err.Error())
	}
	return k
}

func hkdfExpand(prk []byte, info string, n int) ([]byte, error) {
	return hkdf.Expand(sha256.New, prk, info, n)
}

// newSchedule derives the handshake keys. psk is 32 bytes or nil; ikm is
// ML-KEM || DH(e,e) || DH(eA,sB) || DH(sA,eB).
func newSchedule(suite wire.Suite, psk, ikm []byte, th [32]byte) *schedule {
	if psk == nil {
		psk = make([]byte, 32)
	}
	early := extract(psk, make([]byte, 32))
	s := &schedule{suite: suite, th: th}
	s.hs = extract(ikm, expand(early, "derived", nil, 32))
	for label, k := range map[string]*[]byte{
		"hs a": &s.hsA, "hs b": &s.hsB, "fin a": &s.finA, "fin b": &s.finB, "signal a": &s.sigA, "signal b": &s.sigB,
	} {
		*k = expand(s.hs, label, th[:], 32)
	}
	return s
}

// secrets derives the traffic keys of both directions, seen from A if initiator.
func (s *schedule) secrets(thFinal [32]byte, initiator bool) *Secrets {
	return trafficSecrets(s.suite, s.hs, thFinal, initiator)
}

// trafficSecrets derives from HS what a handshake or a rekey leaves, seen from A of
// BX1 if a.
func trafficSecrets(suite wire.Suite, hs []byte, thFinal [32]byte, a bool) *Secrets {
	derived := expand(hs, "derived", nil, 32)
	ms := extract(make([]byte, 32), derived)
	clear(derived)
	out := &Secrets{Suite: suite}
	send, recv := "a", "b"
	if !a {
		send, recv = recv, send
	}
	for lane := range packet.NumLanes {
		for dir, k := range map[string]*LaneKey{send: &out.Send[lane], recv: &out.Recv[lane]} {
			name := dir + " " + packet.Lane(lane).String()
			copy(k.Key[:], expand(ms, "key "+name, thFinal[:], 32))
			copy(k.IV[:], expand(ms, "iv "+name, thFinal[:], 12))
		}
	}
	copy(out.Rekey[:], expand(ms, "rekey", thFinal[:], 32))
	copy(out.Exporter[:], expand(ms, "exporter", thFinal[:], 32))
	clear(ms)
	return out
}

func (s *schedule) erase() {
	for _, k := range [][]byte{s.hs, s.hsA, s.hsB, s.finA, s.finB} {
		clear(k)
	}
}

func mac(key []byte, h [32]byte) (out [wire.MACLen]byte) {
	m := hmac.New(sha256.New, key)
	m.Write(h[:])
	m.Sum(out[:0])
	return out
}

// signInput frames what is signed as TLS 1.3's CertificateVerify does (RFC 8446,
// section 4.4.3), so that no signature of one role passes for another's.
func signInput(role string, h [32]byte) []byte {
	b := make([]byte, 64, 64+len("bauxite-hs-v1 ")+len(role)+1+32)
	for i := range b {
		b[i] = 0x20
	}
	b = append(b, "bauxite-hs-v1 "...)
	b = append(b, role...)
	b = append(b, 0)
	return append(b, h[:]...)
}

func sign(k ed25519.PrivateKey, role string, h [32]byte) (sig [wire.SigLen]byte) {
	copy(sig[:], ed25519.Sign(k, signInput(role, h)))
	return sig
}

func verify(k ed25519.PublicKey, role string, h [32]byte, sig []byte) bool {
	return verifyMessage(k, signInput(role, h), sig)
}

func verifyMessage(k ed25519.PublicKey, msg, sig []byte) bool { return ed25519.Verify(k, msg, sig) }
