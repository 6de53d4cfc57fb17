// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/topology"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type topologyService struct {
	*API
	dispatchv1connect.UnimplementedTopologyServiceHandler
}

// keepEvents is for how many events a watcher keeps room between two batches.
const keepEvents = 4

type watchStream = connect.ServerStream[dispatchv1.WatchTopologyResponse]

func (t topologyService) WatchTopology(ctx context.Context, req *dispatchv1.WatchTopologyRequest, stream *watchStream) error {
	me := callerOf(ctx)
	r := topology.Request{Node: me.id, Site: me.standing.Site, Epoch: req.GetEpoch(), RV: req.GetRv(), Lazy: req.GetLazy()}
	for _, text := range req.GetInterests() {
		id, err := identity.ParsePeerID(text)
		if err != nil {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("interests: %w", err))
		}
		r.Interests = append(r.Interests, id)
	}
	var w *topology.Watch
	var err error
	offStack(func() {
		if w, err = t.cfg.Feed.Start(ctx, r); err == nil {
			t.witness(ctx, me.id, req.GetCheckpoint())
		}
	})
	if errors.Is(err, topology.ErrInterests) {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	if err != nil {
		return wireError(ctx, t.log, "watch topology", err)
	}
	defer w.Close()
	send := sender(ctx, stream)
	if err := t.catchUp(me.standing.Site, me.hold, w, stream, send); err != nil {
		return err
	}
	tick := time.NewTicker(t.cfg.BookmarkEvery)
	defer tick.Stop()
	var buf []topology.Event
	for {
		events, err := w.Next(ctx, buf, tick.C)
		switch {
		case errors.Is(err, topology.ErrLagged):
			return fail(connect.CodeAborted, dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "too far behind", "come back with what you have")
		case err != nil:
			return ended(ctx)
		case len(events) == 0:
			err = stream.Send(&topology.Message{Event: &dispatchv1.WatchTopologyResponse_Bookmark{
				Bookmark: &dispatchv1.Bookmark{Rv: w.Sent(), ServerTime: time.Now().UnixMicro(), Checkpoint: t.checkpoint()},
			}})
		default:
			err = sendAll(me.hold, send, events)
			if buf = events[:0]; cap(buf) > keepEvents {
				buf = nil // one burst would be held for as long as the stream lives
			}
		}
		if err != nil {
			return err
		}
	}
}

// catchUp sends the snapshot where there is one, Synced, what changed since, and
// who is online of those that a watcher of the site mine hears of.
func (t topologyService) catchUp(mine string, hold func(bool), w *topology.Watch, stream *watchStream, send func([]byte) error) error {
	for _, c := range w.Chunks {
		if err := send(c); err != nil {
			return err
		}
	}
	_, epoch := t.cfg.MeshKey()
	err := stream.Send(&topology.Message{Event: &dispatchv1.WatchTopologyResponse_Synced{Synced: &dispatchv1.Synced{
		Epoch: t.store.Meta().Epoch, Rv: w.RV, PolicyVersion: w.State.Policy, Snapshot: w.Snapshot, Lazy: w.Lazy, PskEpoch: epoch,
	}}})
	if err != nil {
		return err
	}
	if err := sendAll(hold, send, w.Backlog); err != nil {
		return err
	}
	w.Chunks, w.Backlog = nil, nil
	// After the watch was begun, so that no change falls between.
	var online []topology.Event
	if !w.Lazy {
		type peer struct {
			id       identity.PeerID
			instance uint64
		}
		var peers []peer
		// Encoded only afterwards: whoever comes or goes waits meanwhile.
		t.cfg.Registry.Online(mine, func(id identity.PeerID, instance uint64) { peers = append(peers, peer{id, instance}) })
		for _, p := range peers {
			online = append(online, topology.EncodePresence(p.id, mine, true, p.instance))
		}
	}
	for _, id := range w.Interested() {
		if site, instance, ok := t.cfg.Registry.Lookup(id); ok && (w.Lazy || site != mine) {
			online = append(online, topology.EncodePresence(id, site, true, instance))
		}
	}
	return sendAll(hold, send, online)
}

// ResolvePeer finds one node and lets the caller's watch follow it.
func (t topologyService) ResolvePeer(ctx context.Context, req *dispatchv1.ResolvePeerRequest) (*dispatchv1.ResolvePeerResponse, error) {
	var n store.Node
	var err error
	switch by := req.GetBy().(type) {
	case *dispatchv1.ResolvePeerRequest_VirtualIp:
		a, perr := netip.ParseAddr(by.VirtualIp)
		if perr != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("virtual_ip is not an address"))
		}
		n, err = t.store.NodeByAddr(ctx, a)
	case *dispatchv1.ResolvePeerRequest_Name:
		n, err = t.store.NodeByName(ctx, by.Name)
	case *dispatchv1.ResolvePeerRequest_NodeId:
		id, perr := identity.ParsePeerID(by.NodeId)
		if perr != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("node_id is not a PeerID"))
		}
		n, err = t.store.NodeByID(ctx, id)
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("virtual_ip, name or node_id is missing"))
	}
	if err == nil && !n.Visible() {
		err = fmt.Errorf("node: %w", store.ErrNotFound)
	}
	if err != nil {
		return nil, wireError(ctx, t.log, "resolve peer", err)
	}
	if err := t.cfg.Feed.Follow(callerOf(ctx).id, n.ID); err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	res := &dispatchv1.ResolvePeerResponse{Peer: topology.Peer(&n)}
	_, res.Instance, res.Online = t.cfg.Registry.Lookup(n.ID)
	return res, nil
}

// sendAll sends events and flushes them together.
func sendAll(hold func(bool), send func([]byte) error, events []topology.Event) error {
	for i, e := range events {
		hold(i < len(events)-1)
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
