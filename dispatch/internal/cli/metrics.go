// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

const (
	// rateWindow is over how much of a node's samples rates are taken.
	rateWindow = time.Minute
	topPaths   = 20
	clearHome  = "\x1b[H\x1b[2J"
)

func (h *hub) metrics() dispatchv1connect.MetricsServiceClient {
	return dispatchv1connect.NewMetricsServiceClient(h.http, h.base)
}

type laneRow struct {
	Lane      string `json:"lane"`
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	Dropped   uint64 `json:"dropped"`
}

type fleetMetrics struct {
	Nodes          uint32            `json:"nodes"`
	Online         uint32            `json:"online"`
	Reporting      uint32            `json:"reporting"`
	Lanes          []laneRow         `json:"lanes"`
	Versions       map[string]uint32 `json:"versions"`
	Paths          map[string]uint32 `json:"paths"`
	PolicyVersions map[string]uint32 `json:"policy_versions"`
	RTT50          uint64            `json:"rtt_p50_us"`
	RTT99          uint64            `json:"rtt_p99_us"`
}

type pathRow struct {
	Peer    string `json:"peer"`
	Kind    string `json:"kind"`
	RTT     uint64 `json:"rtt_us"`
	LossPPM uint32 `json:"loss_ppm"`
	TxBytes uint64 `json:"tx_bytes"`
	RxBytes uint64 `json:"rx_bytes"`
}

type sampleRow struct {
	Time               time.Time         `json:"time"`
	Started            time.Time         `json:"started"`
	Version            string            `json:"version"`
	PolicyVersion      uint64            `json:"policy_version"`
	PolicyGeneration   uint64            `json:"policy_generation"`
	PSKEpoch           uint32            `json:"psk_epoch"`
	Sessions           uint32            `json:"sessions"`
	Dropped            uint64            `json:"dropped"`
	ROSDiscoveryPort   uint32            `json:"ros_discovery_port"`
	ROSDiscoveryStatus string            `json:"ros_discovery_status"`
	Lanes              []laneRow         `json:"lanes"`
	Paths              []pathRow         `json:"paths"`
	Denied             map[string]uint64 `json:"denied"`
}

type nodeMetrics struct {
	NodeID  string      `json:"node_id"`
	Samples []sampleRow `json:"samples"`
}

func metricsCommand() *cli.Command {
	return &cli.Command{
		Name: "metrics", Usage: "show what the fleet or a node reports", ArgsUsage: "[NODE]",
		Args: true, BashComplete: completeWith(nodeNames),
		Description: describe("Without NODE the sums over the fleet since the hub started. Nodes report every ten seconds; the\nhub keeps an hour.",
			fleetMetrics{}, "metrics --data ./hub", "metrics --data ./hub robot-7 --history", "metrics --data ./hub robot-7 --json") +
			"\nJSON of a NODE: " + strings.TrimPrefix(describe("", nodeMetrics{}), "Examples:\n\n\nJSON: "),
		Flags: hubFlags(
			&cli.BoolFlag{Name: "history", Usage: "of a NODE: one line for each sample"},
			&cli.UintFlag{Name: "samples", Usage: "of a NODE: only the newest `N` samples"},
		),
		Action: func(c *cli.Context) error { return showMetrics(c, &metricsView{}) },
	}
}

func topCommand() *cli.Command {
	return &cli.Command{
		Name: "top", Usage: "watch the traffic of the fleet or of a node", ArgsUsage: "[NODE]",
		Args: true, BashComplete: completeWith(nodeNames),
		Description: describe("It shows rates until it is stopped; --json prints one object a line, as metrics does.", nil,
			"top --data ./hub", "top --data ./hub robot-7 --every 10s", "top --data ./hub --count 2"),
		Flags: hubFlags(
			&cli.DurationFlag{Name: "every", Value: 5 * time.Second, Usage: "how often to look, `D`"},
			&cli.UintFlag{Name: "count", Usage: "stop after `N` looks"},
		),
		Action: top,
	}
}

