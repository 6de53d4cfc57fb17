// SPDX-License-Identifier: Apache-2.0

// Package metrics writes a node's status as Prometheus reads it, and serves it where
// config.toml says so. How much it writes is bounded, whatever the size of the mesh:
// MaxPeers, MaxPaths and MaxRules, and what is left out is counted.
package metrics

import (
	"cmp"
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit"
)

// Bounds of what has labels.
const (
	// MaxPeers are the peers that have figures of their own: the connected ones first,
	// then by name.
	MaxPeers = 64
	// MaxPaths are those of one peer, the best first.
	MaxPaths = 8
	// MaxRules are the rules of the policy, those that deny most first.
	MaxRules = 64
)

// Text returns st in the text format of Prometheus, version 0.0.4. version is that of
// the program and may be empty.
func Text(st *conduit.Status, version string) []byte {
	w := &writer{}
	node(w, st, version)
	for _, l := range []struct {
		name string
		of   *conduit.LaneStatus
	}{{"critical", &st.Lanes.Critical}, {"telemetry", &st.Lanes.Telemetry}, {"bulk", &st.Lanes.Bulk}} {
		lane(w, label{"lane", l.name}, l.of)
	}
	c := &st.Counters
	each(c.TxDroppedBy, func(why string, n uint64) {
		w.counter("bauxite_sent_dropped_total", "Packets that were not sent, by reason.", n, label{"reason", why})
	})
	each(c.RxDroppedBy, func(why string, n uint64) {
		w.counter("bauxite_received_dropped_total", "Datagrams that were not accepted, by reason.", n, label{"reason", why})
	})
	w.counter("bauxite_wire_sent_bytes_total", "UDP payload sent, of all kinds.", c.WireTxBytes)
	w.counter("bauxite_wire_received_bytes_total", "UDP payload received, of all kinds.", c.WireRxBytes)
	w.counter("bauxite_stun_unsent_total", "Checks to addresses that the system has no way to.", c.STUNUnsent)
	rules(w, &st.Policy)
	peers(w, st.Peers)
	return w.bytes()
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func node(w *writer, st *conduit.Status, version string) {
	n := &st.Node
	w.gauge("bauxite_node_info", "The node; always 1.", 1, label{"name", n.Name}, label{"id", n.ID}, label{"version", version})
	w.gauge("bauxite_uptime_seconds", "Time since the start.", n.UptimeSeconds)
	if !n.CertificateExpires.IsZero() {
		w.gauge("bauxite_certificate_expires_timestamp_seconds", "When the node's certificate expires, in Unix time.", float64(n.CertificateExpires.Unix()))
	}
	w.gauge("bauxite_hub_connected", "Whether the link to the hub is up.", truth(st.Hub.Connected))
	w.gauge("bauxite_from_snapshot", "Whether peers and policy are those of the state file.", truth(st.Hub.FromSnapshot))
	for i := range n.Uplinks {
		u := &n.Uplinks[i]
		l := label{"uplink", u.Name}
		w.counter("bauxite_uplink_sent_bytes_total", "UDP payload sent on an interface.", u.TxBytes, l)
		w.counter("bauxite_uplink_received_bytes_total", "UDP payload received on an interface.", u.RxBytes, l)
		w.gauge("bauxite_uplink_metered", "Whether an interface is metered.", truth(u.Metered), l)
		w.gauge("bauxite_uplink_budget_spent", "Whether an interface's budget of the day is used up.", truth(u.Spent), l)
		w.gauge("bauxite_uplink_backlog_bytes", "What waits in the system's send buffers of an interface.", float64(u.Backlog), l)
		if u.Rate > 0 {
			w.gauge("bauxite_uplink_rate_bytes_per_second", "What an interface may send at most.", u.Rate/8, l)
		}
	}
}

func lane(w *writer, l label, s *conduit.LaneStatus) {
	w.counter("bauxite_lane_sent_packets_total", "Inner packets sent in a lane.", s.TxPackets, l)
	w.counter("bauxite_lane_sent_bytes_total", "Bytes of inner packets sent in a lane.", s.TxBytes, l)
	w.counter("bauxite_lane_received_packets_total", "Inner packets received in a lane.", s.RxPackets, l)
	w.counter("bauxite_lane_received_bytes_total", "Bytes of inner packets received in a lane.", s.RxBytes, l)
	w.gauge("bauxite_lane_queue_packets", "Packets that wait in a lane.", float64(s.Queued), l)
	w.gauge("bauxite_lane_queue_bytes", "Bytes that wait in a lane.", float64(s.QueuedBytes), l)
	w.gauge("bauxite_lane_sojourn_seconds", "How long packets waited in a lane of late, a moving average.", s.Sojourn/1000, l)
	w.gauge("bauxite_lane_sojourn_max_seconds", "The longest wait in a lane within the last second.", s.SojournMax/1000, l)
	rest := s.Dropped
	each(s.DroppedBy, func(why string, n uint64) {
		rest -= min(n, rest)
		w.counter("bauxite_lane_dropped_total", "Packets dropped in a lane, by reason.", n, l, label{"reason", why})
	})
	if len(s.DroppedBy) == 0 {
		w.counter("bauxite_lane_dropped_total", "Packets dropped in a lane, by reason.", rest, l, label{"reason", "overflow"})
	}
	w.counter("bauxite_lane_ecn_marked_total", "Packets marked (ECN) rather than dropped.", s.Marked, l)
	w.counter("bauxite_lane_demoted_total", "Packets that came into a lane from a higher one, over a budget or beyond the share of Critical.", s.Demoted, l)
}

func rules(w *writer, p *conduit.PolicyStatus) {
	w.gauge("bauxite_policy_version", "The version of the policy in force; 0 is none, and everything is denied.", float64(p.Version))
	type denied struct {
		rule string
		n    uint64
	}
	var all []denied
	each(p.Denied, func(rule string, n uint64) { all = append(all, denied{rule, n}) })
	slices.SortStableFunc(all, func(a, b denied) int { return cmp.Compare(b.n, a.n) })
	left := max(len(all)-MaxRules, 0)
	for _, d := range all[:len(all)-left] {
		w.counter("bauxite_policy_denied_packets_total", "Packets that a rule denied.", d.n, label{"rule", d.rule})
	}
	omitted(w, "rule", left)
	left = max(len(p.Alarms)-MaxRules, 0)
	w.gauge("bauxite_policy_alarms", "Budgets that are exceeded, or were within the last minute.", float64(len(p.Alarms)))
	for _, a := range p.Alarms[:len(p.Alarms)-left] {
		w.gauge("bauxite_policy_alarm_packets", "Packets over a budget since its alarm began.", float64(a.Packets),
			label{"rule", a.Rule}, label{"peer", a.Peer}, label{"lane", a.Lane}, label{"action", a.Action})
	}
	omitted(w, "alarm", left)
}

func omitted(w *writer, kind string, n int) {
	w.gauge("bauxite_metrics_omitted", "What has no figures of its own here, since there are too many.", float64(n), label{"kind", kind})
}

func peers(w *writer, all []conduit.PeerStatus) {
	states := map[string]int{"idle": 0, "handshake": 0, "checking": 0, "connected": 0, "silent": 0}
	for i := range all {
		states[all[i].State]++
	}
	each(states, func(s string, n int) {
		w.gauge("bauxite_peers", "Peers by state.", float64(n), label{"state", s})
	})
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b conduit.PeerStatus) int {
		return cmp.Or(-cmp.Compare(truth(a.State == "connected"), truth(b.State == "connected")), cmp.Compare(a.Name, b.Name))
	})
	left := max(len(all)-MaxPeers, 0)
	paths := 0
	for i := range all[:len(all)-left] {
		p := &all[i]
		l := label{"peer", p.Name}
		w.gauge("bauxite_peer_connected", "Whether a path to a peer stands.", truth(p.State == "connected"), l)
		w.counter("bauxite_peer_sent_packets_total", "Inner packets sent to a peer.", p.TxPackets, l)
		w.counter("bauxite_peer_sent_bytes_total", "Bytes of inner packets sent to a peer.", p.TxBytes, l)
		w.counter("bauxite_peer_sent_dropped_total", "Packets for a peer that were not sent.", p.TxDropped, l)
		w.counter("bauxite_peer_received_packets_total", "Inner packets received from a peer.", p.RxPackets, l)
		w.counter("bauxite_peer_received_bytes_total", "Bytes of inner packets received from a peer.", p.RxBytes, l)
		w.counter("bauxite_peer_rekeys_total", "In-band rekeys with a peer.", p.Keys.Rekeys, l)
		w.counter("bauxite_peer_handshakes_total", "Full handshakes with a peer.", p.Keys.Handshakes, l)
		shown := 0
		for j := range p.Paths {
			d := &p.Paths[j]
			if d.State != "valid" && d.State != "suspect" {
				continue // it carries nothing
			}
			if shown++; shown > MaxPaths {
				paths++
				continue
			}
			path(w, d, []label{l, {"kind", d.Kind}, {"uplink", d.Uplink}, {"remote", d.Remote}})
		}
	}
	omitted(w, "peer", left)
	omitted(w, "path", paths)
}

