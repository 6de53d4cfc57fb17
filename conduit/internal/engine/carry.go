// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// Signalling messages have three ways to a peer: inside the session, through the
// hub, and straight over UDP to where the peer was last seen. Messages are signed
// or sealed and count once, so the same one may go more than one way.

// carrierKind says how a message came or is to go.
type carrierKind uint8

const (
	byAny carrierKind = iota // our own message: wherever it may arrive
	bySession
	byHub
	byUDP
)

// carrier is one way of a message.
type carrier struct {
	kind carrierKind
	addr session.Addr // byUDP
}

func (c carrier) String() string {
	return [...]string{"any", "session", "hub", "udp"}[c.kind]
}

// carriers is what a peer remembers of ways of messages.
type carriers struct {
	reply carrier // of the message that is being answered
	tries int     // messages of this Connect so far
	used  bool    // something else than the hub carried one of them
}

func (c *carriers) begin() { c.tries, c.used = 0, false }

// send gives a handshake message to the peer: an answer by the way of the
// question, a message of our own by the best way, and by all of them when
// that did not help.
func (p *peer) send(body []byte, now time.Time) {
	switch to := p.carriers.reply; to.kind {
	case bySession:
		if p.sendInside(body) {
			return
		}
	case byUDP:
		p.sendUDP(body, []session.Addr{to.addr}, now)
		return
	case byHub:
		p.sendHub(body, false)
		p.wakeHubRelay()
		return
	case byAny:
	}
	p.carriers.tries++
	again := p.carriers.tries > 1
	sent := false
	if p.connected() {
		sent = p.sendInside(body)
	}
	if sent && !again {
		p.carriers.used = true
		return
	}
	if to := p.lastAddrs(); len(to) > 0 && (again || !p.e.net.hubUp) {
		p.sendUDP(body, to, now)
		sent = true
	}
	p.carriers.used = p.carriers.used || sent
	if p.e.net.hubUp || !sent {
		p.sendHub(body, sent)
	}
	p.wakeHubRelay()
}

// wakeHubRelay opens the hub's relay stream: packets may come on it at once.
func (p *peer) wakeHubRelay() {
	if p.e.cfg.WantHubRelay != nil && p.e.net.hubUp {
		p.e.cfg.WantHubRelay()
	}
}

// sendUDP sends straight to where the peer may be.
func (p *peer) sendUDP(body []byte, to []session.Addr, now time.Time) {
	if err := p.e.courier.Send(p.info.ID, p.info.X25519, body, to, now); err != nil {
		p.e.cfg.Logger.Debug("send without the hub", "peer", p.info.Name, "err", err)
	}
	p.e.courierFlush()
}

// sendHub sends through the hub; also says that the message went another way, too.
func (p *peer) sendHub(body []byte, also bool) {
	err := p.e.cfg.Signal(p.info.ID, body)
	if err == nil {
		return
	}
	p.e.cfg.Logger.Debug("signal to peer", "peer", p.info.Name, "err", err)
	if !also && !p.carriers.used {
		p.machine.Undeliverable(err.Error())
	}
}

// undeliverable takes the hub's word that a message did not arrive.
func (p *peer) undeliverable(reason string, now time.Time) {
	if p.carriers.used {
		return // it may have arrived another way
	}
	if to := p.lastAddrs(); len(to) > 0 && p.machine.Connecting() && p.carriers.tries == 1 {
		p.carriers.used = true // the next try goes there
		return
	}
	p.machine.Undeliverable(reason)
	p.flush(now)
}

// sendInside sends a message inside the session in use.
func (p *peer) sendInside(body []byte) bool {
	s := p.speaker()
	if s == nil || !p.usable || !s.confirmed || s.est.PeerCaps&wire.CapPaths == 0 {
		return false
	}
	return s.fragments(wire.TypeSignal, body)
}

// fragments sends a message in pieces.
func (s *sess) fragments(t wire.Type, body []byte) bool {
	var id [4]byte
	_, _ = rand.Read(id[:])
	for _, b := range wire.Split(binary.BigEndian.Uint32(id[:]), body) {
		s.p.e.cfg.Dataplane.SendControl(s.dp, t, b)
	}
	return len(body) <= wire.MaxSplit
}

