// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// activeFor and warmFor are how long after an application's last packet, in either
	// direction, the paths of a peer are probed closely, and kept ready.
	activeFor = 2 * time.Second
	warmFor   = 10 * time.Second
	// connectGap is the least time between the failure of one attempt and the next.
	// It doubles up to maxConnectGap until a path is found or the peer comes anew.
	connectGap    = 2 * time.Second
	maxConnectGap = 30 * time.Second
	// maxSessions bounds the sessions of one peer, most of which are on their way in
	// or out.
	maxSessions = 4
)

// States of a peer, as status shows them.
const (
	stateIdle      = "idle"
	stateHandshake = "handshake"
	stateChecking  = "checking"
	stateConnected = "connected"
	stateSilent    = "silent"
)

// waiter is one call of Connect.
type waiter struct {
	done     chan error
	progress func(string)
	last     string
	gone     atomic.Bool // Connect has returned
}

// peer is the engine's side of another node. All of it is owned by Engine.run.
type peer struct {
	e        *Engine
	info     *registry.Peer
	dp       *dataplane.Peer
	machine  *session.Machine
	paths    *path.Set
	dueAt    time.Time
	dueIndex int // in Engine.due; -1: not there

	sessions []*sess // newest last
	waiters  []*waiter
	online   bool
	instance uint64
	lastErr  error
	notUntil time.Time // no Connect before this, after a failure
	failures int       // in a row
	carriers carriers
	incoming wire.Reassembler // SIGNAL

	usable      bool // some path carries packets
	usableFrom  time.Time
	rtt         time.Duration
	critical    []path.ID // the ways of Critical
	generation  uint64    // of paths, when they were last tracked
	tracked     []dataplane.Path
	budget      bucket // of handshakes
	udpBudget   bucket
	loads       map[dataplane.Path]load
	activeSince time.Time        // since when applications talk
	noDirect    time.Time        // since when there is a session and no direct path; zero: there is
	hubRelay    bool             // the hub's relay stream is one of the paths
	relays      []int            // binds of willing peers
	relaysAt    time.Time        // when others were tried last
	remotes     []netip.AddrPort // last good addresses, the newest first
	doubted     time.Time        // since when the peer may have lost our session; zero: it has it

	rekeys, handshakes uint64
	keysSince          time.Time
}

func newPeer(e *Engine, info *registry.Peer) *peer {
	here := e.presence[info.ID]
	p := &peer{
		e: e, info: info, online: here.online, instance: here.instance, dueIndex: -1,
		paths: path.New(path.Config{Modes: e.cfg.Modes}),
	}
	p.dp = &dataplane.Peer{ID: info.ID, Rules: e.cfg.Policy.Peer(info.ID), Virtual4: info.Virtual4, Virtual6: info.Virtual6}
	p.machine = session.New(session.Config{
		Keys: e.cfg.Keys, Chain: e.cfg.Chain, Roots: e.cfg.Roots,
		Peer: info.ID, PeerEd25519: info.Ed25519, PeerX25519: info.X25519,
		Denied: func(c *identity.Certificate) bool { return e.denied.certificate(c, time.Now()) },
		PSK:    e.cfg.PSK, PSKEpoch: e.cfg.PSKEpoch, PSKBefore: e.cfg.PSKBefore, Suites: e.cfg.Suites, Indexes: e.cfg.Dataplane,
		Caps: e.caps(), Limits: e.limits,
		NewICE: func() wire.ICE {
			ufrag, pwd := ice.NewCredentials()
			return wire.ICE{Ufrag: ufrag, Pwd: pwd}
		},
	})
	return p
}

// remove closes everything that belongs to p.
func (p *peer) remove(why error) {
	p.machine.Close()
	p.e.courier.Forget(p.info.ID)
	p.e.cfg.Dataplane.Activate(p.dp, nil)
	p.e.cfg.Dataplane.SetWays(p.dp, nil)
	p.e.cfg.Dataplane.Track(p.dp, nil)
	p.e.cfg.Dataplane.Abandon(p.dp, dataplane.TxNoSession)
	for _, s := range p.sessions {
		s.close()
	}
	p.sessions = nil
	p.dropRelays()
	p.e.dropRelay(p)
	p.e.unschedule(p)
	p.finish(why)
}

