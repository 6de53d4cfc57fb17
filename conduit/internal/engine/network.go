// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"net/netip"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
)

const (
	// housekeeping is the gap between looks at what concerns all peers.
	housekeeping = time.Second
	// maxSleep is how long the machine may have been suspended. Keys do not age
	// meanwhile, and a machine that is restored twice would use their counters twice.
	maxSleep = 10 * time.Second
	// turnAfter is how long a peer may be without a direct path before TURN is asked
	// for.
	turnAfter = time.Second
)

// Socket is one of our own sockets.
type Socket struct {
	path.Local
	// Name is the interface's; empty for none.
	Name string
	// Moved is true when its source address is another than before.
	Moved bool
}

// turnSocket is a TURN allocation.
type turnSocket struct {
	Socket
	relayed netip.AddrPort
}

// network is what we have to send with. Owned by Engine.run.
type network struct {
	uplinks []Socket
	turns   []turnSocket
	hubUp   bool
	turn    bool // asked for
	checked time.Time
}

// SetUplinks tells of all sockets of interfaces that can be used now. Paths over
// others die, and peers are told the new addresses.
func (e *Engine) SetUplinks(list []Socket) {
	e.box.post(func() {
		now := time.Now()
		old := e.net.uplinks
		e.net.uplinks = list
		news := false
		var moved []uint8
		for _, s := range list {
			known := slices.ContainsFunc(old, func(o Socket) bool { return o.Bind == s.Bind })
			news = news || !known || s.Moved
			if s.Moved || !known {
				moved = append(moved, s.Uplink)
			}
		}
		for _, p := range e.peers {
			if !p.hasPaths() {
				continue
			}
			p.syncSockets(now)
			for _, u := range moved {
				p.paths.Moved(u, now)
			}
			p.drain(now)
			e.touch(p)
		}
		if news {
			e.readvertise(now)
		}
	})
}

// SetSpent tells that the budget of an interface is used up, or that a new day
// began.
func (e *Engine) SetSpent(uplink uint8, spent bool) {
	e.box.post(func() {
		changed := false
		for i := range e.net.uplinks {
			if s := &e.net.uplinks[i]; s.Uplink == uplink && s.Spent != spent {
				s.Spent, changed = spent, true
			}
		}
		if changed {
			e.syncAll()
		}
	})
}

// HubState tells whether the hub can be reached.
func (e *Engine) HubState(up bool) {
	e.box.post(func() {
		if e.net.hubUp == up {
			return
		}
		e.net.hubUp = up
		e.syncAll()
	})
}

// AddTurn tells of a TURN allocation; relayed is the address that peers send to.
func (e *Engine) AddTurn(bind int, relayed netip.AddrPort, uplink uint8) {
	e.box.post(func() {
		t := turnSocket{relayed: relayed}
		t.Local = path.Local{Bind: bind, Kind: path.Turn, Uplink: uplink, V4: true}
		e.net.turns = append(e.net.turns, t)
		e.syncAll()
		now := time.Now()
		for _, p := range e.peers {
			if s := p.newest(); s != nil && !p.hasDirect() {
				p.sendTurns(s, now)
			}
		}
	})
}

// RemoveTurn tells that an allocation is gone.
func (e *Engine) RemoveTurn(bind int) {
	e.box.post(func() {
		e.net.turns = slices.DeleteFunc(e.net.turns, func(t turnSocket) bool { return t.Bind == bind })
		e.syncAll()
	})
}

func (e *Engine) syncAll() {
	now := time.Now()
	for _, p := range e.peers {
		if p.hasPaths() {
			p.syncSockets(now)
			p.drain(now)
			e.touch(p)
		}
	}
}

// uplinkName names an interface by its number.
func (e *Engine) uplinkName(n uint8) string {
	for _, s := range e.net.uplinks {
		if n != 0 && s.Uplink == n {
			return s.Name
		}
	}
	return ""
}

// housekeep does what concerns all peers and returns when it is due again.
func (e *Engine) housekeep(now time.Time) time.Time {
	e.courierTick(now)
	next := now.Add(idleTick)
	if at := e.courier.NextTick(); !at.IsZero() && at.Before(next) {
		next = at
	}
	if at := e.adverts.tick(e, now); !at.IsZero() && at.Before(next) {
		next = at
	}
	if now.Sub(e.net.checked) < housekeeping {
		if at := e.net.checked.Add(housekeeping); e.net.turn && at.Before(next) {
			next = at
		}
		return next
	}
	e.net.checked = now
	if asleep := e.clock.asleep(now); asleep > maxSleep {
		e.resumed(asleep, now)
	}
	want := false
	for _, p := range e.peers {
		want = want || p.wantsTurn(now)
	}
	if want != e.net.turn && e.cfg.WantTurn != nil {
		e.net.turn = want
		e.cfg.WantTurn(want)
	}
	return next
}

// sleepClock tells how long the machine was suspended: our clock stood still.
type sleepClock struct {
	start time.Time
	boot  time.Duration // since boot at start, suspension included
}

// asleep returns how long the machine slept since the last call.
func (c *sleepClock) asleep(now time.Time) time.Duration {
	boot := sinceBoot()
	if boot == 0 {
		return 0 // the system does not tell
	}
	var slept time.Duration
	if !c.start.IsZero() {
		slept = boot - c.boot - now.Sub(c.start)
	}
	c.start, c.boot = now, boot
	return slept
}

// resumed begins anew after a sleep, as after a restart.
func (e *Engine) resumed(asleep time.Duration, now time.Time) {
	e.cfg.Logger.Info("the machine was suspended; all keys are made anew", "for", asleep.Round(time.Second))
	for _, p := range e.peers {
		for len(p.sessions) > 0 {
			p.drop(p.newest(), now)
		}
		p.notUntil, p.failures = time.Time{}, 0
	}
}
