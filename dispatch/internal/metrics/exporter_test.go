// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/relay"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/turn"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// fullSources answer everything.
func fullSources() Sources {
	return Sources{
		Version:   "v1.2.3",
		Connected: func() int { return 3 },
		Watchers:  func() int { return 4 },
		RingLag:   func() uint64 { return 5 },
		Database: func(context.Context) (Database, error) {
			return Database{RV: 11, AuditSeq: 12, Policy: 13, Bytes: 4096, WALBytes: 8192, Nodes: map[string]int{"active": 6, "haunted": 1}}, nil
		},
		IntermediateExpires: func() time.Time { return time.Unix(1_800_000_000, 0) },
		Relay: func() relay.Stats {
			return relay.Stats{
				Clients: 2, RelayedPackets: [3]uint64{1, 2, 3}, RelayedBytes: [3]uint64{100, 200, 300},
				DroppedQueue: [3]uint64{0, 1, 2}, DroppedRate: [3]uint64{0, 0, 5}, Gone: 9, Invalid: 1,
			}
		},
		TURN: func() turn.Stats {
			return turn.Stats{Allocations: 1, Nodes: 1, Created: 2, UpPackets: 5, UpBytes: 500, DroppedRate: 4, RefusedAuth: 3, Bindings: 8}
		},
	}
}

// fullExporter has a value for each metric that exists.
func fullExporter(t testing.TB) (*Exporter, *Reports, *Meters) {
	t.Helper()
	r := NewReports(Config{})
	for i := range 3 {
		must(t, r.Report(nodeID(i), report(r.start.Add(time.Second), 100, 4)))
	}
	m := NewMeters()
	m.Commit(3*time.Millisecond, 17, nil)
	m.Commit(time.Second, 1, errors.New("disk full"))
	m.ended(dispatchv1connect.FleetServiceListNodesProcedure, reasonError(dispatchv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED))
	m.duration.WithLabelValues(dispatchv1connect.FleetServiceListNodesProcedure).Observe(0.003)
	m.streams.WithLabelValues(dispatchv1connect.TopologyServiceWatchTopologyProcedure).Set(4)
	m.joins.Inc()
	for _, reason := range []dispatchv1.UndeliverableReason{0, 0, dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_BUSY, 999} {
		m.Signal(reason)
	}
	return NewExporter(fullSources(), r, m, nil), r, m
}

func reasonError(reason dispatchv1.ErrorReason) error {
	err := connect.NewError(connect.CodePermissionDenied, errors.New("no"))
	d, _ := connect.NewErrorDetail(&dispatchv1.ErrorInfo{Reason: reason})
	err.AddDetail(d)
	return err
}

