// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"crypto/fips140"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 8489 section 14.5; keys and addresses are protected elsewhere
	"encoding/binary"
	"hash"
	"hash/crc32"
	"net/netip"
)

// Sizes and limits of STUN (RFC 8489) as this package accepts it.
const (
	headerSize     = 20
	txIDSize       = 12
	attrHeader     = 4
	integritySize  = 20
	maxMessage     = 1500
	maxAttributes  = 32
	maxUsername    = 513
	maxText        = 763
	magicCookie    = 0x2112A442
	fingerprintXOR = 0x5354554e
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
	attrMessageIntegrity  = 0x0008
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
	attrFingerprint       = 0x8028
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
	if len(b) < headerSize || len(b) > maxMessage || b[0]&0xC0 != 0 {
		return false
	}
	if binary.BigEndian.Uint32(b[4:]) != magicCookie || int(binary.BigEndian.Uint16(b[2:])) != len(b)-headerSize || len(b)%4 != 0 {
		return false
	}
	m.typ = binary.BigEndian.Uint16(b)
	if m.typ != typeRequest && m.typ != typeSuccess {
		return false
	}
	copy(m.tx[:], b[8:headerSize])
	var seen uint64 // one bit per known attribute: none may come twice
	last := uint16(0)
	for off, n := headerSize, 0; off < len(b); n++ {
		if n == maxAttributes || len(b)-off < attrHeader {
			return false
		}
		typ, size := binary.BigEndian.Uint16(b[off:]), int(binary.BigEndian.Uint16(b[off+2:]))
		end := off + attrHeader + (size+3)&^3
		if end > len(b) {
			return false
		}
		// Nothing may follow FINGERPRINT and only FINGERPRINT may follow
		// MESSAGE-INTEGRITY: what integrity does not cover must not be read.
		if last == attrFingerprint || (last == attrMessageIntegrity && typ != attrFingerprint) {
			return false
		}
		last = typ
		bit, ok := m.attribute(b, typ, off, size)
		if !ok || seen&bit != 0 {
			return false
		}
		seen |= bit
		off = end
	}
	return true
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
		if size != 4 {
			return 0, false
		}
		return 1 << 2, binary.BigEndian.Uint32(v) == crc32.ChecksumIEEE(b[:off])^fingerprintXOR
	case attrXORMappedAddress:
		if !addressOK(v) {
			return 0, false
		}
		m.mapped = xorAddress(v, b)
		return 1 << 3, true
	case attrOldXORMapped:
		return 0, false // an alias could carry past us what pion then trusts
	case attrMappedAddress:
		return 1 << 4, addressOK(v)
	case attrXORPeerAddress, attrXORRelayedAddress:
		return 0, false // TURN's: our client of TURN has a socket of its own
	case attrAlternateServer:
		return 1 << 7, addressOK(v)
	case attrResponseOrigin:
		return 1 << 8, addressOK(v)
	case attrOtherAddress:
		return 1 << 9, addressOK(v)
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

// addressOK tells whether v is an address attribute of a length that its family
// asks for. pion's parser of this age trusts the length (CVE-2026-54909).
func addressOK(v []byte) bool {
	return (len(v) == 8 && v[1] == 1) || (len(v) == 20 && v[1] == 2)
}

// xorAddress decodes an address attribute that addressOK accepted.
func xorAddress(v, msg []byte) netip.AddrPort {
	port := binary.BigEndian.Uint16(v[2:]) ^ magicCookie>>16
	if len(v) == 8 {
		var a [4]byte
		for i := range a {
			a[i] = v[4+i] ^ msg[4+i]
		}
		return netip.AddrPortFrom(netip.AddrFrom4(a), port)
	}
	var a [16]byte
	for i := range a {
		a[i] = v[4+i] ^ msg[4+i] // the cookie, then the transaction id
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), port)
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
	binary.BigEndian.PutUint32(b[headerSize+attrHeader:], crc32.ChecksumIEEE(b[:headerSize])^fingerprintXOR)
	return b, txID(b[8:headerSize])
}
