// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// ErrHandshake is returned for a message that fails a check of the handshake.
var ErrHandshake = errors.New("handshake refused")

func refuse(why string) error { return fmt.Errorf("%w: %s", ErrHandshake, why) }

// initiator is A's side of one attempt.
type initiator struct {
	cfg     *Config
	sid     wire.SID
	knocked bool // it answers the KNOCK of that SID
	index   uint32
	ice     wire.ICE
	epoch   uint8 // of the PSK
	eph     *ecdh.PrivateKey
	kem     *mlkem.DecapsulationKey768
	invite  []byte
	started time.Time
}

// newInitiator makes M1: of a random SID, or in answer to the KNOCK of that SID.
func newInitiator(cfg *Config, epoch uint8, knock *wire.SID, now time.Time) (*initiator, error) {
	// A mesh with a PSK never falls back to none.
	if cfg.PSK != nil && cfg.psk(epoch) == nil {
		return nil, fmt.Errorf("no pre-shared key of epoch %d", epoch)
	}
	a := &initiator{cfg: cfg, epoch: epoch, started: now}
	caps := cfg.Caps
	if knock != nil {
		a.sid, a.knocked = *knock, true
		caps |= wire.CapAnswersKnock
	} else {
		_, _ = rand.Read(a.sid[:]) // never fails since Go 1.24
	}
	var err error
	if a.eph, err = fips.GenerateX25519(); err != nil {
		return nil, err
	}
	if a.kem, err = mlkem.GenerateKey768(); err != nil {
		return nil, err
	}
	a.index, a.ice = cfg.Indexes.Reserve(), cfg.NewICE() // nothing fails from here on
	m := wire.Invite{
		SID: a.sid, Index: a.index, Suites: cfg.Suites, Caps: caps, PSKEpoch: epoch,
		From: cfg.Keys.ID(), To: cfg.Peer, Chain: cfg.Chain,
	}
	copy(m.X25519[:], a.eph.PublicKey().Bytes())
	copy(m.EncapKey[:], a.kem.EncapsulationKey().Bytes())
	m.Sig = sign(cfg.Keys.Ed25519, "invite", hashAll(m.AppendUnsigned(nil)))
	a.invite = m.Append(nil)
	return a, nil
}

// offer handles M2 and makes M3.
func (a *initiator) offer(b []byte, now time.Time) (*Established, []byte, error) {
	var m wire.Offer
	if err := m.Parse(b); err != nil {
		return nil, nil, err
	}
	if !slices.Contains(a.cfg.Suites, m.Suite) {
		return nil, nil, refuse("suite was not offered")
	}
	eB, err := fips.NewX25519PublicKey(m.X25519[:])
	if err != nil {
		return nil, nil, refuse("bad X25519 key")
	}
	ss, err := a.kem.Decapsulate(m.Ciphertext[:])
	if err != nil {
		return nil, nil, refuse("bad ML-KEM ciphertext")
	}
	ikm := append(make([]byte, 0, 4*32), ss...) // grows in place, so that clear reaches all of it
	clear(ss)
	for _, dh := range [][2]any{{a.eph, eB}, {a.eph, a.cfg.PeerX25519}, {a.cfg.Keys.X25519, eB}} {
		z, err := dh[0].(*ecdh.PrivateKey).ECDH(dh[1].(*ecdh.PublicKey))
		if err != nil {
			return nil, nil, refuse("degenerate X25519 key")
		}
		ikm = append(ikm, z...)
		clear(z)
	}
	th := transcript(m.Suite, a.invite, m.AppendClear(nil))
	s := newSchedule(m.Suite, a.cfg.psk(a.epoch), ikm, th)
	clear(ikm)
	defer s.erase()
	plain, err := openOnce(m.Suite, s.hsB, 0, m.Sealed, m.AppendClear(nil))
	if err != nil {
		return nil, nil, refuse("offer does not open: keys or PSK differ")
	}
	var body wire.OfferBody
	if err := body.Parse(plain); err != nil {
		return nil, nil, err
	}
	cert, err := a.cfg.checkChain(body.Chain, now)
	if err != nil {
		return nil, nil, err
	}
	unsigned := body.AppendUnsigned(nil)
	if !verify(cert.Ed25519, "offer", hashAll(th[:], unsigned), body.Sig[:]) {
		return nil, nil, refuse("bad signature in offer")
	}
	want := mac(s.finB, hashAll(th[:], unsigned, body.Sig[:]))
	if !hmac.Equal(want[:], body.MAC[:]) {
		return nil, nil, refuse("bad MAC in offer")
	}

	conf := wire.Confirm{SID: a.sid}
	th3 := hashAll(th[:], b, conf.AppendClear(nil))
	cb := wire.ConfirmBody{ICE: a.ice}
	cu := cb.AppendUnsigned(nil)
	cb.Sig = sign(a.cfg.Keys.Ed25519, "confirm", hashAll(th3[:], cu))
	cb.MAC = mac(s.finA, hashAll(th3[:], cu, cb.Sig[:]))
	if conf.Sealed, err = sealOnce(m.Suite, s.hsA, 0, cb.Append(nil), conf.AppendClear(nil)); err != nil {
		return nil, nil, err
	}
	out := conf.Append(nil)
	est := &Established{
		SID: a.sid, Initiator: true, LocalIndex: a.index, RemoteIndex: m.Index, LocalCaps: a.cfg.Caps, PeerCaps: body.Caps,
		LocalICE: a.ice, RemoteICE: body.ICE, Certificate: cert,
		Secrets: s.secrets(hashAll(th3[:], out), true),
		signal:  newSignal(m.Suite, s.sigA, s.sigB),
	}
	return est, out, nil
}

