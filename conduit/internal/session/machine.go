// SPDX-License-Identifier: Apache-2.0

// Package session sets up and keeps the keys shared with one peer, as docs/wire.md
// says: a Machine runs handshake BX1, its retries, and the sealed candidates that
// follow it; a Rekeyer replaces the keys of a session in band; the Courier of a
// node carries handshakes over UDP while the hub is away.
//
// None of them has sockets, a clock or goroutines: messages and times are fed to
// them, Ready says what to do. They are not safe for concurrent use.
package session

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// The limits of a handshake.
const (
	// attemptLife is how long an unanswered attempt stays open.
	attemptLife = 5 * time.Second
	// maxHalfOpen bounds B's unconfirmed attempts per peer: a replayed invite must
	// not evict the genuine one.
	maxHalfOpen = 3
	// giveUp is how long Connect tries.
	giveUp = 30 * time.Second
	// firstRetry doubles up to maxRetry.
	firstRetry = 1 * time.Second
	maxRetry   = 8 * time.Second
	// knockGap is the least time between two knocks that are answered.
	knockGap = 500 * time.Millisecond
	// maxSeen bounds the cache of invites that were seen.
	maxSeen = 64
)

// Indexes hands out receiver indexes, unique among live sessions.
type Indexes interface {
	Reserve() uint32
	Release(uint32)
}

// Config describes one pair of peers. All fields but PSK, PSKEpoch, PSKBefore,
// Denied and Caps are required.
type Config struct {
	Keys *identity.Keys
	// Chain is our certificate chain without the root.
	Chain [][]byte
	// Peer, PeerEd25519 and PeerX25519 are the other side's; the keys hash to Peer.
	Peer        identity.PeerID
	PeerEd25519 ed25519.PublicKey
	PeerX25519  *ecdh.PublicKey
	// Roots are the mesh's CA certificates.
	Roots *x509.CertPool
	// PSK returns the pre-shared key of an epoch, nil for an unknown one. A nil
	// func means a mesh without PSK.
	PSK      func(epoch uint8) []byte
	PSKEpoch uint8
	// PSKBefore returns the epoch before PSKEpoch while that still counts, for a peer
	// that has not got the new key yet. It may be nil.
	PSKBefore func() (epoch uint8, ok bool)
	// Denied reports whether a certificate that is otherwise good is shut out; nil
	// means none is.
	Denied func(*identity.Certificate) bool
	// Suites are in order of preference.
	Suites  []wire.Suite
	Caps    uint32
	Indexes Indexes
	// Limits are shared by all Machines of a node; nil means limits of this peer only.
	Limits *Limits
	// NewICE returns fresh ICE credentials.
	NewICE func() wire.ICE
}

func (c *Config) psk(epoch uint8) []byte {
	if c.PSK == nil {
		return nil
	}
	return c.PSK(epoch)
}

// Established is a finished handshake.
type Established struct {
	SID         wire.SID
	Initiator   bool
	LocalIndex  uint32
	RemoteIndex uint32
	LocalCaps   uint32
	PeerCaps    uint32
	LocalICE    wire.ICE
	RemoteICE   wire.ICE
	Certificate *identity.Certificate
	Secrets     *Secrets

	signal *signal
}

// Output is one thing to do. Exactly one field is set.
type Output struct {
	// Send is a body for the peer, by way of the hub.
	Send []byte
	// Established is a new session. The old one stays valid until the new one
	// has a path.
	Established *Established
	// Candidates came from the peer.
	Candidates *Candidates
	// Failed ends a Connect.
	Failed error
}

// Candidates are ICE candidates of the peer for one session.
type Candidates struct {
	SID   wire.SID
	Lines []string
	// Done says that no more will come.
	Done bool
	// Fresh says that all candidates sent before for this session are void.
	Fresh bool
}

// ErrNoAnswer is the failure of a Connect that the peer did not answer.
var ErrNoAnswer = errors.New("peer does not answer")

// Machine is the handshake state of one peer.
type Machine struct {
	cfg       Config
	initiates bool
	out       []Output

	wanted   time.Time // since when; zero means not wanted
	retryAt  time.Time
	retry    time.Duration
	lastErr  error
	lastTry  time.Time // last knock that was answered
	behind   bool      // the peer has not got the new PSK yet
	attempt  *initiator
	reply    *initiator // an attempt that answers a knock: one invite, no retry
	knocks   []wire.SID // of ours, that may be answered
	half     []*responder
	seen     map[[32]byte]time.Time
	sessions []*Established // newest last; at most 2, for candidates
}

// New returns a machine for one peer.
func New(cfg Config) *Machine {
	if cfg.Limits == nil {
		cfg.Limits = &Limits{}
	}
	return &Machine{
		cfg: cfg, initiates: cfg.Keys.ID().Compare(cfg.Peer) < 0,
		seen: make(map[[32]byte]time.Time),
	}
}

// Ready returns what is to be done, in order, and forgets it.
func (m *Machine) Ready() []Output {
	out := m.out
	m.out = nil
	return out
}

// SetChain replaces our certificate chain for handshakes from now on.
func (m *Machine) SetChain(chain [][]byte) { m.cfg.Chain = chain }

// SetPSKEpoch changes the epoch for handshakes that begin from now on.
func (m *Machine) SetPSKEpoch(epoch uint8) { m.cfg.PSKEpoch = epoch }

// Connecting reports whether a Connect is under way.
func (m *Machine) Connecting() bool { return !m.wanted.IsZero() }

// Connect asks for a new session. While one is being made it does nothing.
func (m *Machine) Connect(now time.Time) {
	if m.Connecting() {
		return
	}
	m.wanted, m.retry, m.lastErr, m.behind = now, firstRetry, nil, false
	m.try(now)
}

