// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/topology"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type topologyService struct {
	*API
	dispatchv1connect.UnimplementedTopologyServiceHandler
}

type watchStream = connect.ServerStream[dispatchv1.WatchTopologyResponse]

func (t topologyService) WatchTopology(ctx context.Context, req *dispatchv1.WatchTopologyRequest, stream *watchStream) error {
	w, err := t.cfg.Feed.Start(ctx, req.GetEpoch(), req.GetRv())
	if err != nil {
		return wireError(ctx, t.log, "watch topology", err)
	}
	send := sender(ctx, stream)
	if err := t.catchUp(w, stream, send); err != nil {
		return err
	}
	tick := time.NewTicker(t.cfg.BookmarkEvery)
	defer tick.Stop()
	var buf []topology.Event
	for {
		events, err := w.Next(ctx, buf, tick.C)
		switch {
		case errors.Is(err, topology.ErrLagged):
			return stream.Send(&topology.Message{Event: &dispatchv1.WatchTopologyResponse_Resync{
				Resync: &dispatchv1.Resync{Reason: "too far behind"},
			}})
		case err != nil:
			return ended(ctx)
		case len(events) == 0:
			err = stream.Send(&topology.Message{Event: &dispatchv1.WatchTopologyResponse_Bookmark{
				Bookmark: &dispatchv1.Bookmark{Rv: w.Sent(), ServerTime: time.Now().UnixMicro()},
			}})
		default:
			err = sendAll(send, events)
			buf = events[:0]
		}
		if err != nil {
			return err
		}
	}
}

// catchUp sends the snapshot where there is one, Synced, what changed since, and
// who is online.
func (t topologyService) catchUp(w *topology.Watch, stream *watchStream, send func([]byte) error) error {
	for _, c := range w.Chunks {
		if err := send(c); err != nil {
			return err
		}
	}
	err := stream.Send(&topology.Message{Event: &dispatchv1.WatchTopologyResponse_Synced{Synced: &dispatchv1.Synced{
		Epoch: t.store.Meta().Epoch, Rv: w.RV, PolicyVersion: w.Policy, Snapshot: w.Snapshot,
	}}})
	if err != nil {
		return err
	}
	if err := sendAll(send, w.Backlog); err != nil {
		return err
	}
	w.Chunks, w.Backlog = nil, nil
	// After the cursor was taken, so that no change falls between.
	var online []topology.Event
	t.cfg.Registry.Online(func(id identity.PeerID, instance uint64) {
		online = append(online, topology.EncodePresence(id, true, instance))
	})
	return sendAll(send, online)
}

func sendAll(send func([]byte) error, events []topology.Event) error {
	for _, e := range events {
		if err := send(e.Raw); err != nil {
			return err
		}
	}
	return nil
}

// sender returns a function that sends an encoded message. The binary codec gets
// the bytes as they are; the JSON codec, which people use to look inside, needs
// them decoded.
func sender(ctx context.Context, stream *watchStream) func([]byte) error {
	if info, ok := connect.CallInfoForHandlerContext(ctx); ok && strings.Contains(info.RequestHeader().Get("Content-Type"), "json") {
		return func(raw []byte) error {
			m := &topology.Message{}
			if err := proto.Unmarshal(raw, m); err != nil {
				return err
			}
			return stream.Send(m)
		}
	}
	return func(raw []byte) error { return stream.Send(topology.Wrap(raw)) }
}
