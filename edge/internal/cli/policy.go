// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// errPolicy tells that the policy denies what was asked about.
var errPolicy = errors.New("denied by the policy")

const whyText = "bauxite policy why [--proto P --port N] [--json] SRC DST [LANE]"

func (a *App) policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "show the policy in force here, and what it decides", UsageText: "bauxite policy show | why [options] [arguments]",
		Description: "show prints the policy that the running node judges packets by.\n\n" +
			"why SRC DST [LANE] tells what it says of a flow that SRC begins: the rule that decides,\n" +
			"the roles of SRC, its budget on the lane. SRC and DST are names, ids or the beginning of\n" +
			"one, virtual addresses, or self; LANE is critical, telemetry or bulk, critical if left\n" +
			"out. Without --proto it is about a protocol that only rules for any match. The answers\n" +
			"of an allowed flow pass by themselves.\n\n" +
			"The exit code is 0 where the flow is allowed and 43 where it is denied.\n\n" +
			"Examples:\n  bauxite policy why self base critical\n" +
			"  bauxite policy why base self telemetry --proto udp --port 7400\n" +
			"  bauxite policy why self base bulk --proto tcp --port 22 --json | jq -r .rule\n" +
			"  bauxite policy show | jq '.allow[].id'",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "proto", Usage: "why: `P` is any, icmp, tcp or udp"},
			&cli.UintFlag{Name: "port", Usage: "why: destination port `N`, with tcp and udp"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON; show: with the version and the nodes"},
		},
		BashComplete: a.completePolicy,
		Action: func(c *cli.Context) error {
			switch what := c.Args().First(); what {
			case "show":
				return a.policyShow(c)
			case "why":
				return a.policyWhy(c)
			case "":
				return usagef("policy: an argument is missing: %s", c.Command.UsageText)
			default:
				return usagef("policy: unknown command %q: show or why", what)
			}
		},
	}
}

// completePolicy offers what comes next: a command, two nodes, a lane.
func (a *App) completePolicy(c *cli.Context) {
	if n := len(os.Args); n > 2 && os.Args[n-2] == "--proto" {
		_, _ = io.WriteString(a.Stdout, "any\nicmp\ntcp\nudp\n")
		return
	}
	switch {
	case c.NArg() == 0:
		if n := len(os.Args); n > 2 && strings.HasPrefix(os.Args[n-2], "-") {
			cli.DefaultCompleteWithFlags(c.Command)(c)
			return
		}
		_, _ = io.WriteString(a.Stdout, "show\nwhy\n")
	case c.Args().First() != "why":
	case c.NArg() < 3:
		_, _ = io.WriteString(a.Stdout, "self\n")
		a.peerNames(c)
	case c.NArg() == 3:
		_, _ = io.WriteString(a.Stdout, strings.Join(laneNames, "\n")+"\n")
	}
}

func (a *App) policyShow(c *cli.Context) error {
	if c.NArg() > 1 {
		return usagef("policy show: unexpected argument %q", c.Args().Get(1))
	}
	if c.IsSet("proto") || c.IsSet("port") {
		return usagef("policy show: --proto and --port are for why")
	}
	cl, err := a.client(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	p, _, err := cl.Policy(c.Context)
	if err != nil {
		return err
	}
	var out any = p.Document
	if c.Bool("json") {
		out = p
	} else if p.Version == 0 && string(p.Document) == "null" {
		return errors.New("no policy is in force yet: all is denied until the hub answers")
	}
	return a.writeJSON(out)
}

func (a *App) writeJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = a.Stdout.Write(append(b, '\n'))
	return err
}

// why is what `bauxite policy why --json` prints. Fields are added, never changed.
type why struct {
	Allow bool `json:"allow"`
	// Rule is what decided: a rule, "guard:ID", "role:NAME" or "no rule".
	Rule string `json:"rule"`
	// Why is one sentence.
	Why string `json:"why"`
	// Version is that of the policy; 0 means that there is none.
	Version uint64                `json:"version"`
	Src     conduit.PolicySubject `json:"src"`
	Dst     conduit.PolicySubject `json:"dst"`
	// Roles are those of SRC.
	Roles []string `json:"roles"`
	// Budget is what SRC may send on the lane to all together; null means no limit.
	Budget *whyBudget `json:"budget"`
}

