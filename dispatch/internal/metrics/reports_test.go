// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func nodeID(i int) (id identity.PeerID) {
	binary.BigEndian.PutUint32(id[:], uint32(i)*2654435761) // spread over the shards
	binary.BigEndian.PutUint32(id[4:], uint32(i))
	return id
}

// report is what a robot says after secs seconds of work.
func report(started time.Time, secs, paths int) *dispatchv1.ReportMetricsRequest {
	n := uint64(secs)
	r := &dispatchv1.ReportMetricsRequest{
		Started: started.UnixMicro(), Version: "1.2.3", PolicyVersion: 7, PolicyGeneration: 9, PskEpoch: 1,
		RosDiscoveryPort: 11811, RosDiscoveryStatus: "1", Sessions: uint32(paths), Dropped: n / 100,
		Denied: map[string]uint64{"default": n * 2, "guard-estop": n / 10},
	}
	for i, name := range laneNames {
		k := n * uint64(i+1)
		r.Lanes = append(r.Lanes, &dispatchv1.LaneCounters{
			Lane: name, TxPackets: 997 * k, TxBytes: 120_123 * k, RxPackets: 501 * k, RxBytes: 61_003 * k, Dropped: k / 50,
		})
	}
	for i := range paths {
		r.Paths = append(r.Paths, &dispatchv1.PathMetrics{
			Peer: nodeID(1_000_000 + i).String(), Kind: pathKinds[1+i%4], RttUs: uint64(1000 * (i + 1)), LossPpm: 100,
			TxBytes: 1000 * n, RxBytes: 2000 * n,
		})
	}
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReports(Config{})
		started := time.Now().Add(-time.Hour)
		for i := range 400 {
			time.Sleep(10 * time.Second)
			must(t, r.Report(nodeID(1), report(started, 3600+10*i, 5)))
		}
		got := r.Node(nodeID(1), 0)
		if len(got) != MaxSamples {
			t.Fatalf("%d samples, want %d", len(got), MaxSamples)
		}
		newest := got[len(got)-1]
		if !newest.GetTime().AsTime().Equal(time.Now()) {
			t.Errorf("the newest is of %v, want %v", newest.GetTime().AsTime(), time.Now())
		}
		if d := cmp.Diff(report(started, 3600+3990, 5), newest.GetReport(), protocmp.Transform()); d != "" {
			t.Errorf("the newest report differs: %s", d)
		}
		oldest := got[0]
		if age := time.Since(oldest.GetTime().AsTime()); age < 3588*time.Second || age > 3592*time.Second {
			t.Errorf("the oldest is %v old, want 3590 s", age)
		}
		want := report(started, 3600+400, 0).GetLanes()[2].GetTxBytes()
		if have := oldest.GetReport().GetLanes()[2].GetTxBytes(); have > want || want-have > want/1000 {
			t.Errorf("the oldest has %d bytes, want %d", have, want)
		}
		if o := oldest.GetReport(); o.GetVersion() != "1.2.3" || o.GetSessions() != 5 || len(o.GetPaths()) != 0 {
			t.Errorf("the oldest is %v", o)
		}
		if n := len(r.Node(nodeID(1), 7)); n != 7 {
			t.Errorf("%d samples, want 7", n)
		}
		if n := len(r.Node(nodeID(2), 0)); n != 0 {
			t.Errorf("a node without reports has %d samples", n)
		}
		if r.Forget(nodeID(1)); len(r.Node(nodeID(1), 0)) != 0 || r.Fleet().Reporting != 0 {
			t.Error("a forgotten node is still there")
		}
	})
}

func TestTooSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReports(Config{})
		must(t, r.Report(nodeID(1), report(time.Now(), 1, 1)))
		time.Sleep(300 * time.Millisecond)
		must(t, r.Report(nodeID(2), report(time.Now(), 1, 1)))
		soon := new(TooSoonError)
		if err := r.Report(nodeID(1), report(time.Now(), 2, 1)); !errors.As(err, &soon) || soon.RetryAfter != 700*time.Millisecond {
			t.Fatalf("error %v, want to wait 700ms", err)
		}
		time.Sleep(soon.RetryAfter)
		must(t, r.Report(nodeID(1), report(time.Now(), 2, 1)))

		// Bad reports count as well, and leave nothing behind.
		bad := &dispatchv1.ReportMetricsRequest{Started: -1}
		if err := r.Report(nodeID(3), bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("bad report: %v", err)
		}
		if err := r.Report(nodeID(3), bad); !errors.As(err, &soon) {
			t.Errorf("second bad report: %v, want to wait", err)
		}
		if len(r.Node(nodeID(3), 0)) != 0 || len(r.Reports([]identity.PeerID{nodeID(3)})) != 0 {
			t.Error("a node that only sent bad reports has samples")
		}
		must(t, r.Flush(t.Context()))
		if f := r.Fleet(); f.Reporting != 2 || f.totals.invalid != 1 || f.totals.tooSoon != 2 {
			t.Errorf("fleet: %+v", f)
		}
	})
}