// responder is B's side of one attempt, from M2 on.
type responder struct {
	cfg     *Config
	sid     wire.SID
	index   uint32
	remote  uint32
	caps    uint32
	suite   wire.Suite
	ice     wire.ICE
	cert    *identity.Certificate
	sched   *schedule
	offer   []byte
	started time.Time
}

// rejected is an Invite that could be verified and is refused for a reason that
// its sender may know.
type rejected struct{ reason uint8 }

func (r rejected) Error() string { return fmt.Sprintf("invite rejected, reason %d", r.reason) }

// newResponder handles M1 and makes M2. The cheap checks come first: nothing is
// computed for a message whose signature is not the peer's. knocks are the SIDs of
// our KNOCKs that count.
func newResponder(cfg *Config, b []byte, knocks []wire.SID, now time.Time) (*responder, error) {
	var m wire.Invite
	if err := m.Parse(b); err != nil {
		return nil, err
	}
	if m.To != cfg.Keys.ID() || m.From != cfg.Peer {
		return nil, refuse("invite is for another pair of peers")
	}
	if m.Caps&wire.CapAnswersKnock != 0 && !slices.Contains(knocks, m.SID) {
		return nil, refuse("invite answers no knock of ours")
	}
	if !cfg.Limits.allow(now) {
		return nil, refuse("handshakes come too often")
	}
	cert, err := cfg.checkChain(m.Chain, now)
	if err != nil {
		return nil, err
	}
	if !verify(cert.Ed25519, "invite", hashAll(m.AppendUnsigned(nil)), m.Sig[:]) {
		return nil, refuse("bad signature in invite")
	}
	suite, ok := choose(cfg.Suites, m.Suites)
	if !ok {
		return nil, rejected{wire.RejectSuite}
	}
	if cfg.PSK != nil && cfg.psk(m.PSKEpoch) == nil {
		return nil, rejected{wire.RejectPSKEpoch}
	}
	eA, err := fips.NewX25519PublicKey(m.X25519[:])
	if err != nil {
		return nil, refuse("bad X25519 key")
	}
	ek, err := mlkem.NewEncapsulationKey768(m.EncapKey[:])
	if err != nil {
		return nil, refuse("bad ML-KEM key")
	}
	eph, err := fips.GenerateX25519()
	if err != nil {
		return nil, err
	}
	ss, ct := ek.Encapsulate()
	ikm := append(make([]byte, 0, 4*32), ss...) // grows in place, so that clear reaches all of it
	clear(ss)
	for _, dh := range [][2]any{{eph, eA}, {cfg.Keys.X25519, eA}, {eph, cert.X25519}} {
		z, err := dh[0].(*ecdh.PrivateKey).ECDH(dh[1].(*ecdh.PublicKey))
		if err != nil {
			return nil, refuse("degenerate X25519 key")
		}
		ikm = append(ikm, z...)
		clear(z)
	}
	r := &responder{
		cfg: cfg, sid: m.SID, index: cfg.Indexes.Reserve(), remote: m.Index, caps: m.Caps &^ wire.CapAnswersKnock, suite: suite,
		ice: cfg.NewICE(), cert: cert, started: now,
	}
	off := wire.Offer{SID: m.SID, Index: r.index, Suite: suite}
	copy(off.X25519[:], eph.PublicKey().Bytes())
	copy(off.Ciphertext[:], ct)
	clr := off.AppendClear(nil)
	th := transcript(suite, b, clr)
	s := newSchedule(suite, cfg.psk(m.PSKEpoch), ikm, th)
	clear(ikm)
	body := wire.OfferBody{Caps: cfg.Caps, ICE: r.ice, Chain: cfg.Chain}
	unsigned := body.AppendUnsigned(nil)
	body.Sig = sign(cfg.Keys.Ed25519, "offer", hashAll(th[:], unsigned))
	body.MAC = mac(s.finB, hashAll(th[:], unsigned, body.Sig[:]))
	if off.Sealed, err = sealOnce(suite, s.hsB, 0, body.Append(nil), clr); err != nil {
		cfg.Indexes.Release(r.index)
		return nil, err
	}
	r.sched, r.offer = s, off.Append(nil)
	return r, nil
}

