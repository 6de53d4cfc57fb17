// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// redial is the pause between two attempts to reach a hub that runs.
const redial = 10 * time.Millisecond

// watcher is a node that keeps the topology as a real one does, over all deaths of
// the hub, and resumes with the (epoch, rv) that it has.
type watcher struct {
	id, site string
	client   dispatchv1connect.TopologyServiceClient
	idle     func()

	stop context.CancelFunc
	done chan struct{}

	mu       sync.Mutex // guards the following
	epoch    uint64
	rv       uint64
	policy   uint64 // number of the newest activation
	psk      uint64 // epoch of the mesh key
	synced   bool   // on the present stream
	peers    map[string]string
	denials  map[string]bool
	next     map[string]string // what a snapshot brings, until Synced
	nextDen  map[string]bool
	counts   watchStats
	problems []string
	wake     chan struct{} // closed and replaced by each event
}

type watchStats struct{ snapshots, resumes, resyncs, deltas int }

func watch(c *clients, id, site string, cert *tls.Certificate) *watcher {
	w := &watcher{id: id, site: site, wake: make(chan struct{})}
	var hc *http.Client
	hc, w.idle = c.node(cert)
	w.client = dispatchv1connect.NewTopologyServiceClient(hc, c.url())
	return w
}

// connect keeps a stream to the hub open until disconnect.
func (w *watcher) connect() {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.done = cancel, make(chan struct{})
	go func() {
		defer close(w.done)
		for ctx.Err() == nil {
			if err := w.stream(ctx); err != nil && connect.IsWireError(err) && outcomeOf(err) == refused {
				w.problem("watcher %s was refused: %v", w.id[:8], err)
				return
			}
			select {
			case <-time.After(redial):
			case <-ctx.Done():
			}
		}
	}()
}

func (w *watcher) disconnect() {
	if w.stop != nil {
		w.stop()
		<-w.done
		w.stop = nil
		w.idle()
	}
}

func (w *watcher) close() { w.disconnect() }

func (w *watcher) problem(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// stream follows one stream to its end.
func (w *watcher) stream(ctx context.Context) error {
	w.mu.Lock()
	req := &dispatchv1.WatchTopologyRequest{Epoch: w.epoch, Rv: w.rv}
	w.synced, w.next, w.nextDen = false, nil, nil
	w.mu.Unlock()
	s, err := w.client.WatchTopology(ctx, req)
	if err != nil {
		return err
	}
	defer s.Close()
	for s.Receive() {
		w.apply(s.Msg())
	}
	w.mu.Lock()
	w.synced = false
	w.mu.Unlock()
	return s.Err()
}

func (w *watcher) apply(m *dispatchv1.WatchTopologyResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	bad := func(format string, args ...any) {
		w.problems = append(w.problems, "watcher "+w.id[:8]+": "+fmt.Sprintf(format, args...))
	}
	switch e := m.GetEvent().(type) {
	case *dispatchv1.WatchTopologyResponse_SnapshotChunk:
		if w.next == nil {
			w.next, w.nextDen = make(map[string]string), make(map[string]bool)
		}
		put(w.next, e.SnapshotChunk.GetPeers())
		deny(w.nextDen, e.SnapshotChunk.GetDenials())
	case *dispatchv1.WatchTopologyResponse_Synced:
		w.syncedLocked(e.Synced, bad)
	case *dispatchv1.WatchTopologyResponse_Delta:
		d := e.Delta
		if d.GetRv() <= w.rv {
			bad("rv goes from %d to %d", w.rv, d.GetRv())
		}
		w.rv = max(w.rv, d.GetRv())
		w.counts.deltas++
		w.policy = max(w.policy, d.GetPolicyVersion())
		w.psk = max(w.psk, uint64(d.GetPskEpoch()))
		put(w.peers, d.GetUpserts())
		for _, id := range d.GetDeletes() {
			delete(w.peers, id)
		}
		deny(w.denials, d.GetDenials())
	case *dispatchv1.WatchTopologyResponse_Bookmark:
		w.rv = max(w.rv, e.Bookmark.GetRv())
	case *dispatchv1.WatchTopologyResponse_Resync:
		w.counts.resyncs++
		bad("was asked to begin anew: %s", e.Resync.GetReason())
		w.epoch, w.rv = 0, 0
	}
	close(w.wake)
	w.wake = make(chan struct{})
}

func (w *watcher) syncedLocked(s *dispatchv1.Synced, bad func(string, ...any)) {
	w.synced = true
	w.policy, w.psk = max(w.policy, s.GetPolicyVersion()), max(w.psk, uint64(s.GetPskEpoch()))
	if s.GetLazy() {
		bad("scope became lazy: the harness let it grow too large")
	}
	if s.GetSnapshot() {
		w.counts.snapshots++
		if w.epoch != 0 {
			bad("resumed at epoch %d, rv %d, and got a snapshot at epoch %d, rv %d", w.epoch, w.rv, s.GetEpoch(), s.GetRv())
		}
		w.peers, w.denials = w.next, w.nextDen
		if w.peers == nil {
			w.peers, w.denials = make(map[string]string), make(map[string]bool)
		}
		w.epoch, w.rv = s.GetEpoch(), s.GetRv()
		return
	}
	w.counts.resumes++
	if s.GetEpoch() != w.epoch {
		bad("resumed at epoch %d, have %d", s.GetEpoch(), w.epoch)
	}
	w.rv = max(w.rv, s.GetRv())
}

func put(peers map[string]string, ps []*dispatchv1.Peer) {
	for _, p := range ps {
		tags := slices.Sorted(slices.Values(p.GetTags()))
		peers[p.GetNodeId()] = peerLine(p.GetNodeId(), p.GetName(), p.GetVirtualIp(), strings.Join(tags, ","))
	}
}

func deny(denials map[string]bool, ds []*dispatchv1.Denial) {
	for _, d := range ds {
		switch {
		case d.GetNodeId() != "":
			b, _ := idEncoding.DecodeString(d.GetNodeId())
			denials["node:"+hex.EncodeToString(b)] = true
		case len(d.GetEd25519PublicKey()) > 0:
			denials[denialKey("key", d.GetEd25519PublicKey())] = true
		case len(d.GetSerial()) > 0:
			denials[denialKey("serial", d.GetSerial())] = true
		}
	}
}

// waitFor waits until the watcher is in step on the present stream and sees what
// want describes. Where a scope has no news, its watchers stay at an older rv, so
// that says nothing.
func (w *watcher) waitFor(ctx context.Context, want string) error {
	for {
		w.mu.Lock()
		ok, have, at, wake := w.synced, w.digestLocked(), w.rv, w.wake
		w.mu.Unlock()
		if ok && have == want {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("watcher %s (in step: %v, rv %d) sees %s, database has %s", w.id[:8], ok, at, have, want)
		}
	}
}

// at returns what the watcher resumes with.
func (w *watcher) at() (epoch, rv uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.epoch, w.rv
}

// digestLocked is state.digest as the watcher sees it.
func (w *watcher) digestLocked() string {
	var lines []string
	for id, l := range w.peers {
		if id != w.id {
			lines = append(lines, l)
		}
	}
	return digest(lines, slices.Collect(maps.Keys(w.denials)), w.policy, w.psk)
}

// takeProblems returns what was wrong since the last call.
func (w *watcher) takeProblems() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.problems
	w.problems = nil
	return p
}

func (w *watcher) stats() watchStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts
}
