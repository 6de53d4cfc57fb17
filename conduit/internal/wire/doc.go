// SPDX-License-Identifier: Apache-2.0

// Package wire encodes and decodes everything that two nodes send each other:
// the 16-byte header of data packets, the bodies of control packets, and the
// messages of the handshake. docs/wire.md is the normative text; the golden
// files in testdata hold one example of each.
//
// Decoders read outside bytes: they never panic, never allocate more than the
// input's length, and refuse trailing bytes. Byte slices in decoded messages
// alias the input. All numbers are big-endian.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed is returned for bytes that are not what they should be.
var ErrMalformed = errors.New("malformed message")

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

// reader walks a message; after the first shortage it stays failed.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (r *reader) fixed(dst []byte) { copy(dst, r.take(len(dst))) }

// short reads a string behind a one-byte length.
func (r *reader) short() []byte { return r.take(int(r.u8())) }

// long reads bytes behind a two-byte length.
func (r *reader) long() []byte { return r.take(int(r.u16())) }

// end reports whether everything was read and nothing was missing.
func (r *reader) end() bool { return !r.bad && len(r.b) == 0 }

func appendShort(b, p []byte) []byte { return append(append(b, uint8(len(p))), p...) }

func appendLong(b, p []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
}
