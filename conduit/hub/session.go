// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

const (
	maxMessage = 1 << 20 // bytes of one message from the hub
	maxPeers   = 1 << 17 // peers in one snapshot

	maxCheckpoint = 4 << 10 // bytes of an audit checkpoint
)

var (
	errSilent  = errors.New("hub is silent")
	errSlow    = errors.New("hub did not get ready in time")
	errResync  = errors.New("hub asks for a new synchronisation")
	errOrder   = errors.New("hub sent topology out of order")
	errStopped = errors.New("hub ended the stream")
	errRedial  = errors.New("connection is made anew")
)

// session is one connection to the hub. Three goroutines share it; the first
// that fails ends all.
type session struct {
	c    *Connector
	st   *state
	self identity.PeerID
	ctx  context.Context // ends with the connection
	fail context.CancelCauseFunc

	topology  dispatchv1connect.TopologyServiceClient
	signaling dispatchv1connect.SignalingServiceClient
	policies  dispatchv1connect.PolicyServiceClient
	metrics   dispatchv1connect.MetricsServiceClient

	provisioning dispatchv1connect.ProvisioningServiceClient
	relays       dispatchv1connect.RelayServiceClient

	watchdog *time.Timer
	policyCh chan policyWant // capacity 1, the newest wins

	mu            sync.Mutex // guards the following
	synced, ready bool
	upSince       time.Time
}

// policyWant is an activation that the hub announced.
type policyWant struct{ epoch, generation uint64 }

