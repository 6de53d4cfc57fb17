// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"slices"
	"strings"
)

// consistent returns what is wrong with s by itself and beside prev, which may be
// nil.
func (s *state) consistent(prev *state) []string {
	out := slices.Clone(s.problems)
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	names, addresses := make(map[string]string), make(map[string]string)
	for _, n := range s.nodes {
		if other := names[n.name]; other != "" {
			bad("nodes %s and %s are both called %s", n.id, other, n.name)
		}
		if other := addresses[n.ip]; other != "" {
			bad("nodes %s and %s both have %s", n.id, other, n.ip)
		}
		names[n.name], addresses[n.ip] = n.id, n.id
		if s.quarantine[n.index] {
			bad("node %s has address %s, which is in quarantine", n.id, n.ip)
		}
		if s.tokens[n.token] == nil {
			bad("node %s joined with no token", n.id)
		}
		if n.state == "revoked" && s.denials[denialKey("node", rawID(n.id))] == "" {
			bad("node %s is revoked, but not denied", n.id)
		}
	}
	if s.policies[s.active] == "" {
		bad("policy %d is in force, but not there", s.active)
	}
	if prev != nil {
		for v, text := range prev.policies {
			if s.policies[v] != text {
				bad("policy %d has changed or gone", v)
			}
		}
		for d, text := range prev.denials {
			if s.denials[d] != text {
				bad("denial of %s has changed or gone", d)
			}
		}
		for ip := range prev.quarantine {
			if !s.quarantine[ip] {
				bad("address %s has left the quarantine", ip)
			}
		}
	}
	return out
}

// verifyOps compares what the callers know with the database, and counts.
func (r *runner) verifyOps(ops []*op, before, after *state) {
	touched := make(map[string]bool)
	for _, o := range ops {
		c := r.rep.Ops[o.kind]
		if c == nil {
			c = &Count{}
			r.rep.Ops[o.kind] = c
		}
		touched[o.subject] = true
		landed, problem := o.check(o, before, after)
		if problem != "" {
			r.fail("%s: %s", o.kind, problem)
		}
		switch o.out {
		case acked:
			c.Acked++
			if !landed {
				r.fail("%s of %s was acknowledged and is not there", o.kind, o.subject)
			}
		case lost:
			c.Lost++
			if landed {
				c.Landed++
			}
			if strings.Contains(fmt.Sprint(o.err), "no answer within") {
				r.fail("%s: %v", o.kind, o.err)
			}
		case refused:
			c.Refused++
			c.Refusal = fmt.Sprint(o.err)
			if landed && (o.kind != opJoin || before.nodes[o.join.key()] == nil) {
				r.fail("%s of %s was refused (%v) and is there", o.kind, o.subject, o.err)
			}
		case unserved:
			c.Unserved++
		case unsent: // never recorded
		}
	}
	r.verifyUntouched(touched, before, after)
	r.verifyUses(before, after)
	r.verifyPolicy(ops, before, after)
	r.verifyAudit(ops, before, after)
}

// verifyUntouched finds what changed and nobody asked for.
func (r *runner) verifyUntouched(touched map[string]bool, before, after *state) {
	allowed := make(map[string]bool) // subjects of new denials
	for key, n := range before.nodes {
		if touched["node:"+key] {
			allowed[denialKey("node", rawID(n.id))], allowed["key:"+key] = true, true
			for _, c := range n.certs {
				allowed["serial:"+c] = true
			}
			continue
		}
		switch have := after.nodes[key]; {
		case have == nil:
			r.fail("node %s (%s) is gone", n.name, n.id)
		case have.text != n.text || len(have.certs) < len(n.certs):
			r.fail("node %s changed by itself: %s, was %s", n.id, have.text, n.text)
		}
	}
	for key, n := range after.nodes {
		if before.nodes[key] == nil && !touched["node:"+key] {
			r.fail("node %s (%s) is there and nobody asked for it", n.name, n.id)
		}
	}
	for id, k := range before.tokens {
		switch have := after.tokens[id]; {
		case have == nil:
			r.fail("token %s is gone", id)
		case have.text != k.text && !touched["token:"+k.tags]:
			r.fail("token %s changed by itself: %s, was %s", id, have.text, k.text)
		}
	}
	for id, k := range after.tokens {
		if before.tokens[id] == nil && !touched["token:"+k.tags] {
			r.fail("token %s is there and nobody asked for it", id)
		}
	}
	for d := range after.denials {
		if before.denials[d] == "" && !allowed[d] {
			r.fail("denial of %s is there and nobody asked for it", d)
		}
	}
}

// verifyUses demands that each token counts the nodes that joined with it, those
// included that are gone by now.
func (r *runner) verifyUses(before, after *state) {
	fresh := make(map[string]int64)
	for key, n := range after.nodes {
		if before.nodes[key] == nil {
			fresh[n.token]++
		}
	}
	for id, k := range after.tokens {
		want := fresh[id]
		if old := before.tokens[id]; old != nil {
			want += old.uses
		}
		if k.uses != want || k.uses > k.max {
			r.fail("token %s has %d of %d uses, want %d", id, k.uses, k.max, want)
		}
	}
}

func (r *runner) verifyPolicy(ops []*op, before, after *state) {
	most := before.psk
	for _, o := range ops {
		if o.kind == opRotate && (o.out == acked || o.out == lost) {
			most++
		}
	}
	if after.psk > most {
		r.fail("mesh key has epoch %d, want %d at most", after.psk, most)
	}
	allowed := r.load.active
	if allowed == nil {
		allowed = []int64{before.active}
	}
	if !slices.Contains(allowed, after.active) {
		r.fail("policy %d is in force, want one of %v", after.active, allowed)
	}
}

// verifyAudit demands exactly one entry for each operation that landed, and none
// besides.
func (r *runner) verifyAudit(ops []*op, before, after *state) {
	entries := make(map[string]int)
	for _, a := range after.newAudit {
		entries[a.action+" "+a.target]++
	}
	for _, o := range ops {
		if o.entry == nil || o.out == refused || o.out == unserved {
			continue
		}
		if landed, _ := o.check(o, before, after); !landed {
			continue
		}
		key := o.entry(before, after)
		switch {
		case key == "":
		case entries[key] > 0:
			entries[key]--
		// A machine that came again may have been there before this round.
		case o.kind == opJoin && o.out == lost && strings.HasPrefix(key, "node.rejoin"):
		default:
			r.fail("%s landed, but the audit log has no %q", o.kind, key)
		}
	}
	for key, n := range entries {
		if n > 0 {
			r.fail("audit log has %d of %q for which nothing was done", n, key)
		}
	}
}
