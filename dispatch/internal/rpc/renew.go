// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// A node may renew, or join again, renewBurst times at once and then once in
	// renewEvery, and replace its keys once in rekeyEvery: each adds rows that stay.
	renewBurst = 3
	rekeyEvery = 20 * time.Minute
	// maxFree is how many nodes a limiter remembers before it looks for those that
	// it need not.
	maxFree    = 4096
	renewEvery = time.Minute
)

// Renew issues a new certificate. Whose it is, TLS has shown; what it says stands
// in the database.
func (p provisioning) Renew(ctx context.Context, req *dispatchv1.RenewRequest) (*dispatchv1.RenewResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	id, now := callerOf(ctx).id, time.Now()
	if !p.renewals.allow(id, now) {
		return nil, tooMany()
	}
	ed, err := publicKey(req.GetCsr())
	if err != nil {
		return nil, fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID, err.Error(), "")
	}
	c, err := p.issue(now)
	if err != nil {
		return nil, wireError(ctx, p.log, "renew", err)
	}
	n, err := p.store.Renew(ctx, id, ed, c)
	if err != nil {
		p.log.InfoContext(ctx, "renewal refused", "node", id.Short(), "err", err)
		return nil, wireError(ctx, p.log, "renew", err)
	}
	crt, err := p.cfg.CA.IssueNode(n, c.Serial, now, c.NotAfter)
	if err != nil {
		return nil, wireError(ctx, p.log, "renew", err)
	}
	p.log.InfoContext(ctx, "certificate renewed", "node", id.Short(), "name", n.Name, "expires", c.NotAfter)
	return &dispatchv1.RenewResponse{NodeCrt: crt, CaCrt: p.cfg.CA.RootPEM()}, nil
}

// Rekey puts new keys into the place of the caller's.
func (p provisioning) Rekey(ctx context.Context, req *dispatchv1.RekeyRequest) (*dispatchv1.RekeyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	id, now := callerOf(ctx).id, time.Now()
	if !p.rekeys.allow(id, now) {
		return nil, tooMany()
	}
	bad := func(text string) (*dispatchv1.RekeyResponse, error) {
		return nil, fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID, text, "")
	}
	ed, err := publicKey(req.GetCsr())
	if err != nil {
		return bad(err.Error())
	}
	x, err := fips.NewX25519PublicKey(req.GetX25519PublicKey())
	if err != nil {
		return bad("x25519_public_key: want 32 bytes")
	}
	c, err := p.issue(now)
	if err != nil {
		return nil, wireError(ctx, p.log, "re-key", err)
	}
	n, err := p.store.Rekey(ctx, id, ed, x.Bytes(), c)
	if err != nil {
		p.log.InfoContext(ctx, "re-key refused", "node", id.Short(), "err", err)
		return nil, wireError(ctx, p.log, "re-key", err)
	}
	crt, err := p.cfg.CA.IssueNode(n, c.Serial, now, c.NotAfter)
	if err != nil {
		return nil, wireError(ctx, p.log, "re-key", err)
	}
	p.rekeys.move(id, n.ID)
	p.dropped(id)
	p.log.InfoContext(ctx, "node has new keys", "node", n.ID.Short(), "was", id.Short(), "name", n.Name)
	return &dispatchv1.RekeyResponse{NodeId: n.ID.String(), NodeCrt: crt, CaCrt: p.cfg.CA.RootPEM(), Generation: n.Generation}, nil
}

// GetMeshKey returns the mesh key in force.
func (p provisioning) GetMeshKey(context.Context, *dispatchv1.GetMeshKeyRequest) (*dispatchv1.GetMeshKeyResponse, error) {
	psk, epoch := p.cfg.MeshKey()
	return &dispatchv1.GetMeshKeyResponse{Psk: psk, PskEpoch: epoch}, nil
}

// Leave forgets the caller.
func (p provisioning) Leave(ctx context.Context, _ *dispatchv1.LeaveRequest) (*dispatchv1.LeaveResponse, error) {
	id := callerOf(ctx).id
	if err := p.remove(ctx, id, "leave"); err != nil {
		return nil, wireError(ctx, p.log, "leave", err)
	}
	return &dispatchv1.LeaveResponse{}, nil
}

// remove deletes a node and ends its streams.
func (a *API) remove(ctx context.Context, id identity.PeerID, why string) error {
	if err := a.store.Delete(ctx, id, why, time.Now()); err != nil {
		return err
	}
	a.dropped(id)
	a.log.InfoContext(ctx, "node deleted", "node", id.Short(), "why", why)
	return nil
}

// dropped ends all that a node holds open.
func (a *API) dropped(id identity.PeerID) {
	a.renewals.forget(id)
	a.gate.cut(id)
	a.cfg.Reports.Forget(id)
	if a.cfg.OnRevoke != nil {
		a.cfg.OnRevoke(id)
	}
}

func tooMany() error {
	return fail(connect.CodeResourceExhausted, dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "too many renewals", "wait a minute")
}

// limiter bounds renewals per node.
type limiter struct {
	every time.Duration

	mu sync.Mutex // guards free
	// free is when a node has its whole burst again.
	free map[identity.PeerID]time.Time
}

func newLimiter(every time.Duration) *limiter {
	return &limiter{every: every, free: make(map[identity.PeerID]time.Time)}
}

// move makes a node that has another id now go on where it was.
func (l *limiter) move(from, to identity.PeerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free[to] = l.free[from]
	delete(l.free, from)
}

// forget drops what is known of a node that is gone.
func (l *limiter) forget(id identity.PeerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.free, id)
}

// allow reports whether id may go on now, and counts it if so.
func (l *limiter) allow(id identity.PeerID, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) > maxFree {
		for k, t := range l.free {
			if t.Before(now) {
				delete(l.free, k)
			}
		}
	}
	t := l.free[id]
	if t.Before(now) {
		t = now
	}
	if t = t.Add(l.every); t.Sub(now) > renewBurst*l.every {
		return false
	}
	l.free[id] = t
	return true
}
