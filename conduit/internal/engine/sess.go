// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// probeActive, probeIdle and probeFast are the gaps between probes of a path
	// that is used, of one that only keeps its NAT binding, and of one in doubt.
	probeActive = 1 * time.Second
	probeIdle   = 15 * time.Second
	probeFast   = 200 * time.Millisecond
	// maxMisses unanswered probes make a path silent.
	maxMisses = 5
	// agentLife is how long ICE goes on after the first path, to find a better one.
	agentLife = 30 * time.Second
	// deadAfter ends a session that is silent and not wanted.
	deadAfter = 10 * time.Minute
	// answerWait is how long the peer's candidates may take after our CONFIRM.
	answerWait = 3 * time.Second
	// firstAnswer is how long the first probe of a path may take: nothing is known of
	// its round trip yet.
	firstAnswer = 3 * time.Second
	// pathlessLife ends a session for which ICE found nothing.
	pathlessLife = 20 * time.Second
)

// ErrNoDirectPath is why a session ends without a path.
var ErrNoDirectPath = errors.New("no direct path: no pair of addresses answers (a symmetric NAT on both sides, or a firewall)")

// sess is one session with its ICE agent and the probes of its path.
type sess struct {
	p     *peer
	est   *session.Established
	dp    *dataplane.Session
	agent *ice.Agent

	created   time.Time
	pathSince time.Time
	agentDone bool

	seq      uint32
	sentAt   int64 // dataplane clock of the newest probe
	ackedSeq uint32
	lastAck  time.Time
	rtt      time.Duration
	misses   int
	silent   bool
	nextSend time.Time
	// answered says that the peer has the session: its candidates came.
	answered bool
	// pending are paths on which so far only the peer's check arrived, with the
	// probes sent on them: only the answer to one of those proves the path.
	pending map[dataplane.Path][]uint32
}

