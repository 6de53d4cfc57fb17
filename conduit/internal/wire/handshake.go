// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// MsgType is the first byte of a handshake message.
type MsgType uint8

// The handshake messages of BX1.
const (
	MsgInvite     MsgType = 1 // A to B
	MsgOffer      MsgType = 2 // B to A: offer and answer in one
	MsgConfirm    MsgType = 3 // A to B
	MsgKnock      MsgType = 4 // B to A: please send an invite
	MsgCandidates MsgType = 5 // either way, sealed
	MsgReject     MsgType = 6 // B to A: no session, and why
	MsgRekey1     MsgType = 8
	MsgRekey2     MsgType = 9
	MsgRekey3     MsgType = 10
)

// Suite names a set of algorithms. Every suite has X25519, ML-KEM-768, Ed25519
// and HKDF-SHA-256.
type Suite uint8

// The suites.
const (
	SuiteChaCha Suite = 1 // ChaCha20-Poly1305
	SuiteAES    Suite = 2 // AES-256-GCM, nonce from the counter
	SuiteFIPS   Suite = 3 // AES-256-GCM, random nonce in the packet
)

// String returns the name that status and configuration use.
func (s Suite) String() string {
	switch s {
	case SuiteChaCha:
		return "chacha20poly1305"
	case SuiteAES:
		return "aes256gcm"
	case SuiteFIPS:
		return "aes256gcm-fips"
	}
	return "unknown"
}

// Capability bits of INVITE and OFFER. Unknown bits are ignored.
const (
	CapPartialChecksum = 1 << 0 // takes TypeDataPartial
	CapReport          = 1 << 1 // sends TypeReport and answers TypeEcho
	CapRekey           = 1 << 2 // takes part in the in-band rekey
	CapPaths           = 1 << 3 // takes TypeSignal, TypeRelay, TypePathChallenge and TypePathResponse
	CapRelay           = 1 << 4 // is willing to relay for others
	// CapAnswersKnock is a bit of INVITE alone: this one answers the KNOCK whose SID
	// it has.
	CapAnswersKnock = 1 << 5
)

// Sizes of fixed fields.
const (
	SIDLen        = 16
	X25519Len     = 32
	EncapKeyLen   = 1184 // ML-KEM-768 encapsulation key
	CiphertextLen = 1088 // ML-KEM-768 ciphertext
	SigLen        = 64
	MACLen        = 32
	// MsgHeaderLen is the length of what every message starts with.
	MsgHeaderLen = 2 + SIDLen
	// MsgVersion is the version of the handshake.
	MsgVersion = 1
	maxSuites  = 8
	maxICE     = 128
)

// SID names one attempt at a handshake; random.
type SID [SIDLen]byte

// Lock is the head of the mesh lock that a node knows; zero without one.
type Lock struct {
	Seq  uint64
	Head [32]byte
}

// ICE holds a side's ICE credentials (RFC 8445, section 5.3).
type ICE struct{ Ufrag, Pwd string }

// ParseMsgHeader reads type, version and SID of any handshake message.
func ParseMsgHeader(b []byte) (MsgType, SID, error) {
	var sid SID
	if len(b) < MsgHeaderLen || b[1] != MsgVersion {
		return 0, sid, malformed("message header")
	}
	copy(sid[:], b[2:])
	return MsgType(b[0]), sid, nil
}

func appendMsgHeader(b []byte, t MsgType, sid *SID) []byte {
	return append(append(b, byte(t), MsgVersion), sid[:]...)
}

func (r *reader) msgHeader(t MsgType, sid *SID) {
	if MsgType(r.u8()) != t || r.u8() != MsgVersion {
		r.bad = true
	}
	r.fixed(sid[:])
}

func (r *reader) lock(l *Lock) {
	l.Seq = r.u64()
	r.fixed(l.Head[:])
}

func appendLock(b []byte, l *Lock) []byte {
	return append(binary.BigEndian.AppendUint64(b, l.Seq), l.Head[:]...)
}

func (r *reader) chain() [][]byte {
	n := int(r.u8())
	if n == 0 || n > identity.MaxChain {
		r.bad = true
		return nil
	}
	out := make([][]byte, 0, n)
	for range n {
		out = append(out, r.long())
	}
	return out
}

func appendChain(b []byte, chain [][]byte) []byte {
	b = append(b, uint8(len(chain)))
	for _, c := range chain {
		b = appendLong(b, c)
	}
	return b
}

func (r *reader) ice(i *ICE) {
	u, p := r.short(), r.short()
	if len(u) > maxICE || len(p) > maxICE {
		r.bad = true
	}
	i.Ufrag, i.Pwd = string(u), string(p)
}

func appendICE(b []byte, i *ICE) []byte {
	return appendShort(appendShort(b, []byte(i.Ufrag)), []byte(i.Pwd))
}

// Invite is the first message, from the peer with the lower PeerID.
type Invite struct {
	SID SID
	// Index is what the sender wants to see in packets sent to it.
	Index    uint32
	Suites   []Suite
	Caps     uint32
	PSKEpoch uint8
	Lock     Lock
	From, To identity.PeerID
	X25519   [X25519Len]byte
	EncapKey [EncapKeyLen]byte
	// Statement is the node statement of the mesh lock; empty without one.
	Statement []byte
	Chain     [][]byte
	// Sig is over everything before it.
	Sig [SigLen]byte
}

