// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

const (
	// DefaultPushEvery is how often figures are sent by OTLP.
	DefaultPushEvery = 30 * time.Second
	pushTime         = 10 * time.Second
	otlpPath         = "/v1/metrics"
	maxHeaders       = 32
)

// PushConfig is how figures are sent by OTLP over HTTP. The zero value of each
// field but Endpoint is its default.
type PushConfig struct {
	// Endpoint is an http or https URL; without a path "/v1/metrics" is added.
	Endpoint string
	// Headers go with each request, such as one with a credential.
	Headers map[string]string
	// Every is how often; zero means 30 s.
	Every time.Duration
	// Instance tells hubs apart: "service.instance.id".
	Instance string
	// Logger nil discards.
	Logger *slog.Logger
}

// Pusher sends the figures of an Exporter.
type Pusher struct {
	cfg    PushConfig
	from   *Exporter
	begun  time.Time
	client *http.Client
	out    *otlpmetrichttp.Exporter
	res    *resource.Resource
}

// NewPusher checks cfg and returns a Pusher. It sends nothing before Run. It reads
// the standard variables OTEL_EXPORTER_OTLP_* only for what cfg does not cover.
func (e *Exporter) NewPusher(cfg PushConfig) (*Pusher, error) {
	u, err := parseEndpoint(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	cfg.Every = cmp.Or(cfg.Every, DefaultPushEvery)
	if cfg.Every < time.Second {
		return nil, fmt.Errorf("OTLP interval %v: want at least 1s", cfg.Every)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	client := &http.Client{
		Transport: tr, Timeout: pushTime,
		// A redirect would carry the headers, and what they hold, to who knows whom.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	out, err := otlpmetrichttp.New(context.Background(),
		otlpmetrichttp.WithEndpointURL(u.String()), otlpmetrichttp.WithHTTPClient(client),
		otlpmetrichttp.WithHeaders(cfg.Headers), otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression),
		// The next figures are better than the last ones late.
		otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{Enabled: false}),
		otlpmetrichttp.WithTimeout(pushTime),
	)
	if err != nil {
		return nil, fmt.Errorf("configure OTLP: %w", err)
	}
	attrs := []attribute.KeyValue{
		attribute.String("service.name", "bauxite-dispatch"), attribute.String("service.version", labelText(e.version)),
	}
	if cfg.Instance != "" {
		attrs = append(attrs, attribute.String("service.instance.id", cfg.Instance))
	}
	return &Pusher{cfg: cfg, from: e, begun: time.Now(), client: client, out: out, res: resource.NewSchemaless(attrs...)}, nil
}

// CheckEndpoint reports whether text can be the Endpoint of a PushConfig.
func CheckEndpoint(text string) error {
	_, err := parseEndpoint(text)
	return err
}

func parseEndpoint(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("OTLP endpoint is not a URL") // url's error repeats the text
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("OTLP endpoint: want http[s]://HOST[:PORT][/PATH]")
	}
	if u.User != nil {
		return nil, errors.New("OTLP endpoint: credentials go into the file of headers, not into the URL")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = otlpPath
	}
	return u, nil
}

// ReadHeaders reads a file of lines "Name: value", which may hold a credential and
// so must be private to its owner. Empty lines and lines after # are skipped.
func ReadHeaders(name string) (map[string]string, error) {
	b, err := identity.ReadSecret(name)
	if err != nil {
		return nil, fmt.Errorf("read OTLP headers: %w", err)
	}
	h, err := parseHeaders(string(b))
	if err != nil {
		return nil, fmt.Errorf("read OTLP headers: %s: %w", name, err)
	}
	return h, nil
}

func parseHeaders(text string) (map[string]string, error) {
	h := make(map[string]string)
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		key, value = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(key)), strings.TrimSpace(value)
		if !ok || !validHeader(key, value) {
			return nil, fmt.Errorf("line %d is not \"Name: value\"", n) // without the line: it may be secret
		}
		if _, dup := h[key]; dup || len(h) == maxHeaders {
			return nil, fmt.Errorf("line %d: a header twice, or more than %d", n, maxHeaders)
		}
		h[key] = value
	}
	return h, nil
}

// validHeader reports whether key is a token and value printable (RFC 9110 §5).
func validHeader(key, value string) bool {
	for _, c := range key {
		if c <= ' ' || c > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c) {
			return false
		}
	}
	return key != "" && value != "" && printable(value, 8192)
}

