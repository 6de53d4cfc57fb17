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
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// demand is how long after an application's last packet a peer counts as
	// wanted: its path is probed closely and its session is renewed when silent.
	demand = 10 * time.Second
	// connectGap is the least time between the failure of one attempt and the next.
	// It doubles up to maxConnectGap until a path is found or the peer comes anew.
	connectGap    = 2 * time.Second
	maxConnectGap = 30 * time.Second
	// maxSessions bounds the sessions of one peer, most of which are on their way in
	// or out.
	maxSessions = 4
	// oldSession is how long a replaced session still opens packets.
	oldSession = 15 * time.Second
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
	e       *Engine
	info    *registry.Peer
	dp      *dataplane.Peer
	machine *session.Machine

	sessions []*sess // newest last
	waiters  []*waiter
	online   bool
	instance uint64
	lastErr  error
	notUntil time.Time // no Connect before this, after a failure
	failures int       // in a row
}

func newPeer(e *Engine, info *registry.Peer) *peer {
	here := e.presence[info.ID]
	p := &peer{e: e, info: info, online: here.online, instance: here.instance}
	p.dp = &dataplane.Peer{
		ID: info.ID, Rules: e.cfg.Policy.Peer(info.ID), Virtual4: info.Virtual4, Virtual6: info.Virtual6,
	}
	p.machine = session.New(session.Config{
		Keys: e.cfg.Keys, Chain: e.cfg.Chain, Roots: e.cfg.Roots,
		Peer: info.ID, PeerEd25519: info.Ed25519, PeerX25519: info.X25519,
		Denied: func(c *identity.Certificate) bool { return e.denied.certificate(c, time.Now()) },
		PSK:    e.cfg.PSK, PSKEpoch: e.cfg.PSKEpoch, PSKBefore: e.cfg.PSKBefore, Suites: e.cfg.Suites, Indexes: e.cfg.Dataplane,
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
	p.e.cfg.Dataplane.Activate(p.dp, nil)
	p.e.cfg.Dataplane.Abandon(p.dp, dataplane.TxNoSession)
	for _, s := range p.sessions {
		s.close()
	}
	p.sessions = nil
	p.finish(why)
}

// newest returns the newest session, or nil.
func (p *peer) newest() *sess {
	if n := len(p.sessions); n > 0 {
		return p.sessions[n-1]
	}
	return nil
}

// want sees to it that a session with a path comes about.
func (p *peer) want(now time.Time) {
	defer p.tell()
	if p.shutOut(now) {
		p.refuse()
		return
	}
	for _, s := range p.sessions {
		if s.dp == p.dp.Active() && !s.silent {
			p.finish(nil)
			return
		}
	}
	if s := p.newest(); s != nil && s.dp.Path() == nil {
		return // ICE is looking for one
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
	p.machine.Connect(now)
	p.flush(now)
}

func (p *peer) step(body []byte, now time.Time) {
	if p.shutOut(now) {
		return
	}
	if err := p.machine.Step(body, now); err != nil {
		p.e.cfg.Logger.Debug("dropped a signalling message", "peer", p.info.Name, "err", err)
	}
	p.flush(now)
}

// flush does what the machine wants done.
func (p *peer) flush(now time.Time) {
	for out := p.machine.Ready(); len(out) > 0; out = p.machine.Ready() {
		for _, o := range out {
			switch {
			case o.Send != nil:
				if err := p.e.cfg.Signal(p.info.ID, o.Send); err != nil {
					p.e.cfg.Logger.Debug("signal to peer", "peer", p.info.Name, "err", err)
					p.machine.Undeliverable(err.Error())
				}
			case o.Established != nil:
				p.established(o.Established, now)
			case o.Candidates != nil:
				p.candidates(o.Candidates)
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
	if p.dp.Active() == nil {
		p.e.cfg.Dataplane.Abandon(p.dp, dataplane.TxNoSession)
	}
	p.finish(err)
}

// established starts ICE for a new session. The old one stays in use until the
// new one has a path.
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
	est.Secrets.Erase() // the AEADs hold their own
	p.sessions = append(p.sessions, s)
	for i := 0; len(p.sessions) > maxSessions; { // never the one in use
		if p.sessions[i].dp == p.dp.Active() {
			i++
			continue
		}
		p.drop(p.sessions[i])
	}
	p.e.cfg.Logger.Debug("session established", "peer", p.info.Name, "initiator", est.Initiator, "cipher", s.dp.Suite.String())
}

func (p *peer) candidates(c *session.Candidates) {
	for _, s := range p.sessions {
		if s.est.SID != c.SID {
			continue
		}
		s.answered = true
		for _, line := range c.Lines {
			if err := s.agent.AddRemote(line); err != nil {
				p.e.cfg.Logger.Debug("candidate of peer", "peer", p.info.Name, "err", err)
			}
		}
	}
}

// drop ends one session.
func (p *peer) drop(s *sess) {
	for i := range p.sessions {
		if p.sessions[i] == s {
			p.sessions = append(p.sessions[:i], p.sessions[i+1:]...)
			break
		}
	}
	p.choose()
	s.close()
}

// choose makes the newest session whose path answers the one in use, else the
// newest that has a path at all, else none.
func (p *peer) choose() {
	var best *sess
	for _, s := range p.sessions {
		if s.dp.Path() != nil && (best == nil || best.silent || !s.silent) {
			best = s
		}
	}
	switch {
	case best == nil && p.dp.Active() != nil:
		p.e.cfg.Dataplane.Activate(p.dp, nil)
	case best != nil && p.dp.Active() != best.dp:
		p.e.cfg.Dataplane.Activate(p.dp, best.dp)
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
	if s := p.newest(); fresh && s != nil && s.dp.Path() != nil {
		s.doubt(now) // it may have lost our session in a restart
	}
	if fresh {
		p.notUntil, p.failures = time.Time{}, 0
	}
}

// control handles a control packet of one of p's sessions.
func (p *peer) control(c dataplane.Control, now time.Time) {
	for _, s := range p.sessions {
		if s.dp != c.Session {
			continue
		}
		switch c.Type {
		case wire.TypeProbeAck:
			s.probeAck(c, now)
		case wire.TypeClose:
			var m wire.Close
			if m.Parse(c.Body) == nil {
				p.e.cfg.Logger.Debug("peer closed the session", "peer", p.info.Name, "reason", m.Reason)
				p.drop(s)
			}
		default:
		}
		p.tell()
		return
	}
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
	newest := p.newest()
	for _, s := range append([]*sess(nil), p.sessions...) {
		if s != newest && newest.dp.Path() != nil && now.Sub(newest.pathSince) > oldSession {
			p.drop(s)
			continue
		}
		earliest(s.tick(now))
	}
	earliest(p.machine.NextTick())
	return next
}

// inDemand reports whether an application sent to p lately.
func (p *peer) inDemand() bool {
	last := p.dp.LastTx()
	return last != 0 && time.Duration(p.e.cfg.Dataplane.Now()-last) < demand
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
	for _, o := range p.sessions { // the one in use counts
		if o.dp == p.dp.Active() && o.dp.Path() != nil {
			s = o
		}
	}
	switch {
	case s != nil && s.dp.Path() != nil && s.silent:
		return stateSilent
	case s != nil && s.dp.Path() != nil:
		return stateConnected
	case s != nil:
		return stateChecking
	case p.machine.Connecting():
		return stateHandshake
	}
	return stateIdle
}

func (p *peer) status() PeerStatus {
	st := PeerStatus{Info: p.info, Online: p.online, State: p.state(), PathType: "none", Counters: p.dp.Counters()}
	for _, s := range p.sessions {
		path := s.dp.Path()
		if path == nil {
			continue
		}
		st.Cipher, st.Since = s.dp.Suite.String(), s.pathSince
		if s.silent {
			st.Reason = fmt.Sprintf("no answer on %s for %s", path.Remote, time.Since(s.heard()).Round(time.Second))
			continue
		}
		st.PathType, st.Remote, st.RTT = "direct", path.Remote, s.rtt
		st.Reason = ""
	}
	if st.PathType == "none" && st.Reason == "" && p.lastErr != nil {
		st.Reason = p.lastErr.Error()
	}
	if st.PathType == "none" {
		st.Remote = netip.AddrPort{}
	}
	return st
}
