// SPDX-License-Identifier: Apache-2.0

package bottleneck

import "encoding/binary"

// ECN bits of the inner header (RFC 3168).
const (
	ect0 = 2
	ce   = 3
)

// writeInner makes b a UDP packet over IPv4 that is valid as far as the lanes look:
// header, length, ECN and header checksum.
func writeInner(b []byte, hash uint32, capable bool) {
	clear(b[:28])
	b[0] = 0x45
	if capable {
		b[1] = ect0
	}
	be := binary.BigEndian
	be.PutUint16(b[2:], uint16(len(b)))
	b[6] = 0x40 // do not fragment
	b[8], b[9] = 64, 17
	copy(b[12:], []byte{100, 96, 0, 1, 100, 96, 0, 2})
	be.PutUint16(b[20:], uint16(hash>>16))
	be.PutUint16(b[22:], uint16(hash))
	be.PutUint16(b[24:], uint16(len(b)-20))
	be.PutUint16(b[10:], ^headerSum(b))
}

// readInner reports whether the packet was marked, and whether it still is valid.
func readInner(b []byte) (marked, ok bool) {
	return b[1]&3 == ce, headerSum(b) == 0xffff && int(binary.BigEndian.Uint16(b[2:])) == len(b)
}

func headerSum(b []byte) uint16 {
	var acc uint32
	for i := 0; i < 20; i += 2 {
		acc += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	acc = acc>>16 + acc&0xffff
	return uint16(acc + acc>>16)
}