// lastAddrs are the addresses at which the peer may be, over each of our sockets.
func (p *peer) lastAddrs() []session.Addr {
	var out []session.Addr
	for _, r := range p.remotes {
		for _, l := range p.e.net.uplinks {
			if r.Addr().Is4() == l.V4 && r.Addr().Is6() == l.V6 && len(out) < maxLastAddrs {
				out = append(out, session.Addr{Bind: l.Bind, Remote: r})
			}
		}
	}
	return out
}

// helloLife is how long a cookie may take.
const helloLife = 5 * time.Second

// Handshake takes a HANDSHAKE datagram from the packet path. What a stranger sends
// ends here, so it takes no room from others. It drops like Control.
func (e *Engine) Handshake(from dataplane.Path, b []byte) {
	genuine, cookie := e.courier.Genuine(b)
	if cookie && genuine {
		_, genuine = e.helloed.Load(from.Remote.Addr().Unmap())
	}
	if !genuine {
		return
	}
	b = bytes.Clone(b)
	e.box.offer(func() {
		now := time.Now()
		addr := session.Addr(from)
		id, body, err := e.courier.Receive(addr, b, now)
		if err != nil {
			e.cfg.Logger.Debug("dropped a handshake datagram", "from", from.Remote.String(), "err", err)
		}
		if body != nil {
			e.handshake(id, body, addr, now)
		}
		e.courierFlush()
	})
}

func (e *Engine) handshake(id identity.PeerID, body []byte, from session.Addr, now time.Time) {
	p := e.peers[id]
	if p == nil {
		return // only who is known may come without the hub
	}
	p.step(body, carrier{byUDP, from}, now)
}

func (e *Engine) courierTick(now time.Time) {
	e.courier.Tick(now)
	e.courierFlush()
	e.helloed.Range(func(addr, at any) bool {
		if now.Sub(at.(time.Time)) > helloLife {
			e.helloed.Delete(addr)
		}
		return true
	})
}

func (e *Engine) courierFlush() {
	for _, d := range e.courier.Ready() {
		if d.Hello() {
			e.helloed.Store(d.To.Remote.Addr().Unmap(), time.Now())
		}
		e.cfg.Dataplane.SendRaw(d.B, dataplane.Path(d.To))
	}
}

// bucket lets one through every gap, and some at once (GCRA, ITU-T I.371).
type bucket struct{ next time.Time }

func (b *bucket) allow(now time.Time, gap time.Duration, burst int) bool {
	next := b.next
	if next.Before(now) {
		next = now
	}
	if next.Sub(now) > gap*time.Duration(burst-1) {
		return false
	}
	b.next = next.Add(gap)
	return true
}

// Handshakes that are looked at: of one peer by way of hub and session, of one that
// came by UDP, where anybody who knows our key may name it, from one host, and of all.
// They leave room in the budget of package session for the hub's.
const (
	peerGap, peerBurst       = 500 * time.Millisecond, 8
	udpPeerGap, udpPeerBurst = time.Second, 4
	udpHostGap, udpHostBurst = 200 * time.Millisecond, 8
	udpGap, udpBurst         = 25 * time.Millisecond, 40
	maxHosts                 = 256
)

// affordable reports whether a message may be looked at that costs signatures.
func (p *peer) affordable(body []byte, from carrier, now time.Time) bool {
	t, _, err := wire.ParseMsgHeader(body)
	if err != nil || t != wire.MsgInvite && t != wire.MsgKnock {
		return err == nil
	}
	if from.kind == byUDP {
		// The cookie proved the address, so nobody spends another's share.
		host := from.addr.Remote.Addr().Unmap()
		if len(p.e.hostBudgets) >= maxHosts {
			clear(p.e.hostBudgets)
		}
		b := p.e.hostBudgets[host]
		ok := b.allow(now, udpHostGap, udpHostBurst)
		p.e.hostBudgets[host] = b
		return ok && p.udpBudget.allow(now, udpPeerGap, udpPeerBurst) && p.e.udpBudget.allow(now, udpGap, udpBurst)
	}
	return p.budget.allow(now, peerGap, peerBurst)
}
