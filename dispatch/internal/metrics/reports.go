// SPDX-License-Identifier: Apache-2.0

// Package metrics keeps what the nodes report and shows the hub's own figures.
//
// [Reports] holds an hour of samples of every node in memory, about 11 KB for
// each, and adds up the fleet. A report costs the same whatever the fleet's size
// and reads no other node. [Reports.Run] writes the newest report of each node to
// the database every minute, so that a restart of the hub forgets no version and
// counts no traffic twice.
//
// [Exporter] serves all of it to Prometheus, and sends the same figures by
// OTLP/HTTP where that is asked for. There are aggregates only: the number of
// series does not grow with the fleet, and names that the hub does not know are
// counted as "other". Nothing in this package uses a global registry.
//
// [Health] answers /healthz and /readyz.
package metrics

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"
	"unsafe"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Defaults of Config.
const (
	DefaultInterval    = 10 * time.Second
	DefaultMinInterval = time.Second
	DefaultSampleEvery = time.Minute
)

const (
	numShards = 32
	stateSize = int(unsafe.Sizeof(state{}))
	// maxByteRate and maxPacketRate are what one node can have moved at most in a
	// second. Growth beyond them, with slack, is a fault and not added to the fleet.
	maxByteRate   = 12_500_000_000 // 100 Gbit/s
	maxPacketRate = 150_000_000
	rateSlack     = time.Minute
)

// Config is how Reports behaves. The zero value of each field is its default.
type Config struct {
	// Interval is how often nodes report; zero means 10 s. A node that is silent
	// for three and a half of them counts as not reporting.
	Interval time.Duration
	// MinInterval is the least time between two reports of a node; zero means 1 s.
	MinInterval time.Duration
	// Sink keeps the newest reports; nil keeps none.
	Sink Sink
	// SampleEvery is how often Run writes to Sink; zero means a minute.
	SampleEvery time.Duration
	// Logger nil discards.
	Logger *slog.Logger
}

// never is before every time.
const never = time.Duration(-1 << 62)

// TooSoonError is returned for a report that comes before its time.
type TooSoonError struct{ RetryAfter time.Duration }

func (e *TooSoonError) Error() string {
	return fmt.Sprintf("the next report is due in %v", e.RetryAfter)
}

// Reports is the memory of what nodes reported. It is safe for concurrent use.
type Reports struct {
	cfg    Config
	log    *slog.Logger
	start  time.Time
	shards [numShards]shard

	fleetMu sync.Mutex // guards the cache and is held while it is made anew
	fleet   Fleet
	fleetAt time.Duration
}

type shard struct {
	mu     sync.Mutex // guards the following
	nodes  map[identity.PeerID]*node
	totals totals
	rules  []ruleCount // scratch
}

type node struct {
	tried    time.Duration // since start, of the last attempt to report; never before the first
	last     time.Duration // since start, of the last report; negative for one of an earlier run
	exact    counters      // of the last report
	sessions uint32
	cur      state
	fresh    bool // reported to this run
	dirty    bool // newer than the Sink's
	hist     history
	denied   []ruleCount
	paths    []path
}

// NewReports returns an empty Reports.
func NewReports(cfg Config) *Reports {
	cfg.Interval = cmp.Or(cfg.Interval, DefaultInterval)
	cfg.MinInterval = cmp.Or(cfg.MinInterval, DefaultMinInterval)
	cfg.SampleEvery = cmp.Or(cfg.SampleEvery, DefaultSampleEvery)
	r := &Reports{cfg: cfg, log: cfg.Logger, start: time.Now(), fleetAt: -1}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	for i := range r.shards {
		r.shards[i].nodes = make(map[identity.PeerID]*node)
	}
	return r
}

func (r *Reports) shard(id identity.PeerID) *shard { return &r.shards[id[0]%numShards] }

// now does not jump with the clock.
func (r *Reports) now() time.Duration { return time.Since(r.start) }

// Report takes the report of a node. It keeps nothing of req. Errors: ErrInvalid,
// *TooSoonError.
func (r *Reports) Report(id identity.PeerID, req *dispatchv1.ReportMetricsRequest) error {
	s, now := r.shard(id), r.now()
	if wait := s.try(id, now, r.cfg.MinInterval); wait > 0 {
		return &TooSoonError{RetryAfter: wait}
	}
	err := Validate(req)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.totals.invalid++
		return err
	}
	s.apply(s.node(id), req, now, r.start)
	return nil
}

