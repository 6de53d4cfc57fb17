// SPDX-License-Identifier: Apache-2.0

package path

import (
	"io"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// A packet that was heard has 32 bytes at least and a challenge 40: no more
	// than three times what came goes to an address that proved nothing.
	earned       = 3 * 32
	price        = 40
	maxCredit    = 8 * earned
	maxChallenge = 6
	// challengeLife ends the wait for an answer; evictAfter, where another address
	// waits for the place.
	challengeLife = 5 * time.Second
	evictAfter    = time.Second
	challengeGap  = 100 * time.Millisecond
)

// challenge is what an address that we did not know has to answer.
type challenge struct {
	data   wire.PathChallenge
	sent   int
	next   dur
	credit int
}

// earn counts a packet that came.
func (c *challenge) earn() { c.credit = min(c.credit+earned, maxCredit) }

// stranger begins to challenge an address from which an authenticated packet
// came. It returns nil where there is no room.
func (s *Set) stranger(id ID) *path {
	l := s.local(id.Bind)
	if l == nil || !id.Remote.IsValid() {
		return nil
	}
	var oldest *path
	n := 0
	for _, p := range s.paths {
		if p.chal != nil {
			n++
			if oldest == nil || p.since < oldest.since {
				oldest = p
			}
		}
	}
	if n >= MaxUnproven {
		if s.now-oldest.since < evictAfter {
			return nil
		}
		s.remove(oldest)
	}
	c := &challenge{next: s.now}
	if _, err := io.ReadFull(s.rand, c.data[:]); err != nil {
		return nil // without randomness nothing is proven
	}
	p := s.create(id, l, s.kindOf(l, id.Remote), prioAdded) // others make room for it
	if p == nil {
		return nil
	}
	p.prio = prioReflexive
	s.sortPaths()
	c.earn()
	p.chal, p.state, p.nextTry, p.heard = c, StateProbing, never, s.now
	return p
}

// dueChallenge is when the challenge of p is due again.
func (s *Set) dueChallenge(p *path) dur {
	if c := p.chal; c != nil && c.credit >= price && c.sent < maxChallenge {
		return c.next
	}
	return never
}

// challenge does what is due.
func (s *Set) challenge(p *path) {
	if s.dueChallenge(p) > s.now {
		return
	}
	c := p.chal
	c.next = s.now + challengeGap<<c.sent
	c.sent++
	c.credit -= price
	s.out = append(s.out, Output{Kind: SendChallenge, ID: p.id, Challenge: c.data})
}

// Responded says that a PATH_RESPONSE came on id.
func (s *Set) Responded(id ID, c wire.PathChallenge, now time.Time) {
	s.advance(now)
	p := s.byID[norm(id)]
	if p == nil || p.chal == nil || p.chal.sent == 0 || p.chal.data != c {
		return
	}
	p.heard = s.now
	s.alive(p)
	if p.kind == Direct {
		s.addRemote(p.id.Remote, "prflx") // for our other sockets too
	}
}
