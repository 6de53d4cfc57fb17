// SPDX-License-Identifier: Apache-2.0

// Package snapshot keeps what a node must know to find its peers without its hub
// (StateSnapshot): who they are, where they were last reached, and what the policy
// says. It never holds a session key, a pre-shared key or a private key: whoever
// steals the file learns addresses and names, and can impersonate nobody.
//
// The file is CBOR (RFC 8949, core deterministic encoding): an envelope with the
// format's version, the body and a SHA-256 over both. The sum is against worn flash
// and half-done writes, not against somebody who may write the file; that is what
// its mode is for.
package snapshot

import (
	"crypto/ed25519"
	"errors"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
)

// Major and Minor are the version of the format that Encode writes. Decode refuses
// another major, and ignores what a newer minor has added.
const (
	Major = 1
	Minor = 1 // 1: rates
)

// Limits of a snapshot.
const (
	MaxSize    = 16 << 20 // of the file, in bytes
	MaxPeers   = 1 << 15
	MaxAddrs   = 8 // of a peer
	MaxPolicy  = 4 << 20
	MaxDenials = 1 << 17 // of all kinds, as the engine has it
	MaxResume  = 4 << 10
	MaxUplinks = 64
	MaxRates   = 256

	maxName   = 64 // of a peer, a mesh, an uplink, a kind of path
	maxTags   = 64 // of a peer
	maxTag    = 256
	maxSerial = 64
)

// Errors that callers branch on.
var (
	// ErrDamaged is what bytes that are no snapshot give.
	ErrDamaged = errors.New("damaged state")
	// ErrVersion is what a snapshot of a newer program gives.
	ErrVersion = errors.New("state is of a newer version of this program")
	// ErrForeign is what the snapshot of another node or another mesh gives.
	ErrForeign = errors.New("state belongs to another node")
	// ErrLimit is why something is too large to be written.
	ErrLimit = errors.New("state is too large")
)

// Snapshot is what a node knew at one moment.
type Snapshot struct {
	// MeshID and Self are the mesh and the node whose snapshot it is.
	MeshID string
	Self   identity.PeerID
	// Written is when, by the node's own clock; to the millisecond.
	Written time.Time
	// Peers are the known nodes, in the order of their PeerIDs.
	Peers []Peer
	// PolicyVersion and Policy are the policy in force, in the JSON form of package
	// policy; nil means none.
	PolicyVersion uint64
	Policy        []byte
	// Denials are those in force.
	Denials []Denial
	// Resume is what the hub connector wants to be told after a restart; opaque.
	Resume []byte
	// Spent are the budgets of uplinks.
	Spent []Spent
	// Rates are what paths carried, so that the next start need not find it anew.
	Rates []Rate
	// Port is the UDP port that the node had: peers look for it there.
	Port uint16
	// Dropped counts peers that Decode left out because their keys did not match
	// their PeerID or an address made no sense. It is not written.
	Dropped int
}

// Peer is a node and where it was reached.
type Peer struct {
	registry.Peer
	// Addrs are the last good addresses, the newest first.
	Addrs []Addr
}

// Addr is an address at which a peer has proved to be.
type Addr struct {
	Addr netip.AddrPort
	// Kind is the kind of the path, such as "direct".
	Kind string
	// Uplink is the name of our interface; empty where none was meant.
	Uplink string
	// At is when it last answered; to the millisecond.
	At time.Time
}

// Denial is engine.Denial: exactly one of the first three is set.
type Denial struct {
	ID      identity.PeerID
	Ed25519 ed25519.PublicKey
	Serial  []byte
	Until   time.Time // to the millisecond; zero means for ever
}

// Spent is what went over an uplink in one day.
type Spent struct {
	Uplink string
	// Day counts from 1970-01-01 (UTC).
	Day   int64
	Bytes uint64
}

// Day returns the number of t's day, as Spent has it.
func Day(t time.Time) int64 {
	const day = 24 * 60 * 60
	s := t.Unix()
	if s < 0 {
		s -= day - 1
	}
	return s / day
}
