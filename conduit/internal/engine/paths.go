// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// maxRemotes bounds the last good addresses of a peer, maxLastAddrs the datagrams
	// that one message without the hub becomes.
	maxRemotes   = 8
	maxLastAddrs = 16
)

// relayAddr stands for a peer on relay binds.
func (p *peer) relayAddr() netip.AddrPort { return netip.AddrPortFrom(p.info.Virtual4, 1) }

// hasPaths reports whether paths are kept for p: only with a session can they be
// proved.
func (p *peer) hasPaths() bool { return len(p.sessions) > 0 }

// meet begins to look for paths for a session that a handshake made.
func (p *peer) meet(s *sess, now time.Time) {
	p.doubted = time.Time{}
	if !p.usable && p.noDirect.IsZero() {
		p.noDirect = now
	}
	p.syncSockets(now)
	p.paths.Wake(now)
	for _, l := range p.lastAddrs() {
		p.paths.AddPath(path.ID{Bind: l.Bind, Remote: l.Remote}, now)
	}
	if p.carriers.reply.kind == byUDP { // it answered there a moment ago
		a := p.carriers.reply.addr
		p.paths.AddPath(path.ID{Bind: a.Bind, Remote: a.Remote}, now)
	}
	p.drain(now)
	s.hello()
	p.choose(now)
	if s.agent == nil {
		p.e.adverts.add(p, false)
	}
	p.sendTurns(s, now)
	p.e.touch(p)
}

// syncSockets tells the path set which of our sockets count for p now.
func (p *peer) syncSockets(now time.Time) {
	net := &p.e.net
	list := make([]path.Local, 0, len(net.uplinks)+len(net.turns)+1+len(p.relays))
	for _, s := range net.uplinks {
		list = append(list, s.Local)
	}
	for _, t := range net.turns {
		list = append(list, t.Local)
	}
	p.hubRelay = p.wantsHubRelay(now)
	if p.hubRelay {
		list = append(list, path.Local{Bind: p.e.cfg.HubRelay, Kind: path.Hub})
	}
	for _, bind := range p.relays {
		list = append(list, path.Local{Bind: bind, Kind: path.Peer})
	}
	p.paths.SetLocals(list, now)
	if p.hubRelay {
		p.paths.AddPath(path.ID{Bind: p.e.cfg.HubRelay, Remote: p.relayAddr()}, now)
	}
	for _, bind := range p.relays {
		p.paths.AddPath(path.ID{Bind: bind, Remote: p.relayAddr()}, now)
	}
}

// capable reports whether the peer takes part in what this version adds to paths.
func (p *peer) capable() bool {
	s := p.newest()
	return s != nil && s.est.PeerCaps&wire.CapPaths != 0
}

// wantsHubRelay: the stream is kept ready while applications talk, so that a direct
// path may fail at any moment.
func (p *peer) wantsHubRelay(now time.Time) bool {
	if p.e.cfg.HubRelay < 0 || !p.e.net.hubUp || !p.capable() {
		return false
	}
	// A handshake says that something is new, or wrong with a path of which we do not
	// know yet.
	if s := p.newest(); s != nil && now.Sub(s.created) < warmFor {
		return true
	}
	return p.demand() != path.Idle || !p.noDirect.IsZero() && now.Sub(p.noDirect) < time.Minute || len(p.waiters) > 0
}

// wantsTurn: no direct path was found, or it was lost, and somebody wants one.
func (p *peer) wantsTurn(now time.Time) bool {
	return p.hasPaths() && !p.noDirect.IsZero() && now.Sub(p.noDirect) > turnAfter && p.demand() != path.Idle
}

