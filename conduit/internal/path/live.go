// SPDX-License-Identifier: Apache-2.0

package path

import "time"

const (
	// minSilence is the least silence that makes a path suspect.
	minSilence = 120 * time.Millisecond
	// deadAfter ends a suspect path where another is valid, lastDead where none is.
	deadAfter = 5 * time.Second
	lastDead  = 30 * time.Second
	// settleFor is how long a path that was suspect must answer to be preferred.
	settleFor = 2 * time.Second
	// healAnswers bring a dead path back.
	healAnswers = 3
	// maxMissed probes in a row without an answer make a path suspect on which the
	// peer is heard: it may not hear us.
	maxMissed = 3
	// longDown is from which on a path's history says nothing any more.
	longDown = time.Second
	// staleFallback is how long the fallback socket's paths stay valid unprobed.
	staleFallback = 30 * time.Second
)

// alive handles a proof that p works.
func (s *Set) alive(p *path) {
	p.chal = nil
	switch p.state {
	case StateValid:
		return
	case StateSuspect:
		if s.now-p.since > longDown {
			p.q.reset()
		}
		p.settled = s.now + settleFor
	case StateDead:
		p.answers++
		if p.proven {
			if moved := p.movedIn != 0 && s.now-p.movedIn <= movedFor; p.answers < healAnswers && s.usable > 0 && !moved {
				return
			}
			p.q.reset()
			p.settled = s.now + settleFor
		}
	default:
	}
	p.proven, p.answers, p.missed = true, 0, 0
	s.enter(p, StateValid)
	s.survey()
	p.m.confirm(s.now)
	s.supersede(p)
}

// silence is how long p may be silent after what was heard last, and how long
// after a probe.
func (s *Set) silence(p *path) (heard, asked time.Duration) {
	g, n := s.gap(p), time.Duration(2)
	if s.demand == Idle {
		n = 3
	}
	n += time.Duration(p.q.often())
	g = min(g, time.Second)
	heard = max(minSilence, p.q.slow()+n*g)
	return heard, heard - g
}

// dueAge is when p changes its state if nothing comes.
func (s *Set) dueAge(p *path) dur {
	if p.chal != nil {
		return p.since + challengeLife
	}
	switch p.state {
	case StateValid:
		if p.local.Fallback && s.haveDirect {
			return max(p.heard, p.since) + staleFallback
		}
		if p.missed >= maxMissed+p.q.often() {
			return s.now
		}
		if p.firstOut == 0 {
			return never
		}
		heard, asked := s.silence(p)
		return max(p.heard+heard, p.firstOut+asked)
	case StateSuspect:
		if s.usable > 0 {
			return p.since + deadAfter
		}
		return p.since + lastDead
	case StateProbing:
		if p.attempts >= len(findGaps) && p.nextTry == never {
			return p.lastProbe + time.Second
		}
	case StateDead:
		if !p.named && p.chal == nil {
			return p.since + forget
		}
	default:
	}
	return never
}

// age does what dueAge says.
func (s *Set) age(p *path) {
	if s.dueAge(p) > s.now {
		return
	}
	switch p.state {
	case StateValid:
		if p.local.Fallback && s.haveDirect {
			s.enter(p, StateNew)
			p.attempts, p.nextTry = 0, s.now
			return
		}
		s.enter(p, StateSuspect)
		s.survey()
		s.rouse()
	case StateSuspect, StateProbing:
		if p.state == StateProbing && !p.named { // a challenge without an answer, too
			s.remove(p)
			return
		}
		p.answers = 0
		s.enter(p, StateDead)
	case StateDead:
		s.remove(p)
	default:
	}
}

// rouse wakes the fallback where the last direct path is in doubt.
func (s *Set) rouse() {
	if s.haveDirect {
		return
	}
	for _, p := range s.paths {
		if p.local.Fallback {
			s.rearm(p)
		}
	}
}

// Lost says that the kernel refuses to send on id, as when the link is down.
func (s *Set) Lost(id ID, now time.Time) {
	s.advance(now)
	p := s.byID[norm(id)]
	if p == nil || p.state != StateValid && p.state != StateSuspect {
		return
	}
	s.enter(p, StateSuspect)
	s.survey()
	if s.usable > 0 {
		p.answers = 0
		s.enter(p, StateDead)
	}
	s.rouse()
}
