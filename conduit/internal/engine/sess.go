// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// agentLife is how long ICE goes on, to find what our own probes do not.
	agentLife = 20 * time.Second
	// deadAfter ends sessions over which nothing came for so long.
	deadAfter = 10 * time.Minute
	// answerWait is how long the peer may be silent after our CONFIRM.
	answerWait = 3 * time.Second
	// pathlessLife is how long a new session may be without a path.
	pathlessLife = 20 * time.Second
	// doubtAfter is how long a peer that is talked to may be silent before a handshake
	// finds out whether it still has our session, freshDoubt the same for one of which
	// the hub says that it came anew.
	doubtAfter = time.Second
	freshDoubt = 200 * time.Millisecond
	// certGrace is how long a session outlives the peer's certificate, which the peer
	// may not be able to renew while the hub is away.
	certGrace = 24 * time.Hour
)

// Errors of Connect.
var (
	// ErrNoPath is why a session ends without a path.
	ErrNoPath = errors.New("no path: no pair of addresses answers, and no relay is to be had")
	// ErrExpired is why a session ends whose peer was not certified anew for a day.
	ErrExpired = errors.New("the peer's certificate ran out")
	// ErrNoAnswer is why a Connect ends to which the peer did not react.
	ErrNoAnswer = session.ErrNoAnswer
)

// sess is what one handshake made: its keys, those that rekeys put in their place,
// and its ICE agent.
type sess struct {
	p     *peer
	est   *session.Established
	dp    *dataplane.Session   // what we seal with
	keys  []*dataplane.Session // all that still open packets, dp among them
	agent *ice.Agent           // nil where none was needed
	rekey *session.Rekeyer     // nil where not both take part

	created   time.Time
	confirmed bool      // the peer is known to have the session
	since     time.Time // when it became confirmed
	hadPath   bool      // it was in use
	over      bool      // its keys are too old
	agentDone bool
	metBy     session.Addr // where the handshake went, without the hub
}

// newSess takes over the result of a handshake.
func newSess(p *peer, est *session.Established, now time.Time) (*sess, error) {
	s := &sess{p: p, est: est, created: now, rekey: session.NewRekeyer(est, p.e.cfg.Dataplane, now)}
	dp, err := s.install(est)
	if err != nil {
		return nil, err
	}
	s.dp = dp
	if p.carriers.reply.kind == byUDP {
		s.metBy = p.carriers.reply.addr
	}
	if !est.Initiator { // its CONFIRM came: it has the keys
		s.confirm(now)
	}
	if !p.hasDirect() {
		s.look()
	}
	return s, nil
}

// install lets the packet path open what is sealed with keys.
func (s *sess) install(est *session.Established) (*dataplane.Session, error) {
	plane := s.p.e.cfg.Dataplane
	dp, err := dataplane.NewSession(s.p.dp, est)
	if err != nil {
		return nil, err
	}
	if s.rekey != nil {
		dp.Expire(plane.Now() + int64(session.RefuseAfter))
	}
	est.Secrets.Erase() // the AEADs and the rekeyer hold their own
	s.keys = append(s.keys, dp)
	plane.Add(dp)
	return dp, nil
}

// has reports whether keys are of this session.
func (s *sess) has(dp *dataplane.Session) bool { return slices.Contains(s.keys, dp) }

// look starts an ICE agent. Without one our own probes still find most paths.
func (s *sess) look() {
	e, p := s.p.e, s.p
	post := func(f func(now time.Time)) {
		e.box.post(func() {
			if e.peers[p.info.ID] == p && p.has(s) {
				f(time.Now())
				e.touch(p)
			}
		})
	}
	found := func(w ice.Path) {
		post(func(now time.Time) {
			p.paths.AddPath(path.ID{Bind: w.Socket, Remote: w.Remote}, now)
			p.drain(now)
		})
	}
	agent, err := ice.NewAgent(ice.AgentConfig{
		Mux: e.cfg.Mux, Controlling: s.est.Initiator,
		LocalUfrag: s.est.LocalICE.Ufrag, LocalPwd: s.est.LocalICE.Pwd, STUNServers: e.cfg.STUNServers,
		OnCandidate: func(line string) {
			if line != "" {
				post(func(now time.Time) { p.sendCandidates(s, []string{line}, 0, now) })
			}
		},
		OnPath:   found,
		OnProven: found,
		Logger:   e.cfg.Logger,
	})
	if err == nil {
		s.agent = agent
		err = errors.Join(agent.Start(), agent.SetRemote(s.est.RemoteICE.Ufrag, s.est.RemoteICE.Pwd))
	}
	if err != nil {
		e.cfg.Logger.Warn("no ICE for this session; probing alone", "peer", p.info.Name, "err", err)
	}
}

