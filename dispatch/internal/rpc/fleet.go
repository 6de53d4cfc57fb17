// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/topology"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type fleet struct {
	*API
	dispatchv1connect.UnimplementedFleetServiceHandler
}

// find returns the node that a person means.
func (a *API) find(ctx context.Context, text string) (store.Node, error) {
	if text == "" {
		return store.Node{}, invalid("node is missing")
	}
	n, err := a.store.FindNode(ctx, text)
	if err != nil {
		return n, wireError(ctx, a.log, "find node", err)
	}
	return n, nil
}

func (a *API) nodeProto(n *store.Node) *dispatchv1.Node {
	_, _, online := a.cfg.Registry.Lookup(n.ID)
	out := &dispatchv1.Node{
		NodeId: n.ID.String(), Name: n.Name, VirtualIp: n.Virtual4.String(), VirtualIp6: n.Virtual6.String(),
		Tags: n.Tags, Online: online, Created: timestamppb.New(n.Created), State: string(n.State), Site: n.Site,
		Version: n.Version, Ephemeral: n.Ephemeral, Generation: n.Generation, KeyOrigin: "node", TokenId: n.TokenID,
		ApprovedBy: n.ApprovedBy,
		Facts: &dispatchv1.NodeFacts{
			Hostname: n.Facts.Hostname, Os: n.Facts.OS, Arch: n.Facts.Arch, Version: n.Facts.Version,
		},
	}
	if n.ServerKey {
		out.KeyOrigin = "server"
	}
	if n.CertExpires.Unix() > 0 {
		out.CertificateExpires = timestamppb.New(n.CertExpires)
	}
	return out
}

func (f fleet) ListNodes(ctx context.Context, req *dispatchv1.ListNodesRequest) (*dispatchv1.ListNodesResponse, error) {
	for _, s := range req.GetStates() {
		switch store.NodeState(s) {
		case store.Pending, store.Active, store.Locked, store.Revoked:
		default:
			return nil, invalid("state %q: want pending, active, locked or revoked", s)
		}
	}
	nodes, err := f.store.ListNodes(ctx)
	if err != nil {
		return nil, wireError(ctx, f.log, "list nodes", err)
	}
	res := &dispatchv1.ListNodesResponse{}
	for i := range nodes {
		n := &nodes[i]
		switch {
		case len(req.GetStates()) > 0 && !slices.Contains(req.GetStates(), string(n.State)),
			len(req.GetStates()) == 0 && n.State == store.Revoked,
			req.GetSite() != "" && n.Site != req.GetSite(),
			req.GetTag() != "" && !slices.Contains(n.Tags, req.GetTag()):
			continue
		}
		res.Nodes = append(res.Nodes, f.nodeProto(n))
	}
	return res, nil
}

func (f fleet) GetNode(ctx context.Context, req *dispatchv1.GetNodeRequest) (*dispatchv1.GetNodeResponse, error) {
	n, err := f.find(ctx, req.GetNode())
	if err != nil {
		return nil, err
	}
	certs, err := f.store.Certs(ctx, n.ID)
	if err != nil {
		return nil, wireError(ctx, f.log, "get node", err)
	}
	if len(certs) > 0 {
		n.CertExpires = certs[0].NotAfter
	}
	res := &dispatchv1.GetNodeResponse{Node: f.nodeProto(&n)}
	for _, c := range certs {
		res.Certificates = append(res.Certificates, &dispatchv1.Certificate{
			Serial: c.Serial, NotAfter: timestamppb.New(c.NotAfter), Revoked: c.Revoked, Reason: c.Reason,
		})
	}
	return res, nil
}

func (f fleet) ApproveNode(ctx context.Context, req *dispatchv1.ApproveNodeRequest) (*dispatchv1.ApproveNodeResponse, error) {
	n, err := f.find(ctx, req.GetNode())
	if err != nil {
		return nil, err
	}
	if n, err = f.store.Approve(ctx, n.ID); err != nil {
		return nil, wireError(ctx, f.log, "approve node", err)
	}
	f.log.InfoContext(ctx, "node approved", "node", n.ID.Short(), "name", n.Name, "by", store.ActorOf(ctx))
	return &dispatchv1.ApproveNodeResponse{Node: f.nodeProto(&n)}, nil
}

// maxReason bounds the text of a reason, in bytes.
const maxReason = 256

