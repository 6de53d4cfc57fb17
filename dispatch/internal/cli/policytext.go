// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	hubpolicy "github.com/bauxite-mesh/bauxite/dispatch/internal/policy"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

func nodesFlag() cli.Flag {
	return &cli.StringFlag{Name: "nodes", Usage: "`FILE` with the output of node list --json, instead of a hub"}
}

// readText reads a policy from a file, - being standard input.
func readText(c *cli.Context, name string) (string, error) {
	r := c.App.Reader
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", usageError{fmt.Errorf("read policy: %w", err)}
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, hubpolicy.MaxText+1))
	if err != nil {
		return "", fmt.Errorf("read policy: %w", err)
	}
	if len(b) > hubpolicy.MaxText {
		return "", usagef("%s: larger than %d bytes", name, hubpolicy.MaxText)
	}
	return string(b), nil
}

// printText prints a text line by line, without what could take over a terminal.
func printText(c *cli.Context, text string) error {
	var b strings.Builder
	for line := range strings.Lines(text) {
		for i, part := range strings.Split(strings.TrimSuffix(line, "\n"), "\t") {
			if i > 0 {
				b.WriteByte('\t')
			}
			b.WriteString(oneLine(part))
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(c.App.Writer, b.String())
	return err
}

func validatePolicy(c *cli.Context) error {
	name, err := oneArg(c, "FILE")
	if err != nil {
		return err
	}
	source, err := readText(c, name)
	if err != nil {
		return err
	}
	t, err := hubpolicy.Parse(source)
	if e, ok := errors.AsType[*hubpolicy.Error](err); ok {
		if c.Bool("json") {
			res := policyTested{Findings: []policyFinding{{e.Line, e.Column, e.Message}}}
			if err := printJSON(c.App.Writer, res); err != nil {
				return err
			}
		}
		return failf(nil, "", "%s:%s", name, e)
	}
	if err != nil {
		return err
	}
	d := t.Document
	if c.Bool("json") {
		return printJSON(c.App.Writer, policyTested{OK: true, Tests: len(d.Tests), Findings: []policyFinding{}})
	}
	_, err = fmt.Fprintf(c.App.Writer, "good: %d allow rules, %d guards, %d roles, %d tests\n", len(d.Allow), len(d.Guards), len(d.Roles), len(d.Tests))
	return err
}

func formatPolicy(c *cli.Context) error {
	name, err := oneArg(c, "FILE")
	if err != nil {
		return err
	}
	source, err := readText(c, name)
	if err != nil {
		return err
	}
	nice, err := hubpolicy.Format(source)
	if err != nil {
		return failf(nil, "", "%s:%s", name, err)
	}
	return printText(c, nice)
}

func testPolicy(c *cli.Context) error {
	name, err := oneArg(c, "FILE")
	if err != nil {
		return err
	}
	source, err := readText(c, name)
	if err != nil {
		return err
	}
	var res policyTested
	if file := c.String("nodes"); file != "" {
		nodes, err := readNodes(file)
		if err != nil {
			return err
		}
		r := hubpolicy.Examine(source, nodes)
		res = policyTested{OK: len(r.Findings) == 0, Tests: r.Tests, Failed: r.Failed, Findings: []policyFinding{}}
		for _, f := range r.Findings {
			res.Findings = append(res.Findings, policyFinding(f))
		}
	} else if res, err = testOnHub(c, source); err != nil {
		return err
	}
	return tested(c, name, res)
}

func testOnHub(c *cli.Context, source string) (policyTested, error) {
	r, err := call(c, "test policy", func(ctx context.Context, h *hub) (*dispatchv1.TestPolicyResponse, error) {
		return h.policy().TestPolicy(ctx, &dispatchv1.TestPolicyRequest{Source: source})
	})
	res := policyTested{OK: r.GetOk(), Tests: int(r.GetTests()), Failed: int(r.GetFailed()), Findings: []policyFinding{}}
	for _, f := range r.GetFindings() {
		res.Findings = append(res.Findings, policyFinding{int(f.GetLine()), int(f.GetColumn()), f.GetMessage()})
	}
	return res, err
}

// tested prints what a test found out; its error is for a text that is not good.
func tested(c *cli.Context, name string, res policyTested) error {
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, res); err != nil {
			return err
		}
	} else {
		for _, f := range res.Findings {
			_, _ = fmt.Fprintf(c.App.ErrWriter, "%s:%s\n", oneLine(name), oneLine(hubpolicy.Finding(f).String()))
		}
	}
	switch {
	case res.OK && !c.Bool("json"):
		_, err := fmt.Fprintf(c.App.Writer, "good: %d tests hold\n", res.Tests)
		return err
	case res.OK:
		return nil
	case res.Failed == 0:
		return failf(nil, "", "%s is not a policy", name)
	}
	return failf(errTests, "", "%d of %d tests do not hold", res.Failed, res.Tests)
}

