// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"time"
)

// Defaults and limits of a staged activation.
const (
	DefaultHold = 10 * time.Minute
	MinHold     = 10 * time.Second
	MaxHold     = 7 * 24 * time.Hour

	defaultApplied = 100
	defaultOnline  = 90

	// offlineGrace is how long too few nodes may be online before that counts: a
	// reconnect is no failure.
	offlineGrace = 30 * time.Second
	// resumeGrace is the least time that is left after the hub was away, so that
	// nodes can come back and report.
	resumeGrace = 2 * time.Minute
	// maxStep bounds what one Step takes from the hold, whatever the clock says.
	maxStep = time.Minute
)

// State is where a staged activation stands.
type State string

// The states; all but Canary are final.
const (
	Canary     State = "canary"
	Active     State = "active"
	RolledBack State = "rolled-back"
)

// Expectations are what the canary nodes must do for a version to reach all.
type Expectations struct {
	// MinAppliedPercent is the least share of the online canary nodes that must
	// have applied the version when the hold ends; 0 means 100.
	MinAppliedPercent int `json:"min_applied_percent,omitempty"`
	// MaxDeniedPerMinute is how many packets a canary node may deny per minute
	// under the new version; 0 means no limit.
	MaxDeniedPerMinute uint64 `json:"max_denied_per_minute,omitempty"`
	// MinOnlinePercent is the least share of the canary nodes online at the start
	// that must stay online; 0 means 90.
	MinOnlinePercent int `json:"min_online_percent,omitempty"`
}

// Plan is a staged activation as it is asked for and stored.
type Plan struct {
	Base, Candidate uint64
	// Canary are the selectors of the nodes that get the candidate first.
	Canary []string
	// Hold is how long they must do well; 0 means DefaultHold.
	Hold   time.Duration
	Expect Expectations
	// Online are the ids of the canary nodes that were online at the start.
	Online []string
}

// Validate checks the numbers and fills in defaults.
func (p *Plan) Validate() error {
	if p.Hold == 0 {
		p.Hold = DefaultHold
	}
	if p.Hold < MinHold || p.Hold > MaxHold {
		return fmt.Errorf("hold %s: want %s to %s", p.Hold, MinHold, MaxHold)
	}
	if p.Expect.MinAppliedPercent == 0 {
		p.Expect.MinAppliedPercent = defaultApplied
	}
	if p.Expect.MinOnlinePercent == 0 {
		p.Expect.MinOnlinePercent = defaultOnline
	}
	for _, percent := range []int{p.Expect.MinAppliedPercent, p.Expect.MinOnlinePercent} {
		if percent < 1 || percent > 100 {
			return fmt.Errorf("%d percent: want 1 to 100", percent)
		}
	}
	if len(p.Canary) == 0 {
		return errors.New("no canary: nobody to try it on")
	}
	return nil
}

// Node is what is known of one canary node.
type Node struct {
	ID, Name string
	Online   bool
	// Reported is the time of its last report, zero where there is none.
	Reported time.Time
	// Applied is the version that it applies, Denied how many packets its policy
	// has denied since it started; both as of its last report.
	Applied, Denied uint64
}

// Progress is how far a staged activation is. Reason is set with RolledBack.
type Progress struct {
	State  State
	Reason string
	// Nodes are the canary nodes that are online, Applied those of them that have
	// applied the candidate.
	Nodes, Applied int
	// Left is the rest of the hold.
	Left time.Duration
}

// Machine decides about one staged activation. It has no clock, store or
// goroutine: the caller gives it time and reports, and does what it says. A
// decision is final. Not safe for concurrent use.
//
// What it tells at once: a test of the candidate that holds no more, a node that
// denies too much, too few nodes online for longer than 30 s. What it tells at the
// end of the hold: too few nodes that have applied the candidate, or none online,
// of which nothing is known. Otherwise the candidate is for all.
type Machine struct {
	plan    Plan
	online  map[string]bool // at the start
	left    time.Duration
	last    time.Time
	dark    time.Duration // how long too few were online
	tallies map[string]tally
	done    *Progress
}

// tally is where counting a node's denials began.
type tally struct {
	at     time.Time
	denied uint64
}

