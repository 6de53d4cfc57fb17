// SPDX-License-Identifier: Apache-2.0

package hubtest

import (
	"context"
	"crypto/ecdh"
	"errors"
	"slices"
	"sync"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

func x25519(raw []byte) (*ecdh.PublicKey, error) { return fips.NewX25519PublicKey(raw) }

// WatchTopology implements TopologyService.
func (h *Hub) WatchTopology(ctx context.Context, req *dispatchv1.WatchTopologyRequest, stream *connect.ServerStream[dispatchv1.WatchTopologyResponse]) error {
	if _, err := callerID(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	h.watches = append(h.watches, req)
	var out []*dispatchv1.WatchTopologyResponse
	rv, snapshot, lazy := req.GetRv(), req.GetEpoch() != h.epoch, h.lazy
	wanted := func(p *dispatchv1.Peer) bool { return !lazy || slices.Contains(req.GetInterests(), p.GetNodeId()) }
	if snapshot {
		for _, p := range h.nodes { // one chunk each, to have several
			if !wanted(p) {
				continue
			}
			out = append(out, &dispatchv1.WatchTopologyResponse{Event: &dispatchv1.WatchTopologyResponse_SnapshotChunk{
				SnapshotChunk: &dispatchv1.SnapshotChunk{Peers: []*dispatchv1.Peer{p}},
			}})
		}
		if len(h.denials) > 0 {
			out = append(out, &dispatchv1.WatchTopologyResponse{Event: &dispatchv1.WatchTopologyResponse_SnapshotChunk{
				SnapshotChunk: &dispatchv1.SnapshotChunk{Denials: h.denials},
			}})
		}
		rv = h.rv
	}
	out = append(out, &dispatchv1.WatchTopologyResponse{Event: &dispatchv1.WatchTopologyResponse_Synced{
		Synced: &dispatchv1.Synced{Epoch: h.epoch, Rv: rv, PolicyVersion: h.generation, Snapshot: snapshot, Lazy: lazy, PskEpoch: h.pskEpoch},
	}})
	if h.silent {
		out = nil
	}
	h.mu.Unlock()
	for {
		for _, m := range out {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		h.mu.Lock()
		out = nil
		if !h.silent && rv < uint64(len(h.log)) {
			out, rv = h.log[rv:], uint64(len(h.log))
			if lazy {
				out = withoutUpserts(out)
			}
		}
		wake := h.wake
		h.mu.Unlock()
		if len(out) > 0 {
			continue
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// GetPolicy implements PolicyService.
func (h *Hub) GetPolicy(ctx context.Context, _ *dispatchv1.GetPolicyRequest) (*dispatchv1.GetPolicyResponse, error) {
	if _, err := callerID(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fetches++
	return h.policy, nil
}

// ExchangeCandidates implements SignalingService.
func (h *Hub) ExchangeCandidates(ctx context.Context, stream *connect.BidiStream[dispatchv1.ExchangeCandidatesRequest, dispatchv1.ExchangeCandidatesResponse]) error {
	self, err := callerID(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	inbox := make(chan *dispatchv1.ExchangeCandidatesResponse, 256)
	inbox <- &dispatchv1.ExchangeCandidatesResponse{Event: &dispatchv1.ExchangeCandidatesResponse_Ready{Ready: &dispatchv1.SignalReady{}}}
	h.mu.Lock()
	h.streams[self] = inbox
	h.mu.Unlock()
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		h.mu.Lock()
		if h.streams[self] == inbox {
			delete(h.streams, self)
		}
		h.mu.Unlock()
	}()
	wg.Go(func() {
		for {
			select {
			case m := <-inbox:
				if stream.Send(m) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		m, err := stream.Receive()
		if err != nil {
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		if m.GetTo() != "" {
			h.deliver(self, m, inbox)
		}
	}
}

func (h *Hub) deliver(from string, m *dispatchv1.ExchangeCandidatesRequest, sender chan *dispatchv1.ExchangeCandidatesResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	reason := dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_OFFLINE
	if h.nodes[m.GetTo()] == nil {
		reason = dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_UNKNOWN
	}
	to, res := h.streams[m.GetTo()], &dispatchv1.ExchangeCandidatesResponse{
		Event: &dispatchv1.ExchangeCandidatesResponse_Delivery{Delivery: &dispatchv1.SignalDelivery{From: from, Body: m.GetBody()}},
	}
	if to == nil {
		to, res = sender, &dispatchv1.ExchangeCandidatesResponse{
			Event: &dispatchv1.ExchangeCandidatesResponse_Undeliverable{
				Undeliverable: &dispatchv1.SignalUndeliverable{To: m.GetTo(), Seq: m.GetSeq(), Reason: reason},
			},
		}
	}
	select {
	case to <- res:
	default:
	}
}
