// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func (c gateClient) access() dispatchv1connect.AccessServiceClient {
	return dispatchv1connect.NewAccessServiceClient(c.http, c.base)
}

// reasonOf returns the reason in the detail of an error.
func reasonOf(err error) dispatchv1.ErrorReason {
	info := infoOf(err)
	return info.GetReason()
}

func infoOf(err error) *dispatchv1.ErrorInfo {
	ce := new(connect.Error)
	if !asConnect(err, &ce) {
		return nil
	}
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*dispatchv1.ErrorInfo); ok {
				return info
			}
		}
	}
	return nil
}

func asConnect(err error, to **connect.Error) bool {
	ce, ok := err.(*connect.Error) //nolint:errorlint // clients return it bare
	*to = ce
	return ok
}

func ctxOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// claimSecret makes an owner link and returns the part after "#".
func claimSecret(t *testing.T, h *gateHub) string {
	t.Helper()
	res, err := h.asSocket().access().CreateOwnerLink(ctxOf(t), &dispatchv1.CreateOwnerLinkRequest{})
	if err != nil {
		t.Fatal(err)
	}
	base, secret, ok := strings.Cut(res.GetLink(), "#")
	if !ok || base != "https://hub:8441/" || !strings.HasSuffix(secret, "."+h.ca.Pin()) {
		t.Fatalf("link = %s", res.GetLink())
	}
	if d := time.Until(res.GetExpires().AsTime()); d < 23*time.Hour || d > 24*time.Hour {
		t.Errorf("link is good for %v, want 24 h", d)
	}
	return secret
}

