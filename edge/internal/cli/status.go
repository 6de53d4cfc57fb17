// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/edge/internal/local"
)

func (a *App) statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show node, uplinks, hub, peers, pacing, lanes and counters", UsageText: "bauxite status [--json]",
		Description: "Below each peer stand its other paths that can carry; bauxite paths shows all.\n" +
			"PACING says of each path at which rate it is filled: start-up looks for the rate,\n" +
			"draining lets the path's queue empty, competing is beside a flow of others that\n" +
			"fills it. QUEUE is the delay there beyond BASE, COPIES is how often Telemetry is\n" +
			"sent again to repair loss. WAIT is how long packets waited in a lane here: the mean\n" +
			"of late, and the longest of the last second.\n\n" +
			"Example, the peers without a path:\n  bauxite status --json | jq -r '.peers[] | select(.path.type == \"none\") | .name'",
		Flags: []cli.Flag{jsonFlag()}, Action: a.status,
	}
}

func (a *App) peersCommand() *cli.Command {
	return &cli.Command{
		Name: "peers", Usage: "list the peers and the paths to them", UsageText: "bauxite peers [--json]",
		Description: "Below each peer stand its other paths that can carry; bauxite paths shows all.",
		Flags:       []cli.Flag{jsonFlag()}, Action: a.peers,
	}
}

// document fetches the status and decodes what is shown of it.
func (a *App) document(c *cli.Context) ([]byte, *local.Status, error) {
	if err := nargs(c, 0, 0); err != nil {
		return nil, nil, err
	}
	cl, err := a.client(c)
	if err != nil {
		return nil, nil, err
	}
	defer cl.Close()
	raw, err := cl.StatusJSON(c.Context)
	if err != nil {
		return nil, nil, err
	}
	var st local.Status
	if err := json.Unmarshal(raw, &st); err != nil {
		return nil, nil, fmt.Errorf("read status: %w", err)
	}
	return raw, &st, nil
}

func (a *App) status(c *cli.Context) error {
	raw, st, err := a.document(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return a.printJSON(raw)
	}
	var b strings.Builder
	a.writeNode(&b, st)
	b.WriteByte('\n')
	a.writePeers(&b, st.Peers)
	b.WriteByte('\n')
	a.writePacing(&b, st.Peers)
	a.writeLanes(&b, st)
	if _, err := a.Stdout.Write([]byte(b.String())); err != nil {
		return err
	}
	if e := st.Node.RenewalError; e != "" {
		fmt.Fprintf(a.Stderr, "bauxite: %s the certificate was not renewed yet: %s\n", a.paint(a.Stderr, yellow, "warning:"), oneLine(e))
	}
	if !st.Hub.Connected {
		fmt.Fprintf(a.Stderr, "bauxite: %s no link to the hub: %s\n", a.paint(a.Stderr, yellow, "warning:"), oneLine(orElse(st.Hub.Error, "not connected yet")))
		fmt.Fprintln(a.Stderr, "bauxite: hint: traffic between connected peers goes on and known peers connect; the node keeps trying")
	}
	return nil
}

func (a *App) peers(c *cli.Context) error {
	raw, st, err := a.document(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		var doc struct {
			Peers json.RawMessage `json:"peers"`
		}
		if err := json.Unmarshal(raw, &doc); err != nil {
			return fmt.Errorf("read status: %w", err)
		}
		return a.printJSON(doc.Peers)
	}
	var b strings.Builder
	a.writePeers(&b, st.Peers)
	_, err = a.Stdout.Write([]byte(b.String()))
	return err
}

func (a *App) printJSON(raw []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	b.WriteByte('\n')
	_, err := a.Stdout.Write(b.Bytes())
	return err
}

func (a *App) writeNode(b *strings.Builder, st *local.Status) {
	n := st.Node
	row := func(key, value string) {
		fmt.Fprintf(b, "%s %s\n", a.paint(a.Stdout, grey, fmt.Sprintf("%-5s", key)), value)
	}
	row("node", a.paint(a.Stdout, bold, n.Name)+"  "+short(n.ID)+"  up "+span(time.Duration(n.UptimeSeconds*float64(time.Second))))
	row("mesh", fmt.Sprintf("%s  %s  %s", orElse(n.MeshID, "-"), n.VirtualIP, n.VirtualIP6))
	if !n.CertificateExpires.IsZero() {
		cert := "good for " + span(time.Until(n.CertificateExpires))
		if time.Until(n.CertificateExpires) < 0 {
			cert = a.paint(a.Stdout, red, "expired")
		}
		if !n.CertificateRenewed.IsZero() {
			cert += "  renewed " + span(time.Since(n.CertificateRenewed)) + " ago"
		}
		row("cert", cert)
	}
	row("tun", orElse(n.Device, "none"))
	for _, u := range n.Uplinks {
		row("via", a.uplink(&u))
	}
	hub := a.paint(a.Stdout, green, "connected")
	if !st.Hub.Connected {
		hub = a.paint(a.Stdout, red, "down")
		if at := st.Hub.Since; !at.IsZero() {
			hub += " since " + at.Local().Format("15:04:05") + " (" + span(time.Since(at)) + ")"
		}
	}
	row("hub", hub+"  "+st.Hub.URL)
	if st.Hub.FromSnapshot {
		row("", a.paint(a.Stdout, yellow, "peers and policy from the snapshot")+", until the hub answers")
	}
}

// uplink describes an interface in one line; of its addresses those that fit.
func (a *App) uplink(u *local.Uplink) string {
	shown := u.Addresses
	more := ""
	if len(shown) > 2 {
		more = fmt.Sprintf(" and %d more", len(shown)-2)
		shown = shown[:2]
	}
	s := fmt.Sprintf("%s  %s%s  sent %s, received %s", u.Name, orElse(strings.Join(shown, " "), "no address"), more, size(u.TxBytes), size(u.RxBytes))
	if u.Metered {
		s += "  " + a.paint(a.Stdout, yellow, "metered")
	}
	if u.Spent {
		s += "  " + a.paint(a.Stdout, red, "budget spent")
	}
	if u.RateBPS > 0 {
		s += "  at most " + rate(u.RateBPS)
	}
	if len(u.Held) > 0 {
		s += "  " + a.paint(a.Stdout, yellow, strings.Join(u.Held, " and ")+" held, "+size(uint64(max(u.Backlog, 0)))+" in the system")
	}
	return s
}
