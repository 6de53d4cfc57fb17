// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// auditPage is how many entries one call may return.
const auditPage = 1000

type auditRow struct {
	Seq    uint64          `json:"seq"`
	Time   *time.Time      `json:"time"`
	Actor  string          `json:"actor"`
	Action string          `json:"action"`
	Target string          `json:"target"`
	Detail json.RawMessage `json:"detail"`
	Prev   string          `json:"prev"`
	Hash   string          `json:"hash"`
}

type auditList struct {
	Entries []auditRow `json:"entries"`
}

func auditRowOf(e *dispatchv1.AuditEntry) auditRow {
	detail := json.RawMessage(e.GetDetail())
	if !json.Valid(detail) {
		detail = json.RawMessage("null")
	}
	return auditRow{
		e.GetSeq(), when(e.GetTime()), e.GetActor(), e.GetAction(), e.GetTarget(), detail,
		hex.EncodeToString(e.GetPrev()), hex.EncodeToString(e.GetHash()),
	}
}

func auditCommand() *cli.Command {
	return &cli.Command{
		Name: "audit", Usage: "the log of everything that changed anything",
		Description: `Each entry holds the hash of the one before, the hub signs the newest one every
minute, and every node keeps the newest signature: no entry can be changed, left
away or cut off without being found.`,
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "list entries, the newest first",
				Description: describe("Actor, action and target are matched at their beginning.", auditList{},
					"audit list --data ./hub",
					"audit list --data ./hub --action node. --since 7d",
					"audit list --data ./hub --actor user:alice --limit 0 --json"),
				Flags: hubFlags(
					&cli.UintFlag{Name: "limit", Value: 100, Usage: "at most `N` entries; 0 means all"},
					&cli.StringFlag{Name: "actor", Usage: "`WHO`: user:NAME, node:ID, socket or hub"},
					&cli.StringFlag{Name: "action", Usage: "`WHAT`, as node.revoke"},
					&cli.StringFlag{Name: "target", Usage: "to `WHAT` it was done"},
					&cli.StringFlag{Name: "since", Usage: "not before `T`: a time, or how long ago, as 24h or 7d"},
					&cli.BoolFlag{Name: "oldest-first", Usage: "list the oldest first"},
				),
				Action: listAudit,
			},
			{
				Name: "tail", Usage: "show the newest entries, then each new one",
				Description: describe("With --json one entry a line.", auditRow{}, "audit tail --data ./hub", "audit tail --data ./hub --last 0 --json"),
				Flags:       hubFlags(&cli.UintFlag{Name: "last", Value: 10, Usage: "begin with `N` old entries"}),
				Action:      tailAudit,
			},
			{
				Name: "export", Usage: "write the log and its signed checkpoints for audit verify", ArgsUsage: "FILE|-", Args: true,
				Description: describe(`One entry a line, as JSON with all that its hash covers. Keep the checkpoints in
another place than the hub: who replaces the whole log cannot sign old ones.`, nil,
					"audit export --data ./hub audit.jsonl --checkpoints checkpoints.jsonl"),
				Flags:  hubFlags(&cli.StringFlag{Name: "checkpoints", Usage: "write the signed checkpoints to `FILE`"}, forceFlag()),
				Action: exportAudit,
			},
			{
				Name: "verify", Usage: "check that nobody has changed the log, without a hub", ArgsUsage: "[FILE|-]", Args: true,
				Description: describe(`It checks the chain of hashes and every checkpoint: of the data directory, or of
a file of audit export. The exit code is 7 where something is wrong.`, verifyResult{},
					"audit verify --data ./hub",
					"audit verify --data ./hub --checkpoints checkpoints.jsonl   (kept elsewhere)",
					"audit verify audit.jsonl --checkpoints checkpoints.jsonl --public-key 9f3c…"),
				Flags: []cli.Flag{
					dataFlag(),
					&cli.StringFlag{Name: "checkpoints", Usage: "`FILE` of audit export with signed checkpoints"},
					&cli.StringFlag{Name: "public-key", Usage: "the key that signs them, 64 digits in `HEX`"},
					jsonFlag(),
				},
				Action: verifyAudit,
			},
		},
	}
}