// tickPaths lets time pass for the paths.
func (p *peer) tickPaths(now time.Time) (next time.Time) {
	base := p.e.cfg.Dataplane.Now()
	for _, c := range p.dp.Paths() {
		if c.LastRecv != 0 {
			p.paths.Heard(path.ID(c.Path), now.Add(-time.Duration(base-c.LastRecv)), now)
		}
		p.loaded(c, now)
	}
	d := p.demand()
	switch {
	case d != path.Active:
		p.activeSince = time.Time{}
	case p.activeSince.IsZero():
		p.activeSince = now
	}
	p.paths.Demand(d, now)
	p.paths.Tick(now)
	if p.wantsHubRelay(now) != p.hubRelay {
		p.syncSockets(now)
	}
	p.findRelay(now)
	p.drain(now)
	again := p.doubt(now)
	next = p.paths.NextTick()
	if !again.IsZero() && (next.IsZero() || again.Before(next)) {
		next = again
	}
	if !p.noDirect.IsZero() && p.demand() != path.Idle {
		if at := now.Add(housekeeping); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// load is what a path had carried at a time.
type load struct {
	at             time.Time
	packets, bytes uint64
}

// loaded tells the path set of paths that carry large packets.
func (p *peer) loaded(c dataplane.PathCounters, now time.Time) {
	const gap, few, large = 500 * time.Millisecond, 4, 1000
	was, known := p.loads[c.Path]
	if known && now.Sub(was.at) < gap {
		return
	}
	if p.loads == nil || len(p.loads) > 2*path.MaxPaths {
		p.loads = make(map[dataplane.Path]load)
	}
	p.loads[c.Path] = load{now, c.TxPackets, c.TxBytes}
	// Half of what is sent beside a bulk flow is small: one large packet in four counts.
	if packets, bytes := c.TxPackets-was.packets, c.TxBytes-was.bytes; known && packets >= few && bytes > packets*large/4 {
		p.paths.Loaded(path.ID(c.Path), now)
	}
}

// doubt begins a handshake where a peer that is talked to says nothing: it may have
// restarted, or moved without a trace. It returns when to look again.
func (p *peer) doubt(now time.Time) (again time.Time) {
	s := p.speaker()
	if s == nil || !s.hadPath && now.Sub(s.created) < pathlessLife {
		return time.Time{}
	}
	if n := p.newest(); n != s && now.Sub(n.created) < answerWait {
		return time.Time{} // that one will tell
	}
	heard := s.heard(now)
	if !p.doubted.IsZero() && heard.After(p.doubted) {
		p.doubted = time.Time{} // it still has our session
		if p.connected() {
			p.finish(nil)
		}
	}
	var due time.Time
	switch {
	case !p.doubted.IsZero():
		due = p.doubted.Add(freshDoubt + 2*p.rtt)
	case !p.wanted():
		return time.Time{}
	case !p.usable:
		due = now
	case !p.activeSince.IsZero():
		due = heard.Add(doubtAfter + 2*p.rtt)
		if asked := p.activeSince.Add(doubtAfter); asked.After(due) {
			due = asked
		}
	default:
		return time.Time{}
	}
	if p.notUntil.After(due) {
		due = p.notUntil
	}
	if now.Before(due) {
		return due
	}
	if !p.machine.Connecting() {
		p.doubted = time.Time{}
		p.connect(now)
	}
	return time.Time{}
}

// drain does what the path set wants done.
func (p *peer) drain(now time.Time) {
	for out := p.paths.Ready(); len(out) > 0; out = p.paths.Ready() {
		for i := range out {
			o := &out[i]
			switch o.Kind {
			case path.SendProbe:
				p.probe(o)
			case path.SendChallenge:
				if s := p.speaker(); s != nil && p.capable() {
					p.e.cfg.Dataplane.SendControl(s.dp, wire.TypePathChallenge, o.Challenge[:], dataplane.Path(o.ID))
				}
			case path.UseWays:
				p.use(o.Ways, now)
			}
		}
	}
	p.track()
}

func (p *peer) probe(o *path.Output) {
	s := p.speaker()
	if s == nil {
		return
	}
	o.Probe.Sent = uint64(p.e.cfg.Dataplane.Now())
	body := o.Probe.Append(make([]byte, 0, max(wire.ProbeLen, o.Size)))
	if n := o.Size - s.dp.Overhead(); n > len(body) {
		body = body[:n]
	}
	p.e.cfg.Dataplane.SendControl(s.dp, wire.TypeProbe, body, dataplane.Path(o.ID))
}

// track has the packet path count for the paths there are.
func (p *peer) track() {
	gen := p.paths.Generation()
	if gen == p.generation {
		return
	}
	p.generation = gen
	ids := p.paths.IDs()
	known := make([]dataplane.Path, len(ids))
	for i, id := range ids {
		known[i] = dataplane.Path(id)
	}
	p.tracked = known
	p.e.cfg.Dataplane.Track(p.dp, known)
}

// use puts new ways into force.
func (p *peer) use(w *path.Ways, now time.Time) {
	plane := p.e.cfg.Dataplane
	usable := len(w.Critical) > 0
	if usable {
		out := &dataplane.Ways{MTU: w.MTU, Critical: planePaths(w.Critical), Telemetry: planePaths(w.Telemetry), Bulk: planePaths(w.Bulk)}
		if !w.Since.IsZero() {
			out.Since = plane.Now() - int64(now.Sub(w.Since))
		}
		plane.SetWays(p.dp, out)
	}
	if usable && !p.usable {
		p.usableFrom = now
	}
	p.usable = usable
	p.choose(now)
	if !usable { // after choose, so that packets wait for the next way
		plane.SetWays(p.dp, nil)
	}
	p.noteDirect(now)
	same := slices.Equal(p.critical, w.Critical)
	p.critical = w.Critical
	switch {
	case usable && same: // a step of the search for the path's MTU
		p.e.cfg.Logger.Debug("ways to peer", "peer", p.info.Name, "mtu", w.MTU)
	case usable:
		p.e.cfg.Logger.Info("ways to peer", "peer", p.info.Name, "best", p.describe(w.Critical[0]), "critical", len(w.Critical), "mtu", w.MTU)
	default:
		p.e.cfg.Logger.Info("no way to peer", "peer", p.info.Name)
	}
	if s := p.newest(); s != nil && p.hasDirect() && s.agent != nil && s.confirmed && now.Sub(s.created) > agentLife {
		s.closeAgent()
	}
}

func planePaths(ids []path.ID) []dataplane.Path {
	out := make([]dataplane.Path, len(ids))
	for i, id := range ids {
		out[i] = dataplane.Path(id)
	}
	return out
}

func (p *peer) hasDirect() bool { return p.hasPaths() && p.noDirect.IsZero() }

// noteDirect keeps since when there is no direct path, and the addresses of those
// that work.
func (p *peer) noteDirect(now time.Time) {
	direct := false
	for _, st := range p.paths.Status(now) {
		if st.Lanes[packet.Critical] && st.RTT > 0 {
			p.rtt = st.RTT
		}
		if st.Kind != path.Direct || st.State != path.StateValid {
			continue
		}
		direct = true
		p.remember(st.ID.Remote)
	}
	switch {
	case direct:
		p.noDirect = time.Time{}
	case p.noDirect.IsZero():
		p.noDirect = now
	}
}

// remember keeps an address for when the hub is away.
func (p *peer) remember(a netip.AddrPort) {
	if i := slices.Index(p.remotes, a); i >= 0 {
		copy(p.remotes[1:i+1], p.remotes[:i])
		p.remotes[0] = a
		return
	}
	p.remotes = slices.Insert(p.remotes, 0, a)
	if len(p.remotes) > maxRemotes {
		p.remotes = p.remotes[:maxRemotes]
	}
	p.e.news()
}

// describe names a path for the log.
func (p *peer) describe(id path.ID) string {
	for _, st := range p.paths.Status(time.Now()) {
		if st.ID == id {
			if st.Kind != path.Direct {
				return st.Kind.String()
			}
			break
		}
	}
	return id.Remote.String()
}

// candidates takes the peer's addresses.
func (p *peer) candidates(c *session.Candidates, now time.Time) {
	for _, s := range p.sessions {
		if s.est.SID != c.SID {
			continue
		}
		if c.Fresh && s == p.newest() {
			p.paths.ResetRemotes(now)
		}
		for _, line := range c.Lines {
			a, typ, err := p.e.cfg.Mux.Remote(line)
			if err != nil {
				p.e.cfg.Logger.Debug("candidate of peer", "peer", p.info.Name, "err", err)
				continue
			}
			p.paths.AddRemote(a, typ, now)
			if s.agent != nil && typ != ice.TypeRelay {
				if err := s.agent.AddRemote(line); err != nil {
					p.e.cfg.Logger.Debug("candidate of peer", "peer", p.info.Name, "err", err)
				}
			}
		}
		p.drain(now)
		p.e.touch(p)
		return
	}
}

// sendTurns tells the peer the relayed addresses that lead to us.
func (p *peer) sendTurns(s *sess, now time.Time) {
	for i, t := range p.e.net.turns {
		line := ice.Candidate{Addr: t.relayed, Type: ice.TypeRelay, Rank: i}.String()
		p.sendCandidates(s, []string{line}, 0, now)
	}
}

// sendCandidates seals our addresses for the peer: inside the session where that
// works, through the hub where it may not.
func (p *peer) sendCandidates(s *sess, lines []string, flags wire.CandidateFlags, now time.Time) {
	body, err := s.est.SealCandidates(lines, flags)
	if err != nil {
		p.e.cfg.Logger.Debug("seal candidates", "peer", p.info.Name, "err", err)
		return
	}
	inside := p.connected() && p.sendInside(body)
	if p.e.net.hubUp && (!inside || flags != 0 || !p.hasDirect()) {
		if err := p.e.cfg.Signal(p.info.ID, body); err != nil {
			p.e.cfg.Logger.Debug("signal candidates", "peer", p.info.Name, "err", err)
		}
	} else if !inside {
		if a := s.metBy; a.Remote.IsValid() {
			p.sendUDP(body, []session.Addr{a}, now)
		}
	}
}

// control handles a control packet of one of p's sessions.
func (p *peer) control(c dataplane.Control, now time.Time) {
	var s *sess
	for _, o := range p.sessions {
		if o.has(c.Session) {
			s = o
		}
	}
	if s == nil {
		return
	}
	id := path.ID(c.Path)
	if !p.e.admissible(id) {
		return // inside the overlay, for one: packets to there would come back to us
	}
	at := now.Add(-time.Duration(p.e.cfg.Dataplane.Now() - c.At))
	switch c.Event {
	case dataplane.EventFirst:
		s.confirm(now)
		if s.rekey != nil {
			s.rekey.Confirmed(c.Session.LocalIndex, now)
			s.flushRekey(now)
		}
		p.choose(now)
	case dataplane.EventSource:
		p.paths.Heard(id, at, now)
	case dataplane.EventPacket:
		p.packet(s, c, id, at, now)
	}
	p.drain(now)
	p.e.touch(p)
	p.tell()
}

// admissible reports whether an address may be the other end of a path.
func (e *Engine) admissible(id path.ID) bool {
	if id.Remote.Port() == 0 {
		return false
	}
	for _, s := range e.net.uplinks {
		if s.Bind == id.Bind {
			return !e.cfg.Mux.Forbidden(id.Remote.Addr())
		}
	}
	for _, t := range e.net.turns {
		if t.Bind == id.Bind {
			return !e.cfg.Mux.Forbidden(id.Remote.Addr())
		}
	}
	return true // on relay binds peers have their virtual addresses
}

func (p *peer) packet(s *sess, c dataplane.Control, id path.ID, at, now time.Time) {
	switch c.Type {
	case wire.TypeProbe:
		var m wire.Probe
		if m.Parse(c.Body) == nil {
			p.paths.Probed(id, m, now)
		}
	case wire.TypeProbeAck:
		var m wire.ProbeAck
		if m.Parse(c.Body) == nil && m.Probe.Seq != 0 {
			p.paths.Acked(id, m, at, now)
		}
	case wire.TypePathResponse:
		var m wire.PathChallenge
		if m.Parse(c.Body) == nil {
			p.paths.Responded(id, m, now)
		}
	case wire.TypeSignal:
		if body, err := p.incoming.Add(c.Body); err == nil && body != nil {
			p.step(body, carrier{kind: bySession}, now)
		}
	case wire.TypeRekey:
		s.rekeyed(c.Session, c.Body, now)
	case wire.TypeClose:
		var m wire.Close
		if m.Parse(c.Body) == nil {
			p.e.cfg.Logger.Debug("peer closed the session", "peer", p.info.Name, "reason", m.Reason)
			p.drop(s, now)
		}
	default:
	}
}
