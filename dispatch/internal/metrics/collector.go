// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

// figure is a metric that is read at the scrape.
type figure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// collector reads the sources and the fleet.
type collector struct {
	src     Sources
	reports *Reports
	log     *slog.Logger
	failed  atomic.Uint64
	all     []*prometheus.Desc

	build, errors, connected, watchers, ringLag, intermediate figure

	rv, auditSeq, policy, dbBytes, walBytes, nodes figure

	relayStreams, relayPackets, relayBytes, relayDropped, relayRefused figure

	turnAllocations, turnNodes, turnCreated, turnPackets, turnBytes, turnDropped, turnRefused, stunBindings figure

	reporting, sessions, lanePackets, laneBytes, laneDropped, dropped, denied figure
	paths, versions, policies, discovery, reportCount, implausible, restarts  figure

	rtt *prometheus.Desc
}

func newCollector(src Sources, reports *Reports, log *slog.Logger) *collector {
	c := &collector{src: src, reports: reports, log: log}
	add := func(kind prometheus.ValueType, name, help string, labels ...string) figure {
		d := prometheus.NewDesc("bauxite_"+name, help, labels, nil)
		c.all = append(c.all, d)
		return figure{d, kind}
	}
	c.build = add(gauge, "hub_build_info", "1, labelled with the versions of the hub and of Go.", "version", "go_version")
	c.errors = add(counter, "hub_scrape_errors_total", "Scrapes that found a source not answering.")
	c.connected = add(gauge, "hub_connected_nodes", "Nodes that have a signalling stream.")
	c.watchers = add(gauge, "hub_watchers", "Streams that watch the topology.")
	c.ringLag = add(gauge, "hub_ring_lag_events", "Events that the slowest watcher is behind.")
	c.intermediate = add(gauge, "hub_intermediate_expiry_timestamp_seconds", "End of the intermediate certificate, Unix time.")

	c.rv = add(gauge, "hub_topology_version", "Newest resource version of the topology.")
	c.auditSeq = add(gauge, "hub_audit_sequence", "Number of the newest audit entry.")
	c.policy = add(gauge, "hub_policy_version", "Policy version in force.")
	c.dbBytes = add(gauge, "hub_database_bytes", "Size of the database file.")
	c.walBytes = add(gauge, "hub_database_wal_bytes", "Size of the database's write-ahead log.")
	c.nodes = add(gauge, "hub_nodes", "Enrolled nodes by state.", "state")

	c.relayStreams = add(gauge, "hub_relay_streams", "Open relay streams.")
	c.relayPackets = add(counter, "hub_relay_packets_total", "Packets that the relay stream passed on, by lane.", "lane")
	c.relayBytes = add(counter, "hub_relay_bytes_total", "Bytes that the relay stream passed on, by lane.", "lane")
	c.relayDropped = add(counter, "hub_relay_dropped_packets_total", "Packets that the relay stream dropped, by lane and by what was full.", "lane", "reason")
	c.relayRefused = add(counter, "hub_relay_refused_packets_total", "Packets that the relay stream did not take: the receiver is not here, or it is no packet.", "reason")
	c.turnAllocations = add(gauge, "hub_turn_allocations", "Open TURN allocations.")
	c.turnNodes = add(gauge, "hub_turn_nodes", "Nodes with a TURN allocation.")
	c.turnCreated = add(counter, "hub_turn_created_allocations_total", "TURN allocations that were made.")
	c.turnPackets = add(counter, "hub_turn_packets_total", "Packets that TURN relayed, up is from a node.", "direction")
	c.turnBytes = add(counter, "hub_turn_bytes_total", "Bytes that TURN relayed, up is from a node.", "direction")
	c.turnDropped = add(counter, "hub_turn_dropped_packets_total", "Packets that TURN dropped, by reason.", "reason")
	c.turnRefused = add(counter, "hub_turn_refused_requests_total", "TURN requests that were refused, by reason.", "reason")
	c.stunBindings = add(counter, "hub_stun_bindings_total", "STUN binding requests that were answered.")

	c.reporting = add(gauge, "fleet_reporting_nodes", "Nodes that have reported lately.")
	c.sessions = add(gauge, "fleet_sessions", "Sessions of the reporting nodes; each counts at both ends.")
	c.lanePackets = add(counter, "fleet_lane_packets_total", "Packets of all nodes by lane and direction.", "lane", "direction")
	c.laneBytes = add(counter, "fleet_lane_bytes_total", "Bytes of all nodes by lane and direction.", "lane", "direction")
	c.laneDropped = add(counter, "fleet_lane_dropped_packets_total", "Packets that nodes dropped, by lane.", "lane")
	c.dropped = add(counter, "fleet_dropped_packets_total", "Packets that nodes dropped for any reason.")
	c.denied = add(counter, "fleet_denied_packets_total", "Packets that nodes dropped by policy.")
	c.paths = add(gauge, "fleet_paths", "Paths of the reporting nodes by kind.", "kind")
	c.versions = add(gauge, "fleet_node_versions", "Reporting nodes by version of their software.", "version")
	c.policies = add(gauge, "fleet_policy_versions", "Reporting nodes by the policy version that they apply.", "policy")
	c.discovery = add(gauge, "fleet_ros_discovery_nodes", "Reporting nodes by status of their ROS 2 discovery server.", "status")
	c.reportCount = add(counter, "fleet_reports_total", "Reports of nodes by outcome.", "outcome")
	c.implausible = add(counter, "fleet_implausible_reports_total", "Reports whose growth no node can have; it is not added up.")
	c.restarts = add(counter, "fleet_node_restarts_total", "Reports whose counters had begun anew.")
	c.rtt = add(counter, "fleet_path_rtt_seconds", "Round-trip times of paths, one observation for each report of a path.").desc
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.all {
		ch <- d
	}
}

