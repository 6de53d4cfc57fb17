// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// Lifetimes.
const (
	OwnerLinkTTL  = 24 * time.Hour
	defaultKeyTTL = 90 * 24 * time.Hour
	maxKeyTTL     = 366 * 24 * time.Hour
)

const (
	maxNote   = 200
	claimMark = "claim="
)

type accessService struct {
	*API
	dispatchv1connect.UnimplementedAccessServiceHandler
}

// errNoAdminPort is why there is no link.
var errNoAdminPort = errors.New("the hub has no admin port that a link could lead to")

// grantor is the caller as the store judges him.
func grantor(ctx context.Context) store.Grantor {
	c := callerOf(ctx)
	return store.Grantor{User: c.user, Role: c.role, Scopes: c.scopes}
}

// accessError is wireError for what only this service returns.
func (s accessService) accessError(ctx context.Context, what string, err error) error {
	denied, unspecified := connect.CodePermissionDenied, dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	switch {
	case errors.Is(err, authz.ErrExceeds):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED, what+": "+err.Error(), "ask an owner to do it")
	case errors.Is(err, store.ErrLinkInvalid):
		return fail(denied, dispatchv1.ErrorReason_ERROR_REASON_KEY_INVALID, "owner link refused", "make a new one on the hub's machine: bauxite-dispatch user link")
	case errors.Is(err, errNoAdminPort):
		return fail(connect.CodeFailedPrecondition, unspecified, err.Error(), "start the hub with --admin-listen, or make users and keys here: user create, key create")
	case errors.Is(err, store.ErrLastOwner):
		return fail(connect.CodeFailedPrecondition, unspecified, what+": "+err.Error(), "make another owner first")
	case errors.Is(err, store.ErrConflict):
		return fail(connect.CodeAborted, dispatchv1.ErrorReason_ERROR_REASON_CONFLICT, what+": "+err.Error(), "list the users again and repeat with the version that you see")
	case errors.Is(err, store.ErrNameTaken):
		return fail(connect.CodeAlreadyExists, dispatchv1.ErrorReason_ERROR_REASON_NAME_INVALID, what+": "+err.Error(), "choose another name")
	case errors.Is(err, store.ErrTooMany):
		return fail(connect.CodeResourceExhausted, unspecified, what+": "+err.Error(), "delete what nobody uses")
	}
	return wireError(ctx, s.log, what, err)
}

