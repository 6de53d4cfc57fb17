// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
)

// Fragment is a piece of a message that does not fit one packet.
type Fragment struct {
	// ID is random and equal in all pieces of one message.
	ID uint32
	// Index counts from 0 to Count-1.
	Index, Count uint8
	Data         []byte
}

// The limits of messages in fragments.
const (
	// MaxFragments and MaxMessage bound what a receiver takes.
	MaxFragments = 3
	MaxMessage   = 4096
	// FragmentData is how much Split puts into a piece: with header, tag, a nonce of
	// its own (suite 3) or the two MACs of a HANDSHAKE it fits a datagram of 1232
	// bytes, which each IPv6 path carries.
	FragmentData = 1176
	// MaxSplit is the longest message that Split takes.
	MaxSplit = MaxFragments * FragmentData
	// FragmentHeaderLen is the length of what precedes the data.
	FragmentHeaderLen = 8
)

// Append encodes f.
func (f *Fragment) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, f.ID)
	b = append(b, f.Index, f.Count, 0, 0)
	return append(b, f.Data...)
}

// Parse decodes b.
func (f *Fragment) Parse(b []byte) error {
	if len(b) <= FragmentHeaderLen || len(b) > FragmentHeaderLen+MaxMessage {
		return malformed("fragment length")
	}
	f.ID, f.Index, f.Count, f.Data = binary.BigEndian.Uint32(b), b[4], b[5], b[FragmentHeaderLen:]
	if f.Count == 0 || f.Count > MaxFragments || f.Index >= f.Count {
		return malformed("fragment index")
	}
	return nil
}

// Split cuts a message of 1 to MaxSplit bytes into encoded fragments, each the
// body of one packet. It returns nil for another length.
func Split(id uint32, msg []byte) [][]byte {
	if len(msg) == 0 || len(msg) > MaxSplit {
		return nil
	}
	n := (len(msg) + FragmentData - 1) / FragmentData
	out := make([][]byte, 0, n)
	for i := range n {
		f := Fragment{ID: id, Index: uint8(i), Count: uint8(n), Data: msg[i*FragmentData : min((i+1)*FragmentData, len(msg))]}
		out = append(out, f.Append(make([]byte, 0, FragmentHeaderLen+len(f.Data))))
	}
	return out
}

// Reassembler puts the fragments of one sender together again, one message at a
// time: a piece of another message ends the one that is unfinished. It keeps at
// most MaxMessage bytes. The zero value is ready. Not safe for concurrent use.
type Reassembler struct {
	id    uint32
	count uint8
	have  uint8 // pieces
	size  int
	parts [MaxFragments][]byte
}

// Add takes the body of a packet. It returns the whole message with the last
// missing piece, else nil. A message of one piece aliases body and leaves the
// unfinished one alone.
func (r *Reassembler) Add(body []byte) ([]byte, error) {
	var f Fragment
	if err := f.Parse(body); err != nil {
		return nil, err
	}
	if f.Count == 1 {
		return f.Data, nil
	}
	if r.have == 0 || f.ID != r.id || f.Count != r.count {
		*r = Reassembler{id: f.ID, count: f.Count}
	}
	if r.parts[f.Index] != nil {
		return nil, nil // a copy
	}
	if r.size+len(f.Data) > MaxMessage {
		r.Reset()
		return nil, malformed("message in fragments is too long")
	}
	r.parts[f.Index] = bytes.Clone(f.Data)
	r.size += len(f.Data)
	if r.have++; r.have < r.count {
		return nil, nil
	}
	msg := bytes.Join(r.parts[:r.count], nil)
	r.Reset()
	return msg, nil
}

// Pending reports whether a message is unfinished.
func (r *Reassembler) Pending() bool { return r.have > 0 }

// Reset forgets an unfinished message.
func (r *Reassembler) Reset() { *r = Reassembler{} }