// close ends the session. The agent's end may take a while, so nobody waits.
func (s *sess) close() {
	for _, dp := range s.keys {
		s.p.e.cfg.Dataplane.Remove(dp)
	}
	if s.rekey != nil {
		s.rekey.Close()
	}
	s.closeAgent()
}

// goodbye tells the peer that the session ends.
func (s *sess) goodbye(reason uint8) {
	if w := s.p.dp.Ways(); w != nil && len(w.Critical) > 0 { // which may be taken away next
		s.p.e.cfg.Dataplane.SendControl(s.dp, wire.TypeClose, (&wire.Close{Reason: reason}).Append(nil), w.Critical...)
	}
}

func (s *sess) closeAgent() {
	if s.agentDone || s.agent == nil {
		return
	}
	s.agentDone = true
	s.p.e.background.Go(func() { _ = s.agent.Close() })
}

// hello sends a probe that no path waits for: its answer, like any packet, tells
// the peer or us that the other has these keys.
func (s *sess) hello() {
	if s.p.usable {
		b := (&wire.Probe{}).Append(make([]byte, 0, wire.ProbeLen))
		s.p.e.cfg.Dataplane.SendControl(s.dp, wire.TypeProbe, b)
	}
}

// confirm notes that the peer has the session.
func (s *sess) confirm(now time.Time) {
	if !s.confirmed {
		s.confirmed, s.since = true, now
	}
}

// tick does what is due and returns when it wants to be called again.
func (s *sess) tick(now time.Time) (next time.Time) {
	earliest := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	p := s.p
	if !s.confirmed && s.lastRecv() != 0 { // its event may have been dropped
		s.confirm(now)
		p.choose(now)
	}
	if now.After(s.est.Certificate.NotAfter.Add(certGrace)) {
		p.lastErr = ErrExpired
		s.goodbye(wire.CloseKeyExpiry)
		p.drop(s, now)
		p.e.cfg.Logger.Warn("session ended: the peer's certificate ran out long ago", "peer", p.info.Name)
		return time.Time{}
	}
	newest := s == p.newest()
	if !newest {
		// Old keys open what is still on its way, and serve until newer ones do.
		for _, o := range p.sessions {
			if o.confirmed && o.created.After(s.created) {
				if now.Sub(o.since) >= session.OldKeysLive {
					p.drop(s, now)
					return time.Time{}
				}
				earliest(o.since.Add(session.OldKeysLive))
			}
		}
	}
	if s.rekey != nil {
		s.tickRekey(now)
		if at := s.rekey.NextTick(); !at.IsZero() {
			earliest(at)
		}
		if s.over {
			p.e.cfg.Logger.Info("keys are too old", "peer", p.info.Name)
			p.drop(s, now)
			return time.Time{}
		}
	}
	if !s.confirmed {
		// The peer has not got our CONFIRM, or nothing of it came through.
		again := s.created.Add(answerWait)
		switch {
		case now.Before(again):
			earliest(again)
		case newest && !p.machine.Connecting() && p.wanted() && !now.Before(p.notUntil):
			p.connect(now)
		case now.Sub(s.created) > pathlessLife:
			p.drop(s, now)
			if !p.hasPaths() { // else a newer one may do
				p.failed(ErrNoPath, now)
			}
			return time.Time{}
		default:
			earliest(s.created.Add(pathlessLife + time.Second))
		}
	}
	if s.confirmed && !s.hadPath && newest && !p.usable && now.Sub(s.created) > pathlessLife {
		p.drop(s, now)
		if !p.hasPaths() {
			p.failed(ErrNoPath, now)
			p.e.cfg.Logger.Warn("no path to peer", "peer", p.info.Name)
		}
		return time.Time{}
	}
	if s.confirmed && !s.hadPath {
		earliest(s.created.Add(pathlessLife + time.Second))
	}
	if s.agent != nil && !s.agentDone {
		if end := s.created.Add(agentLife); now.Before(end) {
			earliest(end)
		} else {
			s.closeAgent()
		}
	}
	if newest && s.confirmed {
		s.refresh(now, earliest)
	}
	if !p.usable && s.hadPath && now.Sub(s.heard(now)) > deadAfter {
		p.drop(s, now)
		return time.Time{}
	}
	return next
}