type sender chan<- prometheus.Metric

func (s sender) send(f figure, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(f.desc, f.kind, v, labels...)
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := sender(ch)
	s.send(c.build, 1, labelText(c.src.Version), runtime.Version())
	if f := c.src.Connected; f != nil {
		s.send(c.connected, float64(f()))
	}
	if f := c.src.Watchers; f != nil {
		s.send(c.watchers, float64(f()))
	}
	if f := c.src.RingLag; f != nil {
		s.send(c.ringLag, float64(f()))
	}
	if f := c.src.IntermediateExpires; f != nil {
		if t := f(); !t.IsZero() {
			s.send(c.intermediate, float64(t.Unix()))
		}
	}
	c.database(s)
	c.relays(s)
	if c.reports != nil {
		f := c.reports.Fleet()
		c.fleet(s, &f)
	}
	s.send(c.errors, float64(c.failed.Load()))
}

func (c *collector) database(s sender) {
	if c.src.Database == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), databaseTime)
	defer cancel()
	d, err := c.src.Database(ctx)
	if err != nil {
		c.failed.Add(1)
		c.log.Warn("read the database's figures", "err", err)
		return
	}
	s.send(c.rv, float64(d.RV))
	s.send(c.auditSeq, float64(d.AuditSeq))
	s.send(c.policy, float64(d.Policy))
	s.send(c.dbBytes, float64(d.Bytes))
	s.send(c.walBytes, float64(d.WALBytes))
	sendKnown(s, c.nodes, d.Nodes, nodeStates)
}

func (c *collector) relays(s sender) {
	if c.src.Relay != nil {
		r := c.src.Relay()
		s.send(c.relayStreams, float64(r.Clients))
		for i, lane := range laneNames {
			s.send(c.relayPackets, float64(r.RelayedPackets[i]), lane)
			s.send(c.relayBytes, float64(r.RelayedBytes[i]), lane)
			s.send(c.relayDropped, float64(r.DroppedQueue[i]), lane, "queue")
			s.send(c.relayDropped, float64(r.DroppedRate[i]), lane, "rate")
		}
		s.send(c.relayRefused, float64(r.Gone), "gone")
		s.send(c.relayRefused, float64(r.Invalid), "invalid")
	}
	if c.src.TURN != nil {
		t := c.src.TURN()
		s.send(c.turnAllocations, float64(t.Allocations))
		s.send(c.turnNodes, float64(t.Nodes))
		s.send(c.turnCreated, float64(t.Created))
		s.send(c.turnPackets, float64(t.UpPackets), "up")
		s.send(c.turnPackets, float64(t.DownPackets), "down")
		s.send(c.turnBytes, float64(t.UpBytes), "up")
		s.send(c.turnBytes, float64(t.DownBytes), "down")
		s.send(c.turnDropped, float64(t.DroppedRate), "rate")
		s.send(c.turnDropped, float64(t.DroppedPeer), "peer")
		s.send(c.turnDropped, float64(t.Dropped), "unknown")
		s.send(c.turnRefused, float64(t.RefusedAuth), "auth")
		s.send(c.turnRefused, float64(t.RefusedNode), "node")
		s.send(c.turnRefused, float64(t.RefusedQuota), "quota")
		s.send(c.turnRefused, float64(t.RefusedPeer), "peer")
		s.send(c.turnRefused, float64(t.RefusedRate), "rate")
		s.send(c.stunBindings, float64(t.Bindings))
	}
}

func (c *collector) fleet(s sender, f *Fleet) {
	s.send(c.reporting, float64(f.Reporting))
	s.send(c.sessions, float64(f.Sessions))
	for i, name := range laneNames {
		k := f.totals.c[i*perLane:]
		s.send(c.lanePackets, float64(k[txPackets]), name, "tx")
		s.send(c.lanePackets, float64(k[rxPackets]), name, "rx")
		s.send(c.laneBytes, float64(k[txBytes]), name, "tx")
		s.send(c.laneBytes, float64(k[rxBytes]), name, "rx")
		s.send(c.laneDropped, float64(k[laneDropped]), name)
	}
	s.send(c.dropped, float64(f.totals.c[dropped]))
	s.send(c.denied, float64(f.totals.c[denied]))
	for _, m := range []struct {
		to     figure
		values map[string]int
	}{{c.paths, f.Paths}, {c.versions, f.Versions}, {c.policies, f.Policies}, {c.discovery, f.Discovery}} {
		for v, n := range m.values {
			s.send(m.to, float64(n), v)
		}
	}
	t := &f.totals
	s.send(c.reportCount, float64(t.reports), "ok")
	s.send(c.reportCount, float64(t.invalid), "invalid")
	s.send(c.reportCount, float64(t.tooSoon), "too_soon")
	s.send(c.implausible, float64(t.suspect))
	s.send(c.restarts, float64(t.resets))

	buckets := make(map[float64]uint64, len(rttBounds))
	var n uint64
	for i, b := range rttBounds {
		n += t.rtt[i]
		buckets[float64(b)/1e6] = n
	}
	n += t.rtt[len(rttBounds)]
	s <- prometheus.MustNewConstHistogram(c.rtt, n, float64(t.rttSum)/1e6, buckets)
}

// sendKnown sends a figure for each known value, and the rest as "other".
func sendKnown(s sender, f figure, m map[string]int, known []string) {
	var rest int
	for v, n := range m {
		if !slices.Contains(known, v) {
			rest += n
		}
	}
	for _, v := range known {
		s.send(f, float64(m[v]), v)
	}
	s.send(f, float64(rest), other)
}

// labelText makes any text a short label.
func labelText(s string) string {
	if s == "" || !printable(s, MaxVersion) {
		return "unknown"
	}
	return s
}
