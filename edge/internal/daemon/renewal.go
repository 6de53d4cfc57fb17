// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// Delays after a renewal that failed: full jitter below a bound that doubles.
const (
	renewRetry    = 30 * time.Second // the first bound
	renewRetryMax = time.Hour
)

// renewal replaces the node's certificate before it expires.
type renewal struct {
	keys  *identity.Keys
	roots *x509.CertPool
	file  string
	log   *slog.Logger
	ask   func(ctx context.Context, csr []byte) (chain [][]byte, err error)
	set   func(*identity.Certificate) error
	// recover is what is left when the certificate has expired.
	recover func(ctx context.Context) (chain [][]byte, err error)
	// redial lets the hub see the new certificate, since it cuts a connection whose
	// certificate has run out.
	redial func()

	cert *identity.Certificate           // of the worker, once it runs
	tls  atomic.Pointer[tls.Certificate] // what new connections to the hub show

	mu   sync.Mutex // guards the rest
	last time.Time  // of the last renewal
	err  error      // why the last try failed; nil after a success
}

func (r *renewal) run(ctx context.Context) {
	at := due(r.cert.NotBefore, r.cert.NotAfter)
	for failures := 0; ; {
		if !sleepUntil(ctx, at) {
			return
		}
		err := r.renew(ctx)
		if ctx.Err() != nil {
			return
		}
		r.note(err)
		if err == nil {
			failures = 0
			// A hub with short lifetimes or a wrong clock must not make a busy loop.
			at = time.Now().Add(max(time.Until(due(time.Now(), r.cert.NotAfter)), time.Second))
			r.log.Info("certificate renewed", "expires", r.cert.NotAfter)
			continue
		}
		wait := retryIn(failures, time.Until(r.cert.NotAfter))
		at = time.Now().Add(wait)
		failures++
		r.log.Warn("certificate not renewed", "err", err, "expires", r.cert.NotAfter, "retry_in", wait.Round(time.Second))
	}
}

func (r *renewal) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	if err == nil {
		r.last = time.Now()
	}
}

// status is when the certificate was last renewed, which is zero where that was
// not since the start, and why the newest try failed.
func (r *renewal) status() (last time.Time, problem string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		problem = r.err.Error()
	}
	return r.last, problem
}

// sleepUntil waits for a time of the wall clock, by which certificates expire: a
// machine that was suspended finds itself late. It returns false when ctx ends.
func sleepUntil(ctx context.Context, at time.Time) bool {
	for {
		left := at.Round(0).Sub(time.Now().Round(0))
		if left <= 0 {
			return ctx.Err() == nil
		}
		select {
		case <-time.After(min(left, time.Minute)):
		case <-ctx.Done():
			return false
		}
	}
}

// due is when a certificate is to be renewed: after two thirds of its life, give
// or take a tenth of it, so that a fleet that joined at once does not come back at
// once. from is when it was received where that is known, because the hub dates
// certificates back.
func due(from, to time.Time) time.Time {
	life := to.Sub(from)
	if life <= 0 {
		return from
	}
	return from.Add(life*2/3 - life/10 + rand.N(life/5+1))
}

// retryIn is the delay after a failure. left is the rest of the certificate's
// life: near its end the tries get denser, and after it they go on, because the
// clock may be what is wrong.
func retryIn(failures int, left time.Duration) time.Duration {
	bound := renewRetryMax
	if failures < 7 {
		bound = min(bound, renewRetry<<failures)
	}
	if left > 0 {
		bound = min(bound, max(left/4, time.Second))
	}
	return bound/2 + randN(bound/2)
}

// randN returns a duration from 0 to d.
func randN(d time.Duration) time.Duration { return rand.N(d + 1) }

// fetch renews, or recovers where the certificate has run out, by our clock or the
// hub's.
func (r *renewal) fetch(ctx context.Context) (chain [][]byte, err error) {
	if time.Now().After(r.cert.NotAfter) {
		return r.recover(ctx)
	}
	csr, err := r.keys.CSR()
	if err != nil {
		return nil, err
	}
	if chain, err = r.ask(ctx, csr); err != nil && expiredThere(err) {
		return r.recover(ctx)
	}
	return chain, err
}

// renew gets one certificate and puts it to use. The file comes first: what runs is
// never newer than what a restart finds.
func (r *renewal) renew(ctx context.Context) error {
	chain, err := r.fetch(ctx)
	if err != nil {
		return err
	}
	c, err := r.check(chain, time.Now())
	if err != nil {
		return err
	}
	if err := identity.WriteFile(r.file, identity.MarshalChainPEM(chain), 0o600); err != nil {
		return fmt.Errorf("store certificate: %w", err)
	}
	if err := r.set(c); err != nil {
		return fmt.Errorf("use certificate: %w", err)
	}
	r.cert = c
	r.tls.Store(&tls.Certificate{Certificate: chain, PrivateKey: r.keys.Ed25519})
	r.redial()
	return nil
}

// check believes nothing of the answer that the root, our keys and the present
// certificate do not confirm.
func (r *renewal) check(chain [][]byte, now time.Time) (*identity.Certificate, error) {
	bad := func(text string) error { return fmt.Errorf("renewed certificate is refused: %s", text) }
	c, err := identity.ParseCertificate(chain)
	if err != nil {
		return nil, fmt.Errorf("renewed certificate is refused: %w", err)
	}
	if err := c.Verify(r.roots, now); err != nil {
		return nil, fmt.Errorf("renewed certificate is refused: %w", err)
	}
	switch old := r.cert; {
	case c.ID != r.keys.ID():
		return nil, bad("it is for other keys")
	case c.Name != old.Name || c.MeshID != old.MeshID:
		return nil, bad("it has another name or mesh")
	case c.Virtual4 != old.Virtual4 || c.Virtual6 != old.Virtual6:
		return nil, bad("it has other addresses")
	}
	return c, nil
}
