// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/seal"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// reader is the state of one socket's goroutine.
type reader struct {
	d     *Dataplane
	link  *link
	now   int64
	nonce seal.Nonce
	hdr   wire.Header
	info  packet.Info
	// plain are opened packets, each a datagram cut before its tag, for one write
	// to the device.
	plain [][]byte
	wire  uint64
	// at is when the datagram came, by the kernel's word, or where rough is set when it
	// was read; follower is set where it was coalesced with one before it.
	at              int64
	rough, follower bool
	clock           realtime
	// The last lookup of a path's counters.
	cached struct {
		in   *tracked
		path Path
		stat *pathStat
	}
}

// readSocket takes datagrams from one socket.
func (d *Dataplane) readSocket(l *link, socket int) {
	b := l.bind
	msgs := make([]transport.Message, b.BatchSize())
	for i := range msgs {
		msgs[i].Buf = make([]byte, b.RecvBufSize())
	}
	r := &reader{d: d, link: l}
	for failures := 0; ; {
		n, err := b.Receive(socket, msgs)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if failures++; failures == 1 {
				d.cfg.Logger.Warn("receive datagrams", "bind", l.index, "err", err)
			}
			select { // such as for want of memory: it passes
			case <-time.After(min(time.Duration(failures)*time.Millisecond, 100*time.Millisecond)):
			case <-l.done:
				return
			}
			continue
		}
		failures = 0
		r.now = max(d.Now(), 1) // 0 means never
		r.clock.look(r.now)
		for i := range msgs[:n] {
			m := &msgs[i]
			r.at, r.rough = r.clock.at(m.Time, r.now)
			r.follower = false
			seg := m.Segment
			if seg <= 0 {
				seg = m.N
			}
			from := Path{Bind: l.index, Remote: m.Addr}
			for rest := m.Buf[:m.N]; len(rest) > 0; {
				k := min(seg, len(rest))
				r.wire += uint64(k)
				r.datagram(rest[:k:k], from)
				rest = rest[k:]
				r.follower = true
			}
		}
		r.flush()
	}
}

// flush writes the opened packets to the device.
func (r *reader) flush() {
	r.link.rx.Add(r.wire)
	r.wire = 0
	if len(r.plain) == 0 {
		return
	}
	n, err := r.d.cfg.Device.Write(0, r.plain, wire.HeaderLen)
	if err != nil || n < len(r.plain) {
		r.d.stats.rx[RxDevice].Add(uint64(len(r.plain) - n))
	}
	clear(r.plain)
	r.plain = r.plain[:0]
}

func (r *reader) drop(why RxReason) { r.d.stats.rx[why].Add(1) }

// datagram handles one datagram; b is the reader's until flush.
func (r *reader) datagram(b []byte, from Path) {
	switch transport.Demux(b) {
	case transport.KindSTUN:
		r.d.cfg.STUN(r.link.index, b, from.Remote)
		return
	case transport.KindUnknown:
		r.drop(RxUnknown)
		return
	case transport.KindMesh:
	}
	if !r.hdr.Parse(b) {
		r.drop(RxMalformed)
		return
	}
	if r.hdr.Type == wire.TypeHandshake {
		r.handshake(b, from)
		return
	}
	s := r.d.sessions.lookup(r.hdr.Index)
	if s == nil {
		r.drop(RxIndex) // silence: an answer would tell a stranger who is here
		return
	}
	r.sealed(s, b, from, false)
}

