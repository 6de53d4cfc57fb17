// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// The types of a path, as `status --json` names them.
const (
	PathNone   = "none"
	PathDirect = "direct"
	PathRelay  = "relay"
	PathHub    = "hub"
)

// Status is the part of `bauxite status --json` that scripts rely on.
type Status struct {
	Node struct {
		ID         string     `json:"id"`
		Name       string     `json:"name"`
		VirtualIP  netip.Addr `json:"virtual_ip"`
		VirtualIP6 netip.Addr `json:"virtual_ip6"`
	} `json:"node"`
	Hub struct {
		Connected bool `json:"connected"`
	} `json:"hub"`
	Peers    []Peer `json:"peers"`
	Counters struct {
		TxPackets uint64          `json:"tx_packets"`
		TxBytes   uint64          `json:"tx_bytes"`
		TxDropped json.RawMessage `json:"tx_dropped"`
		DroppedBy json.RawMessage `json:"tx_dropped_by_reason"`
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
	Path       struct {
		Type   string  `json:"type"`
		Remote string  `json:"remote"`
		RTTms  float64 `json:"rtt_ms"`
	} `json:"path"`
	Cipher string `json:"cipher"`
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