func invalid(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

func checkUserName(name string) error {
	if !identity.ValidName(name) {
		return invalid("user name %.70q: use lower-case letters, digits and hyphens, at most 63", name)
	}
	return nil
}

func (s accessService) ClaimOwner(ctx context.Context, req *dispatchv1.ClaimOwnerRequest) (*dispatchv1.ClaimOwnerResponse, error) {
	ip := callerOf(ctx).ip
	if err := s.keys.mayTry(ip); err != nil {
		return nil, err
	}
	if err := checkUserName(req.GetName()); err != nil {
		return nil, err
	}
	// The whole part of the link after "#" is taken as well, so that nobody has to
	// cut it right.
	secret, _, _ := strings.Cut(strings.TrimPrefix(req.GetSecret(), claimMark), ".")
	if !authz.ValidSecret(secret) {
		s.keys.failed(ip)
		return nil, s.accessError(ctx, "claim owner link", store.ErrLinkInvalid)
	}
	key, row, err := newKey(req.GetName(), nil, defaultKeyTTL, "made with the owner link")
	if err != nil {
		return nil, s.accessError(ctx, "claim owner link", err)
	}
	u, err := s.store.ClaimOwner(store.WithActor(ctx, "user:"+req.GetName()), authz.HashSecret(secret), row)
	if err != nil {
		if errors.Is(err, store.ErrLinkInvalid) {
			s.keys.failed(ip)
		}
		s.log.WarnContext(ctx, "owner link refused", "from", ip.String(), "name", req.GetName(), "err", err)
		return nil, s.accessError(ctx, "claim owner link", err)
	}
	s.log.WarnContext(ctx, "owner link claimed", "from", ip.String(), "name", u.Name, "key", row.ID)
	return &dispatchv1.ClaimOwnerResponse{User: userMessage(u), Key: key.String()}, nil
}

// newKey makes a key with its secret and what is stored of it.
func newKey(user string, scopes []authz.Permission, ttl time.Duration, note string) (authz.Key, store.APIKey, error) {
	k, err := authz.NewKey()
	if err != nil {
		return k, store.APIKey{}, err
	}
	now := time.Now().Truncate(time.Microsecond)
	return k, store.APIKey{
		ID: k.ID, User: user, SecretHash: k.Hash(), Scopes: scopes, Note: note, Created: now, Expires: now.Add(ttl),
	}, nil
}

func (s accessService) CreateOwnerLink(ctx context.Context, _ *dispatchv1.CreateOwnerLinkRequest) (*dispatchv1.CreateOwnerLinkResponse, error) {
	link, expires, err := s.NewOwnerLink(ctx)
	if err != nil {
		return nil, s.accessError(ctx, "create owner link", err)
	}
	return &dispatchv1.CreateOwnerLinkResponse{Link: link, Expires: timestamppb.New(expires)}, nil
}

// NewOwnerLink makes a one-time link "https://HOST:PORT/#claim=<secret>[.<pin>]",
// whose bearer becomes an owner. The pin is that of the root above the admin
// port's certificate, so that who has the link knows the hub. The link is a
// secret.
func (a *API) NewOwnerLink(ctx context.Context) (link string, expires time.Time, err error) {
	base := a.cfg.AdminURL()
	if base == "" {
		return "", time.Time{}, errNoAdminPort
	}
	secret, err := authz.NewSecret()
	if err != nil {
		return "", time.Time{}, err
	}
	expires = time.Now().Add(OwnerLinkTTL).Truncate(time.Microsecond)
	if err := a.store.CreateOwnerLink(ctx, authz.HashSecret(secret), expires); err != nil {
		return "", time.Time{}, err
	}
	a.log.InfoContext(ctx, "owner link created", "expires", expires)
	if a.cfg.AdminPin != "" {
		secret += "." + a.cfg.AdminPin
	}
	// Behind "#", so that no browser sends it to a server before the page asks.
	return base + "/#" + claimMark + secret, expires, nil
}

// FirstOwnerLink makes a link where there is neither a user nor was ever a link;
// it returns "" otherwise.
func (a *API) FirstOwnerLink(ctx context.Context) (string, error) {
	need, err := a.store.OwnerLinkNeeded(ctx)
	if err != nil || !need {
		return "", err
	}
	link, _, err := a.NewOwnerLink(ctx)
	return link, err
}

func (s accessService) WhoAmI(ctx context.Context, _ *dispatchv1.WhoAmIRequest) (*dispatchv1.WhoAmIResponse, error) {
	c := callerOf(ctx)
	res := &dispatchv1.WhoAmIResponse{Actor: c.actor(), Role: string(c.role)}
	role := c.role
	if c.class == socket {
		role = authz.Owner
		res.Role = string(role)
	}
	for _, p := range authz.Permissions(role, c.scopes) {
		res.Permissions = append(res.Permissions, string(p))
	}
	return res, nil
}

func (s accessService) CreateUser(ctx context.Context, req *dispatchv1.CreateUserRequest) (*dispatchv1.CreateUserResponse, error) {
	if err := checkUserName(req.GetName()); err != nil {
		return nil, err
	}
	role, err := authz.ParseRole(req.GetRole())
	if err != nil {
		return nil, invalid("%w", err)
	}
	u, err := s.store.CreateUser(ctx, grantor(ctx), req.GetName(), role)
	if err != nil {
		return nil, s.accessError(ctx, "create user", err)
	}
	return &dispatchv1.CreateUserResponse{User: userMessage(u)}, nil
}

func (s accessService) ListUsers(ctx context.Context, _ *dispatchv1.ListUsersRequest) (*dispatchv1.ListUsersResponse, error) {
	users, err := s.store.Users(ctx)
	if err != nil {
		return nil, s.accessError(ctx, "list users", err)
	}
	res := &dispatchv1.ListUsersResponse{}
	for _, u := range users {
		res.Users = append(res.Users, userMessage(u))
	}
	return res, nil
}

func (s accessService) SetUserRole(ctx context.Context, req *dispatchv1.SetUserRoleRequest) (*dispatchv1.SetUserRoleResponse, error) {
	role, err := authz.ParseRole(req.GetRole())
	if err != nil {
		return nil, invalid("%w", err)
	}
	u, err := s.store.SetUserRole(ctx, grantor(ctx), req.GetName(), role, req.GetVersion())
	if err != nil {
		return nil, s.accessError(ctx, "change role", err)
	}
	// What he watches may be more than he may see now. He may call again.
	s.gate.cutUser(u.Name)
	return &dispatchv1.SetUserRoleResponse{User: userMessage(u)}, nil
}

func (s accessService) DeleteUser(ctx context.Context, req *dispatchv1.DeleteUserRequest) (*dispatchv1.DeleteUserResponse, error) {
	if err := s.store.DeleteUser(ctx, grantor(ctx), req.GetName(), req.GetVersion()); err != nil {
		return nil, s.accessError(ctx, "delete user", err)
	}
	s.gate.cutUser(req.GetName())
	return &dispatchv1.DeleteUserResponse{}, nil
}

func (s accessService) CreateKey(ctx context.Context, req *dispatchv1.CreateKeyRequest) (*dispatchv1.CreateKeyResponse, error) {
	name := req.GetUser()
	if name == "" {
		name = callerOf(ctx).user
	}
	if name == "" {
		return nil, invalid("user: the socket belongs to no user, name one")
	}
	scopes, err := authz.ParseScopes(req.GetScopes())
	if err != nil {
		return nil, invalid("%w", err)
	}
	ttl := defaultKeyTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	if ttl <= 0 || ttl > maxKeyTTL {
		return nil, invalid("ttl: want more than 0 and at most a year")
	}
	if n := req.GetNote(); len(n) > maxNote || !utf8.ValidString(n) {
		return nil, invalid("note: want at most %d bytes of text", maxNote)
	}
	key, row, err := newKey(name, scopes, ttl, req.GetNote())
	if err == nil {
		err = s.store.CreateAPIKey(ctx, grantor(ctx), row)
	}
	if err != nil {
		return nil, s.accessError(ctx, "create key", err)
	}
	return &dispatchv1.CreateKeyResponse{Key: key.String(), Info: s.keyMessage(row)}, nil
}

func (s accessService) ListKeys(ctx context.Context, req *dispatchv1.ListKeysRequest) (*dispatchv1.ListKeysResponse, error) {
	c, name := callerOf(ctx), req.GetUser()
	if !c.can(authz.UsersRead) {
		if name == "" {
			name = c.user
		}
		if name != c.user {
			return nil, s.accessError(ctx, "list keys of others", authz.ErrExceeds)
		}
	}
	keys, err := s.store.APIKeys(ctx, name)
	if err != nil {
		return nil, s.accessError(ctx, "list keys", err)
	}
	res := &dispatchv1.ListKeysResponse{}
	for _, k := range keys {
		res.Keys = append(res.Keys, s.keyMessage(k))
	}
	return res, nil
}

func (s accessService) RevokeKey(ctx context.Context, req *dispatchv1.RevokeKeyRequest) (*dispatchv1.RevokeKeyResponse, error) {
	if !authz.ValidKeyID(req.GetId()) {
		return nil, invalid("id: want the 16 characters that key list shows")
	}
	if _, err := s.store.RevokeAPIKey(ctx, grantor(ctx), req.GetId()); err != nil {
		return nil, s.accessError(ctx, "revoke key", err)
	}
	s.gate.cutKey(req.GetId())
	return &dispatchv1.RevokeKeyResponse{}, nil
}

func userMessage(u store.User) *dispatchv1.User {
	return &dispatchv1.User{
		Name: u.Name, Role: string(u.Role), Version: u.Version, Created: timestamppb.New(u.Created), Keys: uint32(u.Keys),
	}
}

func (s accessService) keyMessage(k store.APIKey) *dispatchv1.APIKey {
	m := &dispatchv1.APIKey{
		Id: k.ID, User: k.User, Created: timestamppb.New(k.Created), Expires: timestamppb.New(k.Expires),
		Revoked: k.Revoked, Note: k.Note,
	}
	for _, p := range k.Scopes {
		m.Scopes = append(m.Scopes, string(p))
	}
	last := k.LastUsed
	if t := s.keys.lastUse(k.ID); t.After(last) {
		last = t
	}
	if !last.IsZero() {
		m.LastUsed = timestamppb.New(last)
	}
	return m
}
