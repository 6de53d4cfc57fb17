// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Bounds of what waits until the hub has told who has an address. A program that
// scans the mesh must cost neither memory nor questions without end.
const (
	maxAsked     = 256 // addresses that are asked for, or known to be nobody's
	maxAskedHeld = 16  // packets for one of them
	maxHeldAll   = 512 // packets for all of them
	// askLife is how long a question may take.
	askLife = int64(10 * time.Second)
)

// unknown holds packets to addresses of the mesh for which there is no route.
type unknown struct {
	mu    sync.Mutex // guards the rest
	addrs map[netip.Addr]*asked
	held  int
}

// asked is one address.
type asked struct {
	held   []*packet.Buf
	absent bool  // it is nobody's
	until  int64 // then it may be asked for again
}

// ask keeps b until Resolved tells of its destination, and asks for that where
// nobody did, or drops it.
func (d *Dataplane) ask(b *packet.Buf, dst netip.Addr, now int64) {
	if d.cfg.Ask == nil || !d.inMesh(dst) {
		d.drop(b, nil, TxNoRoute)
		return
	}
	u := &d.unknown
	u.mu.Lock()
	e := u.addrs[dst]
	fresh := e == nil || now >= e.until
	if fresh {
		u.sweepLocked(d, now)
		if len(u.addrs) >= maxAsked {
			u.mu.Unlock()
			d.drop(b, nil, TxNoRoute)
			return
		}
		if u.addrs == nil {
			u.addrs = make(map[netip.Addr]*asked)
		}
		e = &asked{until: now + askLife}
		u.addrs[dst] = e
	}
	switch {
	case e.absent:
		d.drop(b, nil, TxNoRoute)
	case len(e.held) >= maxAskedHeld || u.held >= maxHeldAll:
		d.drop(b, nil, TxNoSession)
	default:
		b.Enqueued = now
		e.held = append(e.held, b)
		u.held++
	}
	u.mu.Unlock()
	if fresh {
		d.cfg.Ask(dst)
	}
}

// sweepLocked forgets what has run out.
func (u *unknown) sweepLocked(d *Dataplane, now int64) {
	for a, e := range u.addrs {
		if now >= e.until {
			u.takeLocked(a)
			for _, b := range e.held {
				d.drop(b, nil, TxStale)
			}
		}
	}
}

func (u *unknown) takeLocked(a netip.Addr) []*packet.Buf {
	e := u.addrs[a]
	if e == nil {
		return nil
	}
	delete(u.addrs, a)
	u.held -= len(e.held)
	return e.held
}

// Resolved answers Ask: found tells that there is a route to a by now. Otherwise
// nothing to a is asked for, nor held, for the next time.
func (d *Dataplane) Resolved(a netip.Addr, found bool, absent time.Duration) {
	now := d.Now()
	u := &d.unknown
	u.mu.Lock()
	held := u.takeLocked(a)
	if !found && len(u.addrs) < maxAsked && u.addrs != nil {
		u.addrs[a] = &asked{absent: true, until: now + int64(absent)}
	}
	u.mu.Unlock()
	var ready []*packet.Buf
	for _, b := range held {
		switch {
		case !found:
			d.drop(b, nil, TxNoRoute)
		case now-b.Enqueued > maxHeldAge:
			d.drop(b, nil, TxStale)
		default:
			ready = d.admit(ready, b, now)
		}
	}
	if len(ready) > 0 {
		d.queue(ready, nil)
	}
}

// HasRoute reports whether packets to a have a peer.
func (d *Dataplane) HasRoute(a netip.Addr) bool {
	_, ok := d.routes.Lookup(a)
	return ok
}

// PeerAt returns the peer that packets to a go to, or nil.
func (d *Dataplane) PeerAt(a netip.Addr) *Peer {
	p, _ := d.routes.Lookup(a)
	return p
}

func (d *Dataplane) inMesh(a netip.Addr) bool {
	for _, p := range d.cfg.Mesh {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// release drops what is held when the packet path ends.
func (u *unknown) release() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for a := range u.addrs {
		for _, b := range u.takeLocked(a) {
			b.Release()
		}
	}
}