// lanes of a fleet, without those that are zero.
func txOf(f Fleet) map[string]uint64 {
	m := map[string]uint64{}
	for _, l := range f.Lanes() {
		m[l.GetLane()] = l.GetTxBytes()
	}
	return m
}

// TestFleetCounters follows one lane of one node through all that can happen.
func TestFleetCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boot := time.Now().Add(-time.Hour)
		r := NewReports(Config{})
		send := func(started time.Time, bytes uint64) {
			t.Helper()
			time.Sleep(10 * time.Second)
			must(t, r.Report(nodeID(1), &dispatchv1.ReportMetricsRequest{
				Started: started.UnixMicro(), Lanes: []*dispatchv1.LaneCounters{{Lane: "bulk", TxBytes: bytes}},
			}))
		}
		want := func(step string, bytes uint64) {
			t.Helper()
			if got := r.Fleet().totals.c[2*perLane+txBytes]; got != bytes {
				t.Errorf("%s: %d bytes, want %d", step, got, bytes)
			}
		}
		send(boot, 1000)
		want("what was before the hub", 0)
		send(boot, 1500)
		want("growth", 500)
		again := time.Now()
		send(again, 200)
		want("restart", 700)
		send(again, 150)
		want("counters that went back", 850)
		send(again, 1<<62)
		want("more than a node can move", 850)
		send(again, 1<<62+50)
		want("growth after that", 900)
		time.Sleep(10 * time.Second)
		must(t, r.Report(nodeID(1), &dispatchv1.ReportMetricsRequest{Started: again.UnixMicro()}))
		want("a lane that is left out", 900)
		send(again, 1<<62+60)
		want("and is back", 910)
		time.Sleep(2 * time.Hour)
		r.expire()
		if n := len(r.Node(nodeID(1), 0)); n != 1 {
			t.Errorf("a node that is silent keeps %d samples, want the last one", n)
		}
		send(again, 1<<62+80)
		want("after a long silence", 930)
		f := r.Fleet()
		if f.totals.resets != 2 || f.totals.suspect != 1 || f.totals.reports != 9 {
			t.Errorf("resets %d, suspect %d, reports %d", f.totals.resets, f.totals.suspect, f.totals.reports)
		}
		time.Sleep(time.Second)
		must(t, r.Report(nodeID(2), &dispatchv1.ReportMetricsRequest{
			Started: again.UnixMicro(), Lanes: []*dispatchv1.LaneCounters{{Lane: "bulk", TxBytes: 70}},
		}))
		time.Sleep(time.Second)
		want("a node that began after the hub", 1000)
	})
}

func TestFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReports(Config{})
		for i := range 100 {
			m := report(time.Now(), 10, 4)
			m.Version = fmt.Sprintf("0.%d", i/2)
			m.PolicyVersion = uint64(i % 2)
			if i == 99 {
				m.RosDiscoveryStatus, m.Version = "exploded", ""
				m.Paths[0].Kind = "pigeon"
			}
			must(t, r.Report(nodeID(i), m))
		}
		f := r.Fleet()
		if f.Reporting != 100 || f.Sessions != 400 {
			t.Errorf("%d nodes with %d sessions", f.Reporting, f.Sessions)
		}
		if d := cmp.Diff(map[string]int{"direct": 99, "turn": 100, "peer-relay": 100, "hub-relay": 100, "other": 1}, f.Paths); d != "" {
			t.Errorf("paths: %s", d)
		}
		if d := cmp.Diff(map[string]int{"1": 99, "other": 1}, f.Discovery); d != "" {
			t.Errorf("discovery: %s", d)
		}
		if d := cmp.Diff(map[string]int{"0": 50, "1": 50}, f.Policies); d != "" {
			t.Errorf("policies: %s", d)
		}
		sum := 0
		for n := range maps.Values(f.Versions) {
			sum += n
		}
		if len(f.Versions) != maxLabels+1 || sum != 100 || f.Versions[other] == 0 {
			t.Errorf("versions %v", f.Versions)
		}
		if d := f.RTT50 - 2*time.Millisecond; d.Abs() > 70*time.Microsecond {
			t.Errorf("median %v, want 2ms", f.RTT50)
		}
		if d := f.RTT99 - 4*time.Millisecond; d.Abs() > 130*time.Microsecond {
			t.Errorf("99th percentile %v, want 4ms", f.RTT99)
		}
		if n := f.totals.rtt; n[1] != 100 || n[2] != 100 || n[3] != 200 {
			t.Errorf("histogram %v", n)
		}
		time.Sleep(36 * time.Second)
		if f := r.Fleet(); f.Reporting != 0 || f.Paths["direct"] != 0 || f.RTT50 != 0 || txOf(f)["bulk"] == 0 {
			t.Errorf("after silence: %+v", f)
		}
	})
}

func TestReportsForPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReports(Config{})
		started := time.Now()
		send := func(rules map[string]uint64) {
			t.Helper()
			must(t, r.Report(nodeID(1), &dispatchv1.ReportMetricsRequest{
				Started: started.UnixMicro(), PolicyVersion: 4, PolicyGeneration: 6, Denied: rules,
			}))
			time.Sleep(10 * time.Second)
		}
		for i := range 20 {
			send(map[string]uint64{"a": uint64(i * 10), "b": 1000})
		}
		got := r.Reports([]identity.PeerID{nodeID(2), nodeID(1)})
		if len(got) != 1 || got[0].ID != nodeID(1) || got[0].Applied != 4 || got[0].Generation != 6 {
			t.Fatalf("reports %+v", got)
		}
		if n := got[0].DeniedPerMinute; n < 58 || n > 62 {
			t.Errorf("%d denied per minute, want 60", n)
		}
		if !got[0].Last.Equal(time.Now().Add(-10 * time.Second)) {
			t.Errorf("last report %v", got[0].Last)
		}
		// A rule that goes takes nothing away, one that comes begins at 0.
		for range 6 {
			send(map[string]uint64{"c": 30})
		}
		if n := r.Reports([]identity.PeerID{nodeID(1)})[0].DeniedPerMinute; n < 28 || n > 32 {
			t.Errorf("%d denied per minute, want 30", n)
		}
		started = started.Add(time.Minute)
		send(nil)
		if n := r.Reports([]identity.PeerID{nodeID(1)})[0].DeniedPerMinute; n != 0 {
			t.Errorf("%d denied per minute after a restart, want 0", n)
		}
	})
}

type memorySink struct {
	mu      sync.Mutex
	rows    map[identity.PeerID]store.Status
	batches int
	err     error
}

func (m *memorySink) SaveStatuses(_ context.Context, batch []store.Status) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.batches++
	for _, b := range batch {
		m.rows[b.Node] = b
	}
	return nil
}

func (m *memorySink) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *memorySink) count() (rows, batches int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.rows), m.batches
}

func (m *memorySink) Statuses(_ context.Context, f func(store.Status) error) error {
	for _, st := range m.rows {
		if err := f(st); err != nil {
			return err
		}
	}
	return nil
}

func TestSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &memorySink{rows: make(map[identity.PeerID]store.Status)}
		r := NewReports(Config{Sink: sink})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		const n = 1500
		boot := time.Now()
		time.Sleep(time.Second)
		for i := range n {
			must(t, r.Report(nodeID(i), report(boot, 100, 3)))
		}
		sink.fail(errors.New("disk full"))
		time.Sleep(time.Minute)
		if rows, _ := sink.count(); rows != 0 {
			t.Fatal("a failing sink has rows")
		}
		sink.fail(nil)
		time.Sleep(time.Minute)
		if rows, batches := sink.count(); rows != n || batches != 3 {
			t.Fatalf("%d rows in %d batches, want %d in 3", rows, batches, n)
		}
		time.Sleep(time.Minute)
		if _, batches := sink.count(); batches != 3 {
			t.Error("reports that are not new were written again")
		}
		must(t, r.Report(nodeID(1), report(boot, 200, 3)))
		cancel()
		<-done
		if sink.batches != 4 {
			t.Error("the last reports are not written at the end")
		}

		// The next run of the hub.
		sink.rows[nodeID(9999)] = store.Status{Node: nodeID(9999), Report: []byte{0xff}}
		time.Sleep(time.Minute)
		r = NewReports(Config{Sink: sink})
		must(t, r.Load(t.Context()))
		got := r.Reports([]identity.PeerID{nodeID(1), nodeID(9999)})
		if len(got) != 1 || got[0].Applied != 7 || !got[0].Last.Equal(time.Now().Add(-time.Minute)) {
			t.Errorf("restored reports %+v", got)
		}
		if f := r.Fleet(); f.Reporting != 0 {
			t.Errorf("%d nodes report before any has", f.Reporting)
		}
		must(t, r.Report(nodeID(1), report(boot, 260, 3)))
		time.Sleep(time.Second)
		if got, want := txOf(r.Fleet())["critical"], uint64(120_123*60); got != want {
			t.Errorf("%d bytes since the last run, want %d", got, want)
		}
		if n := len(r.Node(nodeID(2), 0)); n != 1 {
			t.Errorf("a restored node has %d samples, want its last", n)
		}
	})
}

func TestConcurrent(t *testing.T) {
	r := NewReports(Config{MinInterval: time.Nanosecond, Sink: &memorySink{rows: make(map[identity.PeerID]store.Status)}})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				_ = r.Report(nodeID(i%10), report(time.Now(), i, 3))
				switch {
				case g == 0:
					r.Fleet()
				case g == 1:
					r.Node(nodeID(i%10), 0)
				case g == 2 && i%50 == 0:
					r.Forget(nodeID(i % 10))
				case g == 3:
					if err := r.Flush(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}
