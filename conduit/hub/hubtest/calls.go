// SPDX-License-Identifier: Apache-2.0

package hubtest

import (
	"context"
	"errors"
	"slices"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Announce tells of an activation that leaves the policy of all nodes as it is, as
// a stage for others does.
func (h *Hub) Announce() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.generation++
	h.changeLocked(&dispatchv1.Delta{})
}

// Fetches tells how often nodes asked for the policy.
func (h *Hub) Fetches() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fetches
}

// SetLazy makes watches that begin from now on lazy.
func (h *Hub) SetLazy(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lazy = on
}

// Resolved returns what nodes asked ResolvePeer for, in order.
func (h *Hub) Resolved() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.resolved)
}

// Interests returns those of the newest watch.
func (h *Hub) Interests() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watches) == 0 {
		return nil
	}
	return h.watches[len(h.watches)-1].GetInterests()
}

// Bookmark sends a bookmark with a checkpoint on all open watches.
func (h *Hub) Bookmark(checkpoint []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rv++
	h.log = append(h.log, &dispatchv1.WatchTopologyResponse{Event: &dispatchv1.WatchTopologyResponse_Bookmark{
		Bookmark: &dispatchv1.Bookmark{Rv: h.rv, Checkpoint: checkpoint},
	}})
	close(h.wake)
	h.wake = make(chan struct{})
}

// Checkpoint returns that of the newest watch.
func (h *Hub) Checkpoint() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watches) == 0 {
		return nil
	}
	return h.watches[len(h.watches)-1].GetCheckpoint()
}

// RotateMeshKey puts a new pre-shared key into force and tells the nodes.
func (h *Hub) RotateMeshKey(psk []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.psk, h.pskEpoch = psk, h.pskEpoch+1
	h.changeLocked(&dispatchv1.Delta{PskEpoch: h.pskEpoch})
}

// Reports returns what nodes reported, in order.
func (h *Hub) Reports() []*dispatchv1.ReportMetricsRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.reports)
}

// ResolvePeer implements TopologyService.
func (h *Hub) ResolvePeer(ctx context.Context, req *dispatchv1.ResolvePeerRequest) (*dispatchv1.ResolvePeerResponse, error) {
	if _, err := callerID(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.resolved = append(h.resolved, req.GetVirtualIp()+req.GetName()+req.GetNodeId())
	for id, p := range h.nodes {
		if req.GetVirtualIp() == p.GetVirtualIp() || req.GetVirtualIp() == p.GetVirtualIp6() || req.GetName() == p.GetName() || req.GetNodeId() == id {
			return &dispatchv1.ResolvePeerResponse{Peer: p, Online: h.streams[id] != nil, Instance: 1}, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("no such node"))
}

// GetMeshKey implements ProvisioningService.
func (h *Hub) GetMeshKey(ctx context.Context, _ *dispatchv1.GetMeshKeyRequest) (*dispatchv1.GetMeshKeyResponse, error) {
	if _, err := callerID(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return &dispatchv1.GetMeshKeyResponse{Psk: h.psk, PskEpoch: h.pskEpoch}, nil
}

// ReportMetrics implements MetricsService.
func (h *Hub) ReportMetrics(ctx context.Context, req *dispatchv1.ReportMetricsRequest) (*dispatchv1.ReportMetricsResponse, error) {
	if _, err := callerID(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reports = append(h.reports, req)
	close(h.wake)
	h.wake = make(chan struct{})
	return &dispatchv1.ReportMetricsResponse{IntervalMs: 5000}, nil
}

// Leave implements ProvisioningService.
func (h *Hub) Leave(ctx context.Context, _ *dispatchv1.LeaveRequest) (*dispatchv1.LeaveResponse, error) {
	caller, err := callerID(ctx)
	if err != nil {
		return nil, err
	}
	id, err := identity.ParsePeerID(caller)
	if err != nil {
		return nil, err
	}
	h.Remove(id)
	return &dispatchv1.LeaveResponse{}, nil
}

// withoutUpserts is what a lazy watch tells of changes.
func withoutUpserts(in []*dispatchv1.WatchTopologyResponse) []*dispatchv1.WatchTopologyResponse {
	out := make([]*dispatchv1.WatchTopologyResponse, len(in))
	for i, m := range in {
		d := m.GetDelta()
		if d == nil {
			out[i] = m
			continue
		}
		out[i] = &dispatchv1.WatchTopologyResponse{Event: &dispatchv1.WatchTopologyResponse_Delta{Delta: &dispatchv1.Delta{
			Rv: d.GetRv(), Deletes: d.GetDeletes(), PolicyVersion: d.GetPolicyVersion(), Denials: d.GetDenials(), PskEpoch: d.GetPskEpoch(),
		}}}
	}
	return out
}
