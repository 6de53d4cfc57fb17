// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// The life of keys with a peer that takes part in the in-band rekey. Ages count
// from when an end made the keys.
const (
	// RekeyAfter is the age at which A begins a rekey.
	RekeyAfter = 120 * time.Second
	// RekeyAfterB is the age at which B begins, where A was silent.
	RekeyAfterB = 130 * time.Second
	// StuckAfter is the age at which a rekey has been due for too long: a full
	// handshake should begin, by another way.
	StuckAfter = 145 * time.Second
	// RefuseAfter is the age from which keys neither seal nor open.
	RefuseAfter = 180 * time.Second
	// OldKeysLive is how long replaced keys still open packets once the new ones are
	// confirmed.
	OldKeysLive = 15 * time.Second

	// rekeyGap is the least age of keys that the peer may replace.
	rekeyGap = 1 * time.Second
	// rekeyRetry is the least time to the first repetition; it doubles up to
	// maxRekeyRetry.
	rekeyRetry    = 250 * time.Millisecond
	maxRekeyRetry = 4 * time.Second
)

// Rekeys reports whether both ends take part in the in-band rekey.
func (e *Established) Rekeys() bool { return e.LocalCaps&e.PeerCaps&wire.CapRekey != 0 }

// RekeyOutput is one thing to do. Exactly one field is set, besides On.
type RekeyOutput struct {
	// Send are the bodies of TypeRekey packets, to be sealed with the keys whose
	// LocalIndex is On.
	Send [][]byte
	On   uint32
	// Next are new keys of the same session (same SID). They must open packets from
	// now on, before what follows is sent; nothing is sealed with them until Switch.
	// The owner of the Rekeyer owns LocalIndex from here on, until Drop.
	Next *Established
	// Switch is the LocalIndex of the keys to seal with from now on.
	Switch uint32
	// Drop is the LocalIndex of keys that are over.
	Drop uint32
	// Over says that the keys in use reached RefuseAfter: only a full handshake
	// helps.
	Over bool
}

// keys are one generation of a session's keys.
type keys struct {
	local, remote uint32
	rekey         [32]byte
	made          time.Time
}

// oldKeys still open packets.
type oldKeys struct {
	local uint32
	drop  time.Time
}

// ownRekey is a rekey that we began.
type ownRekey struct {
	index uint32
	eph   *ecdh.PrivateKey
	kem   *mlkem.DecapsulationKey768
	r1    []byte
	tr1   [32]byte
}

// answer is our answer to the peer's R1 until the new keys are confirmed.
type answer struct {
	keys   keys
	r1     []byte
	bodies [][]byte // of R2
	mac3   [wire.MACLen]byte
}

// repeated is a message that is sent until it is answered.
type repeated struct {
	bodies [][]byte
	on     uint32
	at     time.Time // of the next; zero: none
	wait   time.Duration
}

// Rekeyer replaces the keys of one BX1 session in band, again and again (R1, R2
// and R3 of docs/wire.md). Each generation is replaced at most once, so there is
// at most one R1 of each end for it. Nothing that it does on outside bytes harms
// the keys in use.
//
// It has no sockets, clock or goroutines and is not safe for concurrent use.
type Rekeyer struct {
	est     Established // without secrets
	suite   wire.Suite
	indexes Indexes
	rtt     time.Duration
	out     []RekeyOutput
	pieces  wire.Reassembler

	cur    keys
	over   bool
	forced bool // so many packets were sealed that new keys are due
	// notBefore is the least time of the next try, where no index was free.
	notBefore time.Time
	mine      *ownRekey
	theirs    *answer
	old       []oldKeys
	// repeat is R1, or R3 after it. Until R3 counts as heard, unconfirmed is the index
	// of the keys that it replaced.
	repeat      repeated
	unconfirmed uint32
}