func forceFlag() cli.Flag { return &cli.BoolFlag{Name: "force", Usage: "replace files that exist"} }

func listAudit(c *cli.Context) error {
	req := &dispatchv1.ListAuditEntriesRequest{
		Actor: c.String("actor"), Action: c.String("action"), Target: c.String("target"), NewestFirst: !c.Bool("oldest-first"),
	}
	if s := c.String("since"); s != "" {
		t, err := parseSince(s, time.Now())
		if err != nil {
			return err
		}
		req.Since = timestamppb.New(t)
	}
	entries, err := callFor(c.Context, c, "list audit log", func(ctx context.Context, h *hub) (all []*dispatchv1.AuditEntry, err error) {
		return all, pageAudit(ctx, h, req, int(c.Uint("limit")), func(e *dispatchv1.AuditEntry) error {
			all = append(all, e)
			return nil
		})
	})
	if err != nil {
		return err
	}
	out := auditList{Entries: []auditRow{}}
	var rows [][]string
	for _, e := range entries {
		out.Entries = append(out.Entries, auditRowOf(e))
		rows = append(rows, []string{number(e.GetSeq()), local(e.GetTime()), who(e.GetActor()), e.GetAction(), e.GetTarget(), detailText(e.GetDetail())})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	return table(c.App.Writer, []string{"SEQ", "TIME", "ACTOR", "ACTION", "TARGET", "DETAIL"}, rows)
}

// pageAudit calls f for what req selects, at most limit entries; 0 means all.
func pageAudit(ctx context.Context, h *hub, req *dispatchv1.ListAuditEntriesRequest, limit int, f func(*dispatchv1.AuditEntry) error) error {
	for n := 0; limit == 0 || n < limit; {
		req.Limit = auditPage
		if limit != 0 {
			req.Limit = uint32(min(auditPage, limit-n))
		}
		pctx, cancel := context.WithTimeout(ctx, callTimeout)
		res, err := h.audit().ListAuditEntries(pctx, req)
		cancel()
		if err != nil {
			return err
		}
		for _, e := range res.GetEntries() {
			if err := f(e); err != nil {
				return err
			}
			req.After = e.GetSeq()
		}
		if len(res.GetEntries()) < int(req.GetLimit()) || req.GetNewestFirst() && req.GetAfter() <= 1 {
			return nil
		}
		n += len(res.GetEntries())
	}
	return nil
}

// who shortens a node's id in an actor.
func who(actor string) string {
	if id, ok := strings.CutPrefix(actor, "node:"); ok {
		return "node:" + short(id)
	}
	return actor
}

// detailText writes an object of texts as "a=b c=d", and leaves all else.
func detailText(detail string) string {
	var m map[string]string
	if json.Unmarshal([]byte(detail), &m) != nil {
		return detail
	}
	var out []string
	for _, k := range sortedKeys(m) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, " ")
}

func tailAudit(c *cli.Context) error {
	_, err := callFor(c.Context, c, "tail audit log", func(ctx context.Context, h *hub) (struct{}, error) {
		s, err := h.audit().TailAuditEntries(ctx, &dispatchv1.TailAuditEntriesRequest{Last: uint32(min(c.Uint("last"), auditPage))})
		if err != nil {
			return struct{}{}, err
		}
		defer s.Close()
		for s.Receive() {
			e := s.Msg().GetEntry()
			if c.Bool("json") {
				err = printLine(c.App.Writer, auditRowOf(e))
			} else {
				_, err = fmt.Fprintf(c.App.Writer, "%s  %d  %s  %s  %s  %s\n", local(e.GetTime()), e.GetSeq(),
					oneLine(who(e.GetActor())), oneLine(e.GetAction()), oneLine(dash(e.GetTarget())), oneLine(detailText(e.GetDetail())))
			}
			if err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, s.Err()
	})
	return endOfStream(c, err)
}
