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
	// MaxCounter is where Seal refuses; the rekey comes long before.
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
	aead  cipher.AEAD
	iv    [12]byte
	nonce [12]byte
	next  atomic.Uint64 // written by the sealing goroutine, read by others
}

// Init sets the key. It must be called once, before use.
func (s *Sender) Init(suite wire.Suite, k *session.LaneKey) (err error) {
	s.iv = k.IV
	s.aead, err = session.NewAEAD(suite, k.Key[:])
	return err
}

// Count returns how many packets were sealed. Safe for concurrent use.
func (s *Sender) Count() uint64 { return s.next.Load() }

// Seal encrypts the n bytes at raw[HeaderLen:] in place and writes the header
// before them. It sets h.Counter and returns the datagram, which is raw's start;
// raw must have room for the tag.
func (s *Sender) Seal(raw []byte, n int, h *wire.Header) ([]byte, error) {
	c := s.next.Load()
	if c >= MaxCounter {
		return nil, ErrExhausted
	}
	s.next.Store(c + 1)
	h.Counter = c
	h.Put(raw)
	setNonce(&s.nonce, &s.iv, c)
	out := s.aead.Seal(raw[wire.HeaderLen:wire.HeaderLen], s.nonce[:], raw[wire.HeaderLen:wire.HeaderLen+n], raw[:wire.HeaderLen])
	return raw[:wire.HeaderLen+len(out)], nil
}

// Receiver opens the packets of one lane. Safe for concurrent use.
type Receiver struct {
	aead cipher.AEAD
	iv   [12]byte

	forged atomic.Uint64

	mu     sync.Mutex // guards the rest
	window window
}

// Init sets the key. It must be called once, before use.
func (r *Receiver) Init(suite wire.Suite, k *session.LaneKey) (err error) {
	r.iv = k.IV
	r.aead, err = session.NewAEAD(suite, k.Key[:])
	return err
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

// Open decrypts the datagram b in place and returns its body. The window is read
// before the AEAD runs, so a bonded copy costs no decryption, and written after
// it, so a forged counter moves nothing (RFC 6479).
func (r *Receiver) Open(b []byte, counter uint64, nonce *Nonce) ([]byte, error) {
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
	body, err := r.aead.Open(b[wire.HeaderLen:wire.HeaderLen], nonce[:], b[wire.HeaderLen:], b[:wire.HeaderLen])
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
