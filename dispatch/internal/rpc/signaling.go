// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/signal"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

type signaling struct{ *API }

type signalStream = connect.BidiStream[dispatchv1.ExchangeCandidatesRequest, dispatchv1.ExchangeCandidatesResponse]

func (s signaling) ExchangeCandidates(ctx context.Context, stream *signalStream) error {
	me := callerOf(ctx)
	st := s.cfg.Registry.Open(me.id, me.standing.Site)
	defer func() {
		st.Close()
		s.seen(me.id)
	}()
	ready := &dispatchv1.ExchangeCandidatesResponse{
		Event: &dispatchv1.ExchangeCandidatesResponse_Ready{Ready: &dispatchv1.SignalReady{}},
	}
	if err := stream.Send(ready); err != nil {
		return err
	}
	s.log.DebugContext(ctx, "signalling stream opened", "node", me.id.Short())
	defer s.log.DebugContext(ctx, "signalling stream closed", "node", me.id.Short())

	// Only this goroutine sends; the reader hands it the refusals. Their channel is
	// as long as the queue, and a reader that finds it full stops reading: a node
	// that does not read answers cannot make the hub hold them.
	nacks := make(chan *dispatchv1.SignalUndeliverable, signal.QueueLen)
	done := make(chan error, 1)
	rctx, cancel := context.WithCancel(ctx)
	go func() { done <- s.receive(rctx, st, stream, nacks) }()
	read, err := s.send(ctx, st, stream, nacks, done)
	cancel()
	if !read {
		me.unblock()
		if rerr := <-done; err == nil {
			err = rerr
		}
	}
	return err
}

// send writes until the stream, the node's place or the hub ends. read tells that
// the reader has ended.
func (s signaling) send(ctx context.Context, st *signal.Stream, stream *signalStream,
	nacks <-chan *dispatchv1.SignalUndeliverable, done <-chan error,
) (read bool, err error) {
	for {
		m := &dispatchv1.ExchangeCandidatesResponse{}
		select {
		case e := <-st.Queue():
			m.Event = &dispatchv1.ExchangeCandidatesResponse_Delivery{Delivery: &dispatchv1.SignalDelivery{From: e.From.String(), Body: e.Body}}
		case n := <-nacks:
			m.Event = &dispatchv1.ExchangeCandidatesResponse_Undeliverable{Undeliverable: n}
		case err := <-done:
			return true, err
		case <-st.Gone():
			return false, fail(connect.CodeAborted, dispatchv1.ErrorReason_ERROR_REASON_REPLACED,
				"another stream of this node took the place of this one", "")
		case <-ctx.Done():
			return false, ended(ctx)
		}
		if err := stream.Send(m); err != nil {
			return false, err
		}
	}
}

// receive passes on what the node sends, until its half of the stream ends.
func (s signaling) receive(ctx context.Context, st *signal.Stream, stream *signalStream, nacks chan<- *dispatchv1.SignalUndeliverable) error {
	for {
		m, err := stream.Receive()
		if err != nil {
			var ce *connect.Error
			if errors.As(err, &ce) && ce.Code() == connect.CodeResourceExhausted {
				return err
			}
			return nil // the node hung up
		}
		if ctx.Err() != nil {
			return nil // revoked: what it sends now goes to nobody
		}
		if m.GetTo() == "" && len(m.GetBody()) == 0 {
			continue // keep-open
		}
		reason := s.relay(ctx, st, m)
		s.cfg.Meters.Signal(reason)
		if reason == dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_UNSPECIFIED {
			continue
		}
		to := m.GetTo()
		if len(to) > identity.PeerIDLen {
			to = to[:identity.PeerIDLen]
		}
		select {
		case nacks <- &dispatchv1.SignalUndeliverable{To: to, Seq: m.GetSeq(), Reason: reason}:
		case <-ctx.Done():
			return nil
		}
	}
}

// relay returns UNSPECIFIED for a message that is in the receiver's queue.
func (s signaling) relay(ctx context.Context, st *signal.Stream, m *dispatchv1.ExchangeCandidatesRequest) dispatchv1.UndeliverableReason {
	if !st.Allow() {
		return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_RATE
	}
	to, err := identity.ParsePeerID(m.GetTo())
	if err != nil {
		return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_INVALID
	}
	if online := s.online(to); online && to != st.ID && !s.MayTalk(ctx, st.ID, to) {
		return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_DENIED
	}
	switch st.Send(to, m.GetBody()) {
	case signal.Delivered:
		return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_UNSPECIFIED
	case signal.Busy:
		return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_BUSY
	case signal.Offline:
		return s.absent(ctx, to)
	default:
		return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_INVALID
	}
}

func (s signaling) online(id identity.PeerID) bool {
	_, _, ok := s.cfg.Registry.Lookup(id)
	return ok
}

// absent says why a node has no stream.
func (s signaling) absent(ctx context.Context, id identity.PeerID) dispatchv1.UndeliverableReason {
	switch _, err := s.store.Admit(ctx, id, nil); {
	case errors.Is(err, store.ErrNotFound):
		return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_UNKNOWN
	case errors.Is(err, store.ErrNodeRevoked), errors.Is(err, store.ErrNodeLocked):
		return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_DENIED
	}
	return dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_OFFLINE
}