// readNodes reads the output of node list --json.
func readNodes(name string) ([]policy.Subject, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, usageError{fmt.Errorf("--nodes: %w", err)}
	}
	var list nodeList
	if err := json.Unmarshal(b, &list); err != nil || list.Nodes == nil {
		return nil, usagef("--nodes %s: not the output of node list --json", name)
	}
	return subjectsOf(list.Nodes)
}

func subjectsOf(nodes []nodeRow) ([]policy.Subject, error) {
	var out []policy.Subject
	for i := range nodes {
		n := &nodes[i]
		id, err := identity.ParsePeerID(n.ID)
		if err != nil {
			return nil, usagef("node %s: %w", n.Name, err)
		}
		// As on the hub: others are in no policy yet, or no more.
		if n.State == "active" && n.KeyOrigin != "server" {
			out = append(out, policy.Subject{ID: id, Name: n.Name, Tags: n.Tags})
		}
	}
	return out, nil
}

// reachPolicy is worked out here: the hub need not know.
func reachPolicy(c *cli.Context) error {
	if err := upTo(c, 0, 1, "FILE"); err != nil {
		return err
	}
	d, err := documentArg(c, c.Args().First())
	if err != nil {
		return err
	}
	var nodes []policy.Subject
	if file := c.String("nodes"); file != "" {
		nodes, err = readNodes(file)
	} else {
		nodes, err = hubNodes(c)
	}
	if err != nil {
		return err
	}
	flows, truncated, err := d.Reach(nodes)
	if err != nil {
		return err
	}
	out := policyReach{Flows: []policyFlow{}, Truncated: truncated}
	var rows [][]string
	for i := range flows {
		f := &flows[i]
		lanes := []string{}
		for _, l := range f.Lanes {
			lanes = append(lanes, l.String())
		}
		out.Flows = append(out.Flows, policyFlow{f.Src, f.SrcNodes, f.Dst, f.DstNodes, f.Proto, f.Ports, lanes})
		rows = append(rows, []string{f.Src, f.Dst, f.Proto, f.Ports, strings.Join(lanes, ",")})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	if truncated {
		note(c, "there are more than these")
	}
	return table(c.App.Writer, []string{"FROM", "TO", "PROTO", "PORTS", "LANES"}, rows)
}

// documentArg reads the policy that an argument names: a version, else a file;
// none is the active version.
func documentArg(c *cli.Context, arg string) (*policy.Document, error) {
	v, err := strconv.ParseUint(arg, 10, 63)
	if arg != "" && err != nil {
		source, err := readText(c, arg)
		if err != nil {
			return nil, err
		}
		t, err := hubpolicy.Parse(source)
		if err != nil {
			return nil, failf(nil, "", "%s:%s", arg, err)
		}
		return t.Document, nil
	}
	res, err := readPolicy(c, v)
	if err != nil {
		return nil, err
	}
	return policy.Parse(res.GetDocument())
}

func hubNodes(c *cli.Context) ([]policy.Subject, error) {
	res, err := call(c, "list nodes", func(ctx context.Context, h *hub) (*dispatchv1.ListNodesResponse, error) {
		return h.fleet().ListNodes(ctx, &dispatchv1.ListNodesRequest{})
	})
	if err != nil {
		return nil, err
	}
	var rows []nodeRow
	for _, n := range res.GetNodes() {
		rows = append(rows, rowOf(n))
	}
	return subjectsOf(rows)
}

// newestVersion returns the newest version of the hub.
func newestVersion(c *cli.Context) (uint64, error) {
	res, err := call(c, "list policies", func(ctx context.Context, h *hub) (*dispatchv1.ListPoliciesResponse, error) {
		return h.policy().ListPolicies(ctx, &dispatchv1.ListPoliciesRequest{Limit: 1})
	})
	if err != nil {
		return 0, err
	}
	if len(res.GetPolicies()) == 0 {
		return 0, nil
	}
	return res.GetPolicies()[0].GetVersion(), nil
}

func proposePolicy(c *cli.Context) error {
	name, err := oneArg(c, "FILE")
	if err != nil {
		return err
	}
	source, err := readText(c, name)
	if err != nil {
		return err
	}
	base := c.Uint64("base")
	if base == 0 {
		if base, err = newestVersion(c); err != nil {
			return err
		}
	}
	return propose(c, name, source, base)
}

func propose(c *cli.Context, name, source string, base uint64) error {
	// Findings with their places are worth more than the refusal.
	res, err := testOnHub(c, source)
	if err != nil {
		return err
	}
	if !res.OK {
		return tested(c, name, res)
	}
	p, err := call(c, "propose policy", func(ctx context.Context, h *hub) (*dispatchv1.ProposePolicyResponse, error) {
		return h.policy().ProposePolicy(ctx, &dispatchv1.ProposePolicyRequest{Source: source, BaseVersion: base, Note: c.String("note")})
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, policyProposed{p.GetVersion()})
	}
	note(c, "%d tests hold; see policy diff %d, then policy activate %d", res.Tests, p.GetVersion(), p.GetVersion())
	_, err = fmt.Fprintf(c.App.Writer, "version %d\n", p.GetVersion())
	return err
}

func editPolicy(c *cli.Context) (err error) {
	base, err := newestVersion(c)
	if err != nil {
		return err
	}
	// What is in force, since a newer version may have been rolled back.
	res, err := readPolicy(c, 0)
	if err != nil {
		return err
	}
	if v := res.GetPolicy().GetVersion(); v != base {
		note(c, "this is version %d, which is in force; the newest is %d", v, base)
	}
	f, err := os.CreateTemp("", "policy-*.hujson")
	if err != nil {
		return fmt.Errorf("edit policy: %w", err)
	}
	keep := false
	defer func() {
		if keep {
			note(c, "your text is kept in %s", f.Name())
		} else {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.WriteString(res.GetSource())
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("edit policy: %w", err)
	}
	if err := edit(c, f.Name()); err != nil {
		return err
	}
	keep = true
	source, err := readText(c, f.Name())
	if err != nil {
		return err
	}
	if source == res.GetSource() {
		keep = false
		note(c, "nothing changed")
		return nil
	}
	if err := propose(c, f.Name(), source, base); err != nil {
		return err
	}
	keep = false
	return nil
}

// edit opens a file in the person's editor.
func edit(c *cli.Context, name string) error {
	editor := os.Getenv("VISUAL")
	if editor == "" {
		editor = os.Getenv("EDITOR")
	}
	if editor == "" {
		editor = "vi"
	}
	// As git does: the variable may hold arguments.
	cmd := exec.CommandContext(c.Context, "sh", "-c", editor+` "$1"`, "editor", name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.App.Reader, c.App.ErrWriter, c.App.ErrWriter
	if f, ok := c.App.Writer.(*os.File); ok {
		cmd.Stdout = f // a terminal, mostly
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run editor %s: %w", oneLine(editor), err)
	}
	return nil
}
