// SPDX-License-Identifier: Apache-2.0

package local

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// Errors of Resolve.
var (
	ErrNoPeer    = errors.New("no such peer")
	ErrAmbiguous = errors.New("more than one peer matches")
)

// Status is what this package and the command read of the status document. The
// document itself has more.
type Status struct {
	Node     Node            `json:"node"`
	Hub      Hub             `json:"hub"`
	Policy   Policy          `json:"policy"`
	Peers    []Peer          `json:"peers"`
	Counters Counters        `json:"counters"`
	Lanes    map[string]Lane `json:"lanes"`
}

// Node is this node.
type Node struct {
	ID                 string    `json:"id"`
	Name               string    `json:"name"`
	VirtualIP          string    `json:"virtual_ip"`
	VirtualIP6         string    `json:"virtual_ip6"`
	MeshID             string    `json:"mesh_id"`
	Version            string    `json:"version"`
	Device             string    `json:"device"`
	UptimeSeconds      float64   `json:"uptime_seconds"`
	CertificateExpires time.Time `json:"certificate_expires"`
	CertificateRenewed time.Time `json:"certificate_renewed"`
	RenewalError       string    `json:"certificate_renewal_error"`
	MTU                int       `json:"mtu"`
	Port               int       `json:"port"`
	Uplinks            []Uplink  `json:"uplinks"`
}

// Uplink is an interface in use.
type Uplink struct {
	Name      string   `json:"name"`
	Number    int      `json:"number"`
	Addresses []string `json:"addresses"`
	Metered   bool     `json:"metered"`
	Spent     bool     `json:"spent"`
	TxBytes   uint64   `json:"tx_bytes"`
	RxBytes   uint64   `json:"rx_bytes"`
	RateBPS   float64  `json:"rate_bps"` // 0: no limit
	Backlog   int      `json:"backlog_bytes"`
	Held      []string `json:"held"` // lanes that wait for the system
}

// Policy is the policy in force.
type Policy struct {
	Version uint64                `json:"version"`
	Alarms  []conduit.PolicyAlarm `json:"alarms"`
}

// Hub is the link to the hub.
type Hub struct {
	URL       string `json:"url"`
	Connected bool   `json:"connected"`
	Error     string `json:"error"`
	// Since is when the link came up or went down.
	Since time.Time `json:"since"`
	// FromSnapshot is true while peers and policy are those of the state file.
	FromSnapshot bool `json:"from_snapshot"`
}

// Peer is another node.
type Peer struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	VirtualIP  string `json:"virtual_ip"`
	VirtualIP6 string `json:"virtual_ip6"`
	Online     bool   `json:"online"`
	State      string `json:"state"`
	Path       Path   `json:"path"`
	Cipher     string `json:"cipher"`
	// Paths are all that are known, the best first.
	Paths []Way `json:"paths"`
	Keys  Keys  `json:"keys"`
}

// Way is one path to a peer.
type Way struct {
	Kind   string    `json:"kind"` // direct, turn, peer-relay or hub-relay
	Uplink string    `json:"uplink"`
	Remote string    `json:"remote"`
	State  string    `json:"state"` // new, probing, valid, suspect or dead
	RTTMS  float64   `json:"rtt_ms"`
	Loss   float64   `json:"loss"` // 0 to 1
	MTU    int       `json:"mtu"`
	Lanes  []string  `json:"lanes"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"` // why it is not used
	// Pacing is nil where nothing is paced.
	Pacing *conduit.PacingStatus `json:"pacing"`
}

// Carries reports whether packets can go over it.
func (w *Way) Carries() bool { return w.State == "valid" || w.State == "suspect" }

// Keys are about the keys shared with a peer.
type Keys struct {
	Since      time.Time `json:"since"`
	Rekeys     uint64    `json:"rekeys"`
	Handshakes uint64    `json:"handshakes"`
}

// Path is the way to a peer that Critical uses.
type Path struct {
	Type   string  `json:"type"` // none, direct, turn, peer-relay or hub-relay
	Remote string  `json:"remote"`
	RTTMS  float64 `json:"rtt_ms"`
	Reason string  `json:"reason"` // why there is none
}

// Counters are totals since the start.
type Counters struct {
	TxPackets uint64            `json:"tx_packets"`
	TxBytes   uint64            `json:"tx_bytes"`
	TxDropped uint64            `json:"tx_dropped"`
	TxReasons map[string]uint64 `json:"tx_dropped_by_reason"`
	RxPackets uint64            `json:"rx_packets"`
	RxBytes   uint64            `json:"rx_bytes"`
	RxDropped uint64            `json:"rx_dropped"`
	RxReasons map[string]uint64 `json:"rx_dropped_by_reason"`
}

// Lane is the traffic of one lane.
type Lane struct {
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	Dropped   uint64 `json:"dropped"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	Queued    int    `json:"queued"`
	// SojournMS is a moving average, SojournMaxMS of the last second.
	SojournMS    float64           `json:"sojourn_ms"`
	SojournMaxMS float64           `json:"sojourn_max_ms"`
	DroppedBy    map[string]uint64 `json:"dropped_by_reason"`
	Marked       uint64            `json:"ecn_marked"`
	Demoted      uint64            `json:"demoted"`
}

// Resolve finds a peer by its name, with or without ".mesh", its virtual address,
// its id or a prefix of its id that no other peer shares.
func (s *Status) Resolve(what string) (*Peer, error) {
	name := strings.TrimSuffix(what, ".mesh")
	addr, _ := netip.ParseAddr(what)
	var found []*Peer
	for i := range s.Peers {
		p := &s.Peers[i]
		if p.Name == name || p.ID == strings.ToLower(what) || (addr.IsValid() && (sameAddr(p.VirtualIP, addr) || sameAddr(p.VirtualIP6, addr))) {
			return p, nil
		}
		if what != "" && strings.HasPrefix(p.ID, strings.ToLower(what)) {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("%w: %s and %s begin with %s", ErrAmbiguous, found[0].Name, found[1].Name, what)
	case what == s.Node.ID || name == s.Node.Name:
		return nil, fmt.Errorf("%w: %.100q is this node", ErrNoPeer, what)
	}
	return nil, fmt.Errorf("%w: %.100q", ErrNoPeer, what)
}

// peer returns the peer with the id, or nil.
func (s *Status) peer(id identity.PeerID) *Peer {
	for i := range s.Peers {
		if s.Peers[i].ID == id.String() {
			return &s.Peers[i]
		}
	}
	return nil
}

func sameAddr(text string, a netip.Addr) bool {
	b, err := netip.ParseAddr(text)
	return err == nil && a == b
}