// Cancel gives up a Connect without a Failed output.
func (m *Machine) Cancel() {
	m.wanted, m.knocks = time.Time{}, nil
	m.drop(&m.attempt)
	m.drop(&m.reply)
}

func (m *Machine) try(now time.Time) {
	m.retryAt = now.Add(m.retry)
	m.retry = min(2*m.retry, maxRetry)
	if !m.initiates {
		k := wire.Knock{From: m.cfg.Keys.ID(), To: m.cfg.Peer}
		_, _ = rand.Read(k.SID[:])
		k.Sig = sign(m.cfg.Keys.Ed25519, "knock", hashAll(k.AppendUnsigned(nil)))
		m.knocks = append(m.knocks, k.SID)
		m.send(k.Append(nil))
		return
	}
	if err := m.begin(&m.attempt, nil, now); err != nil {
		m.fail(err)
	}
}

// begin makes an attempt, in place of the one that was there, and sends its invite.
func (m *Machine) begin(at **initiator, knock *wire.SID, now time.Time) error {
	m.drop(at)
	epoch := m.cfg.PSKEpoch
	if m.behind && m.cfg.PSKBefore != nil {
		if before, ok := m.cfg.PSKBefore(); ok {
			epoch = before
		}
	}
	a, err := newInitiator(&m.cfg, epoch, knock, now)
	if err != nil {
		return err
	}
	*at = a
	m.send(a.invite)
	return nil
}

func (m *Machine) send(b []byte) { m.out = append(m.out, Output{Send: b}) }

func (m *Machine) fail(err error) {
	m.Cancel()
	m.out = append(m.out, Output{Failed: err})
}

// drop ends an attempt of ours, if there is one.
func (m *Machine) drop(at **initiator) {
	if *at != nil {
		m.cfg.Indexes.Release((*at).index)
		*at = nil
	}
}

// open returns where the attempt of a SID is, or nil.
func (m *Machine) open(sid wire.SID) **initiator {
	for _, at := range []**initiator{&m.attempt, &m.reply} {
		if *at != nil && (*at).sid == sid {
			return at
		}
	}
	return nil
}

func (m *Machine) established(e *Established) {
	m.Cancel()
	m.sessions = append(m.sessions, e)
	if len(m.sessions) > 2 {
		m.sessions = m.sessions[1:]
	}
	m.out = append(m.out, Output{Established: e})
}

// NextTick returns when Tick is due; zero means not before the next call of
// another method.
func (m *Machine) NextTick() time.Time {
	var t time.Time
	earliest := func(x time.Time) {
		if t.IsZero() || x.Before(t) {
			t = x
		}
	}
	if m.Connecting() {
		earliest(m.retryAt)
		earliest(m.wanted.Add(giveUp))
	}
	for _, r := range m.half {
		earliest(r.started.Add(attemptLife))
	}
	if m.reply != nil {
		earliest(m.reply.started.Add(attemptLife))
	}
	return t
}

// Tick lets time pass: retries, and the end of what was not answered.
func (m *Machine) Tick(now time.Time) {
	for len(m.half) > 0 && now.Sub(m.half[0].started) >= attemptLife {
		m.dropHalf(m.half[0])
	}
	if m.reply != nil && now.Sub(m.reply.started) >= attemptLife {
		m.drop(&m.reply)
	}
	if !m.Connecting() {
		return
	}
	if now.Sub(m.wanted) >= giveUp {
		err := m.lastErr
		if err == nil {
			err = ErrNoAnswer
		}
		m.fail(err)
		return
	}
	if !now.Before(m.retryAt) {
		m.try(now)
	}
}

// Undeliverable tells that the hub could not deliver a body. An offline or
// unknown peer ends the Connect.
func (m *Machine) Undeliverable(reason string) {
	if !m.Connecting() {
		return
	}
	err := fmt.Errorf("hub could not reach the peer: %s", reason)
	switch reason {
	case "offline", "unknown", "denied":
		m.fail(err)
	default:
		m.lastErr = err
	}
}

// Step handles a body from the peer. An error means that the body was dropped
// and nothing changed; it is for logs and counters, never for the peer.
func (m *Machine) Step(b []byte, now time.Time) error {
	t, sid, err := wire.ParseMsgHeader(b)
	if err != nil {
		return err
	}
	switch t {
	case wire.MsgInvite:
		return m.invite(b, now)
	case wire.MsgOffer:
		return m.offer(b, sid, now)
	case wire.MsgConfirm:
		for i, r := range m.half {
			if r.sid != sid {
				continue
			}
			e, err := r.confirm(b)
			if err != nil {
				return err
			}
			for range i { // older attempts lost the race; a newer one may still win
				m.dropHalf(m.half[0])
			}
			m.half = m.half[1:]
			m.cfg.Limits.remove(r)
			m.established(e)
			return nil
		}
		return refuse("confirm for no open offer")
	case wire.MsgKnock:
		return m.knock(b, now)
	case wire.MsgReject:
		return m.reject(b, sid, now)
	case wire.MsgCandidates:
		for _, e := range m.sessions {
			if e.SID != sid {
				continue
			}
			c, err := e.signal.open(b, e.SID)
			if err == nil {
				m.out = append(m.out, Output{Candidates: c})
			}
			return err
		}
		return refuse("candidates for no session")
	default:
		return refuse(fmt.Sprintf("message type %d", t))
	}
}

// SealCandidates makes a body with our candidates for session e.
func (e *Established) SealCandidates(lines []string, flags wire.CandidateFlags) ([]byte, error) {
	return e.signal.seal(e.SID, lines, flags)
}

// Close releases the indexes of unfinished attempts.
func (m *Machine) Close() {
	m.Cancel()
	for len(m.half) > 0 {
		m.dropHalf(m.half[0])
	}
}
