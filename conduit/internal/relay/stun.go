// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/hmac"
	"crypto/md5"  //nolint:gosec // RFC 8489 section 9.2.2; what TURN carries is sealed
	"crypto/sha1" //nolint:gosec // RFC 8489 section 14.5
	"encoding/binary"
	"net/netip"

	"github.com/bauxite-mesh/bauxite/conduit/internal/stun"
)

// The subset of STUN (RFC 8489) and TURN (RFC 8656) that a client meets. The parser
// is strict: pion's of this age trusts lengths that it should not, and sees only
// what passed here.
const (
	headerSize    = stun.HeaderLen
	attrHeader    = stun.AttrHeader
	integritySize = stun.IntegrityLen
	magicCookie   = stun.MagicCookie
	maxSTUN       = 1700 // a Data indication around the largest packet
	maxText       = 763
)

// Methods, and the classes that come from a server.
const (
	methodAllocate   = 0x003
	methodRefresh    = 0x004
	methodData       = 0x007
	methodPermission = 0x008
	methodChannel    = 0x009

	classMask       = 0x0110
	classRequest    = 0x0000
	classIndication = 0x0010
	classSuccess    = 0x0100
	classError      = 0x0110
)

// Attributes that the parser knows.
const (
	attrMappedAddress     = 0x0001
	attrUsername          = 0x0006
	attrMessageIntegrity  = stun.MessageIntegrity
	attrErrorCode         = 0x0009
	attrUnknownAttributes = 0x000A
	attrChannelNumber     = 0x000C
	attrLifetime          = 0x000D
	attrXORPeerAddress    = 0x0012
	attrData              = 0x0013
	attrRealm             = 0x0014
	attrNonce             = 0x0015
	attrXORRelayedAddress = 0x0016
	attrRequestedFamily   = 0x0017
	attrEvenPort          = 0x0018
	attrTransport         = 0x0019
	attrXORMappedAddress  = 0x0020
	attrReservation       = 0x0022
	attrOldXORMapped      = 0x8020 // of old drafts; pion reads it as XOR-MAPPED-ADDRESS
	attrSoftware          = 0x8022
	attrAlternateServer   = 0x8023
	attrFingerprint       = stun.Fingerprint
)

// Error codes that mean something to us.
const (
	codeUnauthorized = 401
	codeMismatch     = 437
	codeStaleNonce   = 438
)

// stunMessage is what parseSTUN found. Slices are parts of the datagram.
type stunMessage struct {
	method, class uint16
	integrity     int // offset of the MESSAGE-INTEGRITY attribute header; 0 none
	code          int // of ERROR-CODE; 0 none
	channel       uint16
	peer, relayed netip.AddrPort
	data, realm   []byte
}

// parseSTUN checks the structure of b and fills m. It says nothing about who sent b.
func parseSTUN(b []byte, m *stunMessage) bool {
	if len(b) < headerSize {
		return false
	}
	typ := binary.BigEndian.Uint16(b)
	m.method, m.class = typ&^classMask, typ&classMask
	return stun.Walk(b, maxSTUN, func(attr uint16, off, size int) (uint64, bool) { return m.attribute(b, attr, off, size) })
}

// attribute checks one attribute at off. It returns the bit that marks it as seen, 0
// for one that is ignored.
func (m *stunMessage) attribute(b []byte, attr uint16, off, size int) (bit uint64, ok bool) {
	v := b[off+attrHeader : off+attrHeader+size]
	switch attr {
	case attrMappedAddress:
		return 1 << 0, stun.AddressOK(v)
	case attrUsername:
		return 1 << 1, size <= maxText
	case attrMessageIntegrity:
		m.integrity = off
		return 1 << 2, size == integritySize
	case attrErrorCode:
		if size < 4 || size > 4+maxText || v[2] < 3 || v[2] > 6 || v[3] > 99 {
			return 0, false
		}
		m.code = int(v[2])*100 + int(v[3])
		return 1 << 3, true
	case attrUnknownAttributes:
		return 1 << 4, size%2 == 0
	case attrChannelNumber:
		if size != 4 {
			return 0, false
		}
		m.channel = binary.BigEndian.Uint16(v)
		return 1 << 5, true
	case attrLifetime:
		return 1 << 6, size == 4
	case attrXORPeerAddress:
		if !stun.AddressOK(v) {
			return 0, false
		}
		m.peer = stun.XORAddress(v, b)
		// A client may name several in one CreatePermission.
		if m.method == methodPermission && m.class == classRequest {
			return 0, true
		}
		return 1 << 7, true
	case attrData:
		m.data = v
		return 1 << 8, true
	case attrRealm:
		m.realm = v
		return 1 << 9, size > 0 && size <= maxText
	case attrNonce:
		return 1 << 10, size <= maxText
	case attrXORRelayedAddress:
		if !stun.AddressOK(v) {
			return 0, false
		}
		m.relayed = stun.XORAddress(v, b)
		return 1 << 11, true
	case attrXORMappedAddress:
		return 1 << 12, stun.AddressOK(v)
	case attrReservation:
		return 1 << 13, size == 8
	case attrOldXORMapped:
		return 0, false // an alias could carry past us what pion then trusts
	case attrSoftware:
		return 1 << 14, size <= maxText
	case attrAlternateServer:
		return 1 << 15, stun.AddressOK(v)
	case attrFingerprint:
		return 1 << 16, stun.FingerprintOK(v, b[:off])
	case attrTransport, attrRequestedFamily:
		return 0, size == 4
	case attrEvenPort:
		return 0, size == 1
	}
	// Below 0x8000 comprehension is required (RFC 8489 section 14).
	return 0, attr >= 0x8000
}

// parseChannelData returns the channel and the payload of ChannelData (RFC 8656
// section 12.4); over UDP the padding may be left out.
func parseChannelData(b []byte) (channel uint16, data []byte, ok bool) {
	if len(b) < 4 || b[0]&0xC0 != 0x40 {
		return 0, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if 4+n > len(b) || len(b) > 4+(n+3)&^3 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(b), b[4 : 4+n], true
}

// longTermKey is the key of the long-term credential mechanism. Like checkIntegrity
// it runs where FIPS is not enforced.
func longTermKey(user string, realm []byte, password string) []byte {
	h := md5.New() //nolint:gosec // the mechanism's
	h.Write([]byte(user + ":"))
	h.Write(realm)
	h.Write([]byte(":" + password))
	return h.Sum(nil)
}

// checkIntegrity verifies the attribute at off, which parseSTUN found.
func checkIntegrity(key, b []byte, off int) bool {
	if off == 0 || len(key) == 0 {
		return false
	}
	var head [headerSize]byte
	copy(head[:], b)
	// The length counts up to and including MESSAGE-INTEGRITY (section 14.5).
	binary.BigEndian.PutUint16(head[2:], uint16(off-headerSize+attrHeader+integritySize)) //nolint:gosec // at most maxSTUN
	mac := hmac.New(sha1.New, key)
	mac.Write(head[:])
	mac.Write(b[headerSize:off])
	return hmac.Equal(mac.Sum(nil), b[off+attrHeader:off+attrHeader+integritySize])
}
