// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/hmac"
	"crypto/mlkem"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// Step handles the body of a REKEY packet that opened under the keys local. An
// error means that it was dropped and nothing changed.
func (r *Rekeyer) Step(local uint32, body []byte, now time.Time) error {
	r.Confirmed(local, now)
	if local != r.cur.local || r.over {
		return nil // late, of a rekey that is through
	}
	msg, err := r.pieces.Add(body)
	if err != nil || msg == nil {
		return err
	}
	t, sid, err := wire.ParseMsgHeader(msg)
	if err != nil {
		return err
	}
	if sid != r.est.SID {
		return refuse("rekey of another session")
	}
	switch t {
	case wire.MsgRekey1:
		return r.first(msg, now)
	case wire.MsgRekey2:
		return r.second(msg, now)
	case wire.MsgRekey3:
		return r.third(msg, now)
	default:
		return refuse(fmt.Sprintf("message type %d in a rekey", t))
	}
}

// first answers R1.
func (r *Rekeyer) first(msg []byte, now time.Time) error {
	if a := r.theirs; a != nil {
		if !bytes.Equal(msg, a.r1) {
			return refuse("another rekey of the same keys")
		}
		r.out = append(r.out, RekeyOutput{Send: a.bodies, On: r.cur.local})
		return nil
	}
	var m wire.Rekey1
	if err := m.Parse(msg); err != nil {
		return err
	}
	c := r.context(false)
	tr1 := c.first(&m)
	if want := rekeyMAC1(r.cur.rekey[:], tr1); !hmac.Equal(want[:], m.MAC[:]) {
		return refuse("bad MAC in rekey 1")
	}
	if r.mine != nil && r.est.Initiator {
		return refuse("rekey while ours is under way")
	}
	if now.Sub(r.cur.made) < rekeyGap {
		return refuse("rekey of keys that are new")
	}
	eI, err := fips.NewX25519PublicKey(m.X25519[:])
	if err != nil {
		return refuse("bad X25519 key")
	}
	ek, err := mlkem.NewEncapsulationKey768(m.EncapKey[:])
	if err != nil {
		return refuse("bad ML-KEM key")
	}
	eph, err := fips.GenerateX25519()
	if err != nil {
		return err
	}
	z, err := eph.ECDH(eI)
	if err != nil {
		return refuse("degenerate X25519 key")
	}
	index := r.indexes.Reserve()
	if index == 0 {
		return refuse("no index is free")
	}
	ss, ct := ek.Encapsulate()
	m2 := wire.Rekey2{SID: r.est.SID, Index: index}
	copy(m2.X25519[:], eph.PublicKey().Bytes())
	copy(m2.Ciphertext[:], ct)
	s := r.schedule(ss, z, tr1, msg, m2.AppendUnsigned(nil))
	defer s.erase()
	m2.MAC = s.mac2()
	r2 := m2.Append(nil)
	final := s.final(r2)
	m3 := wire.Rekey3{SID: r.est.SID}
	r.dropMine() // B's gives way to A's
	secrets := s.secrets(final, r.est.Initiator)
	r.theirs = &answer{
		keys: keys{local: index, remote: m.Index, rekey: secrets.Rekey, made: now},
		r1:   msg, bodies: split(r2), mac3: s.mac3(final, m3.AppendUnsigned(nil)),
	}
	r.next(&r.theirs.keys, secrets)
	r.out = append(r.out, RekeyOutput{Send: r.theirs.bodies, On: r.cur.local})
	return nil
}

func (r *Rekeyer) schedule(ss, z []byte, tr1 [32]byte, r1, r2unsigned []byte) *rekeySchedule {
	ikm := append(append(make([]byte, 0, 64), ss...), z...)
	clear(ss)
	clear(z)
	s := newRekeySchedule(r.suite, r.cur.rekey[:], ikm, tr1, r1, r2unsigned)
	clear(ikm)
	return s
}

// next hands out new keys.
func (r *Rekeyer) next(k *keys, secrets *Secrets) {
	e := r.est
	e.LocalIndex, e.RemoteIndex, e.Secrets = k.local, k.remote, secrets
	r.out = append(r.out, RekeyOutput{Next: &e})
}

// second takes R2, switches and sends R3 under the keys that are replaced.
func (r *Rekeyer) second(msg []byte, now time.Time) error {
	if r.mine == nil {
		return refuse("answer to no rekey of ours")
	}
	var m wire.Rekey2
	if err := m.Parse(msg); err != nil {
		return err
	}
	eR, err := fips.NewX25519PublicKey(m.X25519[:])
	if err != nil {
		return refuse("bad X25519 key")
	}
	ss, err := r.mine.kem.Decapsulate(m.Ciphertext[:])
	if err != nil {
		return refuse("bad ML-KEM ciphertext")
	}
	z, err := r.mine.eph.ECDH(eR)
	if err != nil {
		return refuse("degenerate X25519 key")
	}
	s := r.schedule(ss, z, r.mine.tr1, r.mine.r1, m.AppendUnsigned(nil))
	defer s.erase()
	if want := s.mac2(); !hmac.Equal(want[:], m.MAC[:]) {
		return refuse("bad MAC in rekey 2")
	}
	final := s.final(msg)
	m3 := wire.Rekey3{SID: r.est.SID}
	m3.MAC = s.mac3(final, m3.AppendUnsigned(nil))
	secrets := s.secrets(final, r.est.Initiator)
	k := keys{local: r.mine.index, remote: m.Index, rekey: secrets.Rekey, made: now}
	r.mine = nil // its index lives on in the keys
	r.next(&k, secrets)
	r.repeatedly(m3.Append(nil), now)
	r.unconfirmed = r.cur.local
	r.replace(k, r.cur.made.Add(RefuseAfter))
	return nil
}

// third takes R3.
func (r *Rekeyer) third(msg []byte, now time.Time) error {
	if r.theirs == nil {
		return refuse("confirmation of no rekey")
	}
	var m wire.Rekey3
	if err := m.Parse(msg); err != nil {
		return err
	}
	if !hmac.Equal(r.theirs.mac3[:], m.MAC[:]) {
		return refuse("bad MAC in rekey 3")
	}
	r.adopt(now)
	return nil
}