func path(w *writer, d *conduit.PathDetail, l []label) {
	w.gauge("bauxite_path_rtt_seconds", "Round-trip time of a path, by its probes.", d.RTT/1000, l...)
	w.gauge("bauxite_path_probe_loss_ratio", "Share of a path's probes without an answer.", d.Loss, l...)
	if d.MTU > 0 {
		w.gauge("bauxite_path_mtu_bytes", "Largest datagram that passes, in bytes of UDP payload.", float64(d.MTU), l...)
	}
	w.counter("bauxite_path_sent_packets_total", "Datagrams sent on a path.", d.TxPackets, l...)
	w.counter("bauxite_path_sent_bytes_total", "UDP payload sent on a path.", d.TxBytes, l...)
	w.counter("bauxite_path_received_packets_total", "Datagrams received on a path.", d.RxPackets, l...)
	w.counter("bauxite_path_received_bytes_total", "UDP payload received on a path.", d.RxBytes, l...)
	p := d.Pacing
	if p == nil {
		return
	}
	if p.Rate > 0 {
		w.gauge("bauxite_path_paced_rate_bytes_per_second", "What may leave on a path, on the wire; absent where there is no limit.", p.Rate/8, l...)
	}
	w.gauge("bauxite_path_delivery_rate_bytes_per_second", "What arrived by the last report, on the wire.", p.Delivery/8, l...)
	w.gauge("bauxite_path_base_delay_seconds", "Round-trip time of a path while its queue is empty.", p.BaseRTT/1000, l...)
	w.gauge("bauxite_path_current_delay_seconds", "Round-trip time of a path with its queue, by the last report.", (p.BaseRTT+p.Queue)/1000, l...)
	w.gauge("bauxite_path_queue_delay_seconds", "Delay in a path's queue, by the last report.", p.Queue/1000, l...)
	w.gauge("bauxite_path_delay_noise_seconds", "How much a path's delay scatters by itself.", p.Noise/1000, l...)
	w.gauge("bauxite_path_loss_ratio", "Share of the packets sent on a path that was lost of late.", p.Loss, l...)
	w.gauge("bauxite_path_repair_copies", "How often each Critical packet is repeated against loss.", float64(p.Copies), l...)
	w.gauge("bauxite_path_waiting_bytes", "What waits for a path.", float64(p.Waiting), l...)
	w.gauge("bauxite_path_pacing_state", "The state of a path's pacing; always 1.", 1, append(slices.Clone(l), label{"state", p.State})...)
}
