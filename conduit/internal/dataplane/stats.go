// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// TxReason says why an outbound packet was dropped.
type TxReason uint8

// The reasons of tx_dropped.
const (
	TxMalformed    TxReason = iota // not an IP packet
	TxTooBig                       // larger than a buffer, or than the peer's paths carry
	TxMulticast                    // multicast, which the mesh does not carry
	TxNoRoute                      // no peer has the destination address
	TxSource                       // source address is not ours
	TxPolicy                       // policy denies it
	TxNoSession                    // no session could be had, or too many wait for one
	TxStale                        // waited too long for a session
	TxNoPath                       // the peer has no path, or one that it was to leave on is gone
	TxLaneOverflow                 // its lane was full
	TxSend                         // the kernel refused it
	TxDeadline                     // Critical that waited too long
	TxAge                          // Telemetry that was overtaken by newer data
	TxCoDel                        // Bulk that waited too long (RFC 8289)
	TxDatagram                     // the rest of a datagram that lost a fragment
	numTx
)

// RxReason says why an inbound datagram was dropped.
type RxReason uint8

// The reasons of rx_dropped.
const (
	RxUnknown   RxReason = iota // neither STUN nor ours
	RxMalformed                 // bad header, or the inner packet is not IP
	RxIndex                     // no session with this index
	RxType                      // a packet type that this version does not know
	// RxReplay is a packet that the window has seen before. That of a bonded packet
	// which came second is RxCopy.
	RxReplay
	RxForged
	RxSource // inner addresses are not the peer's and ours
	RxPolicy
	RxProbeRate // a peer probes too often
	RxDevice    // the TUN device refused it
	// RxCopy is like RxReplay, but it came on one of several paths that the peer is
	// known to use: almost always the copy of a bonded packet.
	RxCopy
	RxExpired       // the session is too old
	RxRelay         // relayed by or for somebody who may not, or not a packet
	RxHandshakeRate // more handshakes than are looked at
	RxChallengeRate // a peer challenges too often
	RxControlRate   // a peer sends more control packets than are looked at
	RxEchoRate      // a peer sends more echoes than are answered
	RxEcho          // an answer to no echo of ours, or one that came too late
	numRx
)

var (
	txNames = [numTx]string{"malformed", "too_big", "multicast", "no_route", "source", "policy", "no_session", "stale", "no_path", "lane_overflow", "send_error", "deadline", "age", "codel", "datagram"}
	rxNames = [numRx]string{"unknown", "malformed", "unknown_index", "unknown_type", "replay", "forged", "source", "policy", "probe_rate", "device", "copy", "expired", "relay", "handshake_rate", "challenge_rate", "control_rate", "echo_rate", "echo"}
)

// String returns the name that status and metrics use.
func (r TxReason) String() string { return txNames[r] }

// String returns the name that status and metrics use.
func (r RxReason) String() string { return rxNames[r] }

// txOfDrop says under which reason a lane's drop counts.
var txOfDrop = [lane.NumDrops]TxReason{
	lane.Overflow: TxLaneOverflow, lane.Deadline: TxDeadline, lane.Age: TxAge, lane.CoDel: TxCoDel, lane.Datagram: TxDatagram,
}

type stats struct {
	tx                   [numTx]atomic.Uint64
	rx                   [numRx]atomic.Uint64
	txPackets, txBytes   [packet.NumLanes]atomic.Uint64
	rxPackets, rxBytes   [packet.NumLanes]atomic.Uint64
	goneTx, goneRx       atomic.Uint64 // bytes of binds that were removed
	resent               atomic.Uint64
	copies, copyless     atomic.Uint64
	policed              atomic.Uint64
	sendErrs, deviceErrs atomic.Uint64
	stunErrs             atomic.Uint64
}

// Lane is the counters of one lane: inner packets and bytes.
type Lane struct {
	TxPackets, TxBytes, RxPackets, RxBytes uint64
	Queue                                  lane.Stats
}

// Stats is a snapshot of all counters.
type Stats struct {
	TxDropped, RxDropped map[string]uint64
	Lanes                [packet.NumLanes]Lane
	// WireTx and WireRx are UDP payload bytes, STUN included.
	WireTx, WireRx uint64
	// Resent are Critical packets that were sent again on a new path.
	Resent uint64
	// Copies are Critical packets that were sent again on a path that loses much,
	// CopiesSpared those for which there was no budget.
	Copies, CopiesSpared uint64
	// Policed are Critical packets that were demoted, since they were more than
	// their path can have beside the rest.
	Policed uint64
	// STUNUnsent are checks to addresses that the system has no way to.
	STUNUnsent uint64
}

// Stats returns the counters. Each is exact; together they are not of one
// instant.
func (d *Dataplane) Stats() Stats {
	s := Stats{TxDropped: make(map[string]uint64, numTx), RxDropped: make(map[string]uint64, numRx)}
	for i := range d.stats.tx {
		s.TxDropped[txNames[i]] = d.stats.tx[i].Load()
	}
	for i := range d.stats.rx {
		s.RxDropped[rxNames[i]] = d.stats.rx[i].Load()
	}
	q := d.lanes.Stats()
	for l := range packet.NumLanes {
		s.Lanes[l] = Lane{
			d.stats.txPackets[l].Load(), d.stats.txBytes[l].Load(),
			d.stats.rxPackets[l].Load(), d.stats.rxBytes[l].Load(), q[l],
		}
	}
	s.STUNUnsent = d.stats.stunErrs.Load()
	s.Resent = d.stats.resent.Load()
	s.Copies, s.CopiesSpared, s.Policed = d.stats.copies.Load(), d.stats.copyless.Load(), d.stats.policed.Load()
	s.WireTx, s.WireRx = d.stats.goneTx.Load(), d.stats.goneRx.Load()
	for _, l := range d.list() {
		if l != nil {
			s.WireTx += l.tx.Load()
			s.WireRx += l.rx.Load()
		}
	}
	return s
}