// confirm handles M3.
func (r *responder) confirm(b []byte) (*Established, error) {
	var m wire.Confirm
	if err := m.Parse(b); err != nil {
		return nil, err
	}
	s := r.sched
	plain, err := openOnce(r.suite, s.hsA, 0, m.Sealed, m.AppendClear(nil))
	if err != nil {
		return nil, refuse("confirm does not open")
	}
	var body wire.ConfirmBody
	if err := body.Parse(plain); err != nil {
		return nil, err
	}
	th3 := hashAll(s.th[:], r.offer, m.AppendClear(nil))
	unsigned := body.AppendUnsigned(nil)
	if !verify(r.cert.Ed25519, "confirm", hashAll(th3[:], unsigned), body.Sig[:]) {
		return nil, refuse("bad signature in confirm")
	}
	want := mac(s.finA, hashAll(th3[:], unsigned, body.Sig[:]))
	if !hmac.Equal(want[:], body.MAC[:]) {
		return nil, refuse("bad MAC in confirm")
	}
	est := &Established{
		SID: r.sid, LocalIndex: r.index, RemoteIndex: r.remote, LocalCaps: r.cfg.Caps, PeerCaps: r.caps,
		LocalICE: r.ice, RemoteICE: body.ICE, Certificate: r.cert,
		Secrets: s.secrets(hashAll(th3[:], b), false),
		signal:  newSignal(r.suite, s.sigB, s.sigA),
	}
	s.erase()
	return est, nil
}

// checkChain verifies a certificate chain and that it is the configured peer's.
func (c *Config) checkChain(chain [][]byte, now time.Time) (*identity.Certificate, error) {
	cert, err := identity.ParseCertificate(chain)
	if err != nil {
		return nil, err
	}
	if cert.ID != c.Peer {
		return nil, refuse("certificate is another peer's")
	}
	if err := cert.Verify(c.Roots, now); err != nil {
		return nil, err
	}
	if c.Denied != nil && c.Denied(cert) {
		return nil, refuse("certificate is denied")
	}
	return cert, nil
}
