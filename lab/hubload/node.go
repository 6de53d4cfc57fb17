// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// The delays of a real node's connector.
const (
	backoff    = 500 * time.Millisecond // doubles
	backoffCap = 30 * time.Second
	pingAfter  = 15 * time.Second // without any frame of the hub
	deadAfter  = 20 * time.Second

	// FirstRetry is what the first attempt after a lost connection is spread over,
	// so that a fleet that lost its hub at one moment does not come back at one.
	FirstRetry = 10 * time.Second
)

var (
	errResync  = errors.New("hub asks for a new synchronisation")
	errStopped = errors.New("hub ended a stream")
	errStale   = errors.New("hub is silent")
)

// Arrival is when a node got a change.
type Arrival struct {
	RV uint64
	At int64 // as now
}

// Node is a simulated node. One goroutine runs it.
type Node struct {
	Identity
	index int
	fleet *Fleet

	conn atomic.Pointer[conn] // nil while there is none

	mu       sync.Mutex // guards the following
	view     View
	policy   struct{ epoch, version uint64 }
	signal   *stream // nil until Ready
	synced   bool
	up       bool
	upAt     int64
	arrivals []Arrival
	lastErr  error
}

// View returns what the node knows.
func (n *Node) View() View {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view
}

// run keeps the node connected until ctx ends.
func (n *Node) run(ctx context.Context) {
	failures := 0
	for {
		err := n.session(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := rand.N(min(backoffCap, backoff<<min(failures, 16)))
		if n.lost(err) {
			failures = 0
			wait = rand.N(n.fleet.cfg.FirstRetry)
		}
		failures++
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// lost notes the end of a connection and tells whether it had been up.
func (n *Node) lost(err error) (wasUp bool) {
	n.mu.Lock()
	wasUp = n.up
	n.up, n.synced, n.signal, n.lastErr = false, false, nil, err
	n.mu.Unlock()
	f := n.fleet
	if wasUp {
		f.up.Add(-1)
		f.losses.Add(1)
	} else {
		f.failures.Add(1)
	}
	f.note(err)
	return wasUp
}

// session holds one connection until it ends.
func (n *Node) session(ctx context.Context) error {
	f := n.fleet
	cfg := f.verifier.config()
	cert := &tls.Certificate{Certificate: n.Chain, PrivateKey: n.Key}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	c, err := dial(ctx, f.addr, n.index, cfg)
	if err != nil {
		return err
	}
	n.conn.Store(c)
	defer n.conn.Store(nil)
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()

	n.mu.Lock()
	n.view.Begin()
	req := &dispatchv1.WatchTopologyRequest{Epoch: n.view.Epoch, Rv: n.view.RV, Lazy: n.view.Lazy}
	n.mu.Unlock()
	b, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	var over error
	ended := func(err error) {
		if over == nil {
			over = errors.Join(err)
			if err == nil {
				over = errStopped
			}
		}
	}
	if _, err := c.open(procWatch, b, true, func(b []byte) error { return n.topology(c, b) }, ended); err != nil {
		return err
	}
	if !f.cfg.NoSignal {
		var s *stream
		// The first message opens the stream at the hub.
		s, err = c.open(procSignal, nil, false, func(b []byte) error { return n.signaled(s, b) }, ended)
		if err != nil {
			return err
		}
	}
	if err := c.read(func() bool { return over != nil }); err != nil {
		return err
	}
	return over
}

// topology runs in the reader.
func (n *Node) topology(c *conn, b []byte) error {
	e, err := parseEvent(b)
	if err != nil {
		return err
	}
	f := n.fleet
	n.mu.Lock()
	before := n.view.RV
	err = n.view.Apply(e)
	if err == nil && e.kind == evDelta && n.view.RV != before && f.recording.Load() {
		n.arrivals = append(n.arrivals, Arrival{e.rv, now()})
		f.recorded.Add(1)
	}
	fetch := false
	if err == nil && e.policy != 0 && (n.policy.epoch != n.view.Epoch || n.policy.version != e.policy) {
		n.policy.epoch, n.policy.version = n.view.Epoch, e.policy
		fetch = true
	}
	if e.kind == evSynced {
		n.synced = true
	}
	n.mu.Unlock()
	if err != nil {
		f.disorder.Add(1)
		return err
	}
	switch e.kind {
	case evDelta:
		f.deltas.Add(1)
	case evPresence:
		f.presence.Add(1)
	case evBookmark:
		f.bookmarks.Add(1)
	case evSynced:
		if e.snapshot {
			f.snapshots.Add(1)
		}
		n.checkUp()
	case evResync:
		return errResync
	}
	if fetch {
		return c.call(procPolicy, nil, func(_ []byte, err error) {
			if err != nil {
				f.note(fmt.Errorf("fetch policy: %w", err))
				return
			}
			f.policies.Add(1)
		})
	}
	return nil
}

// signaled runs in the reader.
func (n *Node) signaled(s *stream, b []byte) error {
	e, err := parseSignal(b)
	if err != nil {
		return err
	}
	switch e.kind {
	case sigReady:
		n.mu.Lock()
		n.signal = s
		n.mu.Unlock()
		n.checkUp()
	case sigDelivery:
		if f := n.fleet.onSignal.Load(); f != nil {
			(*f)(n, e.body)
		}
	case sigUndeliverable:
		n.fleet.nacks.Add(1)
	}
	return nil
}

// checkUp notes that the node is connected once both streams stand.
func (n *Node) checkUp() {
	n.mu.Lock()
	news := !n.up && n.synced && (n.signal != nil || n.fleet.cfg.NoSignal)
	if news {
		n.up, n.upAt = true, now()
	}
	n.mu.Unlock()
	if news {
		n.fleet.up.Add(1)
	}
}

// Send sends a signalling message to another node.
func (n *Node) Send(to *Node, seq uint64, body []byte) error {
	n.mu.Lock()
	s := n.signal
	n.mu.Unlock()
	if s == nil {
		return fmt.Errorf("send signal: %s is not connected", n.Name)
	}
	b, err := proto.Marshal(&dispatchv1.ExchangeCandidatesRequest{To: to.ID, Seq: seq, Body: body})
	if err != nil {
		return err
	}
	return s.send(b)
}

// keep pings where nothing came for long, and cuts what does not answer.
func (n *Node) keep() {
	c := n.conn.Load()
	if c == nil {
		return
	}
	switch idle := time.Duration(now() - c.lastRead.Load()); {
	case idle > deadAfter:
		n.fleet.note(errStale)
		c.close()
	case idle > pingAfter:
		_ = c.ping()
	}
}
