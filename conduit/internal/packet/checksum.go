// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// sum adds the 16-bit words of b, the last one padded with a zero, to acc.
func sum(acc uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return acc
}

// fold makes the Internet checksum (RFC 1071) of a sum of at most 64 KiB.
func fold(acc uint32) uint16 {
	acc = acc>>16 + acc&0xffff
	acc += acc >> 16
	return ^uint16(acc)
}

// update returns the checksum after one word that it covers has changed (RFC 1624,
// equation 3).
func update(check, from, to uint16) uint16 {
	return fold(uint32(^check) + uint32(^from) + uint32(to))
}
