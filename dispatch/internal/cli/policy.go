// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func (h *hub) policy() dispatchv1connect.PolicyServiceClient {
	return dispatchv1connect.NewPolicyServiceClient(h.http, h.base)
}

type policyRow struct {
	Version uint64     `json:"version"`
	Parent  uint64     `json:"parent"`
	Active  bool       `json:"active"`
	Author  string     `json:"author"`
	Created *time.Time `json:"created"`
	Note    string     `json:"note"`
	SHA256  string     `json:"sha256"`
}

type policyList struct {
	Policies []policyRow `json:"policies"`
}

type policyShow struct {
	Policy   policyRow       `json:"policy"`
	Source   string          `json:"source"`
	Document json.RawMessage `json:"document"`
}

type policyFinding struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
}

type policyTested struct {
	OK       bool            `json:"ok"`
	Tests    int             `json:"tests"`
	Failed   int             `json:"failed"`
	Findings []policyFinding `json:"findings"`
}

type policyProposed struct {
	Version uint64 `json:"version"`
}

type policyWhy struct {
	Allow   bool   `json:"allow"`
	Rule    string `json:"rule"`
	Why     string `json:"why"`
	Version uint64 `json:"version"`
}

type policyDiff struct {
	Rules        []string `json:"rules"`
	Reachability []string `json:"reachability"`
	Truncated    bool     `json:"truncated"`
}

type policyFlow struct {
	Src      string   `json:"src"`
	SrcNodes int      `json:"src_nodes"`
	Dst      string   `json:"dst"`
	DstNodes int      `json:"dst_nodes"`
	Proto    string   `json:"proto"`
	Ports    string   `json:"ports"`
	Lanes    []string `json:"lanes"`
}

type policyReach struct {
	Flows     []policyFlow `json:"flows"`
	Truncated bool         `json:"truncated"`
}

type policyActivation struct {
	State         string     `json:"state"`
	Generation    uint64     `json:"generation"`
	Base          uint64     `json:"base"`
	Candidate     uint64     `json:"candidate"`
	Canary        []string   `json:"canary"`
	CanaryNodes   uint32     `json:"canary_nodes"`
	CanaryApplied uint32     `json:"canary_applied"`
	HoldUntil     *time.Time `json:"hold_until"`
	Reason        string     `json:"reason"`
}

const policyHelp = `What nodes may do with each other. People write HuJSON: JSON with comments and
trailing commas. A new version is proposed, which runs its tests, then activated:

  bauxite-dispatch policy edit --data ./hub
  bauxite-dispatch policy diff --data ./hub 7
  bauxite-dispatch policy activate --data ./hub 7 --canary tag:canary --wait

FILE may be - for standard input. VERSION 0 is the active one.`