// TestClaimOwner: 200 claims of one link at once make one owner, whose key works.
func TestClaimOwner(t *testing.T) {
	h := newGateHub(t)
	h.keys.burst = 1 << 20
	secret := claimSecret(t, h)
	visitor := h.asKey("").access()
	var wg sync.WaitGroup
	keys := make(chan string, 200)
	ctx := ctxOf(t)
	for i := range cap(keys) {
		wg.Go(func() {
			res, err := visitor.ClaimOwner(ctx, &dispatchv1.ClaimOwnerRequest{Secret: secret, Name: "owner-" + string(rune('a'+i%26)) + strings.Repeat("x", i/26)})
			if err == nil {
				keys <- res.GetKey()
			} else if reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_KEY_INVALID {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(keys)
	if len(keys) != 1 {
		t.Fatalf("%d claims succeeded, want 1", len(keys))
	}
	me, err := h.asKey(<-keys).access().WhoAmI(ctx, &dispatchv1.WhoAmIRequest{})
	if err != nil || me.GetRole() != "owner" || !strings.HasPrefix(me.GetActor(), "user:owner-") || len(me.GetPermissions()) != len(authz.All()) {
		t.Errorf("owner is %v, %v", me, err)
	}
	users, err := h.store.Users(ctx)
	if err != nil || len(users) != 1 {
		t.Errorf("users = %v, %v", users, err)
	}
}

func TestAccess(t *testing.T) {
	h := newGateHub(t)
	ctx := ctxOf(t)
	owner, _ := h.key("alice", authz.Owner, time.Hour)
	admin, _ := h.key("adam", authz.Admin, time.Hour)
	scoped, _ := h.key("alice", authz.Owner, time.Hour, authz.KeysWrite, authz.KeysRead, authz.NodesRead)
	alice, adam := h.asKey(owner).access(), h.asKey(admin).access()
	denied := func(what string, err error) {
		t.Helper()
		if connect.CodeOf(err) != connect.CodePermissionDenied || reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED {
			t.Errorf("%s: %v, want permission denied", what, err)
		}
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	_, err := adam.CreateUser(ctx, &dispatchv1.CreateUserRequest{Name: "eve", Role: "owner"})
	denied("an admin makes an owner", err)
	_, err = adam.SetUserRole(ctx, &dispatchv1.SetUserRoleRequest{Name: "adam", Role: "owner", Version: 1})
	denied("an admin makes himself owner", err)
	_, err = adam.DeleteUser(ctx, &dispatchv1.DeleteUserRequest{Name: "alice", Version: 1})
	denied("an admin deletes an owner", err)
	_, err = adam.CreateKey(ctx, &dispatchv1.CreateKeyRequest{User: "alice"})
	denied("an admin makes an owner's key", err)
	_, err = h.asKey(scoped).access().CreateKey(ctx, &dispatchv1.CreateKeyRequest{})
	denied("a scoped key makes one without scopes", err)
	made, err := h.asKey(scoped).access().CreateKey(ctx, &dispatchv1.CreateKeyRequest{Scopes: []string{"nodes:read"}, Note: "n"})
	must("a scoped key makes a narrower one", err)
	if d := time.Until(made.GetInfo().GetExpires().AsTime()); d < 89*24*time.Hour || d > 90*24*time.Hour {
		t.Errorf("a key is good for %v, want 90 days", d)
	}
	_, err = h.asKey(made.GetKey()).access().ListKeys(ctx, &dispatchv1.ListKeysRequest{})
	denied("a key without keys:read lists keys", err)
	_, err = adam.CreateUser(ctx, &dispatchv1.CreateUserRequest{Name: "victor", Role: "viewer"})
	must("an admin makes a viewer", err)
	viewer, err := adam.CreateKey(ctx, &dispatchv1.CreateKeyRequest{User: "victor", Ttl: durationpb.New(time.Hour)})
	must("an admin makes a viewer's key", err)
	victor := h.asKey(viewer.GetKey()).access()
	mine, err := victor.ListKeys(ctx, &dispatchv1.ListKeysRequest{})
	if err != nil || len(mine.GetKeys()) != 1 || mine.GetKeys()[0].GetUser() != "victor" || mine.GetKeys()[0].GetLastUsed() == nil {
		t.Errorf("a viewer's keys: %v, %v", mine, err)
	}
	_, err = victor.ListKeys(ctx, &dispatchv1.ListKeysRequest{User: "alice"})
	denied("a viewer lists keys of others", err)
	_, err = victor.RevokeKey(ctx, &dispatchv1.RevokeKeyRequest{Id: made.GetInfo().GetId()})
	denied("a viewer revokes another's key", err)
	_, err = alice.DeleteUser(ctx, &dispatchv1.DeleteUserRequest{Name: "alice", Version: 1})
	if connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("the last owner goes: %v", err)
	}
	_, err = alice.SetUserRole(ctx, &dispatchv1.SetUserRoleRequest{Name: "victor", Role: "auditor", Version: 9})
	if connect.CodeOf(err) != connect.CodeAborted || reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_CONFLICT {
		t.Errorf("a stale version: %v", err)
	}
	for what, req := range map[string]func() error{
		"role": func() error {
			return err2(alice.CreateUser(ctx, &dispatchv1.CreateUserRequest{Name: "x", Role: "root"}))
		},
		"name": func() error {
			return err2(alice.CreateUser(ctx, &dispatchv1.CreateUserRequest{Name: "X y", Role: "viewer"}))
		},
		"scope": func() error { return err2(alice.CreateKey(ctx, &dispatchv1.CreateKeyRequest{Scopes: []string{"all"}})) },
		"ttl": func() error {
			return err2(alice.CreateKey(ctx, &dispatchv1.CreateKeyRequest{Ttl: durationpb.New(400 * 24 * time.Hour)}))
		},
		"note": func() error {
			return err2(alice.CreateKey(ctx, &dispatchv1.CreateKeyRequest{Note: strings.Repeat("x", 201)}))
		},
		"id":   func() error { return err2(alice.RevokeKey(ctx, &dispatchv1.RevokeKeyRequest{Id: "../x"})) },
		"user": func() error { return err2(h.asSocket().access().CreateKey(ctx, &dispatchv1.CreateKeyRequest{})) },
	} {
		if err := req(); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("bad %s: %v", what, err)
		}
	}
	// Every change says by whom and with which key.
	log, err := h.store.Audit(ctx, store.AuditFilter{Limit: 100, Actor: "user:adam/"})
	if err != nil || len(log) != 2 {
		t.Errorf("audit log of adam: %v, %v", log, err)
	}
}

func err2[T any](_ T, err error) error { return err }

// TestStreamsAreCut: a stream ends with the right to it, within a moment.
func TestStreamsAreCut(t *testing.T) {
	h := newGateHub(t)
	socket := h.asSocket().access()
	for name, cut := range map[string]func(ctx context.Context, keyID string) error{
		"revoked key": func(ctx context.Context, id string) error {
			return err2(socket.RevokeKey(ctx, &dispatchv1.RevokeKeyRequest{Id: id}))
		},
		"deleted user": func(ctx context.Context, _ string) error {
			return err2(socket.DeleteUser(ctx, &dispatchv1.DeleteUserRequest{Name: "deleted-user", Version: 1}))
		},
		"lowered role": func(ctx context.Context, _ string) error {
			return err2(socket.SetUserRole(ctx, &dispatchv1.SetUserRoleRequest{Name: "lowered-role", Role: "viewer", Version: 1}))
		},
		"expired key": func(context.Context, string) error { return nil }, // good for two seconds
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			ctx := ctxOf(t)
			life := time.Hour
			if name == "expired key" {
				life = 2 * time.Second
			}
			text, id := h.key(strings.ReplaceAll(name, " ", "-"), authz.Auditor, life)
			c := h.asKey(text)
			// There are old entries, so the stream says at once that it is open.
			s, err := dispatchv1connect.NewAuditServiceClient(c.http, c.base).TailAuditEntries(ctx, &dispatchv1.TailAuditEntriesRequest{Last: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if !s.Receive() {
				t.Fatal(s.Err())
			}
			if err := cut(ctx, id); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			for s.Receive() { // what was on its way
			}
			if err := s.Err(); connect.CodeOf(err) != connect.CodeUnauthenticated || reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_KEY_INVALID {
				t.Errorf("the stream ended with %v", err)
			}
			if d := time.Since(begin); name != "expired key" && d > time.Second {
				t.Errorf("the stream lived on for %v", d)
			}
			h.gate.mu.Lock()
			defer h.gate.mu.Unlock()
			if n := len(h.gate.live); n != 0 {
				t.Errorf("%d streams are still known", n)
			}
		})
	}
}

// TestStreamRechecks: a key that was revoked between the request and the moment
// from which its streams are known does not slip through.
func TestStreamRechecks(t *testing.T) {
	h := newGateHub(t)
	text, id := h.key("alice", authz.Owner, time.Hour)
	k, err := authz.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	c := caller{class: user, key: id}
	if err := h.keys.load(t.Context(), &c, k.Match); err != nil {
		t.Fatal(err)
	}
	if _, err := h.store.RevokeAPIKey(t.Context(), store.Grantor{}, id); err != nil {
		t.Fatal(err)
	}
	_, err = h.gate.enter(withCaller(t.Context(), &c), dispatchv1connect.AuditServiceTailAuditEntriesProcedure, true)
	if reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_KEY_INVALID {
		t.Errorf("a stream of a revoked key: %v", err)
	}
}

// TestFailuresAreLimited: who fails too often is refused before the database is
// asked, and only he.
func TestFailuresAreLimited(t *testing.T) {
	h := newGateHub(t)
	now := time.Now()
	h.keys.now = func() time.Time { return now }
	good, _ := h.key("alice", authz.Owner, 24*time.Hour)
	fresh, _ := h.key("bob", authz.Owner, 24*time.Hour)
	try := func(key, from string) error {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = from
		r.Header.Set("Authorization", "Bearer "+key)
		_, err = h.keys.authenticate(r)
		return err
	}
	if err := try(good, "192.0.2.1:1"); err != nil {
		t.Fatal(err)
	}
	guess := good[:len(good)-4] + "AAAA"
	for i := range failBurst {
		if err := try(guess, "192.0.2.1:1"); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Fatalf("failure %d: %v", i, err)
		}
	}
	// The last is good, which only the database could have told.
	for _, bad := range []string{guess, "bxk1", fresh} {
		err := try(bad, "192.0.2.1:2")
		if connect.CodeOf(err) != connect.CodeResourceExhausted || infoOf(err).GetRetryAfterMs() == 0 || infoOf(err).GetRetryAfterMs() > 7000 {
			t.Errorf("after %d failures: %v", failBurst, err)
		}
	}
	if err := try(good, "192.0.2.1:3"); err != nil {
		t.Errorf("a key that was good before, from the same address: %v", err)
	}
	if err := try(fresh, "192.0.2.2:1"); err != nil {
		t.Errorf("another address: %v", err)
	}
	now = now.Add(failEvery + time.Second)
	if err := try(guess, "192.0.2.1:1"); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a while later: %v", err)
	}
	// An IPv6 host has a whole /64.
	for i := range failBurst + 1 {
		err := try(guess, netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)}), 1).String())
		if want := i == failBurst; (connect.CodeOf(err) == connect.CodeResourceExhausted) != want {
			t.Errorf("IPv6 address %d: %v", i, err)
		}
	}
	if err := try(fresh, "[2001:db9::1]:1"); err != nil {
		t.Errorf("another IPv6 network: %v", err)
	}
	// Two headers are a trick, whichever of them is good.
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
	r.RemoteAddr = "192.0.2.3:1"
	r.Header.Add("Authorization", "Bearer "+good)
	r.Header.Add("Authorization", "Bearer "+guess)
	if _, err := h.keys.authenticate(r); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("two keys: %v", err)
	}
	r.Header.Set("Authorization", "Basic "+good)
	if _, err := h.keys.authenticate(r); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("another scheme: %v", err)
	}
}

