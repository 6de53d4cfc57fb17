// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

type nodeFacts struct {
	Hostname string `json:"hostname"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Version  string `json:"version"`
}

type nodeRow struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	State       string     `json:"state"`
	VirtualIP   string     `json:"virtual_ip"`
	VirtualIP6  string     `json:"virtual_ip6"`
	Tags        []string   `json:"tags"`
	Site        string     `json:"site"`
	Online      bool       `json:"online"`
	Ephemeral   bool       `json:"ephemeral"`
	Created     *time.Time `json:"created"`
	CertExpires *time.Time `json:"certificate_expires"`
	KeyOrigin   string     `json:"key_origin"`
	Generation  uint64     `json:"generation"`
	TokenID     string     `json:"token_id"`
	ApprovedBy  string     `json:"approved_by"`
	Version     uint64     `json:"version"`
	Facts       nodeFacts  `json:"facts"`
}

type nodeList struct {
	Nodes []nodeRow `json:"nodes"`
}

type certRow struct {
	Serial   string     `json:"serial"`
	NotAfter *time.Time `json:"not_after"`
	Revoked  bool       `json:"revoked"`
	Reason   string     `json:"reason"`
}

type nodeShow struct {
	Node         nodeRow   `json:"node"`
	Certificates []certRow `json:"certificates"`
}

type nodeOne struct {
	Node nodeRow `json:"node"`
}

func rowOf(n *dispatchv1.Node) nodeRow {
	f := n.GetFacts()
	return nodeRow{
		n.GetNodeId(), n.GetName(), n.GetState(), n.GetVirtualIp(), n.GetVirtualIp6(), nonNil(n.GetTags()), n.GetSite(), n.GetOnline(),
		n.GetEphemeral(), when(n.GetCreated()), when(n.GetCertificateExpires()), n.GetKeyOrigin(), n.GetGeneration(), n.GetTokenId(),
		n.GetApprovedBy(), n.GetVersion(),
		nodeFacts{f.GetHostname(), f.GetOs(), f.GetArch(), f.GetVersion()},
	}
}

const nodeArg = "NODE"

func nodeCommand() *cli.Command {
	named := func(cmd *cli.Command) *cli.Command {
		cmd.Args, cmd.BashComplete = true, completeWith(nodeNames)
		if cmd.ArgsUsage == "" {
			cmd.ArgsUsage = nodeArg
		}
		return cmd
	}
	return &cli.Command{
		Name: "node", Usage: "enrolled nodes", Description: "NODE is a name, a node id, or the beginning of one that fits no other.",
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "list the enrolled nodes by name",
				Description: describe("Without --state all but the revoked ones.", nodeList{},
					"node list --data ./hub", "node list --data ./hub --state pending", "node list --data ./hub --site berlin --tag arm --json"),
				Flags: hubFlags(
					&cli.StringSliceFlag{Name: "state", Usage: "only `STATE`: pending, active, locked, revoked or all; repeatable"},
					&cli.StringFlag{Name: "site", Usage: "only those of `SITE`"},
					&cli.StringFlag{Name: "tag", Usage: "only those with the tag `T`"},
				),
				Action: listNodes,
			},
			named(&cli.Command{
				Name: "show", Usage: "show one node with its certificates",
				Description: describe("", nodeShow{}, "node show --data ./hub robot-7"),
				Flags:       hubFlags(), Action: showNode,
			}),
			named(&cli.Command{
				Name: "approve", Usage: "let a pending or locked node in",
				Description: describe("It also gives a node its recoveries back.", nodeOne{}, "node approve --data ./hub robot-7"),
				Flags:       hubFlags(), Action: approveNode,
			}),
			named(&cli.Command{
				Name: "revoke", Usage: "shut a node, a key or a certificate out for good", ArgsUsage: "[NODE]",
				Description: describe("Peers drop their sessions within a second. The keys never come back: the machine joins anew with others.", nil,
					"node revoke --data ./hub robot-7 --reason stolen",
					"node revoke --data ./hub --key 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
					"node revoke --data ./hub --serial 5f2c9a (the node may get another certificate)"),
				Flags: hubFlags(
					&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the records"},
					&cli.StringFlag{Name: "key", Usage: "instead of NODE: an Ed25519 public key, `HEX`"},
					&cli.StringFlag{Name: "serial", Usage: "instead of NODE: the serial number of one certificate, `HEX`"},
				),
				Action: revokeNode,
			}),
			named(&cli.Command{
				Name: "delete", Usage: "forget a node",
				Description: describe("Its address is not given out again for a day. To shut out a machine that others may hold, revoke it.", nil,
					"node delete --data ./hub robot-7"),
				Flags: hubFlags(), Action: deleteNode,
			}),
			named(&cli.Command{
				Name: "set", Usage: "change a node's name, tags or site",
				Description: describe("Only what is named changes. The tags are replaced by those given; --tag '' takes all away.", nodeOne{},
					"node set --data ./hub robot-7 --name arm-7 --tag arm --tag berlin", "node set --data ./hub arm-7 --site berlin"),
				Flags: hubFlags(
					&cli.StringFlag{Name: "name", Usage: "the new `NAME`"},
					&cli.StringSliceFlag{Name: "tag", Usage: "the tag `T`; repeatable"},
					&cli.StringFlag{Name: "site", Usage: "the new `SITE`"},
					&cli.Uint64Flag{Name: "version", Usage: "only where the node's version is still `N`"},
				),
				Action: setNode,
			}),
			{
				Name: "watch", Usage: "show changes of nodes as they happen",
				Description: describe("With --json one object a line: first one upsert for each node, then synced, then the changes.", nodeEvent{},
					"node watch --data ./hub"),
				Flags: hubFlags(), Action: watchNodes,
			},
		},
	}
}

func listNodes(c *cli.Context) error {
	states := c.StringSlice("state")
	if slices.Contains(states, "all") {
		states = []string{"pending", "active", "locked", "revoked"}
	}
	res, err := call(c, "list nodes", func(ctx context.Context, h *hub) (*dispatchv1.ListNodesResponse, error) {
		return h.fleet().ListNodes(ctx, &dispatchv1.ListNodesRequest{States: states, Site: c.String("site"), Tag: c.String("tag")})
	})
	if err != nil {
		return err
	}
	out := nodeList{Nodes: []nodeRow{}}
	var rows [][]string
	for _, n := range res.GetNodes() {
		out.Nodes = append(out.Nodes, rowOf(n))
		until := ""
		if n.GetCertificateExpires() != nil {
			until = n.GetCertificateExpires().AsTime().Local().Format(time.DateOnly)
		}
		rows = append(rows, []string{
			n.GetName(), n.GetVirtualIp(), yesNo(n.GetOnline()), n.GetState(), n.GetSite(), strings.Join(n.GetTags(), ","),
			n.GetFacts().GetHostname(), until, short(n.GetNodeId()),
		})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	return table(c.App.Writer, []string{"NAME", "VIRTUAL IP", "ONLINE", "STATE", "SITE", "TAGS", "HOST", "CERT UNTIL", "ID"}, rows)
}

func short(id string) string { return id[:min(8, len(id))] }

func showNode(c *cli.Context) error {
	name, err := oneArg(c, nodeArg)
	if err != nil {
		return err
	}
	res, err := call(c, "show node "+name, func(ctx context.Context, h *hub) (*dispatchv1.GetNodeResponse, error) {
		return h.fleet().GetNode(ctx, &dispatchv1.GetNodeRequest{Node: name})
	})
	if err != nil {
		return err
	}
	out := nodeShow{rowOf(res.GetNode()), []certRow{}}
	var rows [][]string
	for _, k := range res.GetCertificates() {
		serial := hex.EncodeToString(k.GetSerial())
		out.Certificates = append(out.Certificates, certRow{serial, when(k.GetNotAfter()), k.GetRevoked(), k.GetReason()})
		rows = append(rows, []string{serial, local(k.GetNotAfter()), yesNo(k.GetRevoked()), k.GetReason()})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	n := res.GetNode()
	err = list(c.App.Writer,
		"name", n.GetName(), "id", n.GetNodeId(), "state", n.GetState(), "online", yesNo(n.GetOnline()),
		"virtual IP", n.GetVirtualIp(), "virtual IPv6", n.GetVirtualIp6(), "site", n.GetSite(), "tags", strings.Join(n.GetTags(), ", "),
		"host", strings.TrimSpace(n.GetFacts().GetHostname()+" "+n.GetFacts().GetOs()+"/"+n.GetFacts().GetArch()),
		"program", n.GetFacts().GetVersion(), "joined", local(n.GetCreated()), "with token", n.GetTokenId(),
		"approved by", n.GetApprovedBy(), "key made by", n.GetKeyOrigin(), "ephemeral", onlyYes(n.GetEphemeral()),
		"recoveries", number(n.GetGeneration()), "version", number(n.GetVersion()))
	if err != nil || len(rows) == 0 {
		return err
	}
	_, _ = fmt.Fprintln(c.App.Writer)
	return table(c.App.Writer, []string{"CERTIFICATE", "GOOD UNTIL", "REVOKED", "REASON"}, rows)
}

func onlyYes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func approveNode(c *cli.Context) error {
	name, err := oneArg(c, nodeArg)
	if err != nil {
		return err
	}
	res, err := call(c, "approve node "+name, func(ctx context.Context, h *hub) (*dispatchv1.ApproveNodeResponse, error) {
		return h.fleet().ApproveNode(ctx, &dispatchv1.ApproveNodeRequest{Node: name})
	})
	if err != nil {
		return err
	}
	return printNode(c, res.GetNode(), "approved")
}

// printNode tells what became of a node.
func printNode(c *cli.Context, n *dispatchv1.Node, what string) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, nodeOne{rowOf(n)})
	}
	note(c, "node %s (%s) is %s", n.GetName(), short(n.GetNodeId()), what)
	return nil
}

func revokeNode(c *cli.Context) error {
	req := &dispatchv1.RevokeNodeRequest{Reason: c.String("reason")}
	subjects, what := 0, ""
	if c.NArg() > 0 {
		name, err := oneArg(c, nodeArg)
		if err != nil {
			return err
		}
		subjects, what = 1, "node "+name
		req.Subject = &dispatchv1.RevokeNodeRequest_Node{Node: name}
	}
	for _, flag := range []string{"key", "serial"} {
		text := c.String(flag)
		if text == "" {
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
		if err != nil || flag == "key" && len(b) != 32 {
			return usagef("--%s: want hexadecimal digits%s", flag, map[string]string{"key": ", 64 of them"}[flag])
		}
		subjects++
		what = flag + " " + text
		if flag == "key" {
			req.Subject = &dispatchv1.RevokeNodeRequest_Ed25519PublicKey{Ed25519PublicKey: b}
		} else {
			req.Subject = &dispatchv1.RevokeNodeRequest_Serial{Serial: b}
		}
	}
	if subjects != 1 {
		return usagef("node revoke: want one of NODE, --key and --serial")
	}
	_, err := call(c, "revoke "+what, func(ctx context.Context, h *hub) (*dispatchv1.RevokeNodeResponse, error) {
		return h.fleet().RevokeNode(ctx, req)
	})
	if err == nil {
		note(c, "%s is revoked", what)
	}
	return err
}

func deleteNode(c *cli.Context) error {
	name, err := oneArg(c, nodeArg)
	if err != nil {
		return err
	}
	_, err = call(c, "delete node "+name, func(ctx context.Context, h *hub) (*dispatchv1.DeleteNodeResponse, error) {
		return h.fleet().DeleteNode(ctx, &dispatchv1.DeleteNodeRequest{Node: name})
	})
	if err == nil {
		note(c, "node %s is deleted", name)
	}
	return err
}

func setNode(c *cli.Context) error {
	name, err := oneArg(c, nodeArg)
	if err != nil {
		return err
	}
	req := &dispatchv1.UpdateNodeRequest{Node: name, Version: c.Uint64("version"), UpdateMask: &fieldmaskpb.FieldMask{}}
	if c.IsSet("name") {
		req.Name = c.String("name")
		req.UpdateMask.Paths = append(req.UpdateMask.Paths, "name")
	}
	if c.IsSet("tag") {
		req.Tags = slices.DeleteFunc(c.StringSlice("tag"), func(t string) bool { return t == "" })
		req.UpdateMask.Paths = append(req.UpdateMask.Paths, "tags")
	}
	if c.IsSet("site") {
		req.Site = c.String("site")
		req.UpdateMask.Paths = append(req.UpdateMask.Paths, "site")
	}
	if len(req.UpdateMask.Paths) == 0 {
		return usagef("node set: name what to change: --name, --tag or --site")
	}
	res, err := call(c, "change node "+name, func(ctx context.Context, h *hub) (*dispatchv1.UpdateNodeResponse, error) {
		return h.fleet().UpdateNode(ctx, req)
	})
	if err != nil {
		return err
	}
	return printNode(c, res.GetNode(), "changed")
}

// nodeEvent is one line of node watch --json.
type nodeEvent struct {
	Event string   `json:"event"` // upsert, delete, synced
	ID    string   `json:"id,omitempty"`
	Node  *nodeRow `json:"node,omitempty"`
}

func watchNodes(c *cli.Context) error {
	_, err := callFor(c.Context, c, "watch nodes", func(ctx context.Context, h *hub) (struct{}, error) {
		s, err := h.fleet().WatchFleet(ctx, &dispatchv1.WatchFleetRequest{})
		if err != nil {
			return struct{}{}, err
		}
		defer s.Close()
		w := watcher{c: c, names: make(map[string]string)}
		for s.Receive() {
			if err := w.print(s.Msg()); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, s.Err()
	})
	return endOfStream(c, err)
}

type watcher struct {
	c      *cli.Context
	names  map[string]string // by node id
	synced bool
}

func (w *watcher) print(m *dispatchv1.WatchFleetResponse) error {
	asJSON, out := w.c.Bool("json"), w.c.App.Writer
	for _, n := range m.GetUpserts() {
		if asJSON {
			row := rowOf(n)
			if err := printLine(out, nodeEvent{Event: "upsert", ID: n.GetNodeId(), Node: &row}); err != nil {
				return err
			}
			continue
		}
		what := "is " + map[bool]string{true: "online", false: "offline"}[n.GetOnline()]
		if _, known := w.names[n.GetNodeId()]; !known && w.synced {
			what = "is new, " + n.GetState()
		} else if n.GetState() != "active" {
			what = "is " + n.GetState()
		}
		w.names[n.GetNodeId()] = n.GetName()
		w.line(n.GetName(), n.GetNodeId(), what)
	}
	for _, id := range m.GetDeletes() {
		if asJSON {
			if err := printLine(out, nodeEvent{Event: "delete", ID: id}); err != nil {
				return err
			}
			continue
		}
		w.line(w.names[id], id, "is gone")
		delete(w.names, id)
	}
	if m.GetSynced() && !w.synced {
		w.synced = true
		if asJSON {
			return printLine(out, nodeEvent{Event: "synced"})
		}
		note(w.c, "that is all of them (%d); changes follow, Ctrl-C ends", len(w.names))
	}
	return nil
}

func (w *watcher) line(name, id, what string) {
	_, _ = fmt.Fprintf(w.c.App.Writer, "%s  %s (%s) %s\n", time.Now().Format(time.TimeOnly), oneLine(dash(name)), oneLine(short(id)), oneLine(what))
}
