// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"crypto/fips140"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 8489 section 14.5; keys and addresses are protected elsewhere
	"encoding/binary"
	"hash"
	"net/netip"

	"github.com/bauxite-mesh/bauxite/conduit/internal/stun"
)

// Sizes and limits of STUN (RFC 8489) as this package accepts it.
const (
	headerSize    = stun.HeaderLen
	attrHeader    = stun.AttrHeader
	integritySize = stun.IntegrityLen
	magicCookie   = stun.MagicCookie
	txIDSize      = 12
	maxMessage    = 1500
	maxUsername   = 513
	maxText       = 763
)

// Message types: the Binding method with its two classes that ICE answers to.
const (
	typeRequest = 0x0001
	typeSuccess = 0x0101
)

// Attributes that the parser knows.
const (
	attrMappedAddress     = 0x0001
	attrUsername          = 0x0006
	attrMessageIntegrity  = stun.MessageIntegrity
	attrErrorCode         = 0x0009
	attrUnknownAttributes = 0x000A
	attrXORPeerAddress    = 0x0012
	attrRealm             = 0x0014
	attrNonce             = 0x0015
	attrXORRelayedAddress = 0x0016
	attrXORMappedAddress  = 0x0020
	attrPriority          = 0x0024
	attrUseCandidate      = 0x0025
	attrSoftware          = 0x8022
	attrOldXORMapped      = 0x8020 // of old drafts; pion reads it as XOR-MAPPED-ADDRESS
	attrAlternateServer   = 0x8023
	attrFingerprint       = stun.Fingerprint
	attrICEControlled     = 0x8029
	attrICEControlling    = 0x802A
	attrResponseOrigin    = 0x802B
	attrOtherAddress      = 0x802C
)

// txID is a STUN transaction id.
type txID [txIDSize]byte

// message is what the parser found; offsets are into the datagram, 0 = absent.
type message struct {
	typ       uint16
	tx        txID
	user      int // offset of the USERNAME value
	userLen   int
	integrity int // offset of the MESSAGE-INTEGRITY attribute header
	mapped    netip.AddrPort
}

// parse checks the structure of b strictly and fills m. It allocates nothing and
// keeps no reference to b. It says nothing about who sent b.
func parse(b []byte, m *message) bool {
	if len(b) < headerSize {
		return false
	}
	m.typ = binary.BigEndian.Uint16(b)
	if m.typ != typeRequest && m.typ != typeSuccess {
		return false
	}
	copy(m.tx[:], b[8:headerSize])
	return stun.Walk(b, maxMessage, func(attr uint16, off, size int) (uint64, bool) { return m.attribute(b, attr, off, size) })
}

// attribute checks one attribute at off. It returns the bit that marks the
// attribute as seen, 0 for one that is ignored.
func (m *message) attribute(b []byte, typ uint16, off, size int) (bit uint64, ok bool) {
	v := b[off+attrHeader : off+attrHeader+size]
	switch typ {
	case attrUsername:
		m.user, m.userLen = off+attrHeader, size
		return 1 << 0, size > 0 && size <= maxUsername
	case attrMessageIntegrity:
		m.integrity = off
		return 1 << 1, size == integritySize
	case attrFingerprint:
		return 1 << 2, stun.FingerprintOK(v, b[:off])
	case attrXORMappedAddress:
		if !stun.AddressOK(v) {
			return 0, false
		}
		m.mapped = stun.XORAddress(v, b)
		return 1 << 3, true
	case attrOldXORMapped:
		return 0, false // an alias could carry past us what pion then trusts
	case attrMappedAddress:
		return 1 << 4, stun.AddressOK(v)
	case attrXORPeerAddress, attrXORRelayedAddress:
		return 0, false // TURN's: our client of TURN has a socket of its own
	case attrAlternateServer:
		return 1 << 7, stun.AddressOK(v)
	case attrResponseOrigin:
		return 1 << 8, stun.AddressOK(v)
	case attrOtherAddress:
		return 1 << 9, stun.AddressOK(v)
	case attrPriority:
		return 1 << 10, size == 4
	case attrUseCandidate:
		return 1 << 11, size == 0
	case attrICEControlled:
		return 1 << 12, size == 8
	case attrICEControlling:
		return 1 << 13, size == 8
	case attrErrorCode:
		return 1 << 14, size >= 4 && size <= 4+maxText
	case attrUnknownAttributes:
		return 1 << 15, size%2 == 0
	case attrRealm:
		return 1 << 16, size <= maxText
	case attrNonce:
		return 1 << 17, size <= maxText
	case attrSoftware:
		return 1 << 18, size <= maxText
	}
	// Below 0x8000 comprehension is required (RFC 8489 section 14).
	return 0, typ >= 0x8000
}

// integrity verifies MESSAGE-INTEGRITY with one short-term password. It keeps
// its state between messages so that a flood costs no allocation; the owner
// serialises its use.
type integrity struct {
	mac  hash.Hash
	head [headerSize]byte
	sum  [integritySize]byte
}

func newIntegrity(password string) *integrity {
	s := &integrity{}
	// HMAC-SHA1 is ICE's; what it protects is no secret and BX1 authenticates the
	// peer, so FIPS mode may let it pass.
	fips140.WithoutEnforcement(func() { s.mac = hmac.New(sha1.New, []byte(password)) })
	return s
}

// verify checks the attribute at off, which parse found, in constant time.
func (s *integrity) verify(b []byte, off int) (ok bool) {
	if off == 0 {
		return false
	}
	copy(s.head[:], b)
	// The length counts up to and including MESSAGE-INTEGRITY (section 14.5).
	binary.BigEndian.PutUint16(s.head[2:], uint16(off-headerSize+attrHeader+integritySize)) //nolint:gosec // at most maxMessage
	fips140.WithoutEnforcement(func() {
		s.mac.Reset()
		s.mac.Write(s.head[:])
		s.mac.Write(b[headerSize:off])
		ok = hmac.Equal(s.mac.Sum(s.sum[:0]), b[off+attrHeader:off+attrHeader+integritySize])
	})
	return ok
}

// bindingRequest builds a Binding request without credentials, as STUN servers
// answer it, with a fresh transaction id.
func bindingRequest() ([]byte, txID) {
	b := make([]byte, headerSize+attrHeader+4)
	binary.BigEndian.PutUint16(b, typeRequest)
	binary.BigEndian.PutUint16(b[2:], attrHeader+4)
	binary.BigEndian.PutUint32(b[4:], magicCookie)
	_, _ = rand.Read(b[8:headerSize]) // never fails
	binary.BigEndian.PutUint16(b[headerSize:], attrFingerprint)
	binary.BigEndian.PutUint16(b[headerSize+2:], 4)
	binary.BigEndian.PutUint32(b[headerSize+attrHeader:], stun.FingerprintOf(b[:headerSize]))
	return b, txID(b[8:headerSize])
}
