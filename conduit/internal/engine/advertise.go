// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// advertGap is the least time between two looks at our addresses: interfaces may
	// flap, and each peer is told each time.
	advertGap = 500 * time.Millisecond
	// advertWait lets addresses that are found together travel together.
	advertWait = 10 * time.Millisecond
)

// advert is what one peer was told.
type advert struct {
	fresh bool // what it was told before is void
	sent  int  // how many of the lines
}

// adverts finds our addresses and tells peers, all of them by one search. Owned by
// Engine.run.
type adverts struct {
	to      map[*peer]*advert
	lines   []string
	began   time.Time
	flushAt time.Time // zero: all were told all
	running bool
	stale   bool // addresses changed since it began
	cancel  context.CancelFunc
	round   int
}

// add has p told our addresses.
func (a *adverts) add(p *peer, fresh bool) {
	if a.to == nil {
		a.to = make(map[*peer]*advert)
	}
	if ad := a.to[p]; ad != nil {
		ad.fresh = ad.fresh || fresh
		return
	}
	a.to[p] = &advert{fresh: fresh}
	a.flushAt = time.Now()
}

// readvertise tells all peers with a session our addresses anew.
func (e *Engine) readvertise(now time.Time) {
	a := &e.adverts
	a.stale = true
	for _, p := range e.peers {
		if p.hasPaths() {
			delete(a.to, p)
			a.add(p, true)
		}
	}
	a.tick(e, now)
}

// tick begins a search where one is due, tells what was found, and returns when it
// wants to be called again.
func (a *adverts) tick(e *Engine, now time.Time) time.Time {
	if len(a.to) == 0 {
		return time.Time{}
	}
	if !a.running || a.stale {
		if due := a.began.Add(advertGap); a.stale && now.Before(due) {
			return due
		}
		a.search(e, now)
	}
	if a.flushAt.IsZero() || now.Before(a.flushAt) {
		return a.flushAt
	}
	a.flush(e, now)
	return time.Time{}
}

// search looks for our addresses; what an older search still finds is not told.
func (a *adverts) search(e *Engine, now time.Time) {
	if a.cancel != nil {
		a.cancel()
	}
	ctx, cancel := context.WithCancel(e.ctx)
	a.round++
	a.running, a.stale, a.began, a.cancel, a.lines = true, false, now, cancel, nil
	for _, ad := range a.to {
		ad.sent = 0
	}
	round := a.round
	e.background.Go(func() {
		defer cancel()
		_ = e.cfg.Mux.Gather(ctx, e.cfg.STUNServers, nil, func(c ice.Candidate) {
			line := c.String()
			e.box.post(func() {
				if round == a.round {
					a.lines = append(a.lines, line)
					if a.flushAt.IsZero() {
						a.flushAt = time.Now().Add(advertWait)
					}
				}
			})
		})
		e.box.post(func() {
			if round != a.round {
				return
			}
			a.flush(e, time.Now())
			a.running, a.cancel = false, nil
			if !a.stale { // else another search tells them
				clear(a.to)
			}
		})
	})
}

// flush tells each peer what it does not know yet.
func (a *adverts) flush(e *Engine, now time.Time) {
	a.flushAt = time.Time{}
	for p, ad := range a.to {
		s := p.newest()
		if e.peers[p.info.ID] != p || s == nil {
			delete(a.to, p)
			continue
		}
		for ad.sent < len(a.lines) {
			n := min(len(a.lines)-ad.sent, wire.MaxCandidates)
			var flags wire.CandidateFlags
			if ad.fresh {
				flags = wire.CandidatesFresh
			}
			p.sendCandidates(s, a.lines[ad.sent:ad.sent+n], flags, now)
			if ad.fresh { // which voided the relayed ones, too
				p.sendTurns(s, now)
			}
			ad.fresh = false
			ad.sent += n
		}
	}
}
