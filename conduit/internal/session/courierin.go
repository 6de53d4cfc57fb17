// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/hmac"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

func undelivered(why string) error { return fmt.Errorf("%w: %s", ErrCourier, why) }

// Receive takes a HANDSHAKE packet. When it completes a message, it returns the
// peer that the sender claims to be and the body for the Machine of that peer;
// answers go to from. An error is for counters: nothing was sent and nothing kept.
// What it costs grows with what the sender has shown: a look at two buckets, then
// one MAC, then another, and only then memory.
func (c *Courier) Receive(from Addr, datagram []byte, now time.Time) (peer identity.PeerID, body []byte, err error) {
	var h wire.Header
	if len(datagram) < helloLen || len(datagram) > maxDatagram || !h.Parse(datagram) ||
		h.Type != wire.TypeHandshake || h.Lane != 0 || h.Time != 0 || h.Index != 0 || h.Counter > kindCookie {
		return peer, nil, undelivered("malformed")
	}
	if !c.hosts[c.bucketOf(from.Remote.Addr())].allow(now, hostGap, hostBurst) || !c.all.allow(now, allGap, allBurst) {
		return peer, nil, undelivered("too many")
	}
	c.turn(now)
	switch h.Counter {
	case kindCookie:
		return peer, nil, c.gotCookie(from, datagram, now)
	case kindHello:
		return peer, nil, c.hello(from, datagram)
	}
	return c.piece(from, datagram, now)
}

// Genuine reports whether a HANDSHAKE packet can be of somebody who knows our
// static public key, or is a COOKIE, which shows nothing. It costs a stranger's
// packet one MAC and may be called beside the other methods, from any goroutine: so
// junk takes no place from what is genuine.
func (c *Courier) Genuine(datagram []byte) (genuine, cookie bool) {
	var h wire.Header
	if len(datagram) < helloLen || len(datagram) > maxDatagram || !h.Parse(datagram) {
		return false, false
	}
	end := len(datagram) - cookieLen
	switch h.Counter {
	case kindCookie:
		return len(datagram) == helloLen, true
	case kindHello:
	case kindPiece:
		end -= cookieLen
	default:
		return false, false
	}
	want := shortMAC(c.macKey[:], datagram[:end])
	return hmac.Equal(want[:], datagram[end:end+cookieLen]), false
}

// bucketOf maps hosts to buckets in a way that strangers cannot foresee. An IPv6
// host is its /64.
func (c *Courier) bucketOf(a netip.Addr) uint64 {
	return maphash.Comparable(c.seed, host(a)) % hostBuckets
}

func host(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, err := a.Prefix(64)
		if err == nil {
			return p.Addr()
		}
	}
	return a
}

