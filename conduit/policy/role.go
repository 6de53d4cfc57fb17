// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Limits of a Limit.
const (
	// MaxRate is the highest rate, of packets or bits per second.
	MaxRate = 1_000_000_000_000
	// MaxBurst is the largest burst, in packets or bits.
	MaxBurst = 4_000_000_000
	// MinBurstBits lets the largest packet of a mesh pass.
	MinBurstBits = 16_000
)

// IsZero reports whether l limits nothing.
func (l Limit) IsZero() bool { return l.PacketsPerSecond == 0 && l.BitsPerSecond == 0 }

// effective returns l with its bursts filled in.
func (l Limit) effective() Limit {
	fill := func(rate, burst, least uint64) uint64 {
		if rate == 0 || burst != 0 {
			return burst
		}
		return min(max(rate/10, least), MaxBurst)
	}
	l.BurstPackets = fill(l.PacketsPerSecond, l.BurstPackets, 1)
	l.BurstBits = fill(l.BitsPerSecond, l.BurstBits, MinBurstBits)
	return l
}

func (l Limit) check() error {
	switch {
	case l.IsZero():
		return errors.New("neither packets_per_second nor bits_per_second")
	case l.BurstPackets > 0 && l.PacketsPerSecond == 0, l.BurstBits > 0 && l.BitsPerSecond == 0:
		return errors.New("a burst without its rate")
	case l.PacketsPerSecond > MaxRate, l.BitsPerSecond > MaxRate:
		return fmt.Errorf("rate above %d", uint64(MaxRate))
	case l.BurstPackets > MaxBurst, l.BurstBits > MaxBurst:
		return fmt.Errorf("burst above %d", uint64(MaxBurst))
	case l.BurstBits > 0 && l.BurstBits < MinBurstBits:
		return fmt.Errorf("burst_bits below %d: no large packet would ever pass", MinBurstBits)
	}
	return nil
}

func (r *Role) compile() (c bookRole, err error) {
	if !identity.ValidName(r.Name) {
		return c, at(errors.New("name: want a-z 0-9 -, as in tags"), "name")
	}
	c.name, c.confines = r.Name, r.Publish != nil
	if len(r.Members) == 0 || len(r.Members) > MaxSelectors {
		return c, at(fmt.Errorf("%d members, want 1 to %d", len(r.Members), MaxSelectors), "members")
	}
	for i, w := range r.Members {
		s, err := parseSelector(w)
		if err != nil {
			return c, at(fmt.Errorf("member: %w", err), "members", i)
		}
		c.members = append(c.members, s)
	}
	if c.lanes, err = laneMask(r.Publish); err != nil {
		return c, at(err, "publish")
	}
	for lane := range Lane(packet.NumLanes) { // in order, so that errors are the same each time
		l, ok := r.Budgets[lane]
		if !ok {
			continue
		}
		if c.lanes>>lane&1 == 0 {
			return c, at(fmt.Errorf("budget of lane %s, which it may not publish", lane), "budgets", lane.String())
		}
		if err := l.check(); err != nil {
			return c, at(fmt.Errorf("budget of lane %s: %w", lane, err), "budgets", lane.String())
		}
		c.limits[lane] = l.effective()
	}
	for lane := range r.Budgets {
		if lane >= packet.NumLanes {
			return c, fmt.Errorf("budget of unknown %s", lane)
		}
	}
	return c, nil
}

// Budget is what a node may send on a lane, all roles considered.
type Budget struct {
	Limit
	// PacketsRole and BitsRole set the two limits; empty where there is none.
	PacketsRole, BitsRole string
}

// sandbox is what the roles of one node make of it.
type sandbox struct {
	// confined is false for a node without any role that confines.
	confined bool
	lanes    uint8
	roles    []string // that confine, sorted
	budgets  [packet.NumLanes]Budget
}

func (b *book) sandbox(s *Subject) sandbox {
	box := sandbox{lanes: allLanes}
	var in []*bookRole
	for i := range b.roles {
		if r := &b.roles[i]; r.confines && r.members.matches(s) {
			in = append(in, r)
		}
	}
	if len(in) == 0 {
		return box
	}
	// By name, so that the order in the document does not matter.
	slices.SortFunc(in, func(x, y *bookRole) int { return cmp.Compare(x.name, y.name) })
	box.confined, box.lanes = true, 0
	for _, r := range in {
		box.lanes |= r.lanes
		box.roles = append(box.roles, r.name)
	}
	for lane := range Lane(packet.NumLanes) {
		box.budgets[lane] = budgetOf(in, lane)
	}
	return box
}

// budgetOf takes the most generous of what the roles say, for packets and for
// bits by itself.
func budgetOf(roles []*bookRole, lane Lane) (out Budget) {
	packets, bits := true, true // limited by each role so far
	for _, r := range roles {
		if r.lanes>>lane&1 == 0 {
			continue
		}
		l := r.limits[lane]
		packets, bits = packets && l.PacketsPerSecond > 0, bits && l.BitsPerSecond > 0
		if l.PacketsPerSecond > out.PacketsPerSecond || l.PacketsPerSecond == out.PacketsPerSecond && l.BurstPackets > out.BurstPackets {
			out.PacketsPerSecond, out.BurstPackets, out.PacketsRole = l.PacketsPerSecond, l.BurstPackets, r.name
		}
		if l.BitsPerSecond > out.BitsPerSecond || l.BitsPerSecond == out.BitsPerSecond && l.BurstBits > out.BurstBits {
			out.BitsPerSecond, out.BurstBits, out.BitsRole = l.BitsPerSecond, l.BurstBits, r.name
		}
	}
	if !packets {
		out.PacketsPerSecond, out.BurstPackets, out.PacketsRole = 0, 0, ""
	}
	if !bits {
		out.BitsPerSecond, out.BurstBits, out.BitsRole = 0, 0, ""
	}
	return out
}

// BudgetFor returns what s may send on the lane, bursts filled in. The zero
// Budget is no limit; whether s may publish there at all is for Explain.
func (d *Document) BudgetFor(s Subject, lane Lane) (Budget, error) {
	b, err := d.compile()
	if err != nil {
		return Budget{}, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if lane >= packet.NumLanes {
		return Budget{}, fmt.Errorf("unknown %s", lane)
	}
	return b.sandbox(&s).budgets[lane], nil
}

// RolesOf returns the names of the roles that s has, in the document's order.
func (d *Document) RolesOf(s Subject) ([]string, error) {
	b, err := d.compile()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	var out []string
	for i := range b.roles {
		if b.roles[i].members.matches(&s) {
			out = append(out, b.roles[i].name)
		}
	}
	return out, nil
}