func policyCommand() *cli.Command {
	return &cli.Command{
		Name: "policy", Usage: "what nodes may do with each other", Description: policyHelp,
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "print a version as it was written", ArgsUsage: "[VERSION]", Args: true,
				Description: describe("Without VERSION the active one.", policyShow{}, "policy show --data ./hub", "policy show --data ./hub 7 > policy.hujson"),
				Flags:       hubFlags(), Action: showPolicy,
			},
			{
				Name: "list", Usage: "list the versions, newest first",
				Description: describe("", policyList{}, "policy list --data ./hub", "policy list --data ./hub --limit 500 --json"),
				Flags: hubFlags(
					&cli.UintFlag{Name: "limit", Value: 50, Usage: "`N` versions at most, up to 500"},
					&cli.Uint64Flag{Name: "before", Usage: "only versions older than `VERSION`"},
				),
				Action: listPolicies,
			},
			{
				Name: "status", Usage: "tell which version is in force and how far a stage is",
				Description: describe("", policyActivation{}, "policy status --data ./hub"),
				Flags:       hubFlags(), Action: policyStatus,
			},
			{
				Name: "validate", Usage: "check a text by itself, without a hub", ArgsUsage: "FILE", Args: true,
				Description: describe("It does not run the tests: those need nodes.", policyTested{}, "policy validate policy.hujson"),
				Flags:       []cli.Flag{jsonFlag()}, Action: validatePolicy,
			},
			{
				Name: "format", Usage: "print a text laid out, with its comments", ArgsUsage: "FILE", Args: true,
				Description: describe("", nil, "policy format policy.hujson"),
				Action:      formatPolicy,
			},
			{
				Name: "test", Usage: "check a text and run its tests against the nodes", ArgsUsage: "FILE", Args: true,
				Description: describe("It stores nothing. With --nodes it needs no hub.", policyTested{},
					"policy test --data ./hub policy.hujson",
					"node list --data ./hub --json > nodes.json; bauxite-dispatch policy test --nodes nodes.json policy.hujson"),
				Flags: hubFlags(nodesFlag()), Action: testPolicy,
			},
			{
				Name: "propose", Usage: "store a text as the next version", ArgsUsage: "FILE", Args: true,
				Description: describe("It is refused where a test does not hold, or where somebody has proposed another version since --base.", policyProposed{},
					"policy propose --data ./hub policy.hujson --base 6 --note 'cameras may stream'"),
				Flags: hubFlags(
					&cli.Uint64Flag{Name: "base", Usage: "the newest `VERSION` that you have seen (default: the newest)"},
					&cli.StringFlag{Name: "note", Usage: "`TEXT` that says why"},
				),
				Action: proposePolicy,
			},
			{
				Name: "edit", Usage: "edit the version in force in $EDITOR and propose the result",
				Description: describe("A text that is refused is kept in a file.", policyProposed{}, "policy edit --data ./hub --note 'cameras may stream'"),
				Flags:       hubFlags(&cli.StringFlag{Name: "note", Usage: "`TEXT` that says why"}),
				Action:      editPolicy,
			},
			{
				Name: "why", Usage: "tell why a flow is allowed or denied", ArgsUsage: "SRC DST", Args: true,
				Description: describe("SRC is the node that begins, both as in node show.", policyWhy{},
					"policy why --data ./hub robot-7 console --lane critical", "policy why --data ./hub ops robot-7 --proto tcp --port 22 --lane bulk"),
				Flags: hubFlags(
					&cli.StringFlag{Name: "proto", Usage: "`P`: any, icmp, tcp or udp"},
					&cli.UintFlag{Name: "port", Usage: "destination port `N`, with tcp and udp"},
					&cli.StringFlag{Name: "lane", Value: "critical", Usage: "`LANE`: critical, telemetry or bulk"},
					&cli.Uint64Flag{Name: "version", Usage: "by `VERSION` instead of the active one"},
				),
				Action: whyPolicy, BashComplete: completeWith(nodeNames),
			},
			{
				Name: "diff", Usage: "compare versions, and who could reach what", ArgsUsage: "[FROM] TO|FILE", Args: true,
				Description: describe("Without FROM the active version is compared.", policyDiff{},
					"policy diff --data ./hub 7", "policy diff --data ./hub 6 7", "policy diff --data ./hub policy.hujson"),
				Flags: hubFlags(), Action: diffPolicies,
			},
			{
				Name: "reach", Usage: "sum up who can reach what", ArgsUsage: "[VERSION|FILE]", Args: true,
				Description: describe("Nodes that the policy does not tell apart are one line.", policyReach{},
					"policy reach --data ./hub", "policy reach --nodes nodes.json policy.hujson"),
				Flags: hubFlags(nodesFlag()), Action: reachPolicy,
			},
			{
				Name: "activate", Usage: "put a version into force, for all or for a canary first", ArgsUsage: "VERSION", Args: true,
				Description: describe(`With --canary the nodes that the selectors match get it first. After --hold it is for
all, if enough of them have applied it, none denies too much, they stayed online and
the tests still hold; otherwise the version before it comes back by itself.`, policyActivation{},
					"policy activate --data ./hub 7", "policy activate --data ./hub 7 --canary tag:canary --hold 30m --max-denied 100 --wait"),
				Flags: hubFlags(
					&cli.StringSliceFlag{Name: "canary", Usage: "`SELECTOR` as in rules; repeatable"},
					&cli.StringFlag{Name: "hold", Usage: "how long the canary must do well, `D` as 30m (default: 10m)"},
					&cli.UintFlag{Name: "min-applied", Usage: "`PERCENT` of the online canary that must have applied it", Value: 100},
					&cli.UintFlag{Name: "min-online", Usage: "`PERCENT` of the canary that must stay online", Value: 90},
					&cli.Uint64Flag{Name: "max-denied", Usage: "`N` packets that a canary node may deny a minute", DefaultText: "any"},
					&cli.Uint64Flag{Name: "if-active", Usage: "only where `VERSION` is the active one"},
					&cli.BoolFlag{Name: "wait", Usage: "wait for the end of the hold; exit code 1 if it is rolled back"},
				),
				Action: activatePolicy,
			},
			{
				Name: "rollback", Usage: "end a stage, or go back to the version before the active one",
				Description: describe("", policyActivation{}, "policy rollback --data ./hub --reason 'cameras are dark'"),
				Flags:       hubFlags(&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the records"}),
				Action:      rollbackPolicy,
			},
		},
	}
}

func policyRowOf(p *dispatchv1.PolicyVersion) policyRow {
	return policyRow{
		p.GetVersion(), p.GetParent(), p.GetActive(), p.GetAuthor(), when(p.GetCreated()), p.GetNote(), hex.EncodeToString(p.GetSha256()),
	}
}