// NewMachine begins a staged activation. The plan must be valid.
func NewMachine(p Plan, now time.Time) *Machine {
	m := &Machine{plan: p, online: map[string]bool{}, left: p.Hold, last: now, tallies: map[string]tally{}}
	for _, id := range p.Online {
		m.online[id] = true
	}
	return m
}

// Resume goes on with a staged activation after the hub was away: nodes get time
// to come back before anything is held against them. A clock that jumped neither
// ends the hold at once nor makes it longer than it was.
func Resume(p Plan, holdUntil, now time.Time) *Machine {
	m := NewMachine(p, now)
	m.left = max(min(holdUntil.Sub(now), p.Hold), min(resumeGrace, p.Hold))
	m.dark = offlineGrace - resumeGrace
	return m
}

// Step takes what is known now: the canary nodes that exist, and whether the
// candidate's tests hold on all nodes.
func (m *Machine) Step(now time.Time, nodes []Node, tests error) Progress {
	if m.done != nil {
		return *m.done
	}
	passed := max(min(now.Sub(m.last), maxStep), 0)
	m.last = now
	m.left -= passed
	p := Progress{State: Canary}
	started, kept := 0, 0
	for i := range nodes {
		n := &nodes[i]
		if m.online[n.ID] {
			started++
			if n.Online {
				kept++
			}
		}
		if !n.Online {
			continue
		}
		p.Nodes++
		if n.Applied == m.plan.Candidate {
			p.Applied++
		}
	}
	if kept*100 < started*m.plan.Expect.MinOnlinePercent {
		m.dark += passed
	} else {
		m.dark = min(m.dark, 0)
	}
	p.Left = max(m.left, 0)
	reason := m.failure(nodes, tests, kept, started)
	if reason == "" && m.left <= 0 {
		reason = m.verdict(p, kept, started)
		if reason == "" {
			p.State = Active
		}
	}
	if reason != "" {
		p.State, p.Reason = RolledBack, reason
	}
	if p.State != Canary {
		m.done = &p
	}
	return p
}

// failure is what ends the stage before its time.
func (m *Machine) failure(nodes []Node, tests error, kept, started int) string {
	if tests != nil {
		return "a test does not hold any more: " + tests.Error()
	}
	for i := range nodes {
		if why := m.denials(&nodes[i]); why != "" {
			return why
		}
	}
	if m.dark > offlineGrace {
		return m.offline(kept, started)
	}
	return ""
}

// verdict is what counts when the hold is over.
func (m *Machine) verdict(p Progress, kept, started int) string {
	switch {
	case p.Nodes == 0:
		return "no canary node is online, so nothing is known"
	case kept*100 < started*m.plan.Expect.MinOnlinePercent:
		return m.offline(kept, started)
	case p.Applied*100 < p.Nodes*m.plan.Expect.MinAppliedPercent:
		return fmt.Sprintf("%d of %d canary nodes have applied it, want %d %%", p.Applied, p.Nodes, m.plan.Expect.MinAppliedPercent)
	}
	return ""
}

func (m *Machine) offline(kept, started int) string {
	return fmt.Sprintf("%d of %d canary nodes are still online, want %d %%", kept, started, m.plan.Expect.MinOnlinePercent)
}

// denials counts what a node denies from its first report under the candidate on,
// by windows of a minute; a window that has too many already need not end.
func (m *Machine) denials(n *Node) string {
	most := m.plan.Expect.MaxDeniedPerMinute
	if most == 0 || n.Reported.IsZero() || n.Applied != m.plan.Candidate {
		return ""
	}
	s, ok := m.tallies[n.ID]
	if !ok || n.Denied < s.denied || n.Reported.Before(s.at) { // the node or its clock began anew
		m.tallies[n.ID] = tally{n.Reported, n.Denied}
		return ""
	}
	minutes := max(n.Reported.Sub(s.at).Minutes(), 1)
	if rate := float64(n.Denied-s.denied) / minutes; rate > float64(most) {
		return fmt.Sprintf("%s denied %.0f packets in a minute, at most %d wanted", n.Name, rate, most)
	}
	if n.Reported.Sub(s.at) >= time.Minute {
		m.tallies[n.ID] = tally{n.Reported, n.Denied}
	}
	return ""
}
