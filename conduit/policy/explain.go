// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// Decision is the answer for one flow and its reason.
type Decision struct {
	Allow bool
	// Rule is what decided: a rule's name, "role:NAME" where no role of the source
	// may publish on the lane, NoRule where no rule matched.
	Rule string
	// Why is one sentence.
	Why string
	// Budget is what the source may send on the lane; zero is no limit.
	Budget Budget
}

// NoRule is the name under which default denials are counted.
const NoRule = "no rule"

// Explain decides about a new flow from src to dst and says why. An empty proto
// stands for one that only rules with proto any match. A document that Validate
// would refuse denies.
func (d *Document) Explain(src, dst Subject, proto string, port uint16, lane Lane) Decision {
	b, err := d.compile()
	if err != nil {
		return Decision{Rule: NoRule, Why: "denied, since the policy is bad: " + err.Error()}
	}
	return b.explain(src, dst, proto, port, lane)
}

func (b *book) explain(src, dst Subject, proto string, port uint16, lane Lane) Decision {
	p, err := parseProto(proto)
	switch {
	case err != nil:
		return Decision{Rule: NoRule, Why: err.Error()}
	case lane > Bulk:
		return Decision{Rule: NoRule, Why: "unknown " + lane.String()}
	}
	words := []string{src.Name + " to " + dst.Name}
	if proto != "" {
		words = append(words, proto)
	}
	if p == protoTCP || p == protoUDP {
		words[len(words)-1] += " port " + strconv.Itoa(int(port))
	}
	flow := strings.Join(append(words, "lane "+lane.String()), ", ")
	hit := func(rules []bookRule) (string, bool) {
		for i := range rules {
			c := &rules[i]
			if c.src.matches(&src) && c.dst.matches(&dst) && c.body.matches(p, port, lane) {
				return c.name, true
			}
		}
		return "", false
	}
	if name, ok := hit(b.guards); ok {
		return Decision{Rule: name, Why: fmt.Sprintf("denied by %s: %s", name, flow)}
	}
	box := b.sandbox(&src)
	if box.lanes>>lane&1 == 0 {
		who := "its role " + box.roles[0] + " may not"
		if len(box.roles) > 1 {
			who = "none of its roles " + strings.Join(box.roles, ", ") + " may"
		}
		return Decision{
			Rule: roleRule(box.roles[0]),
			Why:  fmt.Sprintf("denied, since %s publish on lane %s: %s", who, lane, flow),
		}
	}
	if name, ok := hit(b.allow); ok {
		out := Decision{Allow: true, Rule: name, Budget: box.budgets[lane]}
		out.Why = fmt.Sprintf("allowed by rule %s: %s", name, flow)
		if limit := out.Budget.String(); limit != "" {
			out.Why += ", within " + limit
		}
		return out
	}
	return Decision{Rule: NoRule, Why: "denied, since no rule allows it: " + flow}
}

// roleRule and budgetRule are what counters and explanations call denials by a
// role; ids of rules have no colon.
func roleRule(name string) string   { return "role:" + name }
func budgetRule(name string) string { return "budget:" + name }

// String names the limits and the roles that set them; empty where there is none.
func (b Budget) String() string {
	var out []string
	if b.PacketsPerSecond > 0 {
		out = append(out, fmt.Sprintf("%d packets/s (role %s)", b.PacketsPerSecond, b.PacketsRole))
	}
	if b.BitsPerSecond > 0 {
		out = append(out, fmt.Sprintf("%d bit/s (role %s)", b.BitsPerSecond, b.BitsRole))
	}
	return strings.Join(out, " and ")
}
