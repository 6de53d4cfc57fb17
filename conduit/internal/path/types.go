// SPDX-License-Identifier: Apache-2.0

// Package path keeps the ways to one peer: which pairs of our sockets and its
// addresses carry packets, how well, and which of them each lane uses.
//
// A Set is pure. It has no clock, goroutine or socket: the caller tells it what
// happened and what time it is, and does what Ready returns. It is not safe for
// concurrent use. The same calls give the same outputs, but for the bytes of
// path challenges.
//
// # What makes a path valid
//
// Only the peer's answer to something that we sent on that very path: a
// PROBE_ACK of one of our PROBEs, or the PATH_RESPONSE to our PATH_CHALLENGE.
// An authenticated packet from a new address proves nothing, since whoever
// copied it may have sent it from there; it earns the address a challenge.
//
// # States
//
//	new → probing → valid ⇄ suspect → dead
//	                  ▲───────────────┘
//
// A valid path that is silent although it was asked becomes suspect; while one
// in use is suspect, Critical goes everywhere. Dead paths are asked now and
// then, and are valid again after three answers.
//
// # Driving a Set
//
// SetLocals comes first, then AddPath for what is known and AddRemote for the
// candidates. Before each Tick, tell Heard the newest packet that came on each
// path of IDs; after each call of anything, do what Ready returns. Skip a peer
// without a session, since nobody can answer, and Wake its Set when it has one
// again.
package path

