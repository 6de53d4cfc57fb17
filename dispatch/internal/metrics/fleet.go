// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"time"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// fleetAge is how old aggregates may be: each costs a walk over all nodes.
	fleetAge = time.Second
	// maxLabels bounds the values of a label that the nodes choose.
	maxLabels = 32
)

// rttBounds are the upper ends of the histogram's buckets in µs.
var rttBounds = [...]uint32{500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000}

// rosStatuses are the discovery states that are told apart.
var rosStatuses = []string{"0", "1", "off", "starting", "up", "degraded", "down", "failed"}

// totals are counters over all nodes of a shard. They only grow.
type totals struct {
	c                        counters
	reports, invalid         uint64
	tooSoon, resets, suspect uint64
	rtt                      [len(rttBounds) + 1]uint64
	rttSum                   uint64 // µs
}

// add adds the growth of one node within elapsed, unless no node can have that.
func (t *totals) add(grown *counters, elapsed time.Duration) {
	secs := uint64(max(0, elapsed)+rateSlack) / uint64(time.Second)
	for i, v := range grown {
		limit := secs * maxPacketRate
		if i < dropped && (i%perLane == txBytes || i%perLane == rxBytes) {
			limit = secs * maxByteRate
		}
		if v > limit {
			t.suspect++
			return
		}
	}
	for i, v := range grown {
		t.c[i] += v
	}
}

func (t *totals) observe(rtt uint32) {
	if rtt == 0 { // not measured
		return
	}
	i, _ := slices.BinarySearch(rttBounds[:], rtt)
	t.rtt[i]++
	t.rttSum += uint64(rtt)
}

func (t *totals) merge(o *totals) {
	for i, v := range o.c {
		t.c[i] += v
	}
	for i, v := range o.rtt {
		t.rtt[i] += v
	}
	t.rttSum += o.rttSum
	t.reports += o.reports
	t.invalid += o.invalid
	t.tooSoon += o.tooSoon
	t.resets += o.resets
	t.suspect += o.suspect
}

// Fleet is the sum over all nodes. Counters hold what was counted since the hub
// started and survive restarts of nodes; the rest is of the nodes that report.
// Treat the maps as read-only.
type Fleet struct {
	// Reporting is how many nodes have reported lately.
	Reporting int
	Sessions  uint64
	// Paths counts paths by kind, Versions and Policies nodes by what they run,
	// Discovery nodes by the state of their ROS 2 discovery server. Values beyond
	// the most frequent ones, or unknown ones, are "other".
	Paths, Versions, Policies, Discovery map[string]int
	// RTT50 and RTT99 are quantiles over all paths, 3 % exact; 0 without paths.
	RTT50, RTT99 time.Duration

	totals totals
}

// Lanes returns the counters of each lane.
func (f *Fleet) Lanes() []*dispatchv1.LaneCounters {
	out := make([]*dispatchv1.LaneCounters, 0, numLanes)
	for i, name := range laneNames {
		out = append(out, laneMessage(name, f.totals.c[i*perLane:]))
	}
	return out
}

// Fleet returns the aggregates, which are up to a second old.
func (r *Reports) Fleet() Fleet {
	r.fleetMu.Lock()
	defer r.fleetMu.Unlock()
	if now := r.now(); r.fleetAt < 0 || now-r.fleetAt >= fleetAge {
		r.fleet, r.fleetAt = r.scan(now), now
	}
	return r.fleet
}

func (r *Reports) scan(now time.Duration) Fleet {
	var (
		f        Fleet
		kinds    [len(pathKinds)]int
		versions = make(map[string]int)
		policies = make(map[uint64]int)
		ros      = make(map[string]int)
		rtt      rttHistogram
	)
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		f.totals.merge(&s.totals)
		for _, n := range s.nodes {
			if !n.fresh || now-n.last > r.cfg.Interval*7/2 {
				continue
			}
			f.Reporting++
			f.Sessions += uint64(n.sessions)
			versions[n.cur.version.Value()]++
			policies[n.cur.policy]++
			if st := n.cur.ros.Value(); st != "" {
				ros[st]++
			}
			for _, p := range n.paths {
				kinds[p.kind()]++
				rtt.add(p.rtt)
			}
		}
		s.mu.Unlock()
	}
	f.Paths = make(map[string]int, len(kinds))
	for i, n := range kinds {
		f.Paths[pathKinds[i]] = n
	}
	f.Versions = most(versions, maxLabels)
	byName := make(map[string]int, len(policies))
	for v, n := range policies {
		byName[strconv.FormatUint(v, 10)] = n
	}
	f.Policies = most(byName, maxLabels)
	f.Discovery = make(map[string]int, len(rosStatuses)+1)
	for st, n := range ros {
		if !slices.Contains(rosStatuses, st) {
			st = other
		}
		f.Discovery[st] += n
	}
	f.RTT50, f.RTT99 = rtt.quantile(50), rtt.quantile(99)
	return f
}

// most keeps the limit most frequent keys and sums the rest up as "other".
func most(m map[string]int, limit int) map[string]int {
	if n, ok := m[""]; ok {
		delete(m, "")
		m["unknown"] += n
	}
	if len(m) <= limit {
		return m
	}
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(m[b]-m[a], cmp.Compare(a, b))
	})
	out := make(map[string]int, limit+1)
	for i, k := range keys {
		if i >= limit {
			k = other
		}
		out[k] += m[keys[i]]
	}
	return out
}

// rttHistogram has 16 buckets for each doubling.
type rttHistogram struct {
	buckets [32 * 16]int
	n       int
}

func (h *rttHistogram) add(us uint32) {
	if us == 0 {
		return
	}
	e := bits.Len32(us) - 1
	m := uint64(us) << 4 >> e & 15
	h.buckets[e*16+int(m)]++
	h.n++
}

// quantile returns the middle of the bucket that holds the pct-th percentile.
func (h *rttHistogram) quantile(pct int) time.Duration {
	if h.n == 0 {
		return 0
	}
	want := (h.n*pct + 99) / 100
	for i, n := range h.buckets {
		if want -= n; want <= 0 {
			width := float64(uint64(1)<<(i/16)) / 16
			return time.Duration((float64(i%16+16) + 0.5) * width * float64(time.Microsecond))
		}
	}
	return 0
}
