// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
)

// laneNames are the lanes, the most urgent first.
var laneNames = []string{"critical", "telemetry", "bulk"}

// laneWidth is that of a lane's column where several stand side by side.
const laneWidth = 24

func (a *App) pingCommand() *cli.Command {
	return &cli.Command{
		Name: "ping", Usage: "measure the way to a peer and back, in each lane", UsageText: "bauxite ping [--lane LANE] [options] PEER",
		Description: "PEER is a name, an id or the beginning of one, or a virtual address. A ping waits in\n" +
			"the queues of its lane, here and at the peer, as a packet of a program would. The\n" +
			"round trip has three parts: the wait in the queue here, that at the peer, and the\n" +
			"network. The policy is not asked: every node of the mesh answers.\n\n" +
			"The exit code is 0 where at least one ping was answered, and 1 where none was.\n\n" +
			"Examples:\n  bauxite ping robot7\n  bauxite ping robot7 --lane all -i 0.2          the lanes side by side\n" +
			"  bauxite ping robot7 --lane bulk --size 1300 -c 20\n" +
			"  bauxite ping robot7 -c 10 --json | jq 'select(.answered) | .rtt_ms'",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "lane", Aliases: []string{"l"}, Value: "critical", Usage: "`LANE`: critical, telemetry, bulk, or all; several with commas"},
			&cli.UintFlag{Name: "count", Aliases: []string{"c"}, Usage: "end after `N` in each lane (default: when interrupted)"},
			&cli.StringFlag{Name: "interval", Aliases: []string{"i"}, Value: "1s", Usage: "`TIME` from one to the next, as 200ms, or in seconds; at least 20ms"},
			&cli.UintFlag{Name: "size", Aliases: []string{"s"}, Value: 64, Usage: "`BYTES` of each, before it is sealed"},
			&cli.StringFlag{Name: "timeout", Aliases: []string{"W"}, Value: "2s", Usage: "`TIME` that an answer may take, at most 10s"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print the summary only"},
			&cli.BoolFlag{Name: "json", Usage: "print a line of JSON for each, and one for the summary"},
		},
		BashComplete: a.completePing,
		Action:       a.ping,
	}
}

func (a *App) completePing(c *cli.Context) {
	if n := len(os.Args); n > 2 && (os.Args[n-2] == "--lane" || os.Args[n-2] == "-l") {
		_, _ = io.WriteString(a.Stdout, strings.Join(append(laneNames, "all"), "\n")+"\n")
		return
	}
	a.completePeers(c)
}

// seconds reads a time with a unit, or in seconds as ping has it.
func seconds(flag, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		d, err = time.ParseDuration(text + "s")
	}
	if err != nil || d <= 0 {
		return 0, usagef("ping: --%s is %.20q, want a time such as 200ms or 0.2", flag, text)
	}
	return d, nil
}

// pingRequest reads the command line.
func pingRequest(c *cli.Context) (*edgev1.PingRequest, error) {
	if err := nargs(c, 1, 1); err != nil {
		return nil, err
	}
	req := &edgev1.PingRequest{Peer: c.Args().First()}
	if c.Uint("count") > 1<<31 || c.Uint("size") > 1<<31 || c.Uint("size") == 0 {
		return nil, usagef("ping: --count or --size is no number to work with")
	}
	req.Count, req.Size = uint32(c.Uint("count")), uint32(c.Uint("size"))
	if c.IsSet("count") && req.GetCount() == 0 {
		return nil, usagef("ping: --count is 0, which pings nobody")
	}
	for _, f := range []struct {
		name string
		to   *uint64
	}{{"interval", &req.IntervalUs}, {"timeout", &req.TimeoutUs}} {
		d, err := seconds(f.name, c.String(f.name))
		if err != nil {
			return nil, err
		}
		*f.to = uint64(max(d.Microseconds(), 1))
	}
	for _, l := range laneNames {
		wanted := strings.Split(strings.ToLower(c.String("lane")), ",")
		if slices.Contains(wanted, l) || slices.Contains(wanted, "all") {
			req.Lanes = append(req.Lanes, l)
		}
	}
	for l := range strings.SplitSeq(strings.ToLower(c.String("lane")), ",") {
		if l != "all" && !slices.Contains(laneNames, l) {
			return nil, usagef("ping: --lane is %.40q: one of %s or all", l, strings.Join(laneNames, ", "))
		}
	}
	return req, nil
}