// AppendUnsigned encodes all but the signature.
func (m *Invite) AppendUnsigned(b []byte) []byte {
	b = appendMsgHeader(b, MsgInvite, &m.SID)
	b = binary.BigEndian.AppendUint32(b, m.Index)
	b = append(b, uint8(len(m.Suites)))
	for _, s := range m.Suites {
		b = append(b, byte(s))
	}
	b = binary.BigEndian.AppendUint32(b, m.Caps)
	b = append(b, m.PSKEpoch)
	b = appendLock(b, &m.Lock)
	b = append(b, m.From[:]...)
	b = append(b, m.To[:]...)
	b = append(b, m.X25519[:]...)
	b = append(b, m.EncapKey[:]...)
	b = appendLong(b, m.Statement)
	return appendChain(b, m.Chain)
}

// Append encodes m.
func (m *Invite) Append(b []byte) []byte { return append(m.AppendUnsigned(b), m.Sig[:]...) }

// Parse decodes b.
func (m *Invite) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgInvite, &m.SID)
	m.Index = r.u32()
	n := int(r.u8())
	if n == 0 || n > maxSuites {
		r.bad = true
		n = 0
	}
	m.Suites = m.Suites[:0]
	for range n {
		m.Suites = append(m.Suites, Suite(r.u8()))
	}
	m.Caps, m.PSKEpoch = r.u32(), r.u8()
	r.lock(&m.Lock)
	r.fixed(m.From[:])
	r.fixed(m.To[:])
	r.fixed(m.X25519[:])
	r.fixed(m.EncapKey[:])
	m.Statement = r.long()
	m.Chain = r.chain()
	r.fixed(m.Sig[:])
	if !r.end() || m.Index == 0 || m.Index == ReservedIndex {
		return malformed("invite")
	}
	return nil
}

// Offer is the second message, with the answer in it.
type Offer struct {
	SID        SID
	Index      uint32
	Suite      Suite
	X25519     [X25519Len]byte
	Ciphertext [CiphertextLen]byte
	// Sealed is OfferBody under the handshake key of B.
	Sealed []byte
}

// AppendClear encodes what precedes the sealed body.
func (m *Offer) AppendClear(b []byte) []byte {
	b = appendMsgHeader(b, MsgOffer, &m.SID)
	b = binary.BigEndian.AppendUint32(b, m.Index)
	b = append(b, byte(m.Suite))
	b = append(b, m.X25519[:]...)
	return append(b, m.Ciphertext[:]...)
}

// Append encodes m.
func (m *Offer) Append(b []byte) []byte { return append(m.AppendClear(b), m.Sealed...) }

// Parse decodes b.
func (m *Offer) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgOffer, &m.SID)
	m.Index = r.u32()
	m.Suite = Suite(r.u8())
	r.fixed(m.X25519[:])
	r.fixed(m.Ciphertext[:])
	m.Sealed = r.b
	if r.bad || len(m.Sealed) <= TagLen || m.Index == 0 || m.Index == ReservedIndex {
		return malformed("offer")
	}
	return nil
}

// OfferBody is the sealed part of Offer.
type OfferBody struct {
	Caps      uint32
	Lock      Lock
	ICE       ICE
	Statement []byte
	Chain     [][]byte
	Sig       [SigLen]byte
	MAC       [MACLen]byte
}

// AppendUnsigned encodes all but signature and MAC.
func (m *OfferBody) AppendUnsigned(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, m.Caps)
	b = appendLock(b, &m.Lock)
	b = appendICE(b, &m.ICE)
	b = appendLong(b, m.Statement)
	return appendChain(b, m.Chain)
}

// Append encodes m.
func (m *OfferBody) Append(b []byte) []byte {
	return append(append(m.AppendUnsigned(b), m.Sig[:]...), m.MAC[:]...)
}

// Parse decodes b.
func (m *OfferBody) Parse(b []byte) error {
	r := reader{b: b}
	m.Caps = r.u32()
	r.lock(&m.Lock)
	r.ice(&m.ICE)
	m.Statement = r.long()
	m.Chain = r.chain()
	r.fixed(m.Sig[:])
	r.fixed(m.MAC[:])
	if !r.end() {
		return malformed("offer body")
	}
	return nil
}

// Confirm is the third message.
type Confirm struct {
	SID SID
	// Sealed is ConfirmBody under the handshake key of A.
	Sealed []byte
}

// AppendClear encodes what precedes the sealed body.
func (m *Confirm) AppendClear(b []byte) []byte { return appendMsgHeader(b, MsgConfirm, &m.SID) }

// Append encodes m.
func (m *Confirm) Append(b []byte) []byte { return append(m.AppendClear(b), m.Sealed...) }

// Parse decodes b.
func (m *Confirm) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgConfirm, &m.SID)
	m.Sealed = r.b
	if r.bad || len(m.Sealed) <= TagLen {
		return malformed("confirm")
	}
	return nil
}

// ConfirmBody is the sealed part of Confirm.
type ConfirmBody struct {
	Lock      Lock
	ICE       ICE
	Statement []byte
	Sig       [SigLen]byte
	MAC       [MACLen]byte
}

// AppendUnsigned encodes all but signature and MAC.
func (m *ConfirmBody) AppendUnsigned(b []byte) []byte {
	return appendLong(appendICE(appendLock(b, &m.Lock), &m.ICE), m.Statement)
}

// Append encodes m.
func (m *ConfirmBody) Append(b []byte) []byte {
	return append(append(m.AppendUnsigned(b), m.Sig[:]...), m.MAC[:]...)
}

// Parse decodes b.
func (m *ConfirmBody) Parse(b []byte) error {
	r := reader{b: b}
	r.lock(&m.Lock)
	r.ice(&m.ICE)
	m.Statement = r.long()
	r.fixed(m.Sig[:])
	r.fixed(m.MAC[:])
	if !r.end() {
		return malformed("confirm body")
	}
	return nil
}