func TestExporter(t *testing.T) {
	e, _, _ := fullExporter(t)
	want := `
# HELP bauxite_fleet_denied_packets_total Packets that nodes dropped by policy.
# TYPE bauxite_fleet_denied_packets_total counter
bauxite_fleet_denied_packets_total 630
# HELP bauxite_fleet_lane_bytes_total Bytes of all nodes by lane and direction.
# TYPE bauxite_fleet_lane_bytes_total counter
bauxite_fleet_lane_bytes_total{direction="rx",lane="bulk"} 5.49027e+07
bauxite_fleet_lane_bytes_total{direction="rx",lane="critical"} 1.83009e+07
bauxite_fleet_lane_bytes_total{direction="rx",lane="telemetry"} 3.66018e+07
bauxite_fleet_lane_bytes_total{direction="tx",lane="bulk"} 1.081107e+08
bauxite_fleet_lane_bytes_total{direction="tx",lane="critical"} 3.60369e+07
bauxite_fleet_lane_bytes_total{direction="tx",lane="telemetry"} 7.20738e+07
# HELP bauxite_fleet_lane_packets_total Packets of all nodes by lane and direction.
# TYPE bauxite_fleet_lane_packets_total counter
bauxite_fleet_lane_packets_total{direction="rx",lane="bulk"} 450900
bauxite_fleet_lane_packets_total{direction="rx",lane="critical"} 150300
bauxite_fleet_lane_packets_total{direction="rx",lane="telemetry"} 300600
bauxite_fleet_lane_packets_total{direction="tx",lane="bulk"} 897300
bauxite_fleet_lane_packets_total{direction="tx",lane="critical"} 299100
bauxite_fleet_lane_packets_total{direction="tx",lane="telemetry"} 598200
# HELP bauxite_fleet_path_rtt_seconds Round-trip times of paths, one observation for each report of a path.
# TYPE bauxite_fleet_path_rtt_seconds histogram
bauxite_fleet_path_rtt_seconds_bucket{le="0.0005"} 0
bauxite_fleet_path_rtt_seconds_bucket{le="0.001"} 3
bauxite_fleet_path_rtt_seconds_bucket{le="0.002"} 6
bauxite_fleet_path_rtt_seconds_bucket{le="0.005"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="0.01"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="0.02"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="0.05"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="0.1"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="0.2"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="0.5"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="1"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="2"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="5"} 12
bauxite_fleet_path_rtt_seconds_bucket{le="+Inf"} 12
bauxite_fleet_path_rtt_seconds_sum 0.03
bauxite_fleet_path_rtt_seconds_count 12
# HELP bauxite_fleet_paths Paths of the reporting nodes by kind.
# TYPE bauxite_fleet_paths gauge
bauxite_fleet_paths{kind="direct"} 3
bauxite_fleet_paths{kind="hub-relay"} 3
bauxite_fleet_paths{kind="other"} 0
bauxite_fleet_paths{kind="peer-relay"} 3
bauxite_fleet_paths{kind="turn"} 3
# HELP bauxite_hub_audit_sequence Number of the newest audit entry.
# TYPE bauxite_hub_audit_sequence gauge
bauxite_hub_audit_sequence 12
# HELP bauxite_hub_nodes Enrolled nodes by state.
# TYPE bauxite_hub_nodes gauge
bauxite_hub_nodes{state="active"} 6
bauxite_hub_nodes{state="locked"} 0
bauxite_hub_nodes{state="other"} 1
bauxite_hub_nodes{state="pending"} 0
bauxite_hub_nodes{state="revoked"} 0
# HELP bauxite_hub_refusals_total Calls that were refused, by reason.
# TYPE bauxite_hub_refusals_total counter
bauxite_hub_refusals_total{reason="permission_denied"} 1
# HELP bauxite_hub_relay_dropped_packets_total Packets that the relay stream dropped, by lane and by what was full.
# TYPE bauxite_hub_relay_dropped_packets_total counter
bauxite_hub_relay_dropped_packets_total{lane="bulk",reason="queue"} 2
bauxite_hub_relay_dropped_packets_total{lane="bulk",reason="rate"} 5
bauxite_hub_relay_dropped_packets_total{lane="critical",reason="queue"} 0
bauxite_hub_relay_dropped_packets_total{lane="critical",reason="rate"} 0
bauxite_hub_relay_dropped_packets_total{lane="telemetry",reason="queue"} 1
bauxite_hub_relay_dropped_packets_total{lane="telemetry",reason="rate"} 0
# HELP bauxite_hub_signal_messages_total Signalling messages by what became of them.
# TYPE bauxite_hub_signal_messages_total counter
bauxite_hub_signal_messages_total{outcome="busy"} 1
bauxite_hub_signal_messages_total{outcome="delivered"} 2
bauxite_hub_signal_messages_total{outcome="other"} 1
# HELP bauxite_hub_store_commit_errors_total Batches that could not be written.
# TYPE bauxite_hub_store_commit_errors_total counter
bauxite_hub_store_commit_errors_total 1
`
	var names []string
	for line := range strings.Lines(want) {
		if f := strings.Fields(line); len(f) > 3 && f[1] == "HELP" {
			names = append(names, f[2])
		}
	}
	if err := testutil.GatherAndCompare(e.reg, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

func TestExporterLint(t *testing.T) {
	e, _, _ := fullExporter(t)
	problems, err := testutil.GatherAndLint(e.reg)
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestExporterCardinality shows that nodes cannot make series.
func TestExporterCardinality(t *testing.T) {
	count := func(nodes int) (series int) {
		r := NewReports(Config{})
		for i := range nodes {
			m := report(r.start, i+1, 10)
			m.Version, m.PolicyVersion = fmt.Sprint("evil-", i), uint64(i)
			m.RosDiscoveryStatus = fmt.Sprint("s", i)
			m.Denied = map[string]uint64{fmt.Sprint("rule", i): 1}
			m.Paths[0].Kind = fmt.Sprint("k", i)
			must(t, r.Report(nodeID(i), m))
		}
		families, err := NewExporter(Sources{}, r, NewMeters(), nil).reg.Gather()
		must(t, err)
		for _, f := range families {
			if strings.HasPrefix(f.GetName(), "bauxite_") {
				series += len(f.GetMetric())
			}
		}
		return series
	}
	if few, many := count(100), count(1000); few != many || many > 150 {
		t.Errorf("%d series of 100 nodes, %d of 1000", few, many)
	}
}

func TestExporterHandler(t *testing.T) {
	src := fullSources()
	src.Database = func(context.Context) (Database, error) { return Database{}, errors.New("locked") }
	src.Version = "v1\n"
	h := NewExporter(src, nil, nil, nil).Handler()
	for range 2 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		body := w.Body.String()
		if w.Code != http.StatusOK || !strings.Contains(body, "bauxite_hub_connected_nodes 3\n") || strings.Contains(body, "bauxite_hub_database_bytes") {
			t.Fatalf("status %d: %s", w.Code, body)
		}
		if !strings.Contains(body, `bauxite_hub_build_info{go_version="go`) || !strings.Contains(body, `version="unknown"`) || !strings.Contains(body, "\ngo_goroutines ") {
			t.Errorf("body %s", body)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if !strings.Contains(w.Body.String(), "bauxite_hub_scrape_errors_total 3\n") {
		t.Error("a source that does not answer is not counted")
	}
}

type streamConn struct{ connect.StreamingHandlerConn }

func (streamConn) Spec() connect.Spec {
	return connect.Spec{Procedure: dispatchv1connect.TopologyServiceWatchTopologyProcedure}
}

func TestInterceptor(t *testing.T) {
	m := NewMeters()
	path := dispatchv1connect.ProvisioningServiceProvisionProcedure
	var fail error
	mux := http.NewServeMux()
	mux.Handle(path, connect.NewUnaryHandler(path, func(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[emptypb.Empty], error) {
		return connect.NewResponse(&emptypb.Empty{}), fail
	}, connect.WithInterceptors(m.Interceptor())))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	client := connect.NewClient[emptypb.Empty, emptypb.Empty](srv.Client(), srv.URL+path)
	call := func() error {
		_, err := client.CallUnary(t.Context(), connect.NewRequest(&emptypb.Empty{}))
		return err
	}
	must(t, call())
	must(t, call())
	for _, fail = range []error{
		reasonError(dispatchv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED), reasonError(9999),
		reasonError(dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED), errors.New("x"),
	} {
		if call() == nil {
			t.Fatal("no error")
		}
	}
	stream := m.Interceptor().WrapStreamingHandler(func(context.Context, connect.StreamingHandlerConn) error {
		if n := testutil.ToFloat64(m.streams); n != 1 {
			t.Errorf("%v open streams, want 1", n)
		}
		return connect.NewError(connect.CodeCanceled, context.Canceled)
	})
	if stream(t.Context(), streamConn{}) == nil {
		t.Error("the stream's error is lost")
	}
	for _, tt := range []struct {
		what       string
		have, want float64
	}{
		{"joins", testutil.ToFloat64(m.joins), 2},
		{"ok", testutil.ToFloat64(m.requests.WithLabelValues(path, "ok")), 2},
		{"denied", testutil.ToFloat64(m.requests.WithLabelValues(path, "permission_denied")), 3},
		{"unknown", testutil.ToFloat64(m.requests.WithLabelValues(path, "unknown")), 1},
		{"reason", testutil.ToFloat64(m.refusals.WithLabelValues("token_expired")), 1},
		{"reason_other", testutil.ToFloat64(m.refusals.WithLabelValues(other)), 1},
		{"reasons", float64(testutil.CollectAndCount(m.refusals)), 2},
		{"streams", testutil.ToFloat64(m.streams), 0},
		{"canceled", testutil.ToFloat64(m.requests.WithLabelValues(streamConn{}.Spec().Procedure, "canceled")), 1},
	} {
		if tt.have != tt.want {
			t.Errorf("%s: %v, want %v", tt.what, tt.have, tt.want)
		}
	}

	var none *Meters
	none.Commit(time.Second, 1, nil)
	none.Signal(0)
	if err := none.Interceptor().WrapStreamingHandler(func(context.Context, connect.StreamingHandlerConn) error { return nil })(t.Context(), streamConn{}); err != nil {
		t.Error(err)
	}
}
