// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Limits of a token.
const (
	DefaultTTL = 24 * time.Hour
	maxTTL     = 365 * 24 * time.Hour
	maxUses    = 100_000
	maxTags    = 32
)

// TokenSpec is what a token is to be. Uses 0 means 1.
type TokenSpec struct {
	Uses          uint32
	TTL           time.Duration
	Tags          []string
	Site          string
	Ephemeral     bool
	NeedsApproval bool
	RequireCSR    bool
	Note          string
}

func (f fleet) CreateToken(ctx context.Context, req *dispatchv1.CreateTokenRequest) (*dispatchv1.CreateTokenResponse, error) {
	ttl := DefaultTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	tok, k, err := f.NewToken(ctx, TokenSpec{
		Uses: req.GetUses(), TTL: ttl, Tags: req.GetTags(), Site: req.GetSite(), Ephemeral: req.GetEphemeral(),
		NeedsApproval: req.GetNeedsApproval(), RequireCSR: req.GetRequireCsr(), Note: req.GetNote(),
	})
	if err != nil {
		return nil, err
	}
	return &dispatchv1.CreateTokenResponse{
		Token: tok.String(), Id: k.ID, Expires: timestamppb.New(k.Expires), Uses: k.MaxUses, Tags: k.Tags, JoinUrl: f.cfg.URL(),
	}, nil
}

// NewToken makes and stores a join token; it is the only place that does. The
// token with its secret is in the answer only.
func (a *API) NewToken(ctx context.Context, spec TokenSpec) (identity.Token, store.Token, error) {
	bad := func(err error) (identity.Token, store.Token, error) { return identity.Token{}, store.Token{}, err }
	if spec.Uses == 0 {
		spec.Uses = 1
	}
	if spec.Uses > maxUses {
		return bad(invalid("uses: want at most %d", maxUses))
	}
	if spec.TTL <= 0 || spec.TTL > maxTTL {
		return bad(invalid("ttl: want more than 0 and at most %v", maxTTL))
	}
	if len(spec.Note) > maxNote || !utf8.ValidString(spec.Note) {
		return bad(invalid("note: want at most %d bytes of text", maxNote))
	}
	tags, err := checkTags(spec.Tags)
	if err != nil {
		return bad(err)
	}
	if err := checkSite(spec.Site); err != nil {
		return bad(err)
	}
	tok, err := identity.NewToken(a.cfg.CA.Pin(), a.cfg.CA.MeshID)
	if err != nil {
		return bad(wireError(ctx, a.log, "create token", err))
	}
	k := store.Token{
		ID: tok.ID, SecretHash: tok.SecretHash(), MaxUses: spec.Uses, Expires: time.Now().Add(spec.TTL).Truncate(time.Microsecond),
		Tags: tags, Site: spec.Site, Ephemeral: spec.Ephemeral, NeedsApproval: spec.NeedsApproval, RequireCSR: spec.RequireCSR,
		Note: spec.Note,
	}
	if err := a.store.CreateToken(ctx, k); err != nil {
		return bad(wireError(ctx, a.log, "create token", err))
	}
	a.log.InfoContext(ctx, "token created", "token_id", k.ID, "uses", k.MaxUses, "expires", k.Expires, "tags", tags, "by", store.ActorOf(ctx))
	return tok, k, nil
}

// checkTags returns tags sorted and without repetition.
func checkTags(tags []string) ([]string, error) {
	tags = slices.Compact(slices.Sorted(slices.Values(tags)))
	if len(tags) > maxTags {
		return nil, invalid("tags: want at most %d", maxTags)
	}
	for _, t := range tags {
		if !identity.ValidName(t) {
			return nil, invalid("tag %q: use lower-case letters, digits and hyphens, at most 63", t)
		}
	}
	return tags, nil
}

func checkSite(site string) error {
	if site != "" && !identity.ValidName(site) {
		return invalid("site %q: use lower-case letters, digits and hyphens, at most 63", site)
	}
	return nil
}

func (f fleet) ListTokens(ctx context.Context, req *dispatchv1.ListTokensRequest) (*dispatchv1.ListTokensResponse, error) {
	tokens, err := f.store.ListTokens(ctx)
	if err != nil {
		return nil, wireError(ctx, f.log, "list tokens", err)
	}
	res := &dispatchv1.ListTokensResponse{}
	for _, k := range tokens {
		if !req.GetAll() && (k.Revoked || k.Uses >= k.MaxUses || time.Now().After(k.Expires)) {
			continue
		}
		res.Tokens = append(res.Tokens, &dispatchv1.JoinToken{
			Id: k.ID, Uses: k.Uses, MaxUses: k.MaxUses, Created: timestamppb.New(k.Created), Expires: timestamppb.New(k.Expires),
			Tags: k.Tags, Site: k.Site, Ephemeral: k.Ephemeral, NeedsApproval: k.NeedsApproval, RequireCsr: k.RequireCSR,
			Revoked: k.Revoked, CreatedBy: k.CreatedBy, Note: k.Note,
		})
	}
	return res, nil
}

func (f fleet) RevokeToken(ctx context.Context, req *dispatchv1.RevokeTokenRequest) (*dispatchv1.RevokeTokenResponse, error) {
	if err := f.store.RevokeToken(ctx, req.GetId()); err != nil {
		return nil, wireError(ctx, f.log, "revoke token", err)
	}
	f.log.InfoContext(ctx, "token revoked", "token_id", req.GetId(), "by", store.ActorOf(ctx))
	return &dispatchv1.RevokeTokenResponse{}, nil
}