// NewRekeyer returns the rekeyer of a session whose handshake ended now, or nil
// where not both ends take part. It must be called before est's secrets are
// erased.
func NewRekeyer(est *Established, indexes Indexes, now time.Time) *Rekeyer {
	if !est.Rekeys() {
		return nil
	}
	r := &Rekeyer{est: *est, suite: est.Secrets.Suite, indexes: indexes}
	r.est.Secrets = nil
	r.cur = keys{local: est.LocalIndex, remote: est.RemoteIndex, rekey: est.Secrets.Rekey, made: now}
	return r
}

// Ready returns what is to be done, in order, and forgets it.
func (r *Rekeyer) Ready() []RekeyOutput {
	out := r.out
	r.out = nil
	return out
}

// Current returns the LocalIndex of the keys to seal with.
func (r *Rekeyer) Current() uint32 { return r.cur.local }

// SetRTT tells the round trip to the peer, for repetitions.
func (r *Rekeyer) SetRTT(d time.Duration) { r.rtt = d }

// Stuck reports whether a rekey has been due for so long that a full handshake
// should begin.
func (r *Rekeyer) Stuck(now time.Time) bool { return now.Sub(r.cur.made) >= StuckAfter }

// Close forgets all secrets and releases indexes that were not handed out.
func (r *Rekeyer) Close() {
	r.dropMine()
	clear(r.cur.rekey[:])
	if r.theirs != nil {
		clear(r.theirs.keys.rekey[:])
		r.theirs = nil
	}
	r.repeat, r.unconfirmed, r.old, r.over = repeated{}, 0, nil, true
	r.pieces.Reset()
}

// context describes a rekey of the keys in use that we, or the peer, began.
func (r *Rekeyer) context(ours bool) rekeyContext {
	c := rekeyContext{suite: r.suite, side: 'b', indexA: r.cur.remote, indexB: r.cur.local}
	if ours == r.est.Initiator {
		c.side = 'a'
	}
	if r.est.Initiator {
		c.indexA, c.indexB = c.indexB, c.indexA
	}
	return c
}

// Sent tells how many packets were sealed under one lane key of the keys local. At
// the limit of the suite new keys are due.
func (r *Rekeyer) Sent(local uint32, packets uint64, now time.Time) {
	if local == r.cur.local && packets >= RekeyPackets(r.suite) && !r.forced {
		r.forced = true
		r.Tick(now)
	}
}

// Begin asks for new keys now, whatever the age of those in use.
func (r *Rekeyer) Begin(now time.Time) {
	if r.over || r.mine != nil || r.theirs != nil {
		return
	}
	r.notBefore = now.Add(rekeyGap) // where something below fails
	own := &ownRekey{}
	var err error
	if own.eph, err = fips.GenerateX25519(); err != nil {
		return
	}
	if own.kem, err = mlkem.GenerateKey768(); err != nil {
		return
	}
	if own.index = r.indexes.Reserve(); own.index == 0 {
		return
	}
	r.open(own, now)
}

// open sends R1 of a rekey of ours.
func (r *Rekeyer) open(own *ownRekey, now time.Time) {
	m := wire.Rekey1{SID: r.est.SID, Index: own.index}
	copy(m.X25519[:], own.eph.PublicKey().Bytes())
	copy(m.EncapKey[:], own.kem.EncapsulationKey().Bytes())
	c := r.context(true)
	own.tr1 = c.first(&m)
	m.MAC = rekeyMAC1(r.cur.rekey[:], own.tr1)
	own.r1 = m.Append(nil)
	r.mine = own
	r.repeatedly(own.r1, now)
}

// repeatedly sends a message under the keys in use, and again until it is answered.
func (r *Rekeyer) repeatedly(msg []byte, now time.Time) {
	r.repeat = repeated{bodies: split(msg), on: r.cur.local, wait: max(rekeyRetry, 2*r.rtt)}
	r.again(now)
}

func (r *Rekeyer) again(now time.Time) {
	r.out = append(r.out, RekeyOutput{Send: r.repeat.bodies, On: r.repeat.on})
	r.repeat.at = now.Add(r.repeat.wait)
	r.repeat.wait = min(2*r.repeat.wait, max(maxRekeyRetry, r.repeat.wait))
}