// try takes note of an attempt to report, and returns how long the node has to
// wait if it comes too soon. Bad reports count: they cost as much as good ones.
func (s *shard) try(id identity.PeerID, now, interval time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.node(id)
	if wait := n.tried + interval - now; wait > 0 {
		s.totals.tooSoon++
		return wait
	}
	n.tried = now
	return 0
}

func (s *shard) node(id identity.PeerID) *node {
	n := s.nodes[id]
	if n == nil {
		n = &node{tried: never}
		s.nodes[id] = n
	}
	return n
}

// known tells whether the node has reported, to this run or to an earlier one.
func (n *node) known() bool { return n != nil && n.cur != (state{}) }

func (s *shard) apply(n *node, req *dispatchv1.ReportMetricsRequest, now time.Duration, start time.Time) {
	st := stateOf(req)
	known := n.known()
	reset := known && st.started != n.cur.started
	var c counters
	if known && !reset {
		c = countersOf(req, &n.exact)
		for i := range denied {
			reset = reset || c[i] < n.exact[i]
		}
	}
	if !known || reset {
		c = countersOf(req, &counters{})
	}
	s.rules = appendRules(s.rules[:0], req)
	if known && !reset {
		c[denied] = addSat(n.exact[denied], growth(n.denied, s.rules))
	} else {
		c[denied] = growth(nil, s.rules)
	}

	grown, elapsed := c, now-n.last
	switch {
	case known && !reset:
		for i := range grown {
			grown[i] -= n.exact[i]
		}
	case !known && time.UnixMicro(st.started).Before(start):
		grown = counters{} // who knows what an earlier run of the hub has counted
	case !known:
		elapsed = now
	}
	s.totals.add(&grown, elapsed)
	s.totals.reports++
	if reset {
		s.totals.resets++
	}

	n.last, n.exact, n.sessions, n.cur, n.fresh, n.dirty = now, c, req.GetSessions(), st, true, true
	n.denied = append(refit(n.denied, len(s.rules)), s.rules...)
	n.paths = appendPaths(refit(n.paths, len(req.GetPaths())), req)
	for _, p := range n.paths {
		s.totals.observe(p.rtt)
	}
	cur := cursor{at: now, c: c, sessions: uint16(min(n.sessions, math.MaxUint16))}
	if n.hist.samples() == 0 {
		n.hist.start(cur, st)
	} else {
		n.hist.add(cur, st, reset)
	}
}

// refit returns s emptied, with room for n and not for much more.
func refit[T any](s []T, n int) []T {
	if n > cap(s) || cap(s) > 2*n+8 {
		return make([]T, 0, n)
	}
	return s[:0]
}

// Forget drops a node, such as one that is deleted.
func (r *Reports) Forget(id identity.PeerID) {
	s := r.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, id)
}

// expire frees the samples of nodes that were silent for an hour. What stays are
// their last counters, so that what they counted is not counted again.
func (r *Reports) expire() {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		now := r.now()
		for _, n := range s.nodes {
			if now-n.last > MaxSamples*r.cfg.Interval {
				n.hist.release()
				n.paths = nil
			}
		}
		s.mu.Unlock()
	}
}

// NodeReport is what the rollout of a policy asks of a node.
type NodeReport struct {
	ID identity.PeerID
	// Applied is the policy version that the node applies and Generation the last
	// activation that it has seen.
	Applied, Generation uint64
	// Denied is how many packets its policy has dropped since it began to report; it
	// falls where the node starts again.
	Denied uint64
	// DeniedPerMinute is how many packets it drops by policy, over the last minute
	// of its reports.
	DeniedPerMinute uint64
	// Last is when it reported. It may lie before the start of the hub.
	Last time.Time
}

