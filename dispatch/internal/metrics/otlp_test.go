// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	otlpmetrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"
)

// receiver is an OTLP server.
type receiver struct {
	*httptest.Server
	status atomic.Int32 // what it answers; 0 is 200
	got    chan *colmetrics.ExportMetricsServiceRequest
	header chan http.Header
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{got: make(chan *colmetrics.ExportMetricsServiceRequest, 100), header: make(chan http.Header, 100)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if st := r.status.Load(); st != 0 {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(int(st))
			return
		}
		z, err := gzip.NewReader(req.Body)
		if err != nil || req.URL.Path != "/v1/metrics" {
			t.Errorf("request to %s: %v", req.URL.Path, err)
			return
		}
		b, _ := io.ReadAll(z)
		m := new(colmetrics.ExportMetricsServiceRequest)
		if err := proto.Unmarshal(b, m); err != nil {
			t.Errorf("decode request: %v", err)
		}
		r.got <- m
		r.header <- req.Header
	}))
	t.Cleanup(r.Close)
	return r
}

func TestPush(t *testing.T) {
	recv := newReceiver(t)
	e, _, _ := fullExporter(t)
	p, err := e.NewPusher(PushConfig{Endpoint: recv.URL, Headers: map[string]string{"X-Key": "secret"}, Instance: "mesh-1"})
	must(t, err)
	defer p.client.CloseIdleConnections()
	must(t, p.Push(t.Context()))
	if h := <-recv.header; h.Get("X-Key") != "secret" || h.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("headers %v", h)
	}
	rm := (<-recv.got).GetResourceMetrics()
	if len(rm) != 1 {
		t.Fatalf("%d resources", len(rm))
	}
	res := map[string]string{}
	for _, a := range rm[0].GetResource().GetAttributes() {
		res[a.GetKey()] = a.GetValue().GetStringValue()
	}
	if d := cmp.Diff(map[string]string{"service.name": "bauxite-dispatch", "service.version": "v1.2.3", "service.instance.id": "mesh-1"}, res); d != "" {
		t.Errorf("resource: %s", d)
	}
	sent := map[string]*otlpmetrics.Metric{}
	for _, m := range rm[0].GetScopeMetrics()[0].GetMetrics() {
		sent[m.GetName()] = m
	}
	families, err := e.reg.Gather()
	must(t, err)
	for _, f := range families {
		if sent[f.GetName()] == nil {
			t.Errorf("%s is not sent", f.GetName())
		}
	}
	bytesSum := sent["bauxite_fleet_lane_bytes_total"]
	s := bytesSum.GetSum()
	if !s.GetIsMonotonic() || s.GetAggregationTemporality() != otlpmetrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE || len(s.GetDataPoints()) != 6 || bytesSum.GetUnit() != "By" {
		t.Errorf("lane bytes: %v", bytesSum)
	}
	if g := sent["bauxite_hub_connected_nodes"].GetGauge().GetDataPoints(); len(g) != 1 || g[0].GetAsDouble() != 3 {
		t.Errorf("connected nodes: %v", g)
	}
	rtt := sent["bauxite_fleet_path_rtt_seconds"].GetHistogram().GetDataPoints()[0]
	if d := cmp.Diff([]uint64{0, 3, 3, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, rtt.GetBucketCounts()); d != "" || rtt.GetCount() != 12 || len(rtt.GetExplicitBounds()) != len(rttBounds) {
		t.Errorf("rtt: %s%v", d, rtt)
	}
	if q := sent["go_gc_duration_seconds"].GetSummary().GetDataPoints()[0].GetQuantileValues(); len(q) != 5 {
		t.Errorf("gc: %v", q)
	}
}

// TestPushRun follows a receiver that fails and comes back.
func TestPushRun(t *testing.T) {
	recv := newReceiver(t)
	var log bytes.Buffer
	e := NewExporter(fullSources(), nil, nil, nil)
	p, err := e.NewPusher(PushConfig{
		Endpoint: recv.URL + "/", Headers: map[string]string{"X-Key": "secret"}, Every: time.Second,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	must(t, err)
	p.cfg.Every = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	<-recv.got
	recv.status.Store(http.StatusTemporaryRedirect)
	for len(recv.got) > 0 {
		<-recv.got
	}
	recv.status.Store(http.StatusServiceUnavailable)
	recv.status.Store(0)
	<-recv.got
	<-recv.got
	recv.CloseClientConnections()
	cancel()
	<-done
	for n := len(recv.got); n > 0; n-- {
		<-recv.got
	}
	recv.Close()

	// The receiver is gone for good: one line, and the end comes at once.
	log.Reset()
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p.Run(ctx)
	if n := strings.Count(log.String(), "send figures by OTLP"); n != 1 {
		t.Errorf("%d lines about a receiver that is gone: %s", n, log.String())
	}
	if strings.Contains(log.String(), "secret") {
		t.Error("the log holds a header")
	}
}

func TestPushConfig(t *testing.T) {
	e := NewExporter(Sources{}, nil, nil, nil)
	for _, tt := range []struct {
		url, want string
	}{
		{"", "want http"},
		{"collector:4318", "want http"},
		{"ftp://x", "want http"},
		{"http://", "want http"},
		{"https://user:pw@x", "file of headers"},
		{"https://x/?a=b", "want http"},
		{"http://x\x7f", "not a URL"},
	} {
		_, err := e.NewPusher(PushConfig{Endpoint: tt.url})
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "pw") {
			t.Errorf("%q: %v, want %q", tt.url, err, tt.want)
		}
		if (CheckEndpoint(tt.url) == nil) != (err == nil) {
			t.Errorf("CheckEndpoint(%q) disagrees", tt.url)
		}
	}
	if _, err := e.NewPusher(PushConfig{Endpoint: "http://x", Every: time.Millisecond}); err == nil {
		t.Error("an interval of 1ms is accepted")
	}
	for text, want := range map[string]string{"http://x": "/v1/metrics", "http://x/": "/v1/metrics", "http://x/otlp/v1/metrics": "/otlp/v1/metrics"} {
		if u, err := parseEndpoint(text); err != nil || u.Path != want {
			t.Errorf("%s: %v %v", text, u, err)
		}
	}
}

func TestReadHeaders(t *testing.T) {
	name := filepath.Join(t.TempDir(), "headers")
	must(t, os.WriteFile(name, []byte("# for the collector\n\nauthorization: Bearer abc:def\r\nX-Scope: a b\n"), 0o600))
	h, err := ReadHeaders(name)
	if d := cmp.Diff(map[string]string{"Authorization": "Bearer abc:def", "X-Scope": "a b"}, h); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
	for _, bad := range []string{"s3cret", ": s3cret", "a b: s3cret", "X: s3cret\x01", "X:", "X: s3cret\nx: s3cret", strings.Repeat("s3cret", 2000)} {
		must(t, os.WriteFile(name, []byte(bad), 0o600))
		if _, err := ReadHeaders(name); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	must(t, os.Chmod(name, 0o644))
	if _, err := ReadHeaders(name); err == nil {
		t.Error("a file that others may read is accepted")
	}
}

func FuzzHeaders(f *testing.F) {
	for _, s := range []string{"A: b\n", "", "# x\nA:b\nC:d", "a:\x00", ":", "A: b\na: c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseHeaders(text)
		if err != nil {
			return
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1", nil)
		for k, v := range h {
			req.Header.Set(k, v)
		}
		if err := req.Header.Write(io.Discard); err != nil || len(req.Header) != len(h) {
			t.Errorf("headers %v: %v", h, err)
		}
	})
}
