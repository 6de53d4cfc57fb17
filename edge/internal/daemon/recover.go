// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
)

// Delays between the tries of a node that cannot start without a certificate.
const (
	recoverRetry    = 2 * time.Second // the first bound
	recoverRetryMax = time.Minute
)

// recovery gets a certificate for a node that slept through the life of its own.
type recovery struct {
	home   string
	keys   *identity.Keys
	meshID string
	ask    func(context.Context, hub.Recovery) (chain [][]byte, generation uint64, err error)
	// check reports whether a chain is one to use.
	check func(chain [][]byte) error
}

// once makes one attempt. What it is known by is stored before it is sent, and
// stays until there is an answer: the hub takes the same attempt for the same node,
// and another one of the same generation for a copy.
func (r *recovery) once(ctx context.Context) (chain [][]byte, err error) {
	st, err := home.LoadState(r.home)
	if err != nil {
		return nil, err
	}
	if st.Attempt == nil {
		st.Attempt = make([]byte, 16)
		_, _ = rand.Read(st.Attempt) // never fails since Go 1.24
		if err := st.Store(r.home); err != nil {
			return nil, err
		}
	}
	chain, generation, err := r.ask(ctx, hub.Recovery{
		Keys: r.keys, MeshID: r.meshID, Generation: st.Generation, Attempt: [16]byte(st.Attempt),
	})
	if err != nil {
		return nil, err
	}
	// An answer that is of no use here, mostly because of a wrong clock, must not cost
	// one recovery after the other: the attempt stays the same.
	if err := r.check(chain); err != nil {
		return nil, err
	}
	// Before the certificate: a newer generation without it costs a recovery more, an
	// older one with it would make the node look like its own copy.
	return chain, home.State{Generation: generation}.Store(r.home)
}

// final reports whether no retry mends err.
func final(err error) bool {
	for _, e := range []error{hub.ErrRevoked, hub.ErrRecoveryExhausted, hub.ErrCloneSuspected, hub.ErrRecoveryRefused, home.ErrIdentity} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// expiredThere reports whether the hub's clock says that our certificate has run
// out: TLS tells it as an alert, which has no type of its own.
func expiredThere(err error) bool { return strings.Contains(err.Error(), "tls: expired certificate") }

// recoverFirst gets a certificate before anything else can start. It goes on until
// it has one, ctx ends, or the hub says that there will be none.
func (d *daemon) recoverFirst(ctx context.Context, first time.Duration) error {
	d.log.Warn("the node certificate has expired; asking the hub for another", "expired", d.id.Certificate.NotAfter)
	for failures := 0; ; failures++ {
		notify("EXTEND_TIMEOUT_USEC=180000000") // a supervisor must not take it for a hang
		err := d.renew.renew(ctx)
		if err == nil {
			d.renew.note(nil)
			d.id.Certificate = d.renew.cert
			d.log.Info("the hub has recovered this node", "expires", d.renew.cert.NotAfter)
			return nil
		}
		if ctx.Err() != nil || final(err) {
			return err
		}
		bound := min(recoverRetryMax, first<<min(failures, 8))
		wait := bound/2 + randN(bound/2)
		d.log.Warn("no certificate yet", "err", err, "retry_in", wait.Round(time.Second))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