// Run sends the figures until ctx ends, and once more then. Nothing that the
// receiver does disturbs the hub; a failure is logged when it begins.
func (p *Pusher) Run(ctx context.Context) {
	defer p.client.CloseIdleConnections()
	t := time.NewTicker(p.cfg.Every)
	defer t.Stop()
	failing := false
	push := func(ctx context.Context) {
		err := p.Push(ctx)
		switch {
		case err != nil && !failing && ctx.Err() == nil:
			p.cfg.Logger.WarnContext(ctx, "send figures by OTLP", "err", err)
		case err == nil && failing:
			p.cfg.Logger.InfoContext(ctx, "figures are sent by OTLP again")
		}
		failing = err != nil
	}
	for {
		select {
		case <-t.C:
			push(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
			defer cancel()
			push(last)
			return
		}
	}
}

// Push sends the figures of now.
func (p *Pusher) Push(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pushTime)
	defer cancel()
	families, err := p.from.reg.Gather()
	if len(families) == 0 && err != nil {
		return fmt.Errorf("gather figures: %w", err)
	}
	now := time.Now()
	metrics := make([]metricdata.Metrics, 0, len(families))
	for _, f := range families {
		if d := p.data(f, now); d != nil {
			metrics = append(metrics, metricdata.Metrics{
				Name: f.GetName(), Description: f.GetHelp(), Unit: unitOf(f.GetName()), Data: d,
			})
		}
	}
	err = p.out.Export(ctx, &metricdata.ResourceMetrics{
		Resource: p.res,
		ScopeMetrics: []metricdata.ScopeMetrics{{
			Scope: instrumentation.Scope{Name: "bauxite-dispatch", Version: labelText(p.from.version)}, Metrics: metrics,
		}},
	})
	if err != nil {
		return fmt.Errorf("export figures: %w", err)
	}
	return nil
}

// unitOf is the unit (UCUM) that a name's ending stands for.
func unitOf(name string) string {
	switch name = strings.TrimSuffix(name, "_total"); {
	case strings.HasSuffix(name, "_seconds"):
		return "s"
	case strings.HasSuffix(name, "_bytes"):
		return "By"
	}
	return ""
}

// data converts a family, nil for a type that nothing here has.
func (p *Pusher) data(f *dto.MetricFamily, now time.Time) metricdata.Aggregation {
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		return metricdata.Sum[float64]{
			Temporality: metricdata.CumulativeTemporality, IsMonotonic: true,
			DataPoints: p.points(f, now, func(m *dto.Metric) float64 { return m.GetCounter().GetValue() }),
		}
	case dto.MetricType_GAUGE:
		return metricdata.Gauge[float64]{
			DataPoints: p.points(f, now, func(m *dto.Metric) float64 { return m.GetGauge().GetValue() }),
		}
	case dto.MetricType_HISTOGRAM:
		h := metricdata.Histogram[float64]{Temporality: metricdata.CumulativeTemporality}
		for _, m := range f.GetMetric() {
			h.DataPoints = append(h.DataPoints, p.histogram(m, now))
		}
		return h
	case dto.MetricType_SUMMARY:
		var s metricdata.Summary
		for _, m := range f.GetMetric() {
			d := metricdata.SummaryDataPoint{
				Attributes: attributes(m), StartTime: p.begun, Time: now,
				Count: m.GetSummary().GetSampleCount(), Sum: m.GetSummary().GetSampleSum(),
			}
			for _, q := range m.GetSummary().GetQuantile() {
				d.QuantileValues = append(d.QuantileValues, metricdata.QuantileValue{Quantile: q.GetQuantile(), Value: q.GetValue()})
			}
			s.DataPoints = append(s.DataPoints, d)
		}
		return s
	default:
		return nil
	}
}

func (p *Pusher) points(f *dto.MetricFamily, now time.Time, value func(*dto.Metric) float64) []metricdata.DataPoint[float64] {
	out := make([]metricdata.DataPoint[float64], 0, len(f.GetMetric()))
	for _, m := range f.GetMetric() {
		out = append(out, metricdata.DataPoint[float64]{Attributes: attributes(m), StartTime: p.begun, Time: now, Value: value(m)})
	}
	return out
}

// histogram turns buckets that contain each other into ones side by side.
func (p *Pusher) histogram(m *dto.Metric, now time.Time) metricdata.HistogramDataPoint[float64] {
	h := m.GetHistogram()
	d := metricdata.HistogramDataPoint[float64]{
		Attributes: attributes(m), StartTime: p.begun, Time: now, Count: h.GetSampleCount(), Sum: h.GetSampleSum(),
	}
	var before uint64
	for _, b := range h.GetBucket() {
		if math.IsInf(b.GetUpperBound(), 1) {
			continue
		}
		d.Bounds = append(d.Bounds, b.GetUpperBound())
		d.BucketCounts = append(d.BucketCounts, b.GetCumulativeCount()-before)
		before = b.GetCumulativeCount()
	}
	d.BucketCounts = append(d.BucketCounts, h.GetSampleCount()-before)
	return d
}

func attributes(m *dto.Metric) attribute.Set {
	kv := make([]attribute.KeyValue, 0, len(m.GetLabel()))
	for _, l := range m.GetLabel() {
		kv = append(kv, attribute.String(l.GetName(), l.GetValue()))
	}
	return attribute.NewSet(kv...)
}
