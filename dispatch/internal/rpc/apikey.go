// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// An address may fail failBurst times at once and then once in failEvery.
	failBurst = 20
	failEvery = 6 * time.Second
	// maxFailing bounds how many addresses are remembered.
	maxFailing = 8192
	// maxKnown bounds how many good keys are remembered.
	maxKnown = 1024
	// recordEvery is how often the last use of keys is written.
	recordEvery = time.Minute
)

// keyring knows callers by their API keys. It reads the database at each call, so
// that what changes there holds at once.
type keyring struct {
	store *store.Store
	log   *slog.Logger
	now   func() time.Time
	// burst is how many failures an address has at once.
	burst time.Duration

	mu sync.Mutex // guards the rest
	// free is when an address has its whole burst of failures again.
	free map[netip.Prefix]time.Time
	// known are secrets that were good lately. Their bearers are let through to the
	// database even where others fail from the same address, as behind a proxy.
	known map[string][32]byte
	used  map[string]time.Time
}

func newKeyring(st *store.Store, log *slog.Logger) *keyring {
	return &keyring{
		store: st, log: log, now: time.Now, burst: failBurst, free: make(map[netip.Prefix]time.Time),
		known: make(map[string][32]byte), used: make(map[string]time.Time),
	}
}

// KeyHandler serves the admin port, where callers show an API key. It expects to
// run behind TLS.
func (a *API) KeyHandler() http.Handler {
	next := a.services()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := a.keys.authenticate(r)
		if err != nil {
			refuse(w, r, err)
			return
		}
		a.receive(w, r, &c, next)
	})
}

// remoteIP returns where a request comes from; invalid for a unix socket.
func remoteIP(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// authenticate returns who has sent r. Without a key that is a visitor; with one
// that is no good it is an error.
func (k *keyring) authenticate(r *http.Request) (caller, error) {
	c := caller{class: visitor, ip: remoteIP(r)}
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 {
		return c, nil
	}
	scheme, text, _ := strings.Cut(headers[0], " ")
	key, err := authz.ParseKey(strings.TrimSpace(text))
	hash := key.Hash()
	if !k.knows(key.ID, hash) {
		if err := k.mayTry(c.ip); err != nil {
			return c, err
		}
	}
	if err != nil || len(headers) > 1 || !strings.EqualFold(scheme, "Bearer") {
		k.failed(c.ip)
		return c, keyRefused("API key refused: it is malformed", "send one header: Authorization: Bearer bxk1.<id>.<secret>")
	}
	c.class, c.key = user, key.ID
	if err := k.load(r.Context(), &c, key.Match); err != nil {
		if connect.CodeOf(err) == connect.CodeUnauthenticated {
			k.failed(c.ip)
			k.log.InfoContext(r.Context(), "API key refused", "key", key.ID, "from", c.ip.String(), "err", err)
		}
		return c, err
	}
	k.succeeded(key.ID, hash)
	return c, nil
}

// load fills in what the database says of c's key, where match accepts the hash of
// its secret. Who does not know the secret learns nothing about the key.
func (k *keyring) load(ctx context.Context, c *caller, match func([]byte) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	row, role, err := k.store.APIKey(ctx, c.key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return wireError(ctx, k.log, "look up API key", err)
	}
	// Of a key that does not exist the hash is all zeros, which nothing matches.
	good := match(row.SecretHash[:])
	switch {
	case err != nil || !good:
		return keyRefused("API key refused", "check that key and hub belong together, or ask for a new key")
	case row.Revoked:
		return keyRefused("API key refused: it is revoked", "ask for a new key")
	case !k.now().Before(row.Expires):
		return keyRefused("API key refused: it has expired", "ask for a new key")
	}
	c.user, c.role, c.scopes, c.expires = row.User, role, row.Scopes, row.Expires
	return nil
}

// recheck loads c's key again.
func (k *keyring) recheck(ctx context.Context, c *caller) error {
	return k.load(ctx, c, func([]byte) bool { return true })
}

func keyRefused(text, hint string) error {
	return fail(connect.CodeUnauthenticated, dispatchv1.ErrorReason_ERROR_REASON_KEY_INVALID, text, hint)
}

func (k *keyring) knows(id string, hash [32]byte) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	h, ok := k.known[id]
	return ok && h == hash
}

// Network is what limits count by: one IPv4 address, or an IPv6 /64, of which a host
// has all addresses.
func Network(ip netip.Addr) netip.Prefix {
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits) // the zero prefix for an invalid address
	return p
}

// mayTry returns an error where ip has failed too often lately. It is asked before
// the database is.
func (k *keyring) mayTry(ip netip.Addr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	// Compared before subtracting: of an address that never failed the difference is
	// the smallest there is.
	if wait := k.free[Network(ip)].Sub(now); wait > (k.burst-1)*failEvery {
		return connectRetry(wait - (k.burst-1)*failEvery)
	}
	if len(k.free) >= maxFailing {
		maps.DeleteFunc(k.free, func(_ netip.Prefix, t time.Time) bool { return !t.After(now) })
		if _, ok := k.free[Network(ip)]; !ok && len(k.free) >= maxFailing {
			return connectRetry(failEvery) // thousands fail at once: nobody new for now
		}
	}
	return nil
}

func connectRetry(wait time.Duration) error {
	err := connect.NewError(connect.CodeResourceExhausted, errors.New("too many failed attempts from this address"))
	d, derr := connect.NewErrorDetail(&dispatchv1.ErrorInfo{
		Reason: dispatchv1.ErrorReason_ERROR_REASON_OVERLOADED, Retryable: true, Hint: "wait a little",
		RetryAfterMs: uint32(wait.Milliseconds()) + 1,
	})
	if derr == nil {
		err.AddDetail(d)
	}
	return err
}

func (k *keyring) failed(ip netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t, now := k.free[Network(ip)], k.now()
	if t.Before(now) {
		t = now
	}
	k.free[Network(ip)] = t.Add(failEvery)
}

func (k *keyring) succeeded(id string, hash [32]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.known[id]; !ok && len(k.known) >= maxKnown {
		clear(k.known)
	}
	k.known[id] = hash
	k.used[id] = k.now()
}

// record writes when keys were used.
func (k *keyring) record(ctx context.Context) {
	k.mu.Lock()
	used := k.used
	k.used = make(map[string]time.Time)
	k.mu.Unlock()
	if len(used) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := k.store.TouchAPIKeys(ctx, used); err != nil {
		k.log.WarnContext(ctx, "record use of API keys", "err", err)
	}
}

// lastUse is when a key was used, as far as that is not written yet.
func (k *keyring) lastUse(id string) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.used[id]
}

// RecordKeyUse writes once a minute, and at the end, when keys were last used. It
// returns nil when ctx is done, which must be before the store is closed.
func (a *API) RecordKeyUse(ctx context.Context) error {
	t := time.NewTicker(recordEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			a.keys.record(ctx)
		case <-ctx.Done():
			a.keys.record(context.WithoutCancel(ctx))
			return nil
		}
	}
}