type whyBudget struct {
	PacketsPerSecond uint64 `json:"packets_per_second,omitempty"`
	PacketsRole      string `json:"packets_role,omitempty"`
	BitsPerSecond    uint64 `json:"bits_per_second,omitempty"`
	BitsRole         string `json:"bits_role,omitempty"`
}

func (a *App) policyWhy(c *cli.Context) error {
	switch n := c.NArg(); {
	case n < 3:
		return usagef("policy why: an argument is missing: %s", whyText)
	case n > 4:
		return usagef("policy why: unexpected argument %q", c.Args().Get(4))
	}
	lane := policy.Critical
	if text := c.Args().Get(3); text != "" {
		var err error
		if lane, err = policy.ParseLane(text); err != nil {
			return usagef("policy why: %v", err)
		}
	}
	proto, port := c.String("proto"), c.Uint("port")
	switch proto {
	case "", "any", "icmp":
		if c.IsSet("port") {
			return usagef("policy why: --port needs --proto tcp or udp")
		}
	case "tcp", "udp":
		if port < 1 || port > 65535 {
			return usagef("policy why: --proto %s needs --port, 1 to 65535", proto)
		}
	default:
		return usagef("policy why: --proto %q: want any, icmp, tcp or udp", proto)
	}
	cl, err := a.client(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	p, ends, err := cl.Policy(c.Context, c.Args().Get(1), c.Args().Get(2))
	if err != nil {
		return err
	}
	if ends[0].ID == ends[1].ID {
		return usagef("policy why: %s and %s are the same node; the policy is about others", c.Args().Get(1), c.Args().Get(2))
	}
	w, err := explain(p, ends, proto, uint16(port), lane)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if err := a.writeJSON(w); err != nil {
			return err
		}
		if !w.Allow {
			return errPolicy
		}
		return nil
	}
	return a.writeWhy(w)
}

func explain(p *conduit.PolicyInForce, ends []conduit.PolicySubject, proto string, port uint16, lane policy.Lane) (*why, error) {
	w := &why{Rule: policy.NoRule, Version: p.Version, Src: ends[0], Dst: ends[1], Roles: []string{}}
	if string(p.Document) == "null" {
		w.Why = "denied, since no policy is in force yet"
		return w, nil
	}
	doc, err := policy.Parse(p.Document)
	if err != nil {
		return nil, fmt.Errorf("read the policy of bauxite run: %w", err)
	}
	var subjects [2]policy.Subject
	for i, s := range ends {
		id, err := identity.ParsePeerID(s.ID)
		if err != nil {
			return nil, fmt.Errorf("read the policy of bauxite run: %w", err)
		}
		subjects[i] = policy.Subject{ID: id, Name: s.Name, Tags: s.Tags}
	}
	d := doc.Explain(subjects[0], subjects[1], proto, port, lane)
	w.Allow, w.Rule, w.Why = d.Allow, d.Rule, d.Why
	roles, err := doc.RolesOf(subjects[0])
	if err != nil {
		return nil, err
	}
	w.Roles = append(w.Roles, roles...)
	if b, err := doc.BudgetFor(subjects[0], lane); err == nil && !b.IsZero() {
		w.Budget = &whyBudget{b.PacketsPerSecond, b.PacketsRole, b.BitsPerSecond, b.BitsRole}
	}
	return w, nil
}

func (a *App) writeWhy(w *why) error {
	var b strings.Builder
	c := green
	if !w.Allow {
		c = red
	}
	verdict, reason, _ := strings.Cut(oneLine(w.Why), " ") // it begins with allowed or denied
	fmt.Fprintf(&b, "%s %s\n", a.paint(a.Stdout, c, verdict), reason)
	fmt.Fprintf(&b, "rule     %s, policy version %d\n", w.Rule, w.Version)
	roles := "none"
	if len(w.Roles) > 0 {
		roles = strings.Join(w.Roles, ", ")
	}
	fmt.Fprintf(&b, "roles    %s: %s\n", w.Src.Name, roles)
	if x := w.Budget; x != nil {
		limit := policy.Budget{
			Limit:       policy.Limit{PacketsPerSecond: x.PacketsPerSecond, BitsPerSecond: x.BitsPerSecond},
			PacketsRole: x.PacketsRole, BitsRole: x.BitsRole,
		}
		fmt.Fprintf(&b, "budget   %s; what is over it is demoted\n", limit)
	}
	if _, err := io.WriteString(a.Stdout, b.String()); err != nil {
		return err
	}
	if !w.Allow {
		return errPolicy
	}
	return nil
}
