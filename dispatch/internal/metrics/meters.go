// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// Meters count what happens in the hub. A nil *Meters counts nothing. It is safe
// for concurrent use.
type Meters struct {
	joins        prometheus.Counter
	refusals     *prometheus.CounterVec
	requests     *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	streams      *prometheus.GaugeVec
	signals      *prometheus.CounterVec
	commit       prometheus.Histogram
	batch        prometheus.Histogram
	commitErrors prometheus.Counter
}

// NewMeters returns meters at zero.
func NewMeters() *Meters {
	c := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Name: "bauxite_hub_" + name, Help: help}
	}
	h := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: "bauxite_hub_" + name, Help: help, Buckets: buckets}
	}
	latency := []float64{0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5}
	return &Meters{
		joins:    prometheus.NewCounter(c("joins_total", "Joins that were answered with a certificate.")),
		refusals: prometheus.NewCounterVec(c("refusals_total", "Calls that were refused, by reason."), []string{"reason"}),
		requests: prometheus.NewCounterVec(c("rpc_requests_total", "Calls that have ended, by procedure and code."), []string{"procedure", "code"}),
		duration: prometheus.NewHistogramVec(h("rpc_duration_seconds", "Time that unary calls took, by procedure.", latency), []string{"procedure"}),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "bauxite_hub_rpc_streams", Help: "Open streams by procedure.",
		}, []string{"procedure"}),
		signals:      prometheus.NewCounterVec(c("signal_messages_total", "Signalling messages by what became of them."), []string{"outcome"}),
		commit:       prometheus.NewHistogram(h("store_commit_duration_seconds", "Time from the first operation of a batch to its commit on disk.", latency)),
		batch:        prometheus.NewHistogram(h("store_batch_operations", "Write operations that shared a commit.", prometheus.ExponentialBuckets(1, 2, 9))),
		commitErrors: prometheus.NewCounter(c("store_commit_errors_total", "Batches that could not be written.")),
	}
}

func (m *Meters) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.joins, m.refusals, m.requests, m.duration, m.streams, m.signals, m.commit, m.batch, m.commitErrors}
}

// Commit counts a batch of the store's writer: how long it took, how many
// operations were in it, and whether it was written.
func (m *Meters) Commit(took time.Duration, ops int, err error) {
	if m == nil {
		return
	}
	if err != nil {
		m.commitErrors.Inc()
		return
	}
	m.commit.Observe(took.Seconds())
	m.batch.Observe(float64(ops))
}

// Signal counts a signalling message: UNSPECIFIED is one that was delivered.
func (m *Meters) Signal(reason dispatchv1.UndeliverableReason) {
	if m == nil {
		return
	}
	outcome := "delivered"
	if reason != dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_UNSPECIFIED {
		outcome = enumLabel(dispatchv1.UndeliverableReason_name, int32(reason), "UNDELIVERABLE_REASON_")
	}
	m.signals.WithLabelValues(outcome).Inc()
}

// enumLabel is an enum's value as a label.
func enumLabel(names map[int32]string, v int32, prefix string) string {
	name, known := names[v]
	if !known {
		return other
	}
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}

// Interceptor counts calls. It goes before the interceptors that refuse some.
func (m *Meters) Interceptor() connect.Interceptor { return interceptor{m} }

type interceptor struct{ m *Meters }

func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	if i.m == nil {
		return next
	}
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		begin := time.Now()
		res, err := next(ctx, req)
		p := req.Spec().Procedure
		i.m.duration.WithLabelValues(p).Observe(time.Since(begin).Seconds())
		i.m.ended(p, err)
		if err == nil && p == dispatchv1connect.ProvisioningServiceProvisionProcedure {
			i.m.joins.Inc()
		}
		return res, err
	}
}

func (i interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	if i.m == nil {
		return next
	}
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		p := conn.Spec().Procedure
		open := i.m.streams.WithLabelValues(p)
		open.Inc()
		defer open.Dec()
		err := next(ctx, conn)
		i.m.ended(p, err)
		return err
	}
}

// ended counts a call. The procedures are those of the contract and the codes
// those of Connect: nobody can add a label.
func (m *Meters) ended(procedure string, err error) {
	code := "ok"
	if err != nil {
		code = connect.CodeOf(err).String()
		if reason := reasonOf(err); reason != "" {
			m.refusals.WithLabelValues(reason).Inc()
		}
	}
	m.requests.WithLabelValues(procedure, code).Inc()
}

// reasonOf returns the reason in the details of err, as "token_expired".
func reasonOf(err error) string {
	ce := new(connect.Error)
	if !errors.As(err, &ce) {
		return ""
	}
	for _, d := range ce.Details() {
		v, derr := d.Value()
		if derr != nil {
			continue
		}
		info, ok := v.(*dispatchv1.ErrorInfo)
		if !ok || info.GetReason() == dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
			continue
		}
		return enumLabel(dispatchv1.ErrorReason_name, int32(info.GetReason()), "ERROR_REASON_")
	}
	return ""
}