// TestClaimsAreLimited: guesses of an owner link count as failures, too.
func TestClaimsAreLimited(t *testing.T) {
	h := newGateHub(t)
	secret := claimSecret(t, h)
	ctx := ctxOf(t)
	visitor := h.asKey("").access()
	guess, err := authz.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "claim=", guess, "claim=" + guess} {
		if _, err := visitor.ClaimOwner(ctx, &dispatchv1.ClaimOwnerRequest{Secret: bad, Name: "eve"}); reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_KEY_INVALID {
			t.Errorf("claim with %q: %v", bad, err)
		}
	}
	for range failBurst {
		_, err = visitor.ClaimOwner(ctx, &dispatchv1.ClaimOwnerRequest{Secret: guess, Name: "eve"})
	}
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("after many guesses: %v", err)
	}
	// The machine's own owner is not locked out by others.
	if _, err := h.asSocket().access().ClaimOwner(ctx, &dispatchv1.ClaimOwnerRequest{Secret: secret, Name: "alice"}); err != nil {
		t.Errorf("claim over the socket: %v", err)
	}
}

// TestLastUse: the use of keys is written at most once a minute, and at the end.
func TestLastUse(t *testing.T) {
	h := newGateHub(t)
	text, id := h.key("alice", authz.Owner, time.Hour)
	ctx, cancel := context.WithCancel(ctxOf(t))
	done := make(chan error, 1)
	go func() { done <- h.RecordKeyUse(ctx) }()
	if _, err := h.asKey(text).access().WhoAmI(ctx, &dispatchv1.WhoAmIRequest{}); err != nil {
		t.Fatal(err)
	}
	if k, _, err := h.store.APIKey(ctx, id); err != nil || !k.LastUsed.IsZero() {
		t.Errorf("written at once: %v, %v", k.LastUsed, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	k, _, err := h.store.APIKey(context.Background(), id)
	if err != nil || time.Since(k.LastUsed) > time.Minute {
		t.Errorf("last used %v, %v", k.LastUsed, err)
	}
	log, err := h.store.Audit(context.Background(), store.AuditFilter{Limit: 100})
	for _, e := range log {
		if e.Action != "user.create" && e.Action != "key.create" {
			t.Errorf("the use of a key is in the audit log: %v, %v", e, err)
		}
	}
}