func split(msg []byte) [][]byte {
	var id [4]byte
	_, _ = rand.Read(id[:])
	return wire.Split(binary.BigEndian.Uint32(id[:]), msg)
}

func (r *Rekeyer) dropMine() {
	if r.mine != nil {
		r.indexes.Release(r.mine.index)
		r.mine, r.repeat = nil, repeated{}
	}
}

// due is when a rekey of ours begins.
func (r *Rekeyer) due() time.Time {
	age := RekeyAfterB
	switch {
	case r.forced:
		age = rekeyGap
	case r.est.Initiator:
		age = RekeyAfter
	}
	if t := r.cur.made.Add(age); t.After(r.notBefore) {
		return t
	}
	return r.notBefore
}

// NextTick returns when Tick is due; zero means not before the next call of
// another method.
func (r *Rekeyer) NextTick() time.Time {
	var t time.Time
	earliest := func(x time.Time) {
		if !x.IsZero() && (t.IsZero() || x.Before(t)) {
			t = x
		}
	}
	if !r.over {
		earliest(r.cur.made.Add(RefuseAfter))
		if r.mine == nil && r.theirs == nil {
			earliest(r.due())
		}
	}
	earliest(r.repeat.at)
	for _, o := range r.old {
		earliest(o.drop)
	}
	if r.theirs != nil {
		earliest(r.theirs.keys.made.Add(RefuseAfter))
	}
	return t
}

// Tick lets time pass.
func (r *Rekeyer) Tick(now time.Time) {
	for len(r.old) > 0 && !now.Before(r.old[0].drop) {
		r.out = append(r.out, RekeyOutput{Drop: r.old[0].local})
		if r.old[0].local == r.unconfirmed {
			r.settle()
		}
		r.old = r.old[1:]
	}
	if r.theirs != nil && now.Sub(r.theirs.keys.made) >= RefuseAfter {
		r.out = append(r.out, RekeyOutput{Drop: r.theirs.keys.local})
		clear(r.theirs.keys.rekey[:])
		r.theirs = nil
	}
	if r.over {
		return
	}
	if now.Sub(r.cur.made) >= RefuseAfter {
		r.over = true
		r.dropMine()
		clear(r.cur.rekey[:])
		r.out = append(r.out, RekeyOutput{Over: true}, RekeyOutput{Drop: r.cur.local})
		return
	}
	if !r.repeat.at.IsZero() && !now.Before(r.repeat.at) {
		r.again(now)
	}
	if !now.Before(r.due()) {
		r.Begin(now)
	}
}

// Confirmed tells that a packet opened under the keys local.
func (r *Rekeyer) Confirmed(local uint32, now time.Time) {
	switch {
	case r.theirs != nil && local == r.theirs.keys.local:
		r.adopt(now)
	case r.unconfirmed != 0 && local == r.cur.local:
		for i := range r.old {
			if r.old[i].local == r.unconfirmed {
				r.old[i].drop = earlier(r.old[i].drop, now.Add(OldKeysLive))
			}
		}
		r.settle()
	}
}

// settle ends the repetition of R3.
func (r *Rekeyer) settle() {
	r.unconfirmed = 0
	if r.mine == nil { // else R1 of the next rekey is what is repeated
		r.repeat = repeated{}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// replace makes k the keys in use; those before live until drop.
func (r *Rekeyer) replace(k keys, drop time.Time) {
	if !r.over {
		r.old = append(r.old, oldKeys{local: r.cur.local, drop: earlier(drop, r.cur.made.Add(RefuseAfter))})
	}
	clear(r.cur.rekey[:])
	r.cur, r.over, r.forced, r.notBefore = k, false, false, time.Time{}
	r.pieces.Reset()
	r.out = append(r.out, RekeyOutput{Switch: k.local})
}

// adopt switches to the keys of our answer, which A of the rekey has.
func (r *Rekeyer) adopt(now time.Time) {
	k := r.theirs.keys
	clear(r.theirs.keys.rekey[:])
	r.theirs = nil
	r.repeat, r.unconfirmed = repeated{}, 0
	r.replace(k, now.Add(OldKeysLive))
}
