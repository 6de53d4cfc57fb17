// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/engine"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
)

// Status is a snapshot of a node. Its JSON form is stable: fields are added,
// never renamed.
type Status struct {
	Node     NodeStatus   `json:"node"`
	Hub      HubStatus    `json:"hub"`
	Policy   PolicyStatus `json:"policy"`
	Peers    []PeerStatus `json:"peers"`
	Counters Counters     `json:"counters"`
	Lanes    Lanes        `json:"lanes"`
}

// NodeStatus is the node itself.
type NodeStatus struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Virtual4 string `json:"virtual_ip"`
	Virtual6 string `json:"virtual_ip6"`
	Device   string `json:"device"`
	MTU      int    `json:"mtu"`
	// Port is the UDP port of all traffic.
	Port               int       `json:"port"`
	CertificateExpires time.Time `json:"certificate_expires"`
	UptimeSeconds      float64   `json:"uptime_seconds"`
	// Uplinks are the interfaces in use.
	Uplinks []UplinkStatus `json:"uplinks,omitempty"`
}

// UplinkStatus is one interface that leads to the underlay.
type UplinkStatus struct {
	Name string `json:"name"`
	// Number is how the wire names the interface.
	Number    int      `json:"number"`
	Addresses []string `json:"addresses"`
	Metered   bool     `json:"metered,omitempty"`
	// TxBytes and RxBytes count UDP payload.
	TxBytes uint64 `json:"tx_bytes"`
	RxBytes uint64 `json:"rx_bytes"`
	// Spent is true when the day's budget is used up.
	Spent bool `json:"spent,omitempty"`
	// Rate is what the interface may send at most, in bits per second on the wire; 0
	// means no limit.
	Rate float64 `json:"rate_bps,omitempty"`
	// Backlog is what waits in the system's send buffers, in bytes.
	Backlog int `json:"backlog_bytes,omitempty"`
	// Held are the lanes that wait until the system takes packets again.
	Held []string `json:"held,omitempty"`
}

// HubStatus is the link to the hub.
type HubStatus struct {
	Connected bool `json:"connected"`
	// Since is when Connected last changed.
	Since time.Time `json:"since,omitzero"`
	// Error says why the link is down.
	Error string `json:"error,omitempty"`
	// FromSnapshot is true while peers and policy are those of the state file.
	FromSnapshot bool `json:"from_snapshot,omitempty"`
}

// PolicyStatus is the policy in force. Version 0 means none: everything is
// denied.
type PolicyStatus struct {
	Version uint64 `json:"version"`
	// Denied counts packets by the rule that denied them.
	Denied map[string]uint64 `json:"denied,omitempty"`
	// Alarms are the budgets that are exceeded, or were within the last minute.
	Alarms []PolicyAlarm `json:"alarms,omitempty"`
}

// PolicyAlarm is a budget of the policy that traffic exceeds.
type PolicyAlarm struct {
	// Rule is the one whose budget it is, Peer the name of whoever exceeds it, which
	// is this node's where its own packets do.
	Rule string `json:"rule"`
	Peer string `json:"peer,omitempty"`
	Lane string `json:"lane,omitempty"`
	// Action is what becomes of the packets: deny or demote.
	Action string `json:"action,omitempty"`
	// Packets is how many were over the budget since Since.
	Packets uint64    `json:"packets"`
	Since   time.Time `json:"since,omitzero"`
	// Last is when that happened last.
	Last time.Time `json:"last,omitzero"`
}

