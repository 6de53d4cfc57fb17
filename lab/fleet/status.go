// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// The types of a path, as `status --json` names them.
const (
	PathNone      = "none"
	PathDirect    = "direct"
	PathTurn      = "turn"
	PathPeerRelay = "peer-relay"
	PathHubRelay  = "hub-relay"
)

// Status is the part of `bauxite status --json` that scripts rely on.
type Status struct {
	Node struct {
		ID         string     `json:"id"`
		Name       string     `json:"name"`
		VirtualIP  netip.Addr `json:"virtual_ip"`
		VirtualIP6 netip.Addr `json:"virtual_ip6"`
		Port       uint16     `json:"port"`
	} `json:"node"`
	Hub struct {
		Connected    bool `json:"connected"`
		FromSnapshot bool `json:"from_snapshot"`
	} `json:"hub"`
	Peers    []Peer `json:"peers"`
	Counters struct {
		TxPackets uint64            `json:"tx_packets"`
		TxBytes   uint64            `json:"tx_bytes"`
		TxDropped json.RawMessage   `json:"tx_dropped"`
		DroppedBy json.RawMessage   `json:"tx_dropped_by_reason"`
		RxBy      map[string]uint64 `json:"rx_dropped_by_reason"`
	} `json:"counters"`
	Lanes struct {
		Critical  json.RawMessage `json:"critical"`
		Telemetry json.RawMessage `json:"telemetry"`
		Bulk      json.RawMessage `json:"bulk"`
	} `json:"lanes"`

	// Raw is the whole answer.
	Raw json.RawMessage `json:"-"`
}

// Peer is one entry of Status.Peers.
type Peer struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	VirtualIP  netip.Addr `json:"virtual_ip"`
	VirtualIP6 netip.Addr `json:"virtual_ip6"` // may be absent
	State      string     `json:"state"`
	Path       struct {
		Type   string  `json:"type"`
		Remote string  `json:"remote"`
		RTTms  float64 `json:"rtt_ms"`
		Reason string  `json:"reason"`
	} `json:"path"`
	Paths  []Path `json:"paths"`
	Cipher string `json:"cipher"`
	Keys   struct {
		Since      time.Time `json:"since"`
		Rekeys     uint64    `json:"rekeys"`
		Handshakes uint64    `json:"handshakes"`
	} `json:"keys"`
}

// Path is one of the ways to a peer.
type Path struct {
	Kind      string   `json:"kind"`
	Uplink    string   `json:"uplink"`
	Remote    string   `json:"remote"`
	State     string   `json:"state"`
	RTTms     float64  `json:"rtt_ms"`
	Loss      float64  `json:"loss"`
	MTU       int      `json:"mtu"`
	Lanes     []string `json:"lanes"`
	TxPackets uint64   `json:"tx_packets"`
	RxPackets uint64   `json:"rx_packets"`
}

// ParseStatus reads the output of `bauxite status --json`.
func ParseStatus(b []byte) (Status, error) {
	var s Status
	if err := json.Unmarshal(b, &s); err != nil {
		return Status{}, fmt.Errorf("parse status %q: %w", b, err)
	}
	s.Raw = json.RawMessage(b)
	return s, nil
}

// Peer finds a peer by name.
func (s Status) Peer(name string) (Peer, bool) {
	for _, p := range s.Peers {
		if p.Name == name {
			return p, true
		}
	}
	return Peer{}, false
}
