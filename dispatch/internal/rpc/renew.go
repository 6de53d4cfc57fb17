// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// A node may renew renewBurst times at once and then once in renewEvery.
	renewBurst = 3
	renewEvery = time.Minute
)

// Renew issues a new certificate. Whose it is, TLS has shown; what it says stands
// in the database.
func (p provisioning) Renew(ctx context.Context, req *dispatchv1.RenewRequest) (*dispatchv1.RenewResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	id, now := callerOf(ctx).id, time.Now()
	if !p.renewals.allow(id, now) {
		return nil, fail(connect.CodeResourceExhausted, dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED,
			"too many renewals", "wait a minute")
	}
	ed, err := publicKey(req.GetCsr())
	if err != nil {
		return nil, fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID, err.Error(), "")
	}
	serial, err := ca.NewSerial()
	if err != nil {
		return nil, wireError(ctx, p.log, "renew", err)
	}
	notAfter := now.Add(p.cfg.CertLifetime)
	n, err := p.store.Renew(ctx, id, ed, serial, notAfter)
	if err != nil {
		p.log.InfoContext(ctx, "renewal refused", "node", id.Short(), "err", err)
		return nil, wireError(ctx, p.log, "renew", err)
	}
	crt, err := p.cfg.CA.IssueNode(n, serial, now, notAfter)
	if err != nil {
		return nil, wireError(ctx, p.log, "renew", err)
	}
	p.log.InfoContext(ctx, "certificate renewed", "node", id.Short(), "name", n.Name, "expires", notAfter)
	return &dispatchv1.RenewResponse{NodeCrt: crt, CaCrt: p.cfg.CA.RootPEM()}, nil
}

// limiter bounds renewals per node.
type limiter struct {
	mu sync.Mutex // guards free
	// free is when a node has its whole burst again.
	free map[identity.PeerID]time.Time
}

func newLimiter() *limiter { return &limiter{free: make(map[identity.PeerID]time.Time)} }

// allow reports whether id may go on now, and counts it if so. Only admitted nodes
// get here, so the map is no larger than the mesh.
func (l *limiter) allow(id identity.PeerID, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.free[id]
	if t.Before(now) {
		t = now
	}
	if t = t.Add(renewEvery); t.Sub(now) > renewBurst*renewEvery {
		return false
	}
	l.free[id] = t
	return true
}
