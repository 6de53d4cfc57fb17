// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// ErrDenied is why there is no session with a peer that the hub shut out.
var ErrDenied = errors.New("the hub shut this peer out")

// maxDenials bounds each kind of denial; the hub drops those that ran out, too.
const maxDenials = 1 << 17

// Denial shuts out a node, a key or one certificate: exactly one of the first
// three is set.
type Denial struct {
	ID      identity.PeerID
	Ed25519 ed25519.PublicKey
	Serial  []byte // big endian
	Until   time.Time
}

// denials maps what is denied to the time until which it is; zero means for ever.
// The zero value denies nothing.
type denials struct {
	ids     map[identity.PeerID]time.Time
	keys    map[string]time.Time
	serials map[string]time.Time
}

// add takes denials over. Where there is no room for all, those that end by
// themselves are left out, never those for good.
func (d *denials) add(list []Denial) (full bool) {
	if d.ids == nil {
		d.ids, d.keys, d.serials = map[identity.PeerID]time.Time{}, map[string]time.Time{}, map[string]time.Time{}
	}
	for _, x := range list {
		if d.len() >= maxDenials {
			full = true
			if !x.Until.IsZero() || !d.makeRoom() {
				continue
			}
		}
		switch {
		case !x.ID.IsZero():
			d.ids[x.ID] = x.Until
		case x.Ed25519 != nil:
			d.keys[string(x.Ed25519)] = x.Until
		case x.Serial != nil:
			d.serials[serialKey(x.Serial)] = x.Until
		}
	}
	return full
}

func (d *denials) len() int { return len(d.ids) + len(d.keys) + len(d.serials) }

// makeRoom drops one denial that ends by itself, where there is one.
func (d *denials) makeRoom() bool {
	for id, until := range d.ids {
		if !until.IsZero() {
			delete(d.ids, id)
			return true
		}
	}
	for _, m := range []map[string]time.Time{d.serials, d.keys} {
		for k, until := range m {
			if !until.IsZero() {
				delete(m, k)
				return true
			}
		}
	}
	return false
}

// serialKey drops leading zeros, which a serial number may be written with.
func serialKey(b []byte) string { return string(bytes.TrimLeft(b, "\x00")) }

// peer reports whether the holder of id and key is shut out.
func (d *denials) peer(id identity.PeerID, key ed25519.PublicKey, now time.Time) bool {
	if until, ok := d.ids[id]; ok && inForce(until, now) {
		return true
	}
	until, ok := d.keys[string(key)]
	return ok && inForce(until, now)
}

// certificate reports whether c or its holder is shut out.
func (d *denials) certificate(c *identity.Certificate, now time.Time) bool {
	if d.peer(c.ID, c.Ed25519, now) {
		return true
	}
	until, ok := d.serials[serialKey(c.Serial.Bytes())]
	return ok && inForce(until, now)
}

func inForce(until, now time.Time) bool { return until.IsZero() || now.Before(until) }

// Denied takes denials of the hub: all there are, or more. Sessions that they
// concern end at once.
func (e *Engine) Denied(list []Denial, all bool) {
	e.box.post(func() {
		if all {
			e.denied = denials{}
		}
		if e.denied.add(list) {
			e.cfg.Logger.Error("the hub denies more than can be kept", "limit", maxDenials)
		}
		now := time.Now()
		e.forwards.clear()
		for _, p := range e.peers {
			p.enforce(now)
		}
		e.news()
	})
}

// shutOut reports whether the hub denies p.
func (p *peer) shutOut(now time.Time) bool {
	return p.e.denied.peer(p.info.ID, p.info.Ed25519, now)
}

// enforce ends what the denials forbid.
func (p *peer) enforce(now time.Time) {
	out := p.shutOut(now)
	for _, s := range slices.Clone(p.sessions) {
		if out || p.e.denied.certificate(s.est.Certificate, now) {
			p.lastErr = ErrDenied
			s.goodbye(wire.CloseRevoked) // it may be in good faith: nobody else tells it
			p.drop(s, now)
			p.e.cfg.Logger.Warn("session ended: the hub denies the peer's certificate", "peer", p.info.Name)
		}
	}
	if out {
		p.refuse()
	}
}

// refuse gives up what is under way with a peer that is shut out.
func (p *peer) refuse() {
	p.lastErr = ErrDenied
	p.machine.Close()
	p.machine.Ready()
	p.e.cfg.Dataplane.Abandon(p.dp, dataplane.TxNoSession)
	p.finish(ErrDenied)
}
