// SPDX-License-Identifier: Apache-2.0

package wire

import "github.com/bauxite-mesh/bauxite/conduit/identity"

// RelayHeaderLen is what TypeRelay puts before the packet: a PeerID.
const RelayHeaderLen = 32

// Relay is the body of TypeRelay: a whole packet between two peers that cannot
// reach each other. Who relays it can neither read nor make it.
type Relay struct {
	// Peer is the receiver of the packet on the way to the relay, its sender on the
	// way from it.
	Peer identity.PeerID
	// Packet starts with its own header; it is not TypeRelay itself.
	Packet []byte
}

// AppendRelayHeader encodes what precedes the packet.
func AppendRelayHeader(b []byte, peer *identity.PeerID) []byte { return append(b, peer[:]...) }

// Append encodes m.
func (m *Relay) Append(b []byte) []byte { return append(AppendRelayHeader(b, &m.Peer), m.Packet...) }

// Parse decodes b. Of the packet it checks the clear header.
func (m *Relay) Parse(b []byte) error {
	var h Header
	return m.ParseHeader(b, &h)
}

// ParseHeader decodes b, and the header of the packet in it.
func (m *Relay) ParseHeader(b []byte, h *Header) error {
	if len(b) < RelayHeaderLen || !h.Parse(b[RelayHeaderLen:]) || h.Type == TypeRelay {
		return malformed("relay")
	}
	copy(m.Peer[:], b)
	m.Packet = b[RelayHeaderLen:]
	return nil
}