func (f fleet) RevokeNode(ctx context.Context, req *dispatchv1.RevokeNodeRequest) (*dispatchv1.RevokeNodeResponse, error) {
	reason := req.GetReason()
	if len(reason) > maxReason {
		return nil, invalid("reason: want at most %d bytes", maxReason)
	}
	var id identity.PeerID
	var err error
	switch s := req.GetSubject().(type) {
	case *dispatchv1.RevokeNodeRequest_Node:
		n, err := f.find(ctx, s.Node)
		if err != nil {
			return nil, err
		}
		if err := f.Revoke(ctx, n.ID, reason); err != nil {
			return nil, wireError(ctx, f.log, "revoke node", err)
		}
		return &dispatchv1.RevokeNodeResponse{}, nil
	case *dispatchv1.RevokeNodeRequest_Ed25519PublicKey:
		if len(s.Ed25519PublicKey) != 32 {
			return nil, invalid("ed25519_public_key: want 32 bytes")
		}
		id, err = f.store.RevokeNodeKey(ctx, s.Ed25519PublicKey, reason)
	case *dispatchv1.RevokeNodeRequest_Serial:
		id, err = f.store.RevokeSerial(ctx, s.Serial, reason)
	default:
		return nil, invalid("node, ed25519_public_key or serial is missing")
	}
	if err != nil {
		return nil, wireError(ctx, f.log, "revoke", err)
	}
	if !id.IsZero() {
		f.dropped(id)
	}
	f.log.InfoContext(ctx, "credential revoked", "node", id.Short(), "reason", reason)
	return &dispatchv1.RevokeNodeResponse{}, nil
}

func (f fleet) DeleteNode(ctx context.Context, req *dispatchv1.DeleteNodeRequest) (*dispatchv1.DeleteNodeResponse, error) {
	n, err := f.find(ctx, req.GetNode())
	if err != nil {
		return nil, err
	}
	if err := f.remove(ctx, n.ID, "delete"); err != nil {
		return nil, wireError(ctx, f.log, "delete node", err)
	}
	return &dispatchv1.DeleteNodeResponse{}, nil
}

func (f fleet) UpdateNode(ctx context.Context, req *dispatchv1.UpdateNodeRequest) (*dispatchv1.UpdateNodeResponse, error) {
	e := store.Edit{Version: req.GetVersion()}
	for _, path := range req.GetUpdateMask().GetPaths() {
		switch path {
		case "name":
			if !identity.ValidName(req.GetName()) {
				return nil, fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_NAME_INVALID,
					"name is not a DNS label", "use lower-case letters, digits and hyphens, at most 63")
			}
			e.Name = &req.Name
		case "tags":
			tags, err := checkTags(req.GetTags())
			if err != nil {
				return nil, err
			}
			e.Tags = &tags
		case "site":
			if err := checkSite(req.GetSite()); err != nil {
				return nil, err
			}
			e.Site = &req.Site
		default:
			return nil, invalid("update_mask: %q: want name, tags or site", path)
		}
	}
	if len(req.GetUpdateMask().GetPaths()) == 0 {
		return nil, invalid("update_mask is empty")
	}
	was, err := f.find(ctx, req.GetNode())
	if err != nil {
		return nil, err
	}
	n, err := f.store.Update(ctx, was.ID, e)
	if err != nil {
		return nil, wireError(ctx, f.log, "update node", err)
	}
	if n.Site != was.Site {
		// It comes back at once, into its new scope.
		f.gate.end(subject{node: n.ID}, errMoved)
	}
	return &dispatchv1.UpdateNodeResponse{Node: f.nodeProto(&n)}, nil
}

// watchEvery bounds how often a live view is told, so that a burst is one message.
const watchEvery = 200 * time.Millisecond

func (f fleet) WatchFleet(ctx context.Context, _ *dispatchv1.WatchFleetRequest, stream *connect.ServerStream[dispatchv1.WatchFleetResponse]) error {
	w := f.cfg.Feed.Tap()
	defer w.Close()
	nodes, err := f.store.ListNodes(ctx)
	if err != nil {
		return wireError(ctx, f.log, "watch fleet", err)
	}
	for part := range slices.Chunk(nodes, 500) {
		m := &dispatchv1.WatchFleetResponse{}
		for i := range part {
			m.Upserts = append(m.Upserts, f.nodeProto(&part[i]))
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	if err := stream.Send(&dispatchv1.WatchFleetResponse{Synced: true}); err != nil {
		return err
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		changed := make(map[identity.PeerID]struct{})
		for until := time.Now().Add(watchEvery); len(changed) == 0 || time.Now().Before(until); {
			events, err := w.Next(ctx, nil, tick.C)
			if errors.Is(err, topology.ErrLagged) {
				return fail(connect.CodeAborted, dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "too far behind", "begin anew")
			}
			if err != nil {
				return ended(ctx)
			}
			for _, e := range events {
				if !e.Node.IsZero() {
					changed[e.Node] = struct{}{}
				}
			}
		}
		m := &dispatchv1.WatchFleetResponse{}
		for id := range maps.Keys(changed) {
			n, err := f.store.NodeByID(ctx, id)
			switch {
			case errors.Is(err, store.ErrNotFound):
				m.Deletes = append(m.Deletes, id.String())
			case err != nil:
				return wireError(ctx, f.log, "watch fleet", err)
			default:
				m.Upserts = append(m.Upserts, f.nodeProto(&n))
			}
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}
