// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func (m *machine) metrics() dispatchv1connect.MetricsServiceClient {
	return dispatchv1connect.NewMetricsServiceClient(m.http, m.hub.URL())
}

// fetch gets a page of the hub in plain HTTP.
func fetch(ctx context.Context, t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestReportMetrics(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	m := join(t, h, "robot")
	admin := dispatchv1connect.NewMetricsServiceClient(h.Admin(), "http://hub")
	report := &dispatchv1.ReportMetricsRequest{
		Started: time.Now().Add(time.Second).UnixMicro(), Version: "1.2.3", PolicyVersion: 1, RosDiscoveryPort: 11811, RosDiscoveryStatus: "1",
		Lanes:  []*dispatchv1.LaneCounters{{Lane: "bulk", TxBytes: 12345}},
		Paths:  []*dispatchv1.PathMetrics{{Peer: m.id.String(), Kind: "direct", RttUs: 2000}},
		Denied: map[string]uint64{"default": 3},
	}
	if _, err := m.metrics().ReportMetrics(ctx, report); err != nil {
		t.Fatal(err)
	}
	_, err := m.metrics().ReportMetrics(ctx, report)
	wantReason(t, "second report at once", err, dispatchv1.ErrorReason_ERROR_REASON_OVERLOADED)
	if connect.CodeOf(err) != connect.CodeResourceExhausted || retryAfter(err) == 0 || retryAfter(err) > 1001 {
		t.Errorf("second report at once: %v, again after %d ms", err, retryAfter(err))
	}
	_, err = join(t, h, "second").metrics().ReportMetrics(ctx, &dispatchv1.ReportMetricsRequest{Version: "\n"})
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("bad report: %v", err)
	}

	_, err = m.metrics().GetFleetMetrics(ctx, &dispatchv1.GetFleetMetricsRequest{})
	wantReason(t, "a node asks for the fleet", err, dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED)

	got, err := admin.GetNodeMetrics(ctx, &dispatchv1.GetNodeMetricsRequest{Node: "robot"})
	if err != nil || got.GetNodeId() != m.id.String() || len(got.GetSamples()) != 1 {
		t.Fatalf("node metrics %v, %v", got, err)
	}
	if r := got.GetSamples()[0].GetReport(); r.GetDenied()["default"] != 3 || len(r.GetPaths()) != 1 || r.GetLanes()[2].GetTxBytes() != 12345 {
		t.Errorf("sample %v", r)
	}
	_, err = admin.GetNodeMetrics(ctx, &dispatchv1.GetNodeMetricsRequest{Node: "nobody"})
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("metrics of nobody: %v", err)
	}
	fleet, err := admin.GetFleetMetrics(ctx, &dispatchv1.GetFleetMetricsRequest{})
	if err != nil || fleet.GetNodes() != 2 || fleet.GetReporting() != 1 || fleet.GetPaths()["direct"] != 1 ||
		fleet.GetVersions()["1.2.3"] != 1 || fleet.GetPolicyVersions()["1"] != 1 || fleet.GetLanes()[2].GetTxBytes() != 12345 {
		t.Errorf("fleet metrics %v, %v", fleet, err)
	}

	url := "http://" + h.MetricsAddr().String()
	code, body := fetch(ctx, t, url+"/metrics")
	for _, want := range []string{
		`bauxite_fleet_lane_bytes_total{direction="tx",lane="bulk"} 12345`,
		`bauxite_hub_nodes{state="active"} 2`, `bauxite_hub_joins_total 2`,
		`bauxite_fleet_reports_total{outcome="too_soon"} 1`, `bauxite_fleet_reports_total{outcome="invalid"} 1`,
		`bauxite_hub_rpc_requests_total{code="resource_exhausted",procedure="/bauxite.dispatch.v1.MetricsService/ReportMetrics"} 1`,
		`bauxite_hub_refusals_total{reason="caller_not_allowed"} 1`, `bauxite_hub_scrape_errors_total 0`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if code != http.StatusOK || strings.Contains(body, m.id.String()) || strings.Contains(body, "robot") {
		t.Errorf("status %d, or a node is named", code)
	}

	// The newest report outlives the hub, and a deletion ends it.
	h.Restart()
	admin = dispatchv1connect.NewMetricsServiceClient(h.Admin(), "http://hub")
	got, err = admin.GetNodeMetrics(ctx, &dispatchv1.GetNodeMetricsRequest{Node: "robot"})
	if err != nil || len(got.GetSamples()) != 1 || got.GetSamples()[0].GetReport().GetVersion() != "1.2.3" {
		t.Fatalf("after a restart: %v, %v", got, err)
	}
	if _, err := fleetOf(h).DeleteNode(ctx, &dispatchv1.DeleteNodeRequest{Node: "robot"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.metrics().ReportMetrics(ctx, report); err == nil {
		t.Error("a deleted node reports")
	}
	h.Restart()
	if _, body := fetch(ctx, t, "http://"+h.MetricsAddr().String()+"/metrics"); !strings.Contains(body, "bauxite_fleet_reporting_nodes 0\n") {
		t.Error("a deleted node is counted")
	}
}

func retryAfter(err error) uint32 {
	ce := new(connect.Error)
	if !errors.As(err, &ce) {
		return 0
	}
	for _, d := range ce.Details() {
		if v, derr := d.Value(); derr == nil {
			if info, ok := v.(*dispatchv1.ErrorInfo); ok {
				return info.GetRetryAfterMs()
			}
		}
	}
	return 0
}

func TestHealth(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	url := "http://" + h.MetricsAddr().String()
	for _, page := range []string{"/healthz", "/readyz"} {
		if code, body := fetch(ctx, t, url+page); code != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %s", page, code, body)
		}
	}
	_, body := fetch(ctx, t, url+"/readyz?verbose")
	var got struct {
		Status string
		Checks []struct {
			Name string
			OK   bool
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Status != "ok" {
		t.Fatalf("verbose: %s", body)
	}
	names := ""
	for _, c := range got.Checks {
		names += fmt.Sprint(c.Name, c.OK, " ")
	}
	if names != "databasetrue disktrue intermediatetrue node_porttrue sockettrue " {
		t.Errorf("checks: %s", names)
	}
}

func TestNotReady(t *testing.T) {
	h, ctx := dispatchtest.Start(t, func(c *dispatch.Config) { c.MinDiskFree = 1 << 62 }), testContext(t)
	url := "http://" + h.MetricsAddr().String()
	if code, body := fetch(ctx, t, url+"/readyz"); code != http.StatusServiceUnavailable || body != "failing: disk\n" {
		t.Errorf("readyz: %d %s", code, body)
	}
	if code, _ := fetch(ctx, t, url+"/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d: a full disk is no reason to restart", code)
	}
}

// TestOTLP shows that figures arrive with the headers of the file, and that a
// receiver which is away does not keep the hub from serving or from stopping.
func TestOTLP(t *testing.T) {
	var got atomic.Int32
	first := make(chan http.Header, 1)
	recv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if got.Add(1) == 1 {
			first <- r.Header
		}
	}))
	defer recv.Close()
	name := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(name, []byte("X-Key: s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := dispatchtest.Start(t, func(c *dispatch.Config) {
		c.OTLP = dispatch.OTLP{Endpoint: recv.URL, HeadersFile: name, Every: time.Second}
	})
	select {
	case hd := <-first:
		if hd.Get("X-Key") != "s3cret" {
			t.Errorf("headers %v", hd)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nothing arrived")
	}
	recv.Close()
	join(t, h, "robot")
	h.Stop()
	if strings.Contains(h.Logs(), "s3cret") {
		t.Error("the log holds a header")
	}

	for _, bad := range []dispatch.OTLP{
		{Endpoint: "collector:4318"},
		{HeadersFile: name},
	} {
		if _, err := dispatch.New(dispatch.Config{DataDir: t.TempDir(), OTLP: bad}); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