// wanted reports whether somebody waits for p or talks to it.
func (p *peer) wanted() bool { return p.demand() != path.Idle || len(p.waiters) > 0 }

// refresh makes a full handshake hourly, and where rekeys do not get through.
func (s *sess) refresh(now time.Time, earliest func(time.Time)) {
	p := s.p
	if p.machine.Connecting() || !p.usable {
		return
	}
	if s.rekey != nil && s.rekey.Stuck(now) && !now.Before(p.notUntil) {
		p.connect(now)
		return
	}
	if age := p.e.cfg.Rehandshake; age > 0 && s.est.Initiator {
		due := s.created.Add(age)
		if p.notUntil.After(due) {
			due = p.notUntil
		}
		if now.Before(due) {
			earliest(due)
		} else {
			p.connect(now)
		}
	}
}

// tickRekey lets time pass for the in-band rekey.
func (s *sess) tickRekey(now time.Time) {
	s.rekey.SetRTT(s.p.rtt)
	for _, dp := range s.keys {
		if dp != s.dp && dp.LastRecv() > s.dp.LastRecv() {
			s.rekey.Confirmed(dp.LocalIndex, now)
		}
	}
	s.rekey.Sent(s.dp.LocalIndex, s.dp.Sealed(), now)
	s.rekey.Tick(now)
	s.flushRekey(now)
}

// rekeyed takes a rekey message of the peer.
func (s *sess) rekeyed(on *dataplane.Session, body []byte, now time.Time) {
	if s.rekey == nil {
		return
	}
	if err := s.rekey.Step(on.LocalIndex, body, now); err != nil {
		s.p.e.cfg.Logger.Debug("dropped a rekey message", "peer", s.p.info.Name, "err", err)
	}
	s.flushRekey(now)
}

// flushRekey does what the rekeyer wants done.
func (s *sess) flushRekey(now time.Time) {
	p, plane := s.p, s.p.e.cfg.Dataplane
	for _, o := range s.rekey.Ready() {
		switch {
		case o.Send != nil:
			if dp := s.find(o.On); dp != nil {
				for _, b := range o.Send {
					plane.SendControl(dp, wire.TypeRekey, b)
				}
			}
		case o.Next != nil:
			if _, err := s.install(o.Next); err != nil {
				p.e.cfg.Logger.Warn("rekey", "peer", p.info.Name, "err", err)
			}
		case o.Switch != 0:
			if dp := s.find(o.Switch); dp != nil {
				s.dp = dp
				p.rekeys++
				p.choose(now)
				s.hello()
			}
		case o.Drop != 0:
			if dp := s.find(o.Drop); dp != nil {
				s.keys = slices.DeleteFunc(s.keys, func(k *dataplane.Session) bool { return k == dp })
				plane.Remove(dp)
			}
		case o.Over:
			s.over = true
		}
	}
}

func (s *sess) find(local uint32) *dataplane.Session {
	for _, dp := range s.keys {
		if dp.LocalIndex == local {
			return dp
		}
	}
	return nil
}

// heard is when the session last had a sign of life.
func (s *sess) heard(now time.Time) time.Time {
	at := s.created
	if last := s.lastRecv(); last != 0 {
		if t := now.Add(-time.Duration(s.p.e.cfg.Dataplane.Now() - last)); t.After(at) {
			at = t
		}
	}
	return at
}

// lastRecv is when any of its keys last opened a packet; 0 means never.
func (s *sess) lastRecv() (at int64) {
	for _, dp := range s.keys {
		at = max(at, dp.LastRecv())
	}
	return at
}
