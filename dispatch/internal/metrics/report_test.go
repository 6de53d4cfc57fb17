// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", 129)
	ok := func() *dispatchv1.ReportMetricsRequest { return report(time.Unix(1, 0), 100, 3) }
	for _, tt := range []struct {
		name string
		edit func(*dispatchv1.ReportMetricsRequest)
		want string
	}{
		{"good", func(*dispatchv1.ReportMetricsRequest) {}, ""},
		{"empty", func(r *dispatchv1.ReportMetricsRequest) { proto.Reset(r) }, ""},
		{"most", func(r *dispatchv1.ReportMetricsRequest) {
			proto.Merge(r, report(time.Unix(1, 0), math.MaxInt32, MaxPaths-3))
			r.Lanes = r.Lanes[:numLanes]
			for i := range MaxDenied - 2 {
				r.Denied[fmt.Sprint(i)] = math.MaxUint64
			}
			r.Version, r.RosDiscoveryStatus = long[:MaxVersion], long[:MaxStatus]
		}, ""},
		{"started", func(r *dispatchv1.ReportMetricsRequest) { r.Started = -1 }, "started"},
		{"lane_unknown", func(r *dispatchv1.ReportMetricsRequest) { r.Lanes[0].Lane = "express" }, "lanes"},
		{"lane_twice", func(r *dispatchv1.ReportMetricsRequest) { r.Lanes[0].Lane = "bulk" }, "lanes"},
		{"lane_nil", func(r *dispatchv1.ReportMetricsRequest) { r.Lanes[0] = nil }, "lanes"},
		{"lanes", func(r *dispatchv1.ReportMetricsRequest) { r.Lanes = append(r.Lanes, r.Lanes...) }, "6 lanes"},
		{"paths", func(r *dispatchv1.ReportMetricsRequest) {
			r.Paths = make([]*dispatchv1.PathMetrics, MaxPaths+1)
		}, "257 paths"},
		{"path_nil", func(r *dispatchv1.ReportMetricsRequest) { r.Paths[0] = nil }, "paths"},
		{"peer", func(r *dispatchv1.ReportMetricsRequest) { r.Paths[1].Peer = "robot7" }, "paths"},
		{"kind", func(r *dispatchv1.ReportMetricsRequest) { r.Paths[1].Kind = "a\nb" }, "kind"},
		{"loss", func(r *dispatchv1.ReportMetricsRequest) { r.Paths[1].LossPpm = maxLoss + 1 }, "loss"},
		{"rules", func(r *dispatchv1.ReportMetricsRequest) {
			for i := range MaxDenied {
				r.Denied[fmt.Sprint(i)] = 1
			}
		}, "denied rules"},
		{"rule_long", func(r *dispatchv1.ReportMetricsRequest) { r.Denied[long] = 1 }, "rule"},
		{"rule_empty", func(r *dispatchv1.ReportMetricsRequest) { r.Denied[""] = 1 }, "rule"},
		{"rule_unicode", func(r *dispatchv1.ReportMetricsRequest) { r.Denied["ü"] = 1 }, "rule"},
		{"port", func(r *dispatchv1.ReportMetricsRequest) { r.RosDiscoveryPort = 65536 }, "port"},
		{"status", func(r *dispatchv1.ReportMetricsRequest) { r.RosDiscoveryStatus = long[:33] }, "status"},
		{"version", func(r *dispatchv1.ReportMetricsRequest) { r.Version = "1\x1b[2J" }, "version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := ok()
			tt.edit(r)
			err := Validate(r)
			if tt.want == "" {
				must(t, err)
				must(t, NewReports(Config{}).Report(nodeID(1), r))
				return
			}
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %s", err, tt.want)
			}
			if len(err.Error()) > 300 || !printable(err.Error(), 300) {
				t.Errorf("the error repeats what the node sent: %q", err)
			}
		})
	}
}

func TestParsePeer(t *testing.T) {
	good := nodeID(77).String()
	texts := []string{good, strings.ToUpper(good), good[1:], good + "a", "", good[:51] + "b", good[:51] + "q", good[:51] + "7"}
	for c := range 256 {
		texts = append(texts, string(rune(c))+good[1:], good[:20]+string([]byte{byte(c)})+good[21:])
	}
	for _, s := range texts {
		want, err := identity.ParsePeerID(s)
		if got, ok := parsePeer(s); got != want || ok != (err == nil) {
			t.Errorf("%q: %v %v, want %v %v", s, got, ok, want, err)
		}
	}
}

func FuzzReport(f *testing.F) {
	for _, m := range []*dispatchv1.ReportMetricsRequest{
		{},
		report(time.Unix(1_700_000_000, 0), 100, 3), report(time.Unix(0, 0), math.MaxInt32, 0),
		{Lanes: []*dispatchv1.LaneCounters{{Lane: "bulk", TxBytes: math.MaxUint64}}, Denied: map[string]uint64{"x": math.MaxUint64}},
	} {
		b, err := proto.Marshal(m)
		must(f, err)
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		r := NewReports(Config{MinInterval: time.Nanosecond})
		for _, raw := range [][]byte{first, second, first} {
			var m dispatchv1.ReportMetricsRequest
			if proto.Unmarshal(raw, &m) != nil {
				return
			}
			before := len(r.Node(nodeID(1), 0))
			err := r.Report(nodeID(1), &m)
			got := r.Node(nodeID(1), 0)
			if err != nil {
				if len(got) != before {
					t.Fatalf("a refused report (%v) left a sample", err)
				}
				continue
			}
			newest := got[len(got)-1].GetReport()
			if err := Validate(newest); err != nil {
				t.Fatalf("the kept report is not valid: %v", err)
			}
			if len(newest.GetPaths()) != len(m.GetPaths()) || len(newest.GetDenied()) != len(m.GetDenied()) || newest.GetVersion() != m.GetVersion() {
				t.Fatalf("kept %v of %v", newest, &m)
			}
			r.fleetAt = -1
			r.Fleet()
			r.Reports([]identity.PeerID{nodeID(1)})
		}
	})
}
