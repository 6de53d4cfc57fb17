// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// Knock asks the peer with the lower PeerID for an Invite.
type Knock struct {
	SID      SID
	From, To identity.PeerID
	Sig      [SigLen]byte
}

// AppendUnsigned encodes all but the signature.
func (m *Knock) AppendUnsigned(b []byte) []byte {
	return append(append(appendMsgHeader(b, MsgKnock, &m.SID), m.From[:]...), m.To[:]...)
}

// Append encodes m.
func (m *Knock) Append(b []byte) []byte { return append(m.AppendUnsigned(b), m.Sig[:]...) }

// Parse decodes b.
func (m *Knock) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgKnock, &m.SID)
	r.fixed(m.From[:])
	r.fixed(m.To[:])
	r.fixed(m.Sig[:])
	if !r.end() {
		return malformed("knock")
	}
	return nil
}

// Reject reasons.
const (
	RejectSuite    = 1 // no common suite
	RejectPSKEpoch = 2 // unknown PSK epoch
	RejectBusy     = 3 // too many half-open handshakes
	RejectPolicy   = 4
)

// Reject tells A that B will not answer an Invite that B could verify. It is
// signed: the hub must not be able to forge a refusal.
type Reject struct {
	SID    SID
	Reason uint8
	Sig    [SigLen]byte
}

// AppendUnsigned encodes all but the signature.
func (m *Reject) AppendUnsigned(b []byte) []byte {
	return append(appendMsgHeader(b, MsgReject, &m.SID), m.Reason)
}

// Append encodes m.
func (m *Reject) Append(b []byte) []byte { return append(m.AppendUnsigned(b), m.Sig[:]...) }

// Parse decodes b.
func (m *Reject) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgReject, &m.SID)
	m.Reason = r.u8()
	r.fixed(m.Sig[:])
	if !r.end() {
		return malformed("reject")
	}
	return nil
}

// Candidates carries sealed ICE candidates.
type Candidates struct {
	SID SID
	// Seq counts a side's messages of one SID from 0; it is the AEAD nonce.
	Seq    uint64
	Sealed []byte
}

// AppendClear encodes what precedes the sealed body.
func (m *Candidates) AppendClear(b []byte) []byte {
	return binary.BigEndian.AppendUint64(appendMsgHeader(b, MsgCandidates, &m.SID), m.Seq)
}

// Append encodes m.
func (m *Candidates) Append(b []byte) []byte { return append(m.AppendClear(b), m.Sealed...) }

// Parse decodes b.
func (m *Candidates) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgCandidates, &m.SID)
	m.Seq = r.u64()
	m.Sealed = r.b
	if r.bad || len(m.Sealed) <= TagLen {
		return malformed("candidates")
	}
	return nil
}

// Limits of a CandidatesBody.
const (
	MaxCandidates   = 32
	MaxCandidateLen = 512
)

// CandidateFlags are the flags of a CandidatesBody.
type CandidateFlags uint8

// The flags of candidates. Others are ignored.
const (
	// CandidatesDone says that no more will come.
	CandidatesDone CandidateFlags = 1 << 0
	// CandidatesFresh says that all candidates sent before for this SID are void.
	CandidatesFresh CandidateFlags = 1 << 1
)

// CandidatesBody is the sealed part of Candidates: lines of RFC 8839's candidate
// attribute, without "candidate:".
type CandidatesBody struct {
	Lines []string
	Flags CandidateFlags
}

// Append encodes m.
func (m *CandidatesBody) Append(b []byte) []byte {
	b = append(b, byte(m.Flags), uint8(len(m.Lines)))
	for _, l := range m.Lines {
		b = appendLong(b, []byte(l))
	}
	return b
}

// Parse decodes b.
func (m *CandidatesBody) Parse(b []byte) error {
	r := reader{b: b}
	m.Flags = CandidateFlags(r.u8())
	n := int(r.u8())
	if n > MaxCandidates {
		return malformed("too many candidates")
	}
	m.Lines = m.Lines[:0]
	for range n {
		l := r.long()
		if len(l) > MaxCandidateLen {
			return malformed("candidate too long")
		}
		m.Lines = append(m.Lines, string(l))
	}
	if !r.end() {
		return malformed("candidates body")
	}
	return nil
}
