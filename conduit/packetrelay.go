// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"context"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// PacketRelay is implemented by a HubConnector that carries sealed packets between
// nodes that have no better path, and knows the TURN servers of the mesh. All
// methods are safe for concurrent use.
type PacketRelay interface {
	// RelayPackets opens the hub's relay stream and serves it until ctx ends or the
	// link is lost, then returns why; where there is no link to the hub it waits for
	// one. in is called for each packet that comes, which it may keep, and before
	// that once with the zero PeerID and no packet, when the stream stands. gone is
	// called for each peer to whom a packet could not be sent. Both are called one at
	// a time and not any more after the return. One call runs at a time.
	RelayPackets(ctx context.Context, in func(from identity.PeerID, packet []byte), gone func(identity.PeerID)) error
	// SendPacket queues a packet (Critical first, at most 32 packets, oldest of the
	// lowest lane dropped) and never blocks; false where no stream is open. lane is 0
	// Critical, 1 Telemetry or 2 Bulk. It keeps no reference to packet.
	SendPacket(to identity.PeerID, lane uint8, packet []byte) bool
	// TurnServers returns fresh credentials, or none where the hub has no TURN
	// server.
	TurnServers(ctx context.Context) ([]TurnServer, error)
}

// TurnServer is a TURN server (RFC 8656) with credentials, which are secret.
type TurnServer struct {
	// URL is a TURN URI (RFC 7065), such as turn:198.51.100.1:3478?transport=udp.
	URL string
	// Username and Password are of TURN's long-term credential mechanism.
	Username, Password string
	// Expires is when the server refuses them from then on; zero means never.
	Expires time.Time
}