import (
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// ID names one way to a peer.
type ID struct {
	// Bind is the index of our socket in the packet path.
	Bind int
	// Remote is where to send. On relay streams it is the peer's virtual IPv4 with
	// port 1.
	Remote netip.AddrPort
}

// Kind says what a path runs over, the best first.
type Kind uint8

// The kinds.
const (
	// Direct leads from our socket to the peer's address.
	Direct Kind = iota
	// Turn leads over a TURN server, ours or the peer's.
	Turn
	// Peer leads over another node of the mesh.
	Peer
	// Hub leads over the hub's stream.
	Hub
	numKinds
)

var kindNames = [numKinds]string{"direct", "turn", "peer-relay", "hub-relay"}

// String returns "direct", "turn", "peer-relay" or "hub-relay".
func (k Kind) String() string {
	if k < numKinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// State is how far a path has come.
type State uint8

// The states.
const (
	// StateNew was not asked yet, or is not to be asked now.
	StateNew State = iota
	// StateProbing was asked and has not answered.
	StateProbing
	// StateValid answers.
	StateValid
	// StateSuspect was valid and is silent.
	StateSuspect
	// StateDead was silent for long, or never answered.
	StateDead
	numStates
)

var stateNames = [numStates]string{"new", "probing", "valid", "suspect", "dead"}

// String returns "new", "probing", "valid", "suspect" or "dead".
func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Mode says how a lane uses several paths.
type Mode uint8

// The modes. DefaultMode is that of the lane: Critical Duplicate, Telemetry
// RedundantAdaptive, Bulk Balance.
const (
	DefaultMode Mode = iota
	// Duplicate sends each packet once over each uplink of either side. On Bulk,
	// of whose paths each packet takes one, it means Balance.
	Duplicate
	// RedundantAdaptive sends on the best path, and on a second one while that one
	// loses packets, varies much or is in doubt. On Bulk it means Balance.
	RedundantAdaptive
	// Balance spreads flows over the good paths of distinct uplinks. On Critical
	// and Telemetry, whose packets leave on all paths, it means ActiveBackup.
	Balance
	// ActiveBackup sends on the best path only.
	ActiveBackup
	numModes
)

var modeNames = [numModes]string{"default", "duplicate", "redundant-adaptive", "balance", "active-backup"}

// String returns the name that ParseMode takes.
func (m Mode) String() string {
	if m < numModes {
		return modeNames[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// ParseMode is the inverse of String; "" is DefaultMode.
func ParseMode(name string) (Mode, error) {
	if name == "" {
		return DefaultMode, nil
	}
	for i, n := range modeNames {
		if n == name {
			return Mode(i), nil
		}
	}
	return 0, fmt.Errorf("unknown bonding mode %q: want duplicate, redundant-adaptive, balance or active-backup", name)
}

// Demand says how much a peer is wanted, which sets how often its paths are
// probed.
type Demand uint8

// The demands.
const (
	// Idle: nobody sends. Paths are probed every 15 s, which keeps NAT bindings.
	Idle Demand = iota
	// Warm: somebody may send soon. Every second.
	Warm
	// Active: somebody sends. Every 100 ms on a single path unless packets were
	// heard on it anyhow, every 50 ms where two uplinks are used.
	Active
)

// Local is one of our sockets.
type Local struct {
	Bind int
	Kind Kind
	// Uplink is the number of the interface, 1 to 255; 0 for none, as of relay
	// streams and of the socket that is bound to no interface.
	Uplink uint8
	// V4 and V6 are the families that it can send to. Both are false for Hub and
	// Peer, whose paths come by AddPath only.
	V4, V6 bool
	// Fallback marks the socket that is bound to no interface: it is probed only
	// while no other direct path is valid.
	Fallback bool
	// Metered makes Telemetry and Bulk avoid it while an unmetered path is valid.
	Metered bool
	// Spent says that its budget is used up: it serves only when nothing else does.
	Spent bool
}

// Config is what a Set is made of. The zero value is ready to use.
type Config struct {
	// Modes are the bonding modes of the lanes.
	Modes [packet.NumLanes]Mode
	// Rand gives the bytes of challenges; nil means crypto/rand.
	Rand io.Reader
}

// Limits of a Set.
const (
	// MaxRemotes bounds the peer's candidates; more are ignored.
	MaxRemotes = 32
	// MaxPaths bounds the paths that are kept.
	MaxPaths = 128
	// MaxUnproven bounds the unknown addresses that are being challenged.
	MaxUnproven = 3
	// MaxCopies bounds the paths that a packet leaves on.
	MaxCopies = 8
)

// OutputKind says which fields of an Output count.
type OutputKind uint8

// The kinds of output.
const (
	// SendProbe: send Probe on ID, padded to Size.
	SendProbe OutputKind = iota + 1
	// SendChallenge: send Challenge in a PATH_CHALLENGE on ID.
	SendChallenge
	// UseWays: the lanes use Ways from now on.
	UseWays
)

// Output is something that the caller has to do.
type Output struct {
	Kind OutputKind
	ID   ID
	// Probe is complete but for Sent, which the caller may set: the Set keeps its
	// own times.
	Probe wire.Probe
	// Size is how long the whole datagram must be, header and tag included; 0
	// means unpadded.
	Size      int
	Challenge wire.PathChallenge
	// Ways is the caller's to keep; never nil for UseWays. Without any path its
	// lists are empty.
	Ways *Ways
}

// Ways are the paths that a peer's lanes use.
type Ways struct {
	// Critical and Telemetry packets leave on all of theirs, the best first, at most
	// MaxCopies.
	Critical, Telemetry []ID
	// Bulk packets leave on one of them, chosen by flow. The order stays the same as
	// long as the paths do.
	Bulk []ID
	// Since says what a path that is new in Critical has missed: packets that were
	// sealed since must be sent on it first, in order. Zero: it missed nothing.
	Since time.Time
	// MTU is the largest datagram (UDP payload) that all of these carry; 0 without
	// any.
	MTU int
}

// Status is one path as users see it.
type Status struct {
	ID   ID
	Kind Kind
	// State and Since: since when it is in that state.
	State State
	Since time.Time
	// Uplink is our interface, RemoteUplink the peer's; 0 unknown.
	Uplink, RemoteUplink uint8
	// RTT and RTTVar are smoothed; 0 unknown.
	RTT, RTTVar time.Duration
	// Loss is the share of the last probes that had no answer, 0 to 1.
	Loss float64
	// MTU is the largest UDP payload that it carries; MTUConfirmed, whether a probe
	// of that size was answered.
	MTU          int
	MTUConfirmed bool
	// Heard is when an authenticated packet last came on it; zero: never.
	Heard time.Time
	// Lanes says which lanes use it.
	Lanes [packet.NumLanes]bool
	// Why says in a few words why it is used or not.
	Why string
}
