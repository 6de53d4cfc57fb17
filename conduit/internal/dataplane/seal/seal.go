// SPDX-License-Identifier: Apache-2.0

// Package seal encrypts packets as they leave their lane and opens them as they
// arrive: one AEAD, one counter and one replay window for each lane and
// direction of a session, so that lanes share no lock.
package seal

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// Limits of one key (RFC 9001, appendix B, for the forgeries).
const (
	// MaxCounter is where every Seal refuses; AES ends before that, at
	// session.MaxPackets, and the rekey comes long before either.
	MaxCounter = 1 << 60
	// MaxForgeries is after how many packets that did not open a key is dropped.
	MaxForgeries = 1 << 36
)

// Errors of Seal and Open.
var (
	ErrExhausted = errors.New("key is used up")
	ErrReplay    = errors.New("packet was seen before or is too old")
	ErrForged    = errors.New("packet does not open")
)

// Sender seals the packets of one lane. One goroutine at a time may use it:
// calling it is what orders the counters.
type Sender struct {
	aead     cipher.AEAD
	iv       [12]byte
	nonce    [12]byte
	nonceLen int           // of nonce, what the AEAD takes: 0 in suite 3, which makes its own
	limit    uint64        // the first counter that is refused
	next     atomic.Uint64 // written by the sealing goroutine, read by others
}

// Init sets the key. It must be called once, before use.
func (s *Sender) Init(suite wire.Suite, k *session.LaneKey) (err error) {
	s.aead, err = session.NewAEAD(suite, k.Key[:])
	if err != nil {
		return err
	}
	s.iv, s.nonceLen, s.limit = k.IV, s.aead.NonceSize(), session.MaxPackets(suite)
	return nil
}

// Count returns how many packets were sealed. Safe for concurrent use.
func (s *Sender) Count() uint64 { return s.next.Load() }

// Seal encrypts the n bytes at raw[HeaderLen:] in place and writes the header
// before them. It sets h.Counter and returns the datagram, which is raw's start
// and session.Overhead longer than n; raw must have room for that. In suite 3 the
// body moves up by the nonce that comes before it.
func (s *Sender) Seal(raw []byte, n int, h *wire.Header) ([]byte, error) {
	c := s.next.Load()
	if c >= s.limit {
		return nil, ErrExhausted
	}
	s.next.Store(c + 1)
	h.Counter = c
	h.Put(raw)
	setNonce(&s.nonce, &s.iv, c)
	out := s.aead.Seal(raw[wire.HeaderLen:wire.HeaderLen], s.nonce[:s.nonceLen], raw[wire.HeaderLen:wire.HeaderLen+n], raw[:wire.HeaderLen])
	return raw[:wire.HeaderLen+len(out)], nil
}

// Receiver opens the packets of one lane. Safe for concurrent use.
type Receiver struct {
	aead     cipher.AEAD
	iv       [12]byte
	nonceLen int
	limit    uint64

	forged atomic.Uint64

	mu     sync.Mutex // guards the rest
	window window
}

// Init sets the key. It must be called once, before use.
func (r *Receiver) Init(suite wire.Suite, k *session.LaneKey) (err error) {
	r.aead, err = session.NewAEAD(suite, k.Key[:])
	if err != nil {
		return err
	}
	r.iv, r.nonceLen, r.limit = k.IV, r.aead.NonceSize(), session.MaxPackets(suite)
	return nil
}

// LastSeen returns the highest counter that was accepted (last_seen_seq).
func (r *Receiver) LastSeen() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.window.top
}

// Nonce is scratch space of one receiving goroutine; it spares an allocation per
// packet.
type Nonce [12]byte

// Open decrypts the datagram b in place and returns its body, which starts behind
// the header in every suite. The window is read
// before the AEAD runs, so a bonded copy costs no decryption, and written after
// it, so a forged counter moves nothing (RFC 6479).
func (r *Receiver) Open(b []byte, counter uint64, nonce *Nonce) ([]byte, error) {
	if counter >= r.limit {
		return nil, ErrReplay
	}
	r.mu.Lock()
	fresh := r.window.fresh(counter)
	r.mu.Unlock()
	if !fresh {
		return nil, ErrReplay
	}
	if r.forged.Load() >= MaxForgeries {
		return nil, ErrExhausted
	}
	setNonce((*[12]byte)(nonce), &r.iv, counter)
	body, err := r.aead.Open(b[wire.HeaderLen:wire.HeaderLen], nonce[:r.nonceLen], b[wire.HeaderLen:], b[:wire.HeaderLen])
	if err != nil {
		r.forged.Add(1)
		return nil, ErrForged
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.window.commit(counter) {
		return nil, ErrReplay // the copy won the race
	}
	return body, nil
}

func setNonce(n, iv *[12]byte, counter uint64) {
	*n = *iv
	v := binary.BigEndian.Uint64(n[4:])
	binary.BigEndian.PutUint64(n[4:], v^counter)
}