// plain is an address without the prefix that some sockets give IPv4.
func plain(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// hello answers a HELLO with a cookie, in as many bytes.
func (c *Courier) hello(from Addr, b []byte) error {
	if len(b) != helloLen {
		return undelivered("malformed")
	}
	signed, mac1 := b[:helloLen-cookieLen], b[helloLen-cookieLen:]
	if want := shortMAC(c.macKey[:], signed); !hmac.Equal(want[:], mac1) {
		return undelivered("wrong first MAC")
	}
	cookie := c.cookie(from.Remote, 0)
	out := append(handshakeHeader(kindCookie), signed[wire.HeaderLen:]...)
	c.send(from, append(out, cookie[:]...))
	return nil
}

// gotCookie takes the answer to a HELLO and sends what waited for it.
func (c *Courier) gotCookie(from Addr, b []byte, now time.Time) error {
	if len(b) != helloLen {
		return undelivered("malformed")
	}
	token, cookie := [cookieLen]byte(b[wire.HeaderLen:]), [cookieLen]byte(b[wire.HeaderLen+cookieLen:])
	for k, w := range c.ways {
		// Only the remote address counts: an answer may reach another of our sockets.
		if w.token != token || w.asked.IsZero() || now.Sub(w.asked) >= helloLife || plain(k.addr.Remote) != plain(from.Remote) {
			continue
		}
		w.cookie, w.got, w.asked = cookie, now, time.Time{}
		for _, o := range c.outgoing {
			if o.peer == k.peer && slices.Contains(o.to, k.addr) {
				c.pieces(o, k.addr, w)
			}
		}
		return nil
	}
	return undelivered("cookie that was not asked for")
}

// piece takes a piece of a message.
func (c *Courier) piece(from Addr, b []byte, now time.Time) (peer identity.PeerID, body []byte, err error) {
	end1, end2 := len(b)-2*cookieLen, len(b)-cookieLen
	if want := shortMAC(c.macKey[:], b[:end1]); !hmac.Equal(want[:], b[end1:end2]) {
		return peer, nil, undelivered("wrong first MAC")
	}
	ok := false
	for turn := range c.secrets {
		cookie := c.cookie(from.Remote, turn)
		want := shortMAC(cookie[:], b[:end2])
		ok = hmac.Equal(want[:], b[end2:]) || ok
	}
	if !ok {
		return peer, nil, undelivered("wrong cookie")
	}
	var f wire.Fragment
	if err := f.Parse(b[wire.HeaderLen:end1]); err != nil {
		return peer, nil, err
	}
	remote := plain(from.Remote)
	this := delivery{remote, f.ID}
	if slices.Contains(c.delivered, this) {
		return peer, nil, undelivered("copy")
	}
	msg := f.Data
	if f.Count > 1 {
		a := c.assembly(remote, now)
		msg, err = a.pieces.Add(b[wire.HeaderLen:end1])
		if err != nil || msg != nil {
			delete(c.assemblies, remote)
		}
		if err != nil || msg == nil {
			return peer, nil, err
		}
	}
	if len(msg) <= courierHeader {
		return peer, nil, undelivered("malformed")
	}
	copy(peer[:], msg)
	if peer == c.cfg.ID {
		return peer, nil, undelivered("ours")
	}
	c.delivered = append(c.delivered, this)
	if len(c.delivered) > maxDelivered {
		c.delivered = c.delivered[1:]
	}
	w := c.way(wayKey{peer, from}, now)
	w.cookie, w.got = [cookieLen]byte(msg[32:]), now
	body = slices.Clone(msg[courierHeader:])
	c.answered(peer, remote)
	return peer, body, nil
}

// assembly returns where the pieces of a host come together. An old one, or the
// oldest of too many, makes room.
func (c *Courier) assembly(from netip.AddrPort, now time.Time) *assembly {
	var oldest, oldestHere *netip.AddrPort
	here := 0
	for k, a := range c.assemblies {
		if now.Sub(a.started) >= assemblyLife {
			delete(c.assemblies, k)
			continue
		}
		if oldest == nil || a.started.Before(c.assemblies[*oldest].started) {
			oldest = &k
		}
		if host(k.Addr()) == host(from.Addr()) {
			if here++; oldestHere == nil || a.started.Before(c.assemblies[*oldestHere].started) {
				oldestHere = &k
			}
		}
	}
	if a := c.assemblies[from]; a != nil {
		return a
	}
	switch {
	case here >= maxPerHost:
		delete(c.assemblies, *oldestHere)
	case len(c.assemblies) >= maxAssemblies:
		delete(c.assemblies, *oldest)
	}
	a := &assembly{started: now}
	c.assemblies[from] = a
	return a
}

// answered ends the repetition of the messages that one of the peer from there
// answers: all but candidates, which follow each other without answers.
func (c *Courier) answered(peer identity.PeerID, from netip.AddrPort) {
	c.outgoing = slices.DeleteFunc(c.outgoing, func(o *outgoing) bool {
		return o.peer == peer && wire.MsgType(o.body[0]) != wire.MsgCandidates &&
			slices.ContainsFunc(o.sent, func(a Addr) bool { return plain(a.Remote) == from })
	})
}