func top(c *cli.Context) error {
	every := c.Duration("every")
	if every < time.Second {
		return usagef("top: --every is at least 1s")
	}
	t := time.NewTicker(every)
	defer t.Stop()
	v := &metricsView{top: true}
	for n := uint(1); ; n++ {
		if err := showMetrics(c, v); err != nil {
			if c.Err() != nil {
				return nil
			}
			return err
		}
		if n == c.Uint("count") {
			return nil
		}
		select {
		case <-t.C:
		case <-c.Done():
			return nil
		}
	}
}

// metricsView is what a command shows, and what it has shown before.
type metricsView struct {
	top    bool
	before *dispatchv1.GetFleetMetricsResponse
	at     time.Time
}

func showMetrics(c *cli.Context, v *metricsView) error {
	switch c.NArg() {
	case 0:
		if c.Bool("history") || c.IsSet("samples") {
			return usagef("metrics: --history and --samples are for a NODE")
		}
		return v.fleet(c)
	case 1:
		return v.node(c, c.Args().First())
	default:
		return usagef("%s: want one NODE at most", c.Command.HelpName)
	}
}

// printObject prints v as the command's JSON.
func (v *metricsView) printObject(c *cli.Context, o any) error {
	if v.top {
		return printLine(c.App.Writer, o)
	}
	return printJSON(c.App.Writer, o)
}

// begin starts a screen.
func (v *metricsView) begin(w io.Writer) {
	if v.top && isTerminal(w) {
		_, _ = io.WriteString(w, clearHome)
	}
}

