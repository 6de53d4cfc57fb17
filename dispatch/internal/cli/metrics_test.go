// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/dispatch"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

const metricsPeer = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa"

// metricsHub answers like a hub with one node that reports.
type metricsHub struct {
	dispatchv1connect.UnimplementedMetricsServiceHandler
}

func (metricsHub) GetFleetMetrics(context.Context, *dispatchv1.GetFleetMetricsRequest) (*dispatchv1.GetFleetMetricsResponse, error) {
	return &dispatchv1.GetFleetMetricsResponse{
		Nodes: 3, Online: 2, Reporting: 1, Versions: map[string]uint32{"v1": 1},
		Lanes: []*dispatchv1.LaneCounters{{Lane: "bulk", TxBytes: 3 << 30, RxBytes: 1000}},
		Paths: map[string]uint32{"direct": 4, "turn": 0, "hub-relay": 6}, RttP50Us: 1500, RttP99Us: 2_345_678,
	}, nil
}

func (metricsHub) GetNodeMetrics(_ context.Context, req *dispatchv1.GetNodeMetricsRequest) (*dispatchv1.GetNodeMetricsResponse, error) {
	res := &dispatchv1.GetNodeMetricsResponse{NodeId: metricsPeer}
	switch req.GetNode() {
	case "silent":
		return res, nil
	case "robot-7":
	default:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such node"))
	}
	begin := time.Unix(1_700_000_000, 0)
	for i := range 20 {
		m := &dispatchv1.ReportMetricsRequest{
			Started: begin.UnixMicro(), Version: "v1\x1b[2J", PolicyVersion: 4, Sessions: 2, RosDiscoveryPort: 11811, RosDiscoveryStatus: "1",
			Lanes: []*dispatchv1.LaneCounters{{Lane: "critical", TxBytes: uint64(i) * 12_500}, {Lane: "telemetry"}, {Lane: "bulk"}},
		}
		if i == 19 {
			m.Denied = map[string]uint64{"default": 7}
			for range topPaths + 2 {
				m.Paths = append(m.Paths, &dispatchv1.PathMetrics{Peer: metricsPeer, Kind: "direct", RttUs: 1234, LossPpm: 5000, TxBytes: 2048})
			}
		}
		res.Samples = append(res.Samples, &dispatchv1.NodeSample{Time: timestamppb.New(begin.Add(time.Duration(i*10) * time.Second)), Report: m})
	}
	if n := int(req.GetLimit()); n > 0 {
		res.Samples = res.Samples[len(res.Samples)-n:]
	}
	return res, nil
}

func TestMetrics(t *testing.T) {
	dir, err := os.MkdirTemp("", "bxd") //nolint:usetesting // that one's path can be too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "unix", dispatch.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(dispatchv1connect.NewMetricsServiceHandler(metricsHub{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })

	for _, tt := range []struct {
		name string
		args []string
		code int
		want []string // in the output, blanks as one
	}{
		{"fleet", []string{"metrics"}, 0, []string{
			"nodes 3, 2 online, 1 reporting", "paths 6 hub-relay, 4 direct\n", "RTT median 1.5ms, 99 % below 2.35s",
			"bulk - - 3.0 GiB 1000 B 0 0 0",
		}},
		{"node", []string{"metrics", "robot-7"}, 0, []string{
			"node robot-7 (aebagbaf)", "critical 10.0 kbit/s 0 bit/s 232 KiB", "ROS 2 discovery port 11811, status 1",
			"aebagbaf direct 1.23ms 0.50 % 2.0 KiB 0 B", "and 2 more", "default 7",
		}},
		{"history", []string{"metrics", "robot-7", "--history", "--samples", "3"}, 0, []string{"10.0 kbit/s 0 bit/s 0 bit/s 0 2 4 v1 [2J"}},
		{"silent", []string{"metrics", "silent"}, 0, nil},
		{"unknown", []string{"metrics", "nobody"}, 5, nil},
		{"two", []string{"metrics", "a", "b"}, 2, nil},
		{"history_of_fleet", []string{"metrics", "--history"}, 2, nil},
		{"top", []string{"top", "--count", "2", "--every", "1s"}, 0, []string{"bulk - - 3.0 GiB", "bulk 0 bit/s 0 bit/s 3.0 GiB"}},
		{"top_node", []string{"top", "robot-7", "--count", "1"}, 0, []string{"critical 10.0 kbit/s"}},
		{"top_json", []string{"top", "--count", "1", "--json"}, 0, []string{`{"nodes":3,"online":2,"reporting":1,"lanes":[{"lane":"bulk"`}},
		{"top_fast", []string{"top", "--every", "10ms"}, 2, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := run(append(tt.args, "--data", dir)...)
			if code != tt.code || strings.Contains(stdout, "\x1b") {
				t.Fatalf("exit code %d, want %d\nstdout: %q\nstderr: %s", code, tt.code, stdout, stderr)
			}
			flat := stdout
			for strings.Contains(flat, "  ") {
				flat = strings.ReplaceAll(flat, "  ", " ")
			}
			for _, w := range tt.want {
				if !strings.Contains(flat, w) {
					t.Errorf("no %q in:\n%s", w, stdout)
				}
			}
		})
	}

	code, stdout, _ := run("metrics", "robot-7", "--json", "--data", dir)
	var got nodeMetrics
	if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v", code, err)
	}
	if len(got.Samples) != 20 || got.NodeID != metricsPeer || len(got.Samples[19].Paths) != topPaths+2 || got.Samples[19].Denied["default"] != 7 {
		t.Errorf("JSON: %+v", got)
	}
	if strings.Contains(stdout, "null") {
		t.Errorf("JSON has a null: %s", stdout)
	}
	code, stdout, _ = run("metrics", "--json", "--data", dir)
	var f fleetMetrics
	if err := json.Unmarshal([]byte(stdout), &f); code != 0 || err != nil || f.Nodes != 3 || f.Paths["hub-relay"] != 6 || strings.Contains(stdout, "null") {
		t.Errorf("exit code %d, %v: %s", code, err, stdout)
	}
}

func TestScaled(t *testing.T) {
	for _, tt := range []struct {
		got, want string
	}{
		{bytesText(0), "0 B"},
		{bytesText(1023), "1023 B"},
		{bytesText(1024), "1.0 KiB"},
		{bytesText(150 << 20), "150 MiB"},
		{bytesText(1<<64 - 1), "16.0 EiB"},
		{bits(999), "999 bit/s"},
		{bits(1_500_000), "1.5 Mbit/s"},
		{micros(0), ""},
		{micros(42), "42µs"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}