// newest returns the newest session, or nil.
func (p *peer) newest() *sess {
	if n := len(p.sessions); n > 0 {
		return p.sessions[n-1]
	}
	return nil
}

// speaker returns the session that we may send with: the newest that the peer is
// known to have, else the newest.
func (p *peer) speaker() *sess {
	for _, s := range slices.Backward(p.sessions) {
		if s.confirmed {
			return s
		}
	}
	return p.newest()
}

// connected reports whether packets go through.
func (p *peer) connected() bool { return p.usable && p.dp.Active() != nil }

// want sees to it that a session with a path comes about.
func (p *peer) want(now time.Time) {
	defer p.tell()
	p.e.touch(p)
	if p.shutOut(now) {
		p.refuse()
		return
	}
	if p.connected() {
		if p.doubted.IsZero() { // else it is being found out
			p.finish(nil)
		}
		return
	}
	if s := p.newest(); s != nil && now.Sub(s.created) < pathlessLife && !s.hadPath {
		return // its paths are being looked for
	}
	if p.machine.Connecting() {
		return
	}
	if now.Before(p.notUntil) {
		if p.newest() == nil {
			p.e.cfg.Dataplane.Abandon(p.dp, dataplane.TxNoSession)
		}
		if len(p.waiters) == 0 {
			return
		}
	}
	p.connect(now)
}

// connect begins a full handshake.
func (p *peer) connect(now time.Time) {
	if p.machine.Connecting() {
		return
	}
	p.carriers.begin()
	p.machine.Connect(now)
	p.flush(now)
}

// step takes a signalling message that came by way of from.
func (p *peer) step(body []byte, from carrier, now time.Time) {
	p.e.touch(p)
	if p.shutOut(now) || !p.affordable(body, from, now) {
		return
	}
	p.carriers.reply = from
	if err := p.machine.Step(body, now); err != nil {
		p.e.cfg.Logger.Debug("dropped a signalling message", "peer", p.info.Name, "by", from.String(), "err", err)
	}
	p.flush(now)
	p.carriers.reply = carrier{}
}

// flush does what the machine wants done.
func (p *peer) flush(now time.Time) {
	for out := p.machine.Ready(); len(out) > 0; out = p.machine.Ready() {
		for _, o := range out {
			switch {
			case o.Send != nil:
				p.send(o.Send, now)
			case o.Established != nil:
				p.established(o.Established, now)
			case o.Candidates != nil:
				p.candidates(o.Candidates, now)
			case o.Failed != nil:
				p.failed(o.Failed, now)
			}
		}
	}
	p.tell()
}

// failed ends an attempt: who waits is told, what waits is dropped.
func (p *peer) failed(err error, now time.Time) {
	p.lastErr = err
	p.notUntil = now.Add(min(connectGap<<p.failures, maxConnectGap))
	p.failures = min(p.failures+1, 8)
	p.e.cfg.Logger.Debug("no session with peer", "peer", p.info.Name, "err", err)
	if !p.connected() && !p.hasPaths() { // else a path may come back, or the packets go stale
		p.e.cfg.Dataplane.Abandon(p.dp, dataplane.TxNoSession)
	}
	p.finish(err)
}

// established takes a new session over. The one before stays in use until the
// peer is known to have the new one.
func (p *peer) established(est *session.Established, now time.Time) {
	c := est.Certificate
	if p.e.denied.certificate(c, now) { // since its first message
		p.e.cfg.Dataplane.Release(est.LocalIndex)
		p.failed(ErrDenied, now)
		return
	}
	if c.Virtual4 != p.info.Virtual4 || p.info.Virtual6.IsValid() && c.Virtual6 != p.info.Virtual6 {
		p.e.cfg.Dataplane.Release(est.LocalIndex)
		p.failed(fmt.Errorf("peer's certificate is for %s, the hub says %s", c.Virtual4, p.info.Virtual4), now)
		return
	}
	s, err := newSess(p, est, now)
	if err != nil {
		p.e.cfg.Dataplane.Release(est.LocalIndex)
		p.failed(err, now)
		return
	}
	p.handshakes++
	p.add(s, now)
	p.e.cfg.Logger.Debug("session established", "peer", p.info.Name, "initiator", est.Initiator, "cipher", s.dp.Suite.String())
	p.meet(s, now)
}