func (v *metricsView) fleet(c *cli.Context) error {
	res, err := call(c, "read fleet metrics", func(ctx context.Context, h *hub) (*dispatchv1.GetFleetMetricsResponse, error) {
		return h.metrics().GetFleetMetrics(ctx, &dispatchv1.GetFleetMetricsRequest{})
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return v.printObject(c, fleetMetrics{
			res.GetNodes(), res.GetOnline(), res.GetReporting(), laneRows(res.GetLanes()), nonNilMap(res.GetVersions()), nonNilMap(res.GetPaths()),
			nonNilMap(res.GetPolicyVersions()), res.GetRttP50Us(), res.GetRttP99Us(),
		})
	}
	w, now := c.App.Writer, time.Now()
	v.begin(w)
	rtt := ""
	if res.GetRttP50Us() > 0 {
		rtt = fmt.Sprintf("median %s, 99 %% below %s", micros(res.GetRttP50Us()), micros(res.GetRttP99Us()))
	}
	err = list(w,
		"nodes", fmt.Sprintf("%d, %d online, %d reporting", res.GetNodes(), res.GetOnline(), res.GetReporting()),
		"paths", tally(res.GetPaths()), "RTT", rtt, "versions", tally(res.GetVersions()), "policies", tally(res.GetPolicyVersions()))
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(w)
	var before []*dispatchv1.LaneCounters
	var over time.Duration
	if v.before != nil {
		before, over = v.before.GetLanes(), now.Sub(v.at)
	}
	v.before, v.at = res, now
	if err := laneTable(w, res.GetLanes(), before, over); err != nil {
		return err
	}
	if v.top {
		_, _ = fmt.Fprintln(w)
	}
	return nil
}

func (v *metricsView) node(c *cli.Context, name string) error {
	limit := uint32(min(c.Uint("samples"), 1<<16))
	if limit == 0 && !c.Bool("json") && !c.Bool("history") || v.top {
		limit = uint32(rateWindow/time.Second/10) + 1
	}
	res, err := call(c, "read metrics of "+name, func(ctx context.Context, h *hub) (*dispatchv1.GetNodeMetricsResponse, error) {
		return h.metrics().GetNodeMetrics(ctx, &dispatchv1.GetNodeMetricsRequest{Node: name, Limit: limit})
	})
	if err != nil {
		return err
	}
	samples := res.GetSamples()
	w := c.App.Writer
	switch {
	case c.Bool("json"):
		return v.printObject(c, nodeMetricsOf(res))
	case len(samples) == 0:
		note(c, "node %s has not reported", name)
		return nil
	case c.Bool("history"):
		return historyTable(w, samples)
	}
	v.begin(w)
	last := samples[len(samples)-1]
	m := last.GetReport()
	ros := ""
	if m.GetRosDiscoveryPort() != 0 {
		ros = fmt.Sprintf("port %d, status %s", m.GetRosDiscoveryPort(), dash(m.GetRosDiscoveryStatus()))
	}
	err = list(w,
		"node", name+" ("+short(res.GetNodeId())+")", "reported", local(last.GetTime()), "version", m.GetVersion(),
		"running since", time.UnixMicro(m.GetStarted()).Local().Format(time.DateTime),
		"policy", fmt.Sprintf("version %d, generation %d", m.GetPolicyVersion(), m.GetPolicyGeneration()),
		"sessions", number(m.GetSessions()), "ROS 2 discovery", ros, "dropped", number(m.GetDropped()))
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(w)
	before, over := earlier(samples)
	if err := laneTable(w, m.GetLanes(), before, over); err != nil {
		return err
	}
	if err := pathTable(w, m.GetPaths()); err != nil {
		return err
	}
	if err := deniedTable(w, m.GetDenied()); err != nil {
		return err
	}
	if v.top {
		_, _ = fmt.Fprintln(w)
	}
	return nil
}

// earlier returns the lanes of the sample that rates are taken from, and how long
// before the newest it was; none where the node has started again since.
func earlier(samples []*dispatchv1.NodeSample) ([]*dispatchv1.LaneCounters, time.Duration) {
	last := samples[len(samples)-1]
	for _, s := range samples[:len(samples)-1] {
		over := last.GetTime().AsTime().Sub(s.GetTime().AsTime())
		if over <= rateWindow+rateWindow/10 && over > 0 && s.GetReport().GetStarted() == last.GetReport().GetStarted() {
			return s.GetReport().GetLanes(), over
		}
	}
	return nil, 0
}

func laneTable(w io.Writer, lanes, before []*dispatchv1.LaneCounters, over time.Duration) error {
	rates := func(l *dispatchv1.LaneCounters, get func(*dispatchv1.LaneCounters) uint64) string {
		for _, b := range before {
			if b.GetLane() == l.GetLane() && over > 0 && get(l) >= get(b) {
				return bits(float64(get(l)-get(b)) * 8 / over.Seconds())
			}
		}
		return ""
	}
	rows := make([][]string, 0, len(lanes))
	for _, l := range lanes {
		rows = append(rows, []string{
			l.GetLane(), rates(l, (*dispatchv1.LaneCounters).GetTxBytes), rates(l, (*dispatchv1.LaneCounters).GetRxBytes),
			bytesText(l.GetTxBytes()), bytesText(l.GetRxBytes()), number(l.GetTxPackets()), number(l.GetRxPackets()), number(l.GetDropped()),
		})
	}
	return table(w, []string{"LANE", "SENDS", "GETS", "SENT", "GOT", "PACKETS SENT", "GOT", "DROPPED"}, rows)
}

func pathTable(w io.Writer, paths []*dispatchv1.PathMetrics) error {
	if len(paths) == 0 {
		return nil
	}
	_, _ = fmt.Fprintln(w)
	rows := make([][]string, 0, topPaths)
	for _, p := range paths[:min(len(paths), topPaths)] {
		rows = append(rows, []string{
			short(p.GetPeer()), p.GetKind(), micros(p.GetRttUs()), fmt.Sprintf("%.2f %%", float64(p.GetLossPpm())/1e4),
			bytesText(p.GetTxBytes()), bytesText(p.GetRxBytes()),
		})
	}
	if err := table(w, []string{"PEER", "PATH", "RTT", "LOSS", "SENT", "GOT"}, rows); err != nil {
		return err
	}
	if more := len(paths) - topPaths; more > 0 {
		_, _ = fmt.Fprintf(w, "and %d more\n", more)
	}
	return nil
}

func deniedTable(w io.Writer, denied map[string]uint64) error {
	if len(denied) == 0 {
		return nil
	}
	_, _ = fmt.Fprintln(w)
	rows := make([][]string, 0, len(denied))
	for _, rule := range byCount(denied) {
		rows = append(rows, []string{rule, number(denied[rule])})
	}
	return table(w, []string{"DENIED BY", "PACKETS"}, rows)
}

func historyTable(w io.Writer, samples []*dispatchv1.NodeSample) error {
	rows := make([][]string, 0, len(samples))
	for i, s := range samples {
		m := s.GetReport()
		row := []string{s.GetTime().AsTime().Local().Format(time.TimeOnly)}
		for k, l := range m.GetLanes() {
			cell := ""
			if i > 0 && k < len(samples[i-1].GetReport().GetLanes()) {
				b := samples[i-1].GetReport().GetLanes()[k]
				over := s.GetTime().AsTime().Sub(samples[i-1].GetTime().AsTime()).Seconds()
				if now, was := l.GetTxBytes()+l.GetRxBytes(), b.GetTxBytes()+b.GetRxBytes(); now >= was && over > 0 {
					cell = bits(float64(now-was) * 8 / over)
				}
			}
			row = append(row, cell)
		}
		rows = append(rows, append(row, number(m.GetDropped()), number(m.GetSessions()), number(m.GetPolicyVersion()), m.GetVersion()))
	}
	return table(w, []string{"TIME", "CRITICAL", "TELEMETRY", "BULK", "DROPPED", "SESSIONS", "POLICY", "VERSION"}, rows)
}

func laneRows(lanes []*dispatchv1.LaneCounters) []laneRow {
	out := make([]laneRow, 0, len(lanes))
	for _, l := range lanes {
		out = append(out, laneRow{l.GetLane(), l.GetTxPackets(), l.GetTxBytes(), l.GetRxPackets(), l.GetRxBytes(), l.GetDropped()})
	}
	return out
}

func nodeMetricsOf(res *dispatchv1.GetNodeMetricsResponse) nodeMetrics {
	out := nodeMetrics{res.GetNodeId(), make([]sampleRow, 0, len(res.GetSamples()))}
	for _, s := range res.GetSamples() {
		m := s.GetReport()
		r := sampleRow{
			Time: s.GetTime().AsTime(), Started: time.UnixMicro(m.GetStarted()).UTC(), Version: m.GetVersion(),
			PolicyVersion: m.GetPolicyVersion(), PolicyGeneration: m.GetPolicyGeneration(), PSKEpoch: m.GetPskEpoch(),
			Sessions: m.GetSessions(), Dropped: m.GetDropped(), ROSDiscoveryPort: m.GetRosDiscoveryPort(),
			ROSDiscoveryStatus: m.GetRosDiscoveryStatus(), Lanes: laneRows(m.GetLanes()), Paths: []pathRow{}, Denied: nonNilMap(m.GetDenied()),
		}
		for _, p := range m.GetPaths() {
			r.Paths = append(r.Paths, pathRow{p.GetPeer(), p.GetKind(), p.GetRttUs(), p.GetLossPpm(), p.GetTxBytes(), p.GetRxBytes()})
		}
		out.Samples = append(out.Samples, r)
	}
	return out
}

func nonNilMap[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}

// byCount returns the keys of m, the most frequent first.
func byCount[N cmp.Ordered](m map[string]N) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b))
	})
}

// tally lists what m counts, without what it counts none of.
func tally(m map[string]uint32) string {
	var parts []string
	for _, k := range byCount(m) {
		if m[k] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", m[k], k))
		}
	}
	return strings.Join(parts, ", ")
}

func micros(us uint64) string {
	if us == 0 {
		return ""
	}
	d := time.Duration(us) * time.Microsecond
	switch {
	case d >= time.Second:
		d = d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	}
	return d.String()
}

func bits(perSecond float64) string { return scaled(perSecond, 1000, "bit/s") }

func bytesText(n uint64) string { return scaled(float64(n), 1024, "B") }

// scaled writes v with a prefix of the SI, or of IEC 80000-13 where base is 1024.
func scaled(v, base float64, unit string) string {
	i := 0
	for v >= base && i < len(" kMGTPE")-1 {
		v /= base
		i++
	}
	prefix := strings.TrimSpace(" kMGTPE"[i : i+1])
	if base == 1024 && i > 0 {
		prefix = strings.ToUpper(prefix) + "i"
	}
	if i == 0 || v >= 100 {
		return fmt.Sprintf("%.0f %s%s", v, prefix, unit)
	}
	return fmt.Sprintf("%.1f %s%s", v, prefix, unit)
}
