// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// RuleChange is one difference in the text of two policies.
type RuleChange struct {
	// Kind is allow, guard, role or test.
	Kind string
	// Name is the rule's id or the role's name; empty where it has none.
	Name string
	// Old and New are the two texts; empty where it was added or removed.
	Old, New string
}

// String is one line that begins with +, - or ~.
func (c *RuleChange) String() string {
	what := c.Kind
	if c.Name != "" {
		what += " " + c.Name
	}
	switch {
	case c.Old == "":
		return "+ " + what + ": " + c.New
	case c.New == "":
		return "- " + what + ": " + c.Old
	}
	return "~ " + what + ": " + c.Old + " -> " + c.New
}

// ReachChange is one difference in who can reach what.
type ReachChange struct {
	Flow
	// Allowed tells whether it is open now and was not before; else it was open.
	Allowed bool
}

// String is one line that begins with + or -.
func (c *ReachChange) String() string {
	if c.Allowed {
		return "+ " + c.Flow.String()
	}
	return "- " + c.Flow.String()
}

// Difference is what Diff found, at most MaxFlows changes of reach.
type Difference struct {
	Rules []RuleChange
	Reach []ReachChange
	// Truncated tells that there are more changes of reach.
	Truncated bool
}

// Diff compares two policies: their texts, and who of the nodes could reach what
// before and after. Guards and roles are considered; budgets show as a change of
// their role.
func Diff(before, after *Document, nodes []Subject) (*Difference, error) {
	oldBook, err := before.compile()
	if err != nil {
		return nil, fmt.Errorf("%w: old: %w", ErrDocument, err)
	}
	newBook, err := after.compile()
	if err != nil {
		return nil, fmt.Errorf("%w: new: %w", ErrDocument, err)
	}
	out := &Difference{Rules: diffRules(before, after)}
	t := newTerms()
	t.addBook(oldBook)
	t.addBook(newBook)
	all := t.classes(nodes)
	was, is := newReacher(oldBook, all), newReacher(newBook, all)
	all = collapse(all, func(i int) string { return was.sets(i) + is.sets(i) })
	was, is = newReacher(oldBook, all), newReacher(newBook, all)
	type change struct{ opened, closed []line }
	changes := map[string]change{}
	key := func(i, j int) (string, bool) {
		o, okO := was.key(i, j)
		n, okN := is.key(i, j)
		if !okO || !okN {
			return "", false
		}
		k := o + n // the length of each is fixed
		if _, ok := changes[k]; !ok {
			changes[k] = change{is.known[n].minus(was.known[o]).lines(), was.known[o].minus(is.known[n]).lines()}
		}
		return k, true
	}
	out.Truncated = groups(all, key, func(k string, src, dst *class) bool {
		c := changes[k]
		for n, l := range slices.Concat(c.opened, c.closed) {
			if len(out.Reach) == MaxFlows {
				return false
			}
			out.Reach = append(out.Reach, ReachChange{l.flow(src, dst), n < len(c.opened)})
		}
		return true
	})
	return out, nil
}

// entry is a rule, role or test as text.
type entry struct{ kind, name, text string }

func diffRules(before, after *Document) (out []RuleChange) {
	olds, news := before.entries(), after.entries()
	type id struct{ kind, name string }
	named := map[id]string{}
	unnamed := map[entry]int{}
	for _, e := range news {
		if e.name != "" {
			named[id{e.kind, e.name}] = e.text
		} else {
			unnamed[e]++
		}
	}
	had := map[id]bool{}
	for _, e := range olds {
		if e.name == "" {
			if unnamed[e]--; unnamed[e] < 0 {
				out = append(out, RuleChange{Kind: e.kind, Old: e.text})
			}
			continue
		}
		had[id{e.kind, e.name}] = true
		if text := named[id{e.kind, e.name}]; text != e.text {
			out = append(out, RuleChange{Kind: e.kind, Name: e.name, Old: e.text, New: text})
		}
	}
	for _, e := range news {
		if e.name != "" && !had[id{e.kind, e.name}] {
			out = append(out, RuleChange{Kind: e.kind, Name: e.name, New: e.text})
		} else if e.name == "" && unnamed[e] > 0 {
			unnamed[e]--
			out = append(out, RuleChange{Kind: e.kind, New: e.text})
		}
	}
	return out
}

func (d *Document) entries() (out []entry) {
	for _, r := range d.Allow {
		out = append(out, entry{"allow", r.ID, r.String()})
	}
	for _, r := range d.Guards {
		out = append(out, entry{"guard", r.ID, r.String()})
	}
	for _, r := range d.Roles {
		out = append(out, entry{"role", r.Name, r.String()})
	}
	for _, t := range d.Tests {
		out = append(out, entry{"test", "", t.String()})
	}
	return out
}

// String is the rule in one line without its id.
func (r Rule) String() string {
	out := strings.Join(r.Src, ",") + " to " + strings.Join(r.Dst, ",")
	if r.Proto != "" {
		out += " " + r.Proto
	}
	if len(r.Ports) > 0 {
		out += " " + strings.Join(r.Ports, ",")
	}
	if len(r.Lanes) > 0 {
		out += " on " + laneList(r.Lanes)
	}
	return out
}

// String is the role in one line without its name.
func (r Role) String() string {
	out := strings.Join(r.Members, ",")
	switch {
	case r.Publish == nil:
		return out
	case len(r.Publish) == 0:
		return out + " publish nothing"
	}
	out += " publish " + laneList(r.Publish)
	if len(r.Budgets) > 0 {
		b, err := json.Marshal(r.Budgets) // in order of the lanes' names
		if err != nil {
			return out + " budgets " + err.Error()
		}
		out += " budgets " + string(b)
	}
	return out
}

// String is the test in one line.
func (t Test) String() string {
	out := t.Src + " to " + t.Dst
	if t.Proto != "" {
		out += " " + t.Proto
	}
	if t.Port != 0 {
		out += fmt.Sprintf(" %d", t.Port)
	}
	return out + " on " + t.Lane.String() + ": " + t.Want
}

func laneList(lanes []Lane) string {
	out := make([]string, 0, len(lanes))
	for _, l := range lanes {
		out = append(out, l.String())
	}
	return strings.Join(out, ",")
}