// connect holds one connection until it fails or ctx ends, and tells how long it
// was up.
func (c *Connector) connect(ctx context.Context, st *state) (up time.Duration, err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	c.setRedial(fail) // before the certificate is read: no renewal may fall between
	defer c.setRedial(nil)
	cert, own, err := c.own()
	if err != nil {
		return 0, err
	}
	tr := c.transport(cert, own.MeshID)
	defer tr.CloseIdleConnections()
	client := &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	opts := connect.WithClientOptions(
		connect.WithReadMaxBytes(maxMessage),
		connect.WithAcceptCompression("gzip", nil, nil),
	)
	s := &session{
		c: c, st: st, self: own.ID, ctx: ctx, fail: fail, policyCh: make(chan policyWant, 1),
		topology:  dispatchv1connect.NewTopologyServiceClient(client, c.url.String(), opts),
		signaling: dispatchv1connect.NewSignalingServiceClient(client, c.url.String(), opts),
		policies:  dispatchv1connect.NewPolicyServiceClient(client, c.url.String(), opts),
		metrics:   dispatchv1connect.NewMetricsServiceClient(client, c.url.String(), opts),

		provisioning: dispatchv1connect.NewProvisioningServiceClient(client, c.url.String(), opts),
		relays:       dispatchv1connect.NewRelayServiceClient(client, c.url.String(), opts),
	}
	c.setSession(s)
	defer c.setSession(nil)
	slow := time.AfterFunc(c.timing.dial, func() {
		if !s.isUp() {
			fail(errSlow)
		}
	})
	defer slow.Stop()
	s.watchdog = time.AfterFunc(c.timing.silence, func() { fail(errSilent) })
	defer s.watchdog.Stop()

	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{s.watch, s.signal, s.policy} {
		wg.Go(func() { fail(f(ctx)) })
	}
	wg.Wait()
	if err = plain(context.Cause(ctx)); errors.Is(err, errResync) || errors.Is(err, errOrder) {
		st.epoch, st.rv, st.lazy = 0, 0, false
	}
	if now := time.Now(); now.After(own.NotAfter) {
		err = fmt.Errorf("node certificate expired on %s: %w", own.NotAfter.UTC().Format(time.DateTime), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.upSince.IsZero() {
		up = time.Since(s.upSince)
	}
	return up, err
}

// plain makes an error fit for people: without the RPC code that connect puts before
// what happened on our side of the wire.
func plain(err error) error {
	var ce *connect.Error
	if errors.As(err, &ce) && !connect.IsWireError(err) && ce.Unwrap() != nil {
		err = ce.Unwrap()
	}
	// An alert has no type, and its name does not say whose certificate it is about.
	if err != nil && strings.Contains(err.Error(), "remote error: tls: bad certificate") {
		return fmt.Errorf("the hub refuses this node's certificate: it is revoked, or the node is locked: %w", err)
	}
	return err
}

func (s *session) isUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced && s.ready
}

// mark notes that one of the two streams stands; with both the link is up.
func (s *session) mark(what *bool) {
	s.mu.Lock()
	*what = true
	news := s.synced && s.ready && s.upSince.IsZero()
	if news {
		s.upSince = time.Now()
	}
	s.mu.Unlock()
	if news && s.st.hub(true, nil) {
		s.c.log.Info("hub link is up", "hub", s.c.url.Host)
	}
}

// watch follows the topology from where the last connection left it.
func (s *session) watch(ctx context.Context) error {
	st := s.st
	stream, err := s.topology.WatchTopology(ctx, &dispatchv1.WatchTopologyRequest{
		Epoch: st.epoch, Rv: st.rv, Lazy: st.lazy, Interests: s.c.interestNames(), Checkpoint: st.checkpoint,
	})
	if err != nil {
		return err
	}
	defer stream.Close()
	var snapshot []conduit.Peer
	var denials []conduit.Denial
	synced := false
	for stream.Receive() {
		s.watchdog.Reset(s.c.timing.silence)
		switch e := stream.Msg().GetEvent().(type) {
		case *dispatchv1.WatchTopologyResponse_SnapshotChunk:
			if synced {
				return errOrder
			}
			if snapshot = append(snapshot, s.peers(e.SnapshotChunk.GetPeers())...); len(snapshot) > maxPeers {
				return fmt.Errorf("%w: more than %d peers", errOrder, maxPeers)
			}
			// However many there are, the link must not end over them.
			for _, d := range s.denials(e.SnapshotChunk.GetDenials()) {
				if len(denials) < maxPeers || d.Until.IsZero() && len(denials) < 2*maxPeers {
					denials = append(denials, d)
				}
			}
		case *dispatchv1.WatchTopologyResponse_Synced:
			y := e.Synced
			if synced || y.GetEpoch() == 0 || (!y.GetSnapshot() && (y.GetEpoch() != st.epoch || len(snapshot) > 0)) {
				return errOrder
			}
			if y.GetSnapshot() {
				st.emit(func(ev conduit.HubEvents) {
					ev.Denied(denials, true) // before anybody is let in
					ev.PeersSynced(snapshot)
				})
				there := make(map[identity.PeerID]bool, len(snapshot))
				for i := range snapshot {
					there[snapshot[i].ID] = true
				}
				s.c.forget(func(id identity.PeerID) bool { return !there[id] })
			}
			// Of most peers nothing more will be heard: what is known of them is taken
			// away by a snapshot of those that are left.
			if y.GetLazy() && !st.lazy && !y.GetSnapshot() {
				return errResync
			}
			st.lazy = y.GetLazy()
			// Without a snapshot, rv is where the missed changes end; they may
			// still be on their way, so it is taken from them.
			if y.GetSnapshot() {
				st.epoch, st.rv = y.GetEpoch(), y.GetRv()
			}
			snapshot, denials, synced = nil, nil, true
			s.wantPolicy(st.epoch, y.GetPolicyVersion())
			s.meshKey(y.GetPskEpoch())
			s.mark(&s.synced)
		case *dispatchv1.WatchTopologyResponse_Delta:
			if err := s.delta(e.Delta); err != nil {
				return err
			}
		case *dispatchv1.WatchTopologyResponse_Presence:
			p := e.Presence
			if id, err := identity.ParsePeerID(p.GetNodeId()); err == nil && id != s.self {
				st.emit(func(ev conduit.HubEvents) { ev.Presence(id, p.GetOnline(), p.GetInstance()) })
			}
		case *dispatchv1.WatchTopologyResponse_Resync:
			return fmt.Errorf("%w: %.200s", errResync, e.Resync.GetReason())
		case *dispatchv1.WatchTopologyResponse_Bookmark:
			// All changes up to its rv have been sent.
			st.rv = max(st.rv, e.Bookmark.GetRv())
			if c := e.Bookmark.GetCheckpoint(); len(c) > 0 && len(c) <= maxCheckpoint {
				st.checkpoint = c
			}
		default: // an event of a newer hub
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return errStopped
}

func (s *session) delta(d *dispatchv1.Delta) error {
	st := s.st
	if st.epoch == 0 {
		return errOrder
	}
	// A change that the snapshot holds already may come once more.
	if d.GetRv() <= st.rv {
		return nil
	}
	upserts := s.peers(d.GetUpserts())
	var deletes []identity.PeerID
	for _, t := range d.GetDeletes() {
		id, err := identity.ParsePeerID(t)
		if err != nil {
			return fmt.Errorf("%w: %w", errOrder, err)
		}
		if id != s.self {
			deletes = append(deletes, id)
		}
	}
	if denials := s.denials(d.GetDenials()); len(denials) > 0 {
		st.emit(func(ev conduit.HubEvents) { ev.Denied(denials, false) })
	}
	if len(upserts)+len(deletes) > 0 {
		st.emit(func(ev conduit.HubEvents) { ev.PeersChanged(upserts, deletes) })
	}
	if len(deletes) > 0 {
		s.c.forget(func(id identity.PeerID) bool { return slices.Contains(deletes, id) })
	}
	st.rv = d.GetRv()
	s.wantPolicy(st.epoch, d.GetPolicyVersion())
	s.meshKey(d.GetPskEpoch())
	return nil
}

// peers reads peers. One that is malformed is left out: a mistake in one record
// must not cut a robot from all others.
func (s *session) peers(in []*dispatchv1.Peer) []conduit.Peer {
	out := make([]conduit.Peer, 0, len(in))
	for _, p := range in {
		q, err := peerFrom(p)
		if err != nil {
			s.c.log.Warn("ignore a peer of the hub", "err", err)
			continue
		}
		if q.ID != s.self {
			out = append(out, q)
		}
	}
	return out
}

// denials reads denials. One of a kind that is not known yet is left out.
func (s *session) denials(in []*dispatchv1.Denial) []conduit.Denial {
	out := make([]conduit.Denial, 0, len(in))
	for _, d := range in {
		q, err := denialFrom(d)
		if err != nil {
			s.c.log.Warn("ignore a denial of the hub", "err", err)
			continue
		}
		out = append(out, q)
	}
	return out
}

func (s *session) meshKey(epoch uint32) {
	if epoch != 0 && s.c.cfg.MeshKey != nil {
		s.c.cfg.MeshKey(epoch)
	}
}

func (s *session) wantPolicy(epoch, generation uint64) {
	if generation == 0 {
		return
	}
	select {
	case <-s.policyCh:
	default:
	}
	s.policyCh <- policyWant{epoch, generation} // the watch goroutine is the only sender
}

// policy fetches the policy once for each activation that is announced: which
// version that brings is for the hub to say, since a stage may leave this node out.
// While it fails the node keeps the policy that it has, and the link stays up.
func (s *session) policy(ctx context.Context) error {
	for {
		var want policyWant
		select {
		case want = <-s.policyCh:
		case <-ctx.Done():
			return ctx.Err()
		}
		if want.epoch == s.st.policyEpoch && want.generation == s.st.policy {
			continue
		}
		for failures := 0; ; failures++ {
			err := s.fetchPolicy(ctx, want)
			if err == nil || ctx.Err() != nil {
				break
			}
			s.c.log.Warn("fetch policy", "generation", want.generation, "err", err)
			select {
			case <-time.After(s.c.backoff(failures)):
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case want = <-s.policyCh:
			default:
			}
		}
	}
}

func (s *session) fetchPolicy(ctx context.Context, want policyWant) error {
	ctx, cancel := context.WithTimeout(ctx, s.c.timing.unary)
	defer cancel()
	// Version 0 asks for the one in force for this node.
	res, err := s.policies.GetPolicy(ctx, &dispatchv1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	s.st.policyEpoch, s.st.policy = want.epoch, want.generation
	s.c.mu.Lock()
	s.c.generation = want.generation
	s.c.mu.Unlock()
	s.st.emit(func(ev conduit.HubEvents) { ev.Policy(res.GetVersion(), res.GetDocument()) })
	return nil
}

// signal holds the signalling stream: it reads here and writes in a goroutine of
// its own, which the end of the session stops.
func (s *session) signal(ctx context.Context) error {
	stream, err := s.signaling.ExchangeCandidates(ctx)
	if err != nil {
		return err
	}
	queue := make(chan outgoing, QueueLen)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.c.setQueue(nil)
	wg.Go(func() { s.send(ctx, stream, queue) })
	for {
		m, err := stream.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errStopped
			}
			// Before the streams are closed: the cause must win over what
			// closing brings about.
			s.fail(err)
			_ = stream.CloseResponse()
			return err
		}
		switch e := m.GetEvent().(type) {
		case *dispatchv1.ExchangeCandidatesResponse_Ready:
			s.c.setQueue(queue)
			s.mark(&s.ready)
		case *dispatchv1.ExchangeCandidatesResponse_Delivery:
			if from, err := identity.ParsePeerID(e.Delivery.GetFrom()); err == nil && len(e.Delivery.GetBody()) <= conduit.MaxSignal {
				s.st.emit(func(ev conduit.HubEvents) { ev.Signaled(from, e.Delivery.GetBody()) })
			}
		case *dispatchv1.ExchangeCandidatesResponse_Undeliverable:
			if to, err := identity.ParsePeerID(e.Undeliverable.GetTo()); err == nil {
				s.st.emit(func(ev conduit.HubEvents) { ev.Undeliverable(to, reasonWord(e.Undeliverable.GetReason())) })
			}
		default: // an event of a newer hub
		}
	}
}

func (s *session) send(ctx context.Context, stream *connect.BidiStreamForClientSimple[dispatchv1.ExchangeCandidatesRequest, dispatchv1.ExchangeCandidatesResponse], queue <-chan outgoing) {
	defer func() { _ = stream.CloseRequest() }()
	// The first message opens the stream at the hub.
	if stream.Send(&dispatchv1.ExchangeCandidatesRequest{}) != nil {
		return // Receive tells why
	}
	for seq := uint64(1); ; seq++ {
		select {
		case m := <-queue:
			if stream.Send(&dispatchv1.ExchangeCandidatesRequest{To: m.to.String(), Seq: seq, Body: m.body}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
