// SPDX-License-Identifier: Apache-2.0

// Package stun is the strict outer reading of STUN messages (RFC 8489) that package
// ice and the TURN client of package relay share. pion's parsers of this age trust
// lengths that they should not, so they see only what passed here. Which attributes
// and types a message may have is the caller's to say.
package stun

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// Sizes and fixed values.
const (
	HeaderLen    = 20
	AttrHeader   = 4
	IntegrityLen = 20
	MagicCookie  = 0x2112A442

	maxAttributes  = 32
	fingerprintXOR = 0x5354554e
)

// Attributes whose place in a message matters.
const (
	MessageIntegrity = 0x0008
	Fingerprint      = 0x8028
)

// Walk checks the structure of b, at most limit bytes, and gives each attribute to
// visit: its type, the offset of its header and the size of its value, which lies
// inside b. visit returns the bit that marks the attribute as seen, 0 for one that
// may come again, and whether the message may have it. Walk allocates nothing, keeps
// no reference to b, and says nothing about who sent it.
func Walk(b []byte, limit int, visit func(attr uint16, off, size int) (bit uint64, ok bool)) bool {
	if len(b) < HeaderLen || len(b) > limit || b[0]&0xC0 != 0 || len(b)%4 != 0 ||
		binary.BigEndian.Uint32(b[4:]) != MagicCookie || int(binary.BigEndian.Uint16(b[2:])) != len(b)-HeaderLen {
		return false
	}
	var seen uint64 // one bit per known attribute: none may come twice
	last := uint16(0)
	for off, n := HeaderLen, 0; off < len(b); n++ {
		if n == maxAttributes || len(b)-off < AttrHeader {
			return false
		}
		attr, size := binary.BigEndian.Uint16(b[off:]), int(binary.BigEndian.Uint16(b[off+2:]))
		end := off + AttrHeader + (size+3)&^3
		// Nothing may follow FINGERPRINT and only FINGERPRINT may follow
		// MESSAGE-INTEGRITY: what integrity does not cover must not be read.
		if end > len(b) || last == Fingerprint || last == MessageIntegrity && attr != Fingerprint {
			return false
		}
		last = attr
		bit, ok := visit(attr, off, size)
		if !ok || seen&bit != 0 {
			return false
		}
		seen |= bit
		off = end
	}
	return true
}

// FingerprintOK reports whether v is the FINGERPRINT of the bytes before it.
func FingerprintOK(v, before []byte) bool {
	return len(v) == 4 && binary.BigEndian.Uint32(v) == FingerprintOf(before)
}

// FingerprintOf is the value of a FINGERPRINT after those bytes.
func FingerprintOf(before []byte) uint32 { return crc32.ChecksumIEEE(before) ^ fingerprintXOR }

// AddressOK reports whether v is an address attribute of a length that its family
// asks for, which pion's parser of this age does not check (CVE-2026-54909).
func AddressOK(v []byte) bool {
	return len(v) == 8 && v[1] == 1 || len(v) == 20 && v[1] == 2
}

// XORAddress decodes an XOR-ed address attribute of msg that AddressOK accepted.
func XORAddress(v, msg []byte) netip.AddrPort {
	port := binary.BigEndian.Uint16(v[2:]) ^ MagicCookie>>16
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
