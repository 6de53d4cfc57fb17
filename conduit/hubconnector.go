// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// MaxSignal is the largest body that a HubConnector carries, in bytes.
const MaxSignal = 16 << 10

// Peer is another node of the mesh as the hub describes it. ID certifies both
// keys, so a hub cannot exchange them.
type Peer struct {
	ID       identity.PeerID
	Name     string
	Virtual4 netip.Addr
	Virtual6 netip.Addr
	Ed25519  ed25519.PublicKey
	X25519   *ecdh.PublicKey
	Tags     []string
}

// Denial shuts a node, a key or one certificate out of the mesh. Exactly one of
// ID, Ed25519 and Serial is set.
type Denial struct {
	ID      identity.PeerID
	Ed25519 ed25519.PublicKey
	// Serial is a certificate's serial number, big endian.
	Serial []byte
	// Until is when the denial may be forgotten; zero means never.
	Until time.Time
}

// HubConnector is a node's link to its hub. conduit/hub implements it over
// Connect; conduittest has one in memory; integrators may bring their own.
type HubConnector interface {
	// Run keeps the link up until ctx ends, reconnecting with back-off, and tells
	// ev what it learns. It returns ctx.Err(), or the error that no retry mends.
	Run(ctx context.Context, ev HubEvents) error
	// Signal sends body to a peer through the hub and does not block: where the
	// link is down or its queue is full it returns an error. Safe for concurrent
	// use, also before and after Run. It keeps no reference to body.
	Signal(to identity.PeerID, body []byte) error
}

// PeerQuery asks for one peer. Exactly one field is set.
type PeerQuery struct {
	ID   identity.PeerID
	Name string
	Addr netip.Addr
}

// ResolvedPeer is a peer and what Presence would say of it.
type ResolvedPeer struct {
	Peer
	Online   bool
	Instance uint64
}

// PeerResolver is implemented by a HubConnector that tells of peers on request,
// because in a large mesh nobody is told of all.
type PeerResolver interface {
	// ResolvePeer asks the hub for a peer. Its error Is ErrUnknownPeer where there is
	// none; any other may pass. Safe for concurrent use.
	ResolvePeer(ctx context.Context, q PeerQuery) (ResolvedPeer, error)
}

// HubEvents is what a HubConnector reports. Calls come one at a time, never block
// for long, and the receiver may keep the arguments.
type HubEvents interface {
	// HubState tells whether the link is up; err says why it is down.
	HubState(connected bool, err error)
	// PeersSynced replaces the whole set of peers.
	PeersSynced(peers []Peer)
	// PeersChanged adds or replaces some peers and deletes others.
	PeersChanged(upserts []Peer, deletes []identity.PeerID)
	// Denied delivers denials: all that are in force, or some more. Sessions that
	// they concern end at once, and no handshake with them succeeds.
	Denied(denials []Denial, all bool)
	// Presence tells that a peer came or went at the hub. instance changes each
	// time the peer comes anew.
	Presence(id identity.PeerID, online bool, instance uint64)
	// Policy delivers the policy in force, in the JSON form of package policy.
	Policy(version uint64, document []byte)
	// Signaled delivers a body that a peer sent. The hub vouches for from.
	Signaled(from identity.PeerID, body []byte)
	// Undeliverable tells that a body for to was not delivered; reason is one
	// word: offline, unknown, denied, busy, rate or invalid.
	Undeliverable(to identity.PeerID, reason string)
}