func (a *App) ping(c *cli.Context) error {
	req, err := pingRequest(c)
	if err != nil {
		return err
	}
	cl, err := a.client(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	p := &pingPrinter{a: a, quiet: c.Bool("quiet"), json: c.Bool("json"), lanes: req.GetLanes(), peer: req.GetPeer()}
	for range p.lanes {
		p.stats = append(p.stats, &pingStats{})
	}
	err = cl.Ping(c.Context, req, p.message)
	interrupted := c.Err() != nil
	if err != nil && !interrupted {
		return err
	}
	sent, answered := 0, 0
	for _, s := range p.stats {
		sent += s.sent
		answered += s.n
	}
	if sent == 0 && interrupted {
		return c.Err()
	}
	if _, err := io.WriteString(a.Stdout, p.end()); err != nil {
		return err
	}
	switch {
	case sent == 0:
		return fmt.Errorf("%w to %s: bauxite run ended meanwhile", errNoPath, p.peer)
	case answered == 0:
		return fmt.Errorf("%s has not answered", p.peer)
	}
	return nil
}

// pingPrinter shows what becomes of pings: of one lane as it comes, of several in
// rows, in their order.
type pingPrinter struct {
	a           *App
	quiet, json bool
	lanes       []string
	peer        string
	stats       []*pingStats // by lane

	rows map[uint32][]*edgev1.PingResponse // that are not complete
	next uint32                            // the row that comes next
}

// message takes one message of the daemon.
func (p *pingPrinter) message(m *edgev1.PingResponse) error {
	if m.GetSeq() == 0 {
		p.peer, p.next, p.rows = m.GetName(), 1, make(map[uint32][]*edgev1.PingResponse)
		return p.write(p.head(m))
	}
	i := slices.Index(p.lanes, m.GetLane())
	if i < 0 {
		return nil
	}
	p.stats[i].add(m)
	switch {
	case p.json:
		return p.write(jsonLine(pingLine{
			Seq: m.GetSeq(), Lane: m.GetLane(), Size: m.GetSize(), Answered: m.GetAnswered(), RTT: m.GetRttUs() / 1000, Wait: m.GetWaitUs() / 1000,
			Hold: m.GetHoldUs() / 1000, Path: m.GetPathType(), Uplink: m.GetUplink(), Remote: m.GetRemote(), Error: m.GetError(),
		}))
	case len(p.lanes) == 1:
		return p.write(p.line(m))
	}
	row := p.rows[m.GetSeq()]
	if row == nil {
		row = make([]*edgev1.PingResponse, len(p.lanes))
		p.rows[m.GetSeq()] = row
	}
	row[i] = m
	var b strings.Builder
	for row := p.rows[p.next]; row != nil && !slices.Contains(row, nil); row = p.rows[p.next] {
		p.row(&b, p.next, row)
		delete(p.rows, p.next)
		p.next++
	}
	return p.write(b.String())
}

func (p *pingPrinter) write(s string) error {
	if p.quiet || s == "" {
		return nil
	}
	_, err := io.WriteString(p.a.Stdout, s)
	return err
}

func (p *pingPrinter) head(m *edgev1.PingResponse) string {
	if p.json {
		return ""
	}
	who := fmt.Sprintf("PING %s (%s), %d bytes", m.GetName(), m.GetVirtualIp(), m.GetSize())
	if len(p.lanes) == 1 {
		return who + ", lane " + p.lanes[0] + "\n"
	}
	s := who + ": round trip, of that in queues here+there\n"
	var head strings.Builder
	fmt.Fprintf(&head, "%5s ", "SEQ")
	for _, l := range p.lanes {
		fmt.Fprintf(&head, " %-*s", laneWidth-1, strings.ToUpper(l))
	}
	return s + p.a.paint(p.a.Stdout, grey, strings.TrimRight(head.String(), " ")) + "\n"
}

// line is one ping where only one lane is asked.
func (p *pingPrinter) line(m *edgev1.PingResponse) string {
	if !m.GetAnswered() {
		return fmt.Sprintf("seq=%d %s\n", m.GetSeq(), p.a.paint(p.a.Stdout, red, orElse(oneLine(m.GetError()), "no answer")))
	}
	over := m.GetPathType()
	if u := m.GetUplink(); u != "" {
		over += " via " + u
	}
	return strings.TrimRight(fmt.Sprintf("%d bytes from %s: seq=%d time=%s ms queues=%s ms %s", m.GetSize(), m.GetName(), m.GetSeq(),
		millis(m.GetRttUs()), queues(m), p.a.kind(over)), " ") + "\n"
}

// row is one round of all lanes.
func (p *pingPrinter) row(b *strings.Builder, seq uint32, row []*edgev1.PingResponse) {
	fmt.Fprintf(b, "%5d ", seq)
	for i, m := range row {
		cell := ""
		switch {
		case m == nil: // interrupted
			cell = "-"
		case m.GetAnswered():
			cell = fmt.Sprintf("%8s  %s", millis(m.GetRttUs())+" ms", queues(m))
		default:
			cell = "no answer"
		}
		cell = clip(cell, laneWidth-1)
		if i < len(row)-1 {
			cell += strings.Repeat(" ", laneWidth-1-len([]rune(cell)))
		}
		if m != nil && !m.GetAnswered() {
			cell = p.a.paint(p.a.Stdout, red, cell)
		}
		b.WriteString(" " + cell)
	}
	b.WriteByte('\n')
}

// queues are the waits at both ends in milliseconds.
func queues(m *edgev1.PingResponse) string {
	return millis(m.GetWaitUs()) + "+" + millis(m.GetHoldUs())
}

// millis writes microseconds as milliseconds with three digits that count.
func millis(us float64) string {
	switch ms := us / 1000; {
	case ms < 9.995:
		return strconv.FormatFloat(ms, 'f', 2, 64)
	case ms < 99.95:
		return strconv.FormatFloat(ms, 'f', 1, 64)
	default:
		return strconv.FormatFloat(ms, 'f', 0, 64)
	}
}

// end is what is said after the last one.
func (p *pingPrinter) end() string {
	var b strings.Builder
	if p.json {
		sum := pingSummary{Peer: p.peer, Lanes: []laneSummary{}}
		for i, s := range p.stats {
			sum.Lanes = append(sum.Lanes, s.summary(p.lanes[i]))
		}
		return jsonLine(struct {
			Summary pingSummary `json:"summary"`
		}{sum})
	}
	if !p.quiet { // rows that were interrupted
		for ; p.rows[p.next] != nil; p.next++ {
			p.row(&b, p.next, p.rows[p.next])
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%s: times in ms; HERE and THERE are the mean waits in queues\n", p.a.paint(p.a.Stdout, bold, p.peer))
	rows := [][]string{{"LANE", "SENT", "LOSS", "MIN", "AVG", "P50", "P99", "MAX", "MDEV", "HERE", "THERE"}}
	for i, s := range p.stats {
		u := s.summary(p.lanes[i])
		r := []string{u.Lane, count(uint64(u.Sent)), share(u.Loss)}
		for _, ms := range []float64{u.Min, u.Avg, u.P50, u.P99, u.Max, u.Mdev, u.Wait, u.Hold} {
			if u.Answered == 0 {
				r = append(r, "-")
				continue
			}
			r = append(r, millis(ms*1000))
		}
		rows = append(rows, r)
	}
	p.a.table(&b, rows, nil)
	return b.String()
}

// pingLine is a line of --json.
type pingLine struct {
	Seq      uint32  `json:"seq"`
	Lane     string  `json:"lane"`
	Size     uint32  `json:"size"`
	Answered bool    `json:"answered"`
	RTT      float64 `json:"rtt_ms,omitempty"`
	Wait     float64 `json:"wait_ms"`
	Hold     float64 `json:"hold_ms"`
	Path     string  `json:"path,omitempty"`
	Uplink   string  `json:"uplink,omitempty"`
	Remote   string  `json:"remote,omitempty"`
	Error    string  `json:"error,omitempty"`
}

type pingSummary struct {
	Peer  string        `json:"peer"`
	Lanes []laneSummary `json:"lanes"`
}

func jsonLine(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // numbers and strings alone
		return ""
	}
	return string(b) + "\n"
}
