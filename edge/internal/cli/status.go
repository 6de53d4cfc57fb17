// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/edge/internal/local"
)

func (a *App) statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show node, hub, peers, lanes and counters", UsageText: "bauxite status [--json]",
		Flags: []cli.Flag{jsonFlag()}, Action: a.status,
	}
}

func (a *App) peersCommand() *cli.Command {
	return &cli.Command{
		Name: "peers", Usage: "list the peers and the paths to them", UsageText: "bauxite peers [--json]",
		Flags: []cli.Flag{jsonFlag()}, Action: a.peers,
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
	a.writeLanes(&b, st)
	if _, err := a.Stdout.Write([]byte(b.String())); err != nil {
		return err
	}
	if e := st.Node.RenewalError; e != "" {
		fmt.Fprintf(a.Stderr, "bauxite: %s the certificate was not renewed yet: %s\n", a.paint(a.Stderr, yellow, "warning:"), oneLine(e))
	}
	if !st.Hub.Connected {
		fmt.Fprintf(a.Stderr, "bauxite: %s no link to the hub: %s\n", a.paint(a.Stderr, yellow, "warning:"), oneLine(orElse(st.Hub.Error, "not connected yet")))
		fmt.Fprintln(a.Stderr, "bauxite: hint: traffic between connected peers goes on; the node keeps trying")
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
	if st.Hub.Connected {
		row("hub", a.paint(a.Stdout, green, "connected")+"  "+st.Hub.URL)
	} else {
		row("hub", a.paint(a.Stdout, red, "down")+"  "+st.Hub.URL)
	}
}

func (a *App) writePeers(b *strings.Builder, peers []local.Peer) {
	if len(peers) == 0 {
		b.WriteString("no peers yet: join another machine to this mesh\n")
		return
	}
	peers = slices.Clone(peers)
	sort.Slice(peers, func(i, j int) bool { return peers[i].Name < peers[j].Name })
	rows := [][]string{{"PEER", "VIRTUAL IP", "PATH", "REMOTE", "RTT", "CIPHER", "STATE"}}
	for _, p := range peers {
		r := []string{p.Name, p.VirtualIP, orElse(p.Path.Type, "none"), "-", "-", cipher(p.Cipher), state(p)}
		if p.Path.Type != "none" && p.Path.Type != "" {
			r[3], r[4] = orElse(p.Path.Remote, "-"), rtt(p.Path.RTTMS)
		}
		rows = append(rows, r)
	}
	a.table(b, rows, func(row, col int, cell string) string {
		if row > 0 && col == 2 {
			switch peers[row-1].Path.Type {
			case "direct":
				return a.paint(a.Stdout, green, cell)
			case "relay", "hub":
				return a.paint(a.Stdout, yellow, cell)
			}
		}
		return cell
	})
	for _, p := range peers {
		if p.Path.Reason != "" && (p.Path.Type == "none" || p.Path.Type == "") {
			fmt.Fprintf(b, "%s: no path: %s\n", p.Name, oneLine(p.Path.Reason))
		}
	}
}

// cipher shortens the name: in a table of 80 columns the tag's algorithm says
// nothing, since each cipher comes with one.
func cipher(name string) string {
	switch name {
	case "":
		return "-"
	case "chacha20poly1305":
		return "chacha20"
	case "aes256gcm":
		return "aes256"
	}
	return name
}

func state(p local.Peer) string {
	switch {
	case p.State != "":
		return p.State
	case p.Online:
		return "online"
	}
	return "-"
}

func (a *App) writeLanes(b *strings.Builder, st *local.Status) {
	rows := [][]string{{"LANE", "SENT", "BYTES", "DROPPED", "RECEIVED", "BYTES"}}
	for _, name := range []string{"critical", "telemetry", "bulk"} {
		l := st.Lanes[name]
		rows = append(rows, []string{name, count(l.TxPackets), size(l.TxBytes), count(l.Dropped), count(l.RxPackets), size(l.RxBytes)})
	}
	c := st.Counters
	rows = append(rows, []string{"total", count(c.TxPackets), size(c.TxBytes), count(c.TxDropped), count(c.RxPackets), size(c.RxBytes)})
	a.table(b, rows, nil)
	for _, d := range []struct {
		what string
		by   map[string]uint64
	}{{"dropped while sending:", c.TxReasons}, {"dropped while receiving:", c.RxReasons}} {
		var parts []string
		for reason, n := range d.by {
			if n > 0 {
				parts = append(parts, reason+" "+count(n))
			}
		}
		if sort.Strings(parts); len(parts) > 0 {
			fmt.Fprintf(b, "%s %s\n", d.what, strings.Join(parts, ", "))
		}
	}
}

// table writes rows in columns two blanks apart; the first row is the heading.
// Numbers stand to the right. paint may colour a cell that is padded already.
func (a *App) table(b *strings.Builder, rows [][]string, paint func(row, col int, cell string) string) {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for y, r := range rows {
		for x, cell := range r {
			pad := strings.Repeat(" ", width[x]-utf8.RuneCountInString(cell))
			last := x == len(r)-1
			switch {
			case numeric(rows, x):
				cell = pad + cell
			case !last:
				cell += pad
			}
			if y == 0 {
				cell = a.paint(a.Stdout, grey, cell)
			} else if paint != nil {
				cell = paint(y, x, cell)
			}
			b.WriteString(cell)
			if !last {
				b.WriteString("  ")
			}
		}
		b.WriteByte('\n')
	}
}

func numeric(rows [][]string, x int) bool {
	switch rows[0][x] {
	case "SENT", "BYTES", "DROPPED", "RECEIVED", "RTT":
		return true
	}
	return false
}

func short(id string) string { return id[:min(8, len(id))] }

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func count(n uint64) string {
	if n < 1_000_000 {
		return strconv.FormatUint(n, 10)
	}
	return fmt.Sprintf("%.4gM", float64(n)/1e6)
}

// size writes bytes with decimal units, at most seven characters.
func size(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"kB", "MB", "GB", "TB", "PB", "EB"} {
		if f /= 1000; f < 999.5 {
			break
		}
	}
	return fmt.Sprintf("%.3g %s", f, unit)
}

func rtt(ms float64) string {
	switch {
	case ms <= 0:
		return "-"
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// span writes a duration with its two largest units.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "expired"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm %ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh %dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd %dh", int(d.Hours())/24, int(d.Hours())%24)
}
