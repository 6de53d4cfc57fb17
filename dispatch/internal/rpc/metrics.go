// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"math"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/metrics"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type metricsService struct {
	*API
	dispatchv1connect.UnimplementedMetricsServiceHandler
}

// ReportMetrics takes the report of the node that the certificate names. It is the
// hub's most frequent call and touches neither the database nor another node.
func (s metricsService) ReportMetrics(ctx context.Context, req *dispatchv1.ReportMetricsRequest) (*dispatchv1.ReportMetricsResponse, error) {
	err := s.cfg.Reports.Report(callerOf(ctx).id, req)
	var soon *metrics.TooSoonError
	switch {
	case errors.As(err, &soon):
		return nil, reportTooSoon(soon)
	case err != nil:
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return &dispatchv1.ReportMetricsResponse{}, nil
}

func reportTooSoon(soon *metrics.TooSoonError) error {
	err := connect.NewError(connect.CodeResourceExhausted, soon)
	d, derr := connect.NewErrorDetail(&dispatchv1.ErrorInfo{
		Reason: dispatchv1.ErrorReason_ERROR_REASON_OVERLOADED, Retryable: true,
		RetryAfterMs: uint32(soon.RetryAfter.Milliseconds()) + 1,
	})
	if derr == nil {
		err.AddDetail(d)
	}
	return err
}

func (s metricsService) GetNodeMetrics(ctx context.Context, req *dispatchv1.GetNodeMetricsRequest) (*dispatchv1.GetNodeMetricsResponse, error) {
	if req.GetNode() == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("node is missing"))
	}
	n, err := s.store.FindNode(ctx, req.GetNode())
	if err != nil {
		return nil, wireError(ctx, s.log, "find node", err)
	}
	return &dispatchv1.GetNodeMetricsResponse{
		NodeId: n.ID.String(), Samples: s.cfg.Reports.Node(n.ID, int(min(req.GetLimit(), math.MaxInt32))),
	}, nil
}

func (s metricsService) GetFleetMetrics(ctx context.Context, _ *dispatchv1.GetFleetMetricsRequest) (*dispatchv1.GetFleetMetricsResponse, error) {
	nodes, err := s.store.CountNodes(ctx)
	if err != nil {
		return nil, wireError(ctx, s.log, "count nodes", err)
	}
	f := s.cfg.Reports.Fleet()
	return &dispatchv1.GetFleetMetricsResponse{
		Nodes: uint32(nodes[store.Active]), Online: uint32(s.cfg.Registry.Count()), Reporting: uint32(f.Reporting),
		Lanes: f.Lanes(), Versions: counts(f.Versions), Paths: counts(f.Paths), PolicyVersions: counts(f.Policies),
		RttP50Us: uint64(f.RTT50.Microseconds()), RttP99Us: uint64(f.RTT99.Microseconds()),
	}, nil
}

func counts(m map[string]int) map[string]uint32 {
	out := make(map[string]uint32, len(m))
	for k, n := range m {
		out[k] = uint32(n)
	}
	return out
}
