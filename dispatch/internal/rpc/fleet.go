// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// Limits of a token.
const (
	DefaultTTL = 24 * time.Hour
	maxTTL     = 365 * 24 * time.Hour
	maxUses    = 100_000
	maxTags    = 32
)

type fleet struct {
	*API
	dispatchv1connect.UnimplementedFleetServiceHandler
}

func (f fleet) CreateToken(ctx context.Context, req *dispatchv1.CreateTokenRequest) (*dispatchv1.CreateTokenResponse, error) {
	ttl := DefaultTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	tok, k, err := f.NewToken(ctx, req.GetUses(), ttl, req.GetTags(), "unix-socket")
	if err != nil {
		return nil, err
	}
	return &dispatchv1.CreateTokenResponse{
		Token: tok.String(), Id: k.ID, Expires: timestamppb.New(k.Expires), Uses: k.MaxUses, Tags: k.Tags, JoinUrl: f.cfg.URL(),
	}, nil
}

// NewToken makes and stores a join token; it is the only place that does. uses 0
// means 1. The token with its secret is in the answer only.
func (a *API) NewToken(ctx context.Context, uses uint32, ttl time.Duration, tags []string, by string) (identity.Token, store.Token, error) {
	bad := func(format string, args ...any) (identity.Token, store.Token, error) {
		return identity.Token{}, store.Token{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
	}
	if uses == 0 {
		uses = 1
	}
	if uses > maxUses {
		return bad("uses: want at most %d", maxUses)
	}
	if ttl <= 0 || ttl > maxTTL {
		return bad("ttl: want more than 0 and at most %v", maxTTL)
	}
	tags = slices.Compact(slices.Sorted(slices.Values(tags)))
	if len(tags) > maxTags {
		return bad("tags: want at most %d", maxTags)
	}
	for _, t := range tags {
		if !identity.ValidName(t) {
			return bad("tag %q: use lower-case letters, digits and hyphens, at most 63", t)
		}
	}
	tok, err := identity.NewToken(a.cfg.CA.Pin(), a.cfg.CA.MeshID)
	if err != nil {
		return identity.Token{}, store.Token{}, wireError(ctx, a.log, "create token", err)
	}
	k := store.Token{
		ID: tok.ID, SecretHash: tok.SecretHash(), MaxUses: uses, Expires: time.Now().Add(ttl).Truncate(time.Microsecond),
		Tags: tags, CreatedBy: by,
	}
	if err := a.store.CreateToken(ctx, k); err != nil {
		return identity.Token{}, store.Token{}, wireError(ctx, a.log, "create token", err)
	}
	a.log.InfoContext(ctx, "token created", "token_id", k.ID, "uses", uses, "expires", k.Expires, "tags", tags, "by", by)
	return tok, k, nil
}

func (f fleet) ListNodes(ctx context.Context, _ *dispatchv1.ListNodesRequest) (*dispatchv1.ListNodesResponse, error) {
	nodes, err := f.store.ListNodes(ctx)
	if err != nil {
		return nil, wireError(ctx, f.log, "list nodes", err)
	}
	online := make(map[identity.PeerID]bool)
	f.cfg.Registry.Online(func(id identity.PeerID, _ uint64) { online[id] = true })
	res := &dispatchv1.ListNodesResponse{}
	for _, n := range nodes {
		res.Nodes = append(res.Nodes, &dispatchv1.Node{
			NodeId: n.ID.String(), Name: n.Name, VirtualIp: n.Virtual4.String(), VirtualIp6: n.Virtual6.String(),
			Tags: n.Tags, Online: online[n.ID], Created: timestamppb.New(n.Created),
			CertificateExpires: timestamppb.New(n.CertExpires),
			Facts: &dispatchv1.NodeFacts{
				Hostname: n.Facts.Hostname, Os: n.Facts.OS, Arch: n.Facts.Arch, Version: n.Facts.Version,
			},
		})
	}
	return res, nil
}
