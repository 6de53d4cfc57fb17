// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Checkpoint states that at Time the log of the database Epoch had Seq entries,
// of which the last had the hash Head.
type Checkpoint struct {
	Epoch uint64
	Seq   uint64
	Time  time.Time // in seconds
	Head  []byte
}

// SignedLen is the length of a signed checkpoint in bytes.
const SignedLen = bodyLen + ed25519.SignatureSize

const (
	bodyLen          = 1 + 3*8 + HashLen
	checkpointDomain = "bauxite audit checkpoint v1\x00"
	version          = 1
)

// Sign returns the checkpoint in the form that nodes keep: version (1 byte), epoch,
// seq, Unix seconds (8 bytes each, big endian), head (32), signature (64).
func (c *Checkpoint) Sign(key ed25519.PrivateKey) []byte {
	b := append(make([]byte, 0, SignedLen), version)
	b = binary.BigEndian.AppendUint64(b, c.Epoch)
	b = binary.BigEndian.AppendUint64(b, c.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Time.Unix()))
	b = append(b, c.Head...)
	return append(b, ed25519.Sign(key, append([]byte(checkpointDomain), b...))...)
}

// ParseCheckpoint reads a signed checkpoint without checking its signature.
func ParseCheckpoint(b []byte) (Checkpoint, error) {
	if len(b) != SignedLen || b[0] != version {
		return Checkpoint{}, errors.New("malformed audit checkpoint")
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(b[1+8*i:]) }
	return Checkpoint{
		Epoch: u(0), Seq: u(1), Time: time.Unix(int64(u(2)), 0), Head: bytes.Clone(b[25:bodyLen]),
	}, nil
}

// VerifyCheckpoint reads a signed checkpoint and checks its signature. Errors:
// ErrSignature.
func VerifyCheckpoint(b []byte, pub ed25519.PublicKey) (Checkpoint, error) {
	c, err := ParseCheckpoint(b)
	if err != nil {
		return c, err
	}
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, append([]byte(checkpointDomain), b[:bodyLen]...), b[bodyLen:]) {
		return c, fmt.Errorf("%w: checkpoint of entry %d", ErrSignature, c.Seq)
	}
	return c, nil
}
