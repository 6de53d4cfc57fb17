// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// TestMemory holds what an hour of a node's reports costs: 12 KB and 56 bytes for each path.
func TestMemory(t *testing.T) {
	const nodes, paths = 64, 16
	for _, tt := range []struct {
		name  string
		quiet bool // no drops and no denied packets
		limit uint64
	}{{"ordinary", true, 12<<10 + 56*paths}, {"all_counters", false, 14<<10 + 56*paths}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewReports(Config{})
				started := time.Now()
				before := heap()
				for i := range MaxSamples + 20 {
					time.Sleep(10 * time.Second)
					// Bursty, so that no difference is like the one before.
					m := report(started, 10*i+i*i%7, paths)
					if tt.quiet {
						m.Denied, m.Dropped = nil, 0
						for _, l := range m.GetLanes() {
							l.Dropped = 0
						}
					}
					for k := range nodes {
						must(t, r.Report(nodeID(k), m))
					}
				}
				each := (heap() - before) / nodes
				var samples, ring int
				for i := range r.shards {
					for _, n := range r.shards[i].nodes {
						samples, ring = n.hist.samples(), n.hist.bytes()
					}
				}
				t.Logf("%d bytes for a node with %d samples, %d of them samples, and %d paths", each, samples, ring, paths)
				if each > tt.limit || samples != MaxSamples {
					t.Errorf("%d bytes for a node with %d samples, want at most %d", each, samples, tt.limit)
				}
				runtime.KeepAlive(r)
			})
		})
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestReportAllocs shows that a report in the steady state allocates nothing.
func TestReportAllocs(t *testing.T) {
	r := NewReports(Config{MinInterval: time.Nanosecond})
	msgs := make([]*dispatchv1.ReportMetricsRequest, 1001)
	for i := range msgs {
		msgs[i] = report(r.start, 10*i, 16)
	}
	for i := range 500 {
		must(t, r.Report(nodeID(1), msgs[i]))
	}
	i := 500
	n := testing.AllocsPerRun(400, func() {
		must(t, r.Report(nodeID(1), msgs[i]))
		i++
	})
	if n != 0 {
		t.Errorf("a report allocates %v times, want 0", n)
	}
}

// BenchmarkReport is one report in a fleet of 10,000 nodes with 16 paths each.
func BenchmarkReport(b *testing.B) {
	const nodes = 10_000
	r := NewReports(Config{MinInterval: time.Nanosecond})
	msgs := make([]*dispatchv1.ReportMetricsRequest, 64)
	for i := range msgs {
		msgs[i] = report(r.start, 10*i, 16)
	}
	for i := range nodes {
		must(b, r.Report(nodeID(i), msgs[0]))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		_ = r.Report(nodeID(i%nodes), msgs[i/nodes%len(msgs)])
	}
}

// BenchmarkFleet is one walk over 10,000 nodes with 16 paths each.
func BenchmarkFleet(b *testing.B) {
	r := NewReports(Config{})
	m := report(r.start, 10, 16)
	for i := range 10_000 {
		must(b, r.Report(nodeID(i), m))
	}
	b.ReportAllocs()
	for b.Loop() {
		r.scan(r.now())
	}
}
