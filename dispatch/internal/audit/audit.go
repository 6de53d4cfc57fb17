// SPDX-License-Identifier: Apache-2.0

// Package audit is the log of everything that changed anything: its canonical
// encoding, the hash chain over it, the signed checkpoints, and their
// verification. It does no I/O; the store writes an entry in the transaction of
// the change itself.
//
// # Chain
//
// Entry n has hash(n) = SHA-256("bauxite audit v1\x00" ‖ prev ‖ fields), where prev
// is hash(n-1), 32 zero bytes before the first, and each field is written as its
// length, 8 bytes big endian, and its bytes. A chain alone shows neither its own
// truncation nor its replacement: that is what checkpoints are for, which the hub
// signs and every node keeps.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// HashLen is the length of a hash in bytes.
const HashLen = sha256.Size

// Limits of an entry, in bytes; longer texts are cut by New.
const (
	MaxText   = 256
	MaxDetail = 4096
)

// Errors of verification.
var (
	// ErrBroken means that an entry is not what was written, or is missing.
	ErrBroken = errors.New("audit chain is broken")
	// ErrTruncated means that the log ends before a checkpoint that was signed.
	ErrTruncated = errors.New("audit log is shorter than a signed checkpoint")
	// ErrSignature means that a checkpoint is not signed by the key given.
	ErrSignature = errors.New("audit checkpoint has a bad signature")
)

const domain = "bauxite audit v1\x00"

// Event is what happened, before it has a number.
type Event struct {
	// Actor is "node:<PeerID>", "user:<name>/<key id>", "token:<id>", "socket" or "hub".
	Actor string
	// Action is a word like "node.revoke".
	Action string
	// Target is what it was done to.
	Target string
	// Detail is JSON, or empty. It never holds a secret.
	Detail string
}

// Entry is one line of the log.
type Entry struct {
	Seq  uint64
	Time time.Time // in microseconds
	Event
	Prev, Hash []byte
}

// New returns the entry that follows (seq, head); head is nil before the first.
func New(seq uint64, head []byte, now time.Time, e Event) Entry {
	if len(head) == 0 {
		head = make([]byte, HashLen)
	}
	e.Actor, e.Action = cut(e.Actor, MaxText), cut(e.Action, MaxText)
	e.Target, e.Detail = cut(e.Target, MaxText), cut(e.Detail, MaxDetail)
	n := Entry{Seq: seq + 1, Time: time.UnixMicro(now.UnixMicro()), Event: e, Prev: bytes.Clone(head)}
	n.Hash = n.sum()
	return n
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

func (e *Entry) sum() []byte {
	b := append([]byte(domain), e.Prev...)
	b = binary.BigEndian.AppendUint64(b, e.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time.UnixMicro()))
	for _, f := range []string{e.Actor, e.Action, e.Target, e.Detail} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(f)))
		b = append(b, f...)
	}
	h := sha256.Sum256(b)
	return h[:]
}

// Verifier checks a log entry by entry. The zero value begins at the first entry.
// It is not safe for concurrent use.
type Verifier struct {
	Seq  uint64
	Head []byte
}

// Next checks that e follows. Errors: ErrBroken.
func (v *Verifier) Next(e *Entry) error {
	head := v.Head
	if len(head) == 0 {
		head = make([]byte, HashLen)
	}
	switch {
	case e.Seq != v.Seq+1:
		return fmt.Errorf("%w: entry %d follows entry %d", ErrBroken, e.Seq, v.Seq)
	case !bytes.Equal(e.Prev, head):
		return fmt.Errorf("%w: entry %d does not hold the hash of the one before", ErrBroken, e.Seq)
	case !bytes.Equal(e.Hash, e.sum()):
		return fmt.Errorf("%w: entry %d was changed", ErrBroken, e.Seq)
	}
	v.Seq, v.Head = e.Seq, e.Hash
	return nil
}