// Reports returns the newest report of each of ids that has reported, in the order
// of ids.
func (r *Reports) Reports(ids []identity.PeerID) []NodeReport {
	out := make([]NodeReport, 0, len(ids))
	wall, now := time.Now(), r.now()
	for _, id := range ids {
		s := r.shard(id)
		s.mu.Lock()
		if n := s.nodes[id]; n.known() {
			out = append(out, NodeReport{
				ID: id, Applied: n.cur.policy, Generation: n.cur.generation,
				Denied: n.exact[denied], DeniedPerMinute: n.deniedPerMinute(),
				Last: wall.Add(n.last - now),
			})
		}
		s.mu.Unlock()
	}
	return out
}

func (n *node) deniedPerMinute() uint64 {
	if !n.fresh {
		return 0
	}
	var first, last cursor
	begun := false
	n.hist.each(func(c cursor, _ *state) {
		// Of the samples that are older than a minute the last one begins it.
		if !begun || n.last-c.at >= time.Minute || c.c[denied] < last.c[denied] {
			first, begun = c, true
		}
		last = c
	})
	if last.at <= first.at {
		return 0
	}
	return uint64(float64(last.c[denied]-first.c[denied]) / (last.at - first.at).Minutes())
}

// Node returns the samples of a node, oldest first, at most limit of the newest,
// where 0 means all. All but the newest have no paths and no rules, and counters
// that are up to a thousandth of a sample's growth too low.
func (r *Reports) Node(id identity.PeerID, limit int) []*dispatchv1.NodeSample {
	type sample struct {
		cursor
		state
	}
	var (
		all    []sample
		newest *dispatchv1.ReportMetricsRequest
	)
	s := r.shard(id)
	s.mu.Lock()
	wall, now := time.Now(), r.now()
	if n := s.nodes[id]; n.known() {
		all = make([]sample, 0, n.hist.samples()+1)
		n.hist.each(func(c cursor, s *state) { all = append(all, sample{c, *s}) })
		if len(all) == 0 {
			all = append(all, sample{})
		}
		all[len(all)-1].at = n.last
		newest = n.message(true)
	}
	s.mu.Unlock()
	if limit > 0 && len(all) > limit {
		all = all[len(all)-limit:]
	}
	out := make([]*dispatchv1.NodeSample, len(all))
	for i, v := range all {
		out[i] = &dispatchv1.NodeSample{Time: timestamppb.New(wall.Add(v.at - now))}
		if i == len(all)-1 {
			out[i].Report = newest
			break
		}
		out[i].Report = message(&v.c, &v.state)
		out[i].Report.Sessions = uint32(v.sessions)
	}
	return out
}

func message(c *counters, s *state) *dispatchv1.ReportMetricsRequest {
	m := &dispatchv1.ReportMetricsRequest{
		Started: s.started, RosDiscoveryPort: uint32(s.port), RosDiscoveryStatus: s.ros.Value(), Version: s.version.Value(),
		PolicyVersion: s.policy, PolicyGeneration: s.generation, PskEpoch: s.psk, Dropped: c[dropped],
		Lanes: make([]*dispatchv1.LaneCounters, 0, numLanes),
	}
	for i, name := range laneNames {
		m.Lanes = append(m.Lanes, laneMessage(name, c[i*perLane:]))
	}
	return m
}

func laneMessage(name string, k []uint64) *dispatchv1.LaneCounters {
	return &dispatchv1.LaneCounters{
		Lane: name, TxPackets: k[txPackets], TxBytes: k[txBytes], RxPackets: k[rxPackets], RxBytes: k[rxBytes],
		Dropped: k[laneDropped],
	}
}

// message returns the newest report.
func (n *node) message(paths bool) *dispatchv1.ReportMetricsRequest {
	m := message(&n.exact, &n.cur)
	m.Sessions = n.sessions
	if len(n.denied) > 0 {
		m.Denied = make(map[string]uint64, len(n.denied))
		for _, d := range n.denied {
			m.Denied[d.rule.Value()] = d.n
		}
	}
	if paths {
		for _, p := range n.paths {
			m.Paths = append(m.Paths, &dispatchv1.PathMetrics{
				Peer: p.peer.String(), Kind: pathKinds[p.kind()], RttUs: uint64(p.rtt), LossPpm: p.loss(),
				TxBytes: p.tx, RxBytes: p.rx,
			})
		}
	}
	return m
}