// add puts a session among p's.
func (p *peer) add(s *sess, now time.Time) {
	p.sessions = append(p.sessions, s)
	for i := 0; len(p.sessions) > maxSessions; { // never the one in use
		if p.sessions[i].has(p.dp.Active()) {
			i++
			continue
		}
		p.drop(p.sessions[i], now)
	}
}

// drop ends one session.
func (p *peer) drop(s *sess, now time.Time) {
	for i := range p.sessions {
		if p.sessions[i] == s {
			p.sessions = slices.Delete(p.sessions, i, i+1)
			break
		}
	}
	if !p.hasPaths() { // what is known of paths grows old unseen
		p.paths.Sleep(now)
		p.drain(now)
	}
	p.choose(now)
	s.close()
}

// choose makes the newest session that the peer has the one in use, once there is a
// path. One that had a path stays in use without: the packet path keeps what is
// Critical for the next one.
func (p *peer) choose(now time.Time) {
	var best *sess
	for _, s := range slices.Backward(p.sessions) {
		if s.confirmed && !s.over && (p.usable || s.hadPath) {
			best = s
			break
		}
	}
	var dp *dataplane.Session
	if best != nil {
		dp = best.dp
	}
	if p.dp.Active() != dp {
		p.e.cfg.Dataplane.Activate(p.dp, dp)
		p.keysSince = now
	}
	if best != nil && p.usable {
		best.hadPath = true
		p.lastErr, p.failures, p.notUntil = nil, 0, time.Time{}
		p.finish(nil)
	}
}

// has reports whether s is still one of p's.
func (p *peer) has(s *sess) bool { return slices.Contains(p.sessions, s) }

func (p *peer) presence(online bool, instance uint64, now time.Time) {
	fresh := online && instance != p.instance
	p.online = online
	if online {
		p.instance = instance
	}
	if !fresh {
		return
	}
	p.notUntil, p.failures = time.Time{}, 0
	switch s := p.speaker(); {
	case s != nil: // it may have lost our session in a restart
		p.doubted = now
		s.hello()
	case p.wanted():
		p.connect(now)
	}
	p.e.touch(p)
}

// demand says how much applications want p.
func (p *peer) demand() path.Demand {
	last := max(p.dp.LastTx(), p.dp.LastRx())
	if last == 0 {
		return path.Idle
	}
	switch since := time.Duration(p.e.cfg.Dataplane.Now() - last); {
	case since < activeFor:
		return path.Active
	case since < warmFor:
		return path.Warm
	}
	return path.Idle
}

// tick lets time pass and returns when it wants to be called again.
func (p *peer) tick(now time.Time) (next time.Time) {
	earliest := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	p.machine.Tick(now)
	p.flush(now)
	p.waiters = slices.DeleteFunc(p.waiters, func(w *waiter) bool { return w.gone.Load() })
	if p.hasPaths() {
		earliest(p.tickPaths(now))
	}
	for _, s := range slices.Clone(p.sessions) {
		if p.has(s) {
			earliest(s.tick(now))
		}
	}
	earliest(p.machine.NextTick())
	p.tell()
	return next
}

// finish answers all calls of Connect.
func (p *peer) finish(err error) {
	p.tell()
	for _, w := range p.waiters {
		w.done <- err
	}
	p.waiters = nil
}

// tell reports the state to who waits, where it changed.
func (p *peer) tell() {
	if len(p.waiters) == 0 {
		return
	}
	state := p.state()
	for _, w := range p.waiters {
		if w.progress != nil && w.last != state && !w.gone.Load() {
			w.last = state
			w.progress(state)
		}
	}
}

func (p *peer) state() string {
	s := p.newest()
	switch {
	case p.connected():
		return stateConnected
	case s != nil && s.hadPath:
		return stateSilent
	case s != nil:
		return stateChecking
	case p.machine.Connecting():
		return stateHandshake
	}
	return stateIdle
}