func newSess(p *peer, est *session.Established, now time.Time) (*sess, error) {
	dp, err := dataplane.NewSession(p.dp, est)
	if err != nil {
		return nil, err
	}
	s := &sess{p: p, est: est, dp: dp, created: now, pending: map[dataplane.Path][]uint32{}}
	e := p.e
	post := func(f func(now time.Time)) {
		e.box.post(func() {
			if e.peers[p.info.ID] == p && p.has(s) {
				f(time.Now())
			}
		})
	}
	s.agent, err = ice.NewAgent(ice.AgentConfig{
		Mux: e.cfg.Mux, Controlling: est.Initiator,
		LocalUfrag: est.LocalICE.Ufrag, LocalPwd: est.LocalICE.Pwd, STUNServers: e.cfg.STUNServers,
		OnCandidate: func(line string) { post(func(time.Time) { s.candidate(line) }) },
		OnPath:      func(path ice.Path) { post(func(now time.Time) { s.found(path, now) }) },
		OnProven:    func(path ice.Path) { post(func(now time.Time) { s.found(path, now) }) },
		OnFailed:    func(error) { post(s.failed) },
		Logger:      e.cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	e.cfg.Dataplane.Add(dp)
	if err := errors.Join(s.agent.Start(), s.agent.SetRemote(est.RemoteICE.Ufrag, est.RemoteICE.Pwd)); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close ends the session. The agent's end may take a while, so nobody waits.
func (s *sess) close() {
	s.p.e.cfg.Dataplane.Remove(s.dp)
	s.closeAgent()
}

// goodbye tells the peer that the session ends.
func (s *sess) goodbye(reason uint8) {
	if s.dp.Path() != nil {
		s.p.e.cfg.Dataplane.SendControl(s.dp, wire.TypeClose, (&wire.Close{Reason: reason}).Append(nil))
	}
}

func (s *sess) closeAgent() {
	if s.agentDone {
		return
	}
	s.agentDone = true
	s.p.e.background.Go(func() { _ = s.agent.Close() })
}

// candidate sends one of our candidates to the peer.
func (s *sess) candidate(line string) {
	lines, flags := []string{line}, wire.CandidateFlags(0)
	if line == "" {
		lines, flags = nil, wire.CandidatesDone
	}
	body, err := s.est.SealCandidates(lines, flags)
	if err == nil {
		err = s.p.e.cfg.Signal(s.p.info.ID, body)
	}
	if err != nil {
		s.p.e.cfg.Logger.Debug("signal candidate", "peer", s.p.info.Name, "err", err)
	}
}

// found takes a path that ICE proved. Where only the peer's check arrived, a
// probe proves it first: the check may be a replay from elsewhere.
func (s *sess) found(path ice.Path, now time.Time) {
	to := dataplane.Path{Bind: path.Socket, Remote: path.Remote}
	switch {
	case path.RoundTrip && (path.Selected || s.dp.Path() == nil):
		s.use(to, now)
	case !path.RoundTrip && s.dp.Path() == nil:
		if len(s.pending) < wire.MaxCandidates {
			if _, known := s.pending[to]; !known {
				s.pending[to] = nil
			}
			s.nextSend = now
		}
	}
}

// use moves the session to a path, and the peer to the session.
func (s *sess) use(to dataplane.Path, now time.Time) {
	old := s.dp.Path()
	if old != nil && *old == to {
		return
	}
	s.dp.SetPath(&to)
	if old == nil {
		s.pathSince = now
		s.p.lastErr, s.p.failures = nil, 0
	}
	s.misses, s.silent, s.lastAck = 0, false, now
	clear(s.pending)
	s.p.choose()
	s.p.finish(nil)
	s.p.e.cfg.Logger.Info("path to peer", "peer", s.p.info.Name, "type", "direct", "remote", to.Remote.String())
	s.probe(now, nil)
}

// failed is ICE's word that no pair answers.
func (s *sess) failed(now time.Time) {
	if s.dp.Path() != nil {
		return
	}
	s.p.drop(s)
	if len(s.p.sessions) > 0 || s.p.machine.Connecting() {
		return // another may still find one
	}
	s.p.failed(ErrNoDirectPath, now)
	s.p.e.cfg.Logger.Warn("no direct path to peer", "peer", s.p.info.Name)
}

// heard is when the session last had a sign of life.
func (s *sess) heard() time.Time {
	at := s.pathSince
	if last := s.dp.LastRecv(); last != 0 {
		t := time.Now().Add(-time.Duration(s.p.e.cfg.Dataplane.Now() - last))
		if t.After(at) {
			at = t
		}
	}
	return at
}

// probe sends one probe, on the session's path where path is nil.
func (s *sess) probe(now time.Time, path *dataplane.Path) {
	s.seq++
	s.sentAt = s.p.e.cfg.Dataplane.Now()
	var b [wire.ProbeLen]byte
	m := wire.Probe{Seq: s.seq, Sent: uint64(s.sentAt)}
	var paths []dataplane.Path
	if path != nil {
		paths = append(paths, *path)
	}
	s.p.e.cfg.Dataplane.SendControl(s.dp, wire.TypeProbe, m.Append(b[:0]), paths...)
	s.nextSend = now.Add(s.gap())
}

// gap is the time to the next probe.
func (s *sess) gap() time.Duration {
	switch {
	case len(s.pending) > 0, s.misses > 0 && !s.silent:
		return max(probeFast, s.rtt+s.rtt/2)
	case s.silent || s.p.inDemand() || s.ackedSeq == 0:
		return probeActive
	}
	return probeIdle
}

// doubt probes at once and closely until the peer answers.
func (s *sess) doubt(now time.Time) {
	s.misses = max(s.misses, 1)
	s.nextSend = now
}

func (s *sess) probeAck(c dataplane.Control, now time.Time) {
	var a wire.ProbeAck
	if a.Parse(c.Body) != nil || a.Probe.Seq == 0 || a.Probe.Seq > s.seq {
		return
	}
	if s.dp.Path() == nil {
		if slices.Contains(s.pending[c.Path], a.Probe.Seq) {
			s.use(c.Path, now)
		}
	}
	if rtt := time.Duration(c.At-int64(a.Probe.Sent)) - time.Duration(a.Hold)*time.Microsecond; rtt > 0 && rtt < time.Minute {
		if s.rtt == 0 {
			s.rtt = rtt
		}
		s.rtt += (rtt - s.rtt) / 4
	}
	s.ackedSeq = max(s.ackedSeq, a.Probe.Seq)
	s.lastAck = now
	s.misses = 0
	if s.silent {
		s.silent = false
		s.p.choose()
		s.p.e.cfg.Logger.Info("peer answers again", "peer", s.p.info.Name)
		if s.p.newest() == s && s.p.machine.Connecting() {
			s.p.machine.Cancel()
		}
		if s.p.newest() == s {
			s.p.finish(nil)
		}
	}
	if want := now.Add(s.gap()); s.nextSend.After(want) || s.nextSend.Before(now) {
		s.nextSend = want
	}
}

// tick sends what is due and returns when it wants to be called again.
func (s *sess) tick(now time.Time) time.Time {
	if s.dp.Path() == nil {
		if now.Sub(s.created) > pathlessLife {
			s.failed(now)
			return time.Time{}
		}
		if len(s.pending) > 0 && !now.Before(s.nextSend) {
			for path, sent := range s.pending {
				if len(sent) >= 25 {
					delete(s.pending, path)
					continue
				}
				s.probe(now, &path)
				s.pending[path] = append(sent, s.seq)
			}
		}
		if s.est.Initiator && !s.answered && s == s.p.newest() && !s.p.machine.Connecting() {
			// The hub may have lost our CONFIRM: without it the peer has no session.
			again := s.created.Add(answerWait)
			if now.Before(again) {
				return again
			}
			s.p.machine.Connect(now)
			s.p.flush(now)
		}
		if len(s.pending) > 0 {
			return s.nextSend
		}
		return s.created.Add(pathlessLife + time.Second)
	}
	if now.Sub(s.pathSince) > agentLife {
		s.closeAgent()
	}
	p := s.p
	if age := p.e.cfg.Rehandshake; age > 0 && s.est.Initiator && s == p.newest() && now.Sub(s.created) >= age &&
		!p.machine.Connecting() && !now.Before(p.notUntil) {
		p.machine.Connect(now) // fresh keys; these serve until those have a path
		p.flush(now)
	}
	// An application may have begun to send on a path that was idle.
	if due := now.Add(s.gap()); s.nextSend.After(due) {
		s.nextSend = due
	}
	if now.Before(s.nextSend) {
		return s.nextSend
	}
	if s.ackedSeq < s.seq && now.Sub(s.lastAck) > s.gap()/2 && (s.rtt > 0 || now.Sub(s.pathSince) > firstAnswer) {
		s.misses++
	}
	if s.misses >= maxMisses && !s.silent {
		s.silent = true
		s.p.choose()
		s.p.e.cfg.Logger.Info("peer is silent", "peer", s.p.info.Name, "remote", s.dp.Path().Remote.String())
	}
	if s.silent {
		if s.p.newest() == s && s.p.inDemand() && !s.p.machine.Connecting() && !now.Before(s.p.notUntil) {
			s.p.machine.Connect(now)
			s.p.flush(now)
		}
		if now.Sub(s.heard()) > deadAfter {
			s.p.drop(s)
			return time.Time{}
		}
	}
	s.probe(now, nil)
	return s.nextSend
}

// ErrNoAnswer is why a Connect ends to which the peer did not react.
var ErrNoAnswer = session.ErrNoAnswer
