// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

type tokenCreated struct {
	Token   string     `json:"token"`
	ID      string     `json:"id"`
	Expires *time.Time `json:"expires"`
	Uses    uint32     `json:"uses"`
	Tags    []string   `json:"tags"`
	JoinURL string     `json:"join_url"`
}

type tokenRow struct {
	ID            string     `json:"id"`
	Uses          uint32     `json:"uses"`
	MaxUses       uint32     `json:"max_uses"`
	Created       *time.Time `json:"created"`
	Expires       *time.Time `json:"expires"`
	Tags          []string   `json:"tags"`
	Site          string     `json:"site"`
	Ephemeral     bool       `json:"ephemeral"`
	NeedsApproval bool       `json:"needs_approval"`
	RequireCSR    bool       `json:"require_csr"`
	Revoked       bool       `json:"revoked"`
	CreatedBy     string     `json:"created_by"`
	Note          string     `json:"note"`
}

type tokenList struct {
	Tokens []tokenRow `json:"tokens"`
}

func tokenCommand() *cli.Command {
	return &cli.Command{
		Name: "token", Usage: "join tokens", Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make a join token",
				Description: describe("The token is printed once; the hub keeps only a hash of its secret.", tokenCreated{},
					"token create --data ./hub",
					"token create --data ./hub --uses 20 --ttl 2h --tag arm --tag berlin",
					"token create --data ./hub --approve --note 'new line in hall 3'",
					"token create --data ./hub --json | jq -r .token"),
				Flags: hubFlags(
					&cli.UintFlag{Name: "uses", Value: 1, Usage: "how many machines may join with it, `N`"},
					&cli.StringFlag{Name: "ttl", Value: "24h", Usage: "how long it is good for, `D` as 2h or 7d"},
					&cli.StringSliceFlag{Name: "tag", Usage: "give `T` to each node that joins with it; repeatable"},
					&cli.StringFlag{Name: "site", Usage: "`SITE` of the nodes that join with it"},
					&cli.BoolFlag{Name: "ephemeral", Usage: "delete its nodes when they have been offline for an hour"},
					&cli.BoolFlag{Name: "approve", Usage: "let its nodes wait until someone approves them"},
					&cli.BoolFlag{Name: "require-csr", Usage: "refuse machines that let the hub make their key"},
					&cli.StringFlag{Name: "note", Usage: "`TEXT` that says what it is for"},
				),
				Action: createToken,
			},
			{
				Name: "list", Usage: "list the join tokens, newest first",
				Description: describe("", tokenList{}, "token list --data ./hub", "token list --data ./hub --all --json"),
				Flags:       hubFlags(&cli.BoolFlag{Name: "all", Usage: "also those that are expired, used up or revoked"}),
				Action:      listTokens,
			},
			{
				Name: "revoke", Usage: "make a join token useless at once", ArgsUsage: "ID", Args: true,
				Description: describe("Nodes that have joined with it stay. An id that begins with a hyphen goes after --.", nil,
					"token revoke --data ./hub hJ3k_fQ2LmZx81aB", "token revoke --data ./hub -- -J3k_fQ2LmZx81aB"),
				Flags:        hubFlags(),
				Action:       revokeToken,
				BashComplete: completeWith(tokenIDs),
			},
		},
	}
}

func createToken(c *cli.Context) error {
	if c.Uint("uses") == 0 || c.Uint("uses") > 1<<31 {
		return usagef("token create: --uses is at least 1")
	}
	ttl, err := parseDuration("ttl", c.String("ttl"))
	if err != nil {
		return err
	}
	res, err := call(c, "create token", func(ctx context.Context, h *hub) (*dispatchv1.CreateTokenResponse, error) {
		return h.fleet().CreateToken(ctx, &dispatchv1.CreateTokenRequest{
			Uses: uint32(c.Uint("uses")), Ttl: durationpb.New(ttl), Tags: c.StringSlice("tag"),
			Site: c.String("site"), Ephemeral: c.Bool("ephemeral"), NeedsApproval: c.Bool("approve"),
			RequireCsr: c.Bool("require-csr"), Note: c.String("note"),
		})
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, tokenCreated{
			res.GetToken(), res.GetId(), when(res.GetExpires()), res.GetUses(), nonNil(res.GetTags()), res.GetJoinUrl(),
		})
	}
	if _, err := fmt.Fprintln(c.App.Writer, res.GetToken()); err != nil {
		return err
	}
	note(c, "good for %d join(s) until %s; on the robot:\n  bauxite join %s %s",
		res.GetUses(), local(res.GetExpires()), res.GetToken(), res.GetJoinUrl())
	return nil
}

func listTokens(c *cli.Context) error {
	res, err := call(c, "list tokens", func(ctx context.Context, h *hub) (*dispatchv1.ListTokensResponse, error) {
		return h.fleet().ListTokens(ctx, &dispatchv1.ListTokensRequest{All: c.Bool("all")})
	})
	if err != nil {
		return err
	}
	out := tokenList{Tokens: []tokenRow{}}
	var rows [][]string
	for _, t := range res.GetTokens() {
		out.Tokens = append(out.Tokens, tokenRow{
			t.GetId(), t.GetUses(), t.GetMaxUses(), when(t.GetCreated()), when(t.GetExpires()), nonNil(t.GetTags()), t.GetSite(),
			t.GetEphemeral(), t.GetNeedsApproval(), t.GetRequireCsr(), t.GetRevoked(), t.GetCreatedBy(), t.GetNote(),
		})
		var kind []string
		for _, k := range []struct {
			on   bool
			name string
		}{{t.GetRevoked(), "revoked"}, {t.GetEphemeral(), "ephemeral"}, {t.GetNeedsApproval(), "approve"}, {t.GetRequireCsr(), "csr"}} {
			if k.on {
				kind = append(kind, k.name)
			}
		}
		rows = append(rows, []string{
			t.GetId(), fmt.Sprintf("%d/%d", t.GetUses(), t.GetMaxUses()), local(t.GetExpires()), strings.Join(t.GetTags(), ","),
			t.GetSite(), strings.Join(kind, ","), t.GetCreatedBy(), t.GetNote(),
		})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	return table(c.App.Writer, []string{"ID", "USED", "GOOD UNTIL", "TAGS", "SITE", "KIND", "BY", "NOTE"}, rows)
}

func revokeToken(c *cli.Context) error {
	id, err := oneArg(c, "ID")
	if err != nil {
		return err
	}
	_, err = call(c, "revoke token "+id, func(ctx context.Context, h *hub) (*dispatchv1.RevokeTokenResponse, error) {
		return h.fleet().RevokeToken(ctx, &dispatchv1.RevokeTokenRequest{Id: id})
	})
	if err == nil {
		note(c, "token %s is revoked", id)
	}
	return err
}