// versionArg reads a version number.
func versionArg(c *cli.Context, s string) (uint64, error) {
	v, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, usagef("%s: %q is no version number", c.Command.HelpName, s)
	}
	return v, nil
}

// upTo checks that a command has from least to most arguments.
func upTo(c *cli.Context, least, most int, what string) error {
	switch {
	case c.NArg() < least:
		return usagef("%s: %s is missing", c.Command.HelpName, what)
	case c.NArg() > most:
		return usagef("%s: unexpected argument %q", c.Command.HelpName, c.Args().Get(most))
	}
	return nil
}

func showPolicy(c *cli.Context) error {
	if err := upTo(c, 0, 1, "VERSION"); err != nil {
		return err
	}
	var v uint64
	if c.NArg() == 1 {
		var err error
		if v, err = versionArg(c, c.Args().First()); err != nil {
			return err
		}
	}
	res, err := readPolicy(c, v)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, policyShow{policyRowOf(res.GetPolicy()), res.GetSource(), res.GetDocument()})
	}
	return printText(c, res.GetSource())
}

func readPolicy(c *cli.Context, version uint64) (*dispatchv1.ReadPolicyResponse, error) {
	return call(c, "read policy", func(ctx context.Context, h *hub) (*dispatchv1.ReadPolicyResponse, error) {
		return h.policy().ReadPolicy(ctx, &dispatchv1.ReadPolicyRequest{Version: version})
	})
}

func listPolicies(c *cli.Context) error {
	if c.Uint("limit") == 0 || c.Uint("limit") > 500 {
		return usagef("policy list: --limit is from 1 to 500")
	}
	res, err := call(c, "list policies", func(ctx context.Context, h *hub) (*dispatchv1.ListPoliciesResponse, error) {
		return h.policy().ListPolicies(ctx, &dispatchv1.ListPoliciesRequest{Limit: uint32(c.Uint("limit")), Before: c.Uint64("before")})
	})
	if err != nil {
		return err
	}
	out := policyList{Policies: []policyRow{}}
	var rows [][]string
	for _, p := range res.GetPolicies() {
		out.Policies = append(out.Policies, policyRowOf(p))
		active := ""
		if p.GetActive() {
			active = "active"
		}
		rows = append(rows, []string{number(p.GetVersion()), number(p.GetParent()), active, local(p.GetCreated()), p.GetAuthor(), p.GetNote()})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	return table(c.App.Writer, []string{"VERSION", "FROM", "STATE", "CREATED", "AUTHOR", "NOTE"}, rows)
}

func whyPolicy(c *cli.Context) error {
	ends, err := nArgs(c, "SRC", "DST")
	if err != nil {
		return err
	}
	if c.Uint("port") > 1<<16-1 {
		return usagef("policy why: --port is at most 65535")
	}
	res, err := call(c, "explain policy", func(ctx context.Context, h *hub) (*dispatchv1.ExplainPolicyResponse, error) {
		return h.policy().ExplainPolicy(ctx, &dispatchv1.ExplainPolicyRequest{
			Src: ends[0], Dst: ends[1], Proto: c.String("proto"), Port: uint32(c.Uint("port")), Lane: c.String("lane"), Version: c.Uint64("version"),
		})
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, policyWhy{res.GetAllow(), res.GetRule(), res.GetWhy(), res.GetVersion()})
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s (version %d)\n", oneLine(res.GetWhy()), res.GetVersion())
	return err
}

func diffPolicies(c *cli.Context) error {
	if err := upTo(c, 1, 2, "TO or FILE"); err != nil {
		return err
	}
	req := &dispatchv1.DiffPoliciesRequest{}
	to := c.Args().Get(c.NArg() - 1)
	var err error
	if c.NArg() == 2 {
		if req.From, err = versionArg(c, c.Args().First()); err != nil {
			return err
		}
	}
	if req.To, err = strconv.ParseUint(to, 10, 63); err != nil {
		if req.Source, err = readText(c, to); err != nil {
			return err
		}
	}
	res, err := call(c, "compare policies", func(ctx context.Context, h *hub) (*dispatchv1.DiffPoliciesResponse, error) {
		return h.policy().DiffPolicies(ctx, req)
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, policyDiff{nonNil(res.GetRules()), nonNil(res.GetReachability()), res.GetTruncated()})
	}
	var b strings.Builder
	section := func(title, none string, lines []string) {
		b.WriteString(title + "\n")
		for _, l := range lines {
			b.WriteString("  " + oneLine(l) + "\n")
		}
		if len(lines) == 0 {
			b.WriteString("  " + none + "\n")
		}
	}
	section("rules:", "the same", res.GetRules())
	section("who can reach what:", "the same", res.GetReachability())
	if res.GetTruncated() {
		b.WriteString("  and more\n")
	}
	_, err = c.App.Writer.Write([]byte(b.String()))
	return err
}