// sealed opens a packet whose header is in r.hdr. relayed is set where it came
// inside another.
func (r *reader) sealed(s *Session, b []byte, from Path, relayed bool) {
	if s.expired(r.now) {
		r.drop(RxExpired)
		return
	}
	body, err := s.recv[r.hdr.Lane].Open(b, r.hdr.Counter, &r.nonce)
	switch {
	case errors.Is(err, seal.ErrReplay):
		r.copied(s.Peer, from, len(b))
		return
	case err != nil:
		r.drop(RxForged)
		return
	}
	if s.lastRecv.Swap(r.now) == 0 {
		r.d.cfg.Control(Control{Event: EventFirst, Session: s, Path: from, Size: len(b), At: r.now})
	}
	r.heard(s, from, len(b))
	// The body may begin behind a nonce; its header goes right before it.
	at := cap(b) - cap(body)
	switch t := r.hdr.Type; t {
	case wire.TypeData:
		r.data(s, b[at-wire.HeaderLen:at+len(body)])
	case wire.TypeRelay:
		if relayed {
			r.drop(RxRelay)
			return
		}
		r.relay(s, body)
	case wire.TypeEcho, wire.TypeEchoReply:
		r.echo(s, body, from)
	case wire.TypeReport:
		r.reported(s, body, from)
	case wire.TypeProbe, wire.TypeProbeAck, wire.TypePathChallenge, wire.TypePathResponse, wire.TypeRekey, wire.TypeSignal, wire.TypeClose:
		if r.hdr.Lane != packet.Critical {
			r.drop(RxMalformed)
			return
		}
		if t == wire.TypeProbe && !r.probe(s, body, len(b), from) || t == wire.TypePathChallenge && !r.challenge(s, body, from) {
			return
		}
		// CLOSE ends the session, so there is no second one.
		if t != wire.TypeProbe && t != wire.TypeClose && !s.controls.allow(r.now, controlGap, controlSlack) {
			r.drop(RxControlRate)
			return
		}
		r.d.cfg.Control(Control{Session: s, Type: t, Body: bytes.Clone(body), Path: from, Size: len(b), At: r.now})
	default: // of a later version
		r.drop(RxType)
	}
}

// heard accounts for an authenticated packet of size bytes.
func (r *reader) heard(s *Session, from Path, size int) {
	p := s.Peer
	t := p.tracked.Load()
	if t == nil {
		return // nobody wants to know
	}
	if st := r.find(t, from); st != nil {
		st.lastRecv.Store(r.now)
		st.rxPackets.Add(1)
		st.rxBytes.Add(uint64(size))
		r.arrived(st, s, size)
		return
	}
	if p.sources.allow(r.now, sourceGap, sourceSlack) {
		r.d.cfg.Control(Control{Event: EventSource, Session: s, Path: from, Size: size, At: r.now})
	}
}

// copied counts a packet that the window has seen before.
func (r *reader) copied(p *Peer, from Path, size int) {
	if t := p.tracked.Load(); t != nil {
		if st := r.find(t, from); st != nil {
			st.rxCopies.Add(1)
			if rx := st.receiver.Load(); rx != nil {
				rx.Copied(size)
			}
			r.drop(RxCopy)
			return
		}
	}
	r.drop(RxReplay)
}

func (r *reader) find(t *tracked, path Path) *pathStat {
	c := &r.cached
	if c.in != t || c.path != path {
		c.in, c.path, c.stat = t, path, t.find(path)
	}
	return c.stat
}

// data checks an inner packet and keeps it for the device. pkt has the header
// before it.
func (r *reader) data(s *Session, pkt []byte) {
	inner := pkt[wire.HeaderLen:]
	if !packet.Parse(inner, &r.info) {
		r.drop(RxMalformed)
		return
	}
	p := s.Peer
	// A peer may speak for its own addresses only, and only to us.
	if !policy.Bound(&r.info, p.Virtual4, p.Virtual6, r.d.local) {
		r.drop(RxSource)
		return
	}
	if !r.d.cfg.Policy.Receive(p.Rules, inner, &r.info, r.hdr.Lane, r.now).Allow {
		r.drop(RxPolicy)
		return
	}
	if r.info.TCPFlags&packet.TCPSYN != 0 {
		if room := p.room(s); room > 0 {
			packet.ClampMSS(inner, &r.info, room)
		}
	}
	r.d.stats.rxPackets[r.hdr.Lane].Add(1)
	r.d.stats.rxBytes[r.hdr.Lane].Add(uint64(len(inner)))
	p.lastRx.Store(r.now)
	p.rxPackets.Add(1)
	p.rxBytes.Add(uint64(len(inner)))
	r.plain = append(r.plain, pkt)
}

