// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// ce is the ECN field of a packet that met congestion (RFC 3168, section 5).
const ce = 3

// mark sets CE in the header of the IP packet in b and reports whether its sender
// understands that: else b has to be dropped instead. Later, the receiver's copy of
// the outer header changes nothing of it (RFC 6040, section 4.2).
func mark(b *packet.Buf) bool {
	if b.Type != 0 || b.N < 20 { // not a packet of the user
		return false
	}
	pkt := b.Bytes()
	switch pkt[0] >> 4 {
	case 4:
		if pkt[1]&ce == 0 {
			return false
		}
		if pkt[1]&ce != ce {
			from := binary.BigEndian.Uint16(pkt)
			pkt[1] |= ce
			check := binary.BigEndian.Uint16(pkt[10:])
			binary.BigEndian.PutUint16(pkt[10:], updated(check, from, binary.BigEndian.Uint16(pkt)))
		}
		return true
	case 6:
		if pkt[1]>>4&ce == 0 {
			return false
		}
		pkt[1] |= ce << 4
		return true
	}
	return false
}

// updated returns the checksum after one word that it covers has changed (RFC 1624,
// equation 3).
func updated(check, from, to uint16) uint16 {
	sum := uint32(^check) + uint32(^from) + uint32(to)
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	return ^uint16(sum)
}