// PeerStatus is one other node.
type PeerStatus struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Virtual4 string   `json:"virtual_ip"`
	Virtual6 string   `json:"virtual_ip6"`
	Tags     []string `json:"tags,omitempty"`
	// Online is what the hub last said.
	Online bool `json:"online"`
	// State is idle, handshake, checking, connected or silent.
	State string `json:"state"`
	// Path is the one that Critical uses, the best if several.
	Path PathStatus `json:"path"`
	// Paths are all that are known, the best first.
	Paths  []PathDetail `json:"paths,omitempty"`
	Cipher string       `json:"cipher"`
	// Keys are those in use.
	Keys KeyStatus `json:"keys"`
	// Counters count inner packets and bytes.
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxDropped uint64 `json:"tx_dropped"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
}

// PathStatus is the way to a peer.
type PathStatus struct {
	// Type is none, direct, turn, peer-relay or hub-relay.
	Type   string  `json:"type"`
	Remote string  `json:"remote"`
	RTT    float64 `json:"rtt_ms"`
	// Since is when the path was first usable.
	Since time.Time `json:"since,omitzero"`
	// Reason says why there is no path.
	Reason string `json:"reason,omitempty"`
}

// PathDetail is one way to a peer.
type PathDetail struct {
	// Kind is direct, turn, peer-relay or hub-relay.
	Kind string `json:"kind"`
	// Uplink is the interface it leaves by; empty where none is meant.
	Uplink string `json:"uplink,omitempty"`
	Remote string `json:"remote"`
	// State is new, probing, valid, suspect or dead.
	State string  `json:"state"`
	RTT   float64 `json:"rtt_ms"`
	// Loss is the share of probes that got no answer, 0 to 1.
	Loss float64 `json:"loss"`
	// MTU is the largest datagram that is known to pass, in bytes of UDP payload; 0
	// means unknown.
	MTU int `json:"mtu,omitempty"`
	// Lanes are those that use it now: critical, telemetry, bulk.
	Lanes     []string  `json:"lanes,omitempty"`
	TxPackets uint64    `json:"tx_packets"`
	TxBytes   uint64    `json:"tx_bytes"`
	RxPackets uint64    `json:"rx_packets"`
	RxBytes   uint64    `json:"rx_bytes"`
	Since     time.Time `json:"since,omitzero"`
	// Reason says why it is not used.
	Reason string `json:"reason,omitempty"`
	// Pacing is how Telemetry and Bulk are paced on it; nil where nothing is, such as
	// on a path that is not used or to a peer that sends no reports.
	Pacing *PacingStatus `json:"pacing,omitempty"`
}

// The states of PacingStatus.
const (
	PaceUnlimited = "unlimited" // nothing is paced
	PaceFixed     = "fixed"     // at the rate that was configured
	PaceStartUp   = "start-up"  // still looking for the rate of the path
	PaceSteady    = "steady"
	PaceDraining  = "draining"  // below the path's rate, so that its queue empties
	PaceCompeting = "competing" // beside a flow that fills the queue
)

// PacingStatus is how fast one path is filled, and what the peer's reports say of it.
type PacingStatus struct {
	// Strategy is null, fixed or delay-rate.
	Strategy string `json:"strategy"`
	// State is one of the Pace constants.
	State string `json:"state"`
	// Rate is what may leave, in bits per second on the wire; 0 means no limit.
	Rate float64 `json:"rate_bps"`
	// Delivery is what the last report says arrived, in bits per second on the wire.
	Delivery float64 `json:"delivery_bps"`
	// Queue is the delay in the path's queue, beyond BaseRTT, that the last report saw,
	// and Noise how much delays scatter by themselves. All are in milliseconds.
	Queue   float64 `json:"queue_ms"`
	BaseRTT float64 `json:"base_rtt_ms"`
	Noise   float64 `json:"noise_ms"`
	// Loss is the share of packets that was lost of late, 0 to 1.
	Loss float64 `json:"loss"`
	// Copies is how often each Critical packet is sent again on this path to repair
	// loss; 0 means not at all.
	Copies int `json:"copies"`
	// Waiting is what Telemetry and Bulk have waiting for this path, in bytes.
	Waiting int `json:"waiting_bytes"`
}

// KeyStatus is about the keys shared with a peer.
type KeyStatus struct {
	// Since is when they came into use; zero without any.
	Since time.Time `json:"since,omitzero"`
	// Rekeys counts the in-band rekeys with the peer, Handshakes the full ones.
	Rekeys     uint64 `json:"rekeys"`
	Handshakes uint64 `json:"handshakes"`
}

// Counters count inner packets and bytes of all lanes, and drops by reason.
type Counters struct {
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	// TxDropped and RxDropped are the sums of what stands by reason.
	TxDropped   uint64            `json:"tx_dropped"`
	TxDroppedBy map[string]uint64 `json:"tx_dropped_by_reason"`
	RxPackets   uint64            `json:"rx_packets"`
	RxBytes     uint64            `json:"rx_bytes"`
	RxDropped   uint64            `json:"rx_dropped"`
	RxDroppedBy map[string]uint64 `json:"rx_dropped_by_reason"`
	// WireTxBytes and WireRxBytes are UDP payload bytes, STUN included.
	WireTxBytes uint64 `json:"wire_tx_bytes"`
	WireRxBytes uint64 `json:"wire_rx_bytes"`
	// STUNUnsent counts checks to addresses that the system has no way to.
	STUNUnsent uint64 `json:"stun_unsent"`
}

// Lanes are the three lanes.
type Lanes struct {
	Critical  LaneStatus `json:"critical"`
	Telemetry LaneStatus `json:"telemetry"`
	Bulk      LaneStatus `json:"bulk"`
}

// LaneStatus is one lane: what went through it, what waits in it, and what it
// dropped for want of room.
type LaneStatus struct {
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	// Queued and QueuedBytes are what waits now; the bytes are those of inner packets.
	Queued      int `json:"queued"`
	QueuedBytes int `json:"queued_bytes"`
	// Sojourn is how long packets waited of late, a moving average, and SojournMax the
	// longest of the last second, both in milliseconds.
	Sojourn    float64 `json:"sojourn_ms"`
	SojournMax float64 `json:"sojourn_max_ms"`
	// Dropped is the sum of DroppedBy: overflow, deadline, age, codel, datagram, closed.
	Dropped   uint64            `json:"dropped"`
	DroppedBy map[string]uint64 `json:"dropped_by_reason,omitempty"`
	// Marked counts packets that were marked (ECN) rather than dropped.
	Marked uint64 `json:"ecn_marked"`
	// Demoted counts packets that came into this lane from a higher one: over a budget
	// of the policy, or more than the share that Critical may take.
	Demoted uint64 `json:"demoted"`
}

// Status returns a snapshot. After Close it returns net.ErrClosed.
func (n *Node) Status(ctx context.Context) (*Status, error) {
	peers, version, err := n.engine.Status(ctx)
	if err != nil {
		return nil, err
	}
	c := n.certificate()
	st := &Status{
		Node: NodeStatus{
			ID: c.ID.String(), Name: c.Name, Virtual4: c.Virtual4.String(),
			Device: n.cfg.Device.Name(), MTU: n.cfg.Device.MTU(), Port: n.port,
			CertificateExpires: c.NotAfter.UTC(), UptimeSeconds: time.Since(n.started).Seconds(),
		},
		Hub:    n.hubStatus(),
		Policy: PolicyStatus{Version: version, Denied: n.policy.Counters(), Alarms: n.alarms()},
		Peers:  make([]PeerStatus, 0, len(peers)),
	}
	if c.Virtual6.IsValid() {
		st.Node.Virtual6 = c.Virtual6.String()
	}
	for _, p := range peers {
		ps := PeerStatus{
			ID: p.Info.ID.String(), Name: p.Info.Name, Virtual4: p.Info.Virtual4.String(), Tags: p.Info.Tags,
			Online: p.Online, State: p.State, Cipher: p.Cipher,
			Path:      PathStatus{Type: p.PathType, RTT: float64(p.RTT.Microseconds()) / 1000, Reason: p.Reason, Since: p.Since},
			TxPackets: p.Counters.TxPackets, TxBytes: p.Counters.TxBytes, TxDropped: p.Counters.TxDropped,
			RxPackets: p.Counters.RxPackets, RxBytes: p.Counters.RxBytes,
			Keys:  KeyStatus{Since: p.KeysSince, Rekeys: p.Rekeys, Handshakes: p.Handshakes},
			Paths: pathDetails(p.Paths),
		}
		if p.Info.Virtual6.IsValid() {
			ps.Virtual6 = p.Info.Virtual6.String()
		}
		if p.Remote.IsValid() {
			ps.Path.Remote = p.Remote.String()
		}
		st.Peers = append(st.Peers, ps)
	}
	st.Node.Uplinks = n.uplinkStatus()
	d := n.plane.Stats()
	st.Counters = Counters{
		TxDropped: sum(d.TxDropped), TxDroppedBy: d.TxDropped, RxDropped: sum(d.RxDropped), RxDroppedBy: d.RxDropped,
		WireTxBytes: d.WireTx, WireRxBytes: d.WireRx, STUNUnsent: d.STUNUnsent,
	}
	for l, dst := range [packet.NumLanes]*LaneStatus{&st.Lanes.Critical, &st.Lanes.Telemetry, &st.Lanes.Bulk} {
		*dst = laneStatus(&d.Lanes[l])
		st.Counters.TxPackets += dst.TxPackets
		st.Counters.TxBytes += dst.TxBytes
		st.Counters.RxPackets += dst.RxPackets
		st.Counters.RxBytes += dst.RxBytes
	}
	return st, nil
}

func laneStatus(l *dataplane.Lane) LaneStatus {
	q := &l.Queue
	st := LaneStatus{
		TxPackets: l.TxPackets, TxBytes: l.TxBytes, RxPackets: l.RxPackets, RxBytes: l.RxBytes,
		Queued: q.Depth, QueuedBytes: q.Bytes,
		Sojourn: float64(q.SojournNs) / 1e6, SojournMax: float64(q.SojournMaxNs) / 1e6, Marked: q.Marked, Demoted: q.Demoted,
	}
	for i, n := range q.Drops {
		if n > 0 {
			if st.DroppedBy == nil {
				st.DroppedBy = make(map[string]uint64)
			}
			st.DroppedBy[lane.Drop(i).String()] = n
			st.Dropped += n
		}
	}
	return st
}

func sum(by map[string]uint64) (total uint64) {
	for _, n := range by {
		total += n
	}
	return total
}

// alarms are the budgets that were exceeded within the last minute.
func (n *Node) alarms() []PolicyAlarm {
	now := n.plane.Now()
	list := n.policy.Alarms(max(now-int64(time.Minute), 1))
	out := make([]PolicyAlarm, 0, len(list))
	for _, a := range list {
		s := PolicyAlarm{
			Rule: a.Rule, Lane: a.Lane.String(), Action: "demote", Packets: a.Packets,
			Last: time.Now().Add(time.Duration(a.At - now)).UTC(),
		}
		if a.Denied > 0 {
			s.Action = "deny"
		}
		if a.Node == n.certificate().ID {
			s.Peer = n.certificate().Name
		} else if p := n.registry.Get(a.Node); p != nil {
			s.Peer = p.Name
		}
		out = append(out, s)
	}
	return out
}

func (n *Node) hubStatus() HubStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hub
}

func pathDetails(paths []engine.PathStatus) []PathDetail {
	out := make([]PathDetail, 0, len(paths))
	for i := range paths {
		p := &paths[i]
		d := PathDetail{
			Kind: p.Kind.String(), Uplink: p.UplinkName, State: p.State.String(), RTT: float64(p.RTT.Microseconds()) / 1000,
			Loss: p.Loss, MTU: p.MTU, Since: p.Since.UTC(), Reason: p.Why,
			TxPackets: p.Counters.TxPackets, TxBytes: p.Counters.TxBytes, RxPackets: p.Counters.RxPackets, RxBytes: p.Counters.RxBytes,
		}
		if p.Kind == path.Direct || p.Kind == path.Turn {
			d.Remote = p.ID.Remote.String()
		}
		if p.Paced && p.Pacing.Name != "" {
			d.Pacing = pacingStatus(&p.Pacing)
		}
		for l, used := range p.Lanes {
			if used {
				d.Lanes = append(d.Lanes, packet.Lane(l).String())
			}
		}
		out = append(out, d)
	}
	return out
}

func pacingStatus(p *dataplane.Pacing) *PacingStatus {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	s := &PacingStatus{
		Strategy: p.Name, State: PaceSteady, Rate: p.Rate * 8, Delivery: p.Delivery * 8,
		Queue: ms(p.Queue), BaseRTT: ms(p.BaseRTT), Noise: ms(p.Noise), Loss: p.Loss, Copies: p.Copies - 1,
	}
	switch {
	case math.IsInf(p.Rate, 1):
		s.State, s.Rate = PaceUnlimited, 0
	case p.Name == "fixed":
		s.State = PaceFixed
	case p.Draining:
		s.State = PaceDraining
	case p.Competing:
		s.State = PaceCompeting
	case p.Startup:
		s.State = PaceStartUp
	}
	for _, l := range p.Lanes[packet.Telemetry:] {
		s.Waiting += l.Bytes
	}
	return s
}

// uplinkStatus describes the interfaces in use, each once for both families.
func (n *Node) uplinkStatus() []UplinkStatus {
	u := &n.underlay
	u.mu.Lock()
	defer u.mu.Unlock()
	spent := n.spentLocked(time.Now())
	var out []UplinkStatus
	for _, b := range u.bounds {
		if b.Fallback {
			continue
		}
		i := slices.IndexFunc(out, func(o UplinkStatus) bool { return o.Name == b.Uplink.Name })
		if i < 0 {
			s := UplinkStatus{
				Name: b.Uplink.Name, Number: int(b.Uplink.Number), Metered: b.Uplink.Rule.Metered,
				Spent: spent[b.Uplink.Name], Addresses: []string{},
			}
			for _, a := range b.Uplink.Addrs {
				s.Addresses = append(s.Addresses, a.String())
			}
			s.Rate = float64(b.Uplink.Rule.Rate)
			out = append(out, s)
			i = len(out) - 1
		}
		held, backlog := n.plane.Backlog(b.Bind)
		out[i].Backlog += backlog
		out[i].Held = held
		tx, rx := n.plane.BindCounters(b.Bind)
		out[i].TxBytes += tx
		out[i].RxBytes += rx
	}
	return out
}