// probe answers on the path on which it came.
func (r *reader) probe(s *Session, body []byte, size int, from Path) bool {
	if !s.probes.allow(r.now, probeGap, probeSlack) {
		r.drop(RxProbeRate)
		return false
	}
	var ack wire.ProbeAck
	if ack.Probe.Parse(body) != nil {
		r.drop(RxMalformed)
		return false
	}
	ack.Size = uint16(size)
	ack.Hold = uint32(max(0, (r.d.Now()-r.now)/1000))
	var b [wire.ProbeAckLen]byte
	r.d.SendControl(s, wire.TypeProbeAck, ack.Append(b[:0]), from)
	return true
}

// challenge answers on the path on which it came.
func (r *reader) challenge(s *Session, body []byte, from Path) bool {
	if !s.challenges.allow(r.now, challengeGap, challengeSlack) {
		r.drop(RxChallengeRate)
		return false
	}
	var c wire.PathChallenge
	if c.Parse(body) != nil {
		r.drop(RxMalformed)
		return false
	}
	r.d.SendControl(s, wire.TypePathResponse, c[:], from)
	return true
}

// handshake passes a datagram on that belongs to no session.
func (r *reader) handshake(b []byte, from Path) {
	switch {
	case r.d.cfg.Handshake == nil:
		r.drop(RxType)
	case r.hdr.Index != 0 || r.hdr.Lane != packet.Critical:
		r.drop(RxMalformed)
	case !r.d.handshakes.allow(r.now, handshakeGap, handshakeSlack):
		r.drop(RxHandshakeRate)
	default:
		r.d.cfg.Handshake(from, b)
	}
}

// relay takes a packet out of one that s's peer sent. It is ours where it is of a
// session with the peer that it names; else we may be the relay.
func (r *reader) relay(s *Session, body []byte) {
	lane := r.hdr.Lane
	var m wire.Relay
	if m.ParseHeader(body, &r.hdr) != nil || r.hdr.Lane != lane {
		r.drop(RxRelay)
		return
	}
	relay := s.Peer
	if r.hdr.Type == wire.TypeHandshake { // for whom, it does not say: a relay passes it on
		if r.carry(relay, lane, &m) {
			return
		}
		if from, ok := r.relayed(relay, m.Peer); ok {
			r.handshake(m.Packet, from)
			return
		}
		r.drop(RxRelay)
		return
	} else if in := r.d.sessions.lookup(r.hdr.Index); in != nil && in.Peer.ID == m.Peer {
		if from, ok := r.relayed(relay, m.Peer); ok {
			r.sealed(in, slices.Clip(m.Packet), from, true)
		} else {
			r.drop(RxRelay)
		}
		return
	}
	if !r.carry(relay, lane, &m) {
		r.drop(RxRelay)
	}
}

// carry passes a packet on to the peer that it names, where we relay for both.
func (r *reader) carry(from *Peer, lane packet.Lane, m *wire.Relay) bool {
	if r.d.cfg.Forward == nil {
		return false
	}
	to := r.d.cfg.Forward(from, m.Peer)
	if to == nil || to == from || lane == packet.Critical && (!from.carried.allow(r.now, carryGap, carrySlack) || !policed(to, len(m.Packet), r.now)) {
		return false
	}
	r.d.SendRelay(to, lane, from.ID, m.Packet)
	return true
}

func (r *reader) relayed(relay *Peer, from identity.PeerID) (Path, bool) {
	if r.d.cfg.Relayed == nil {
		return Path{}, false
	}
	return r.d.cfg.Relayed(relay, from)
}
