// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/edge/internal/local"
)

// pacedWidth is that of a peer's name beside how its paths are paced: the table fits
// in 80 columns.
const pacedWidth = 12

// writePacing writes a row for each path that is paced, and an empty line after them.
func (a *App) writePacing(b *strings.Builder, peers []local.Peer) {
	peers = slices.Clone(peers)
	sort.Slice(peers, func(i, j int) bool { return peers[i].Name < peers[j].Name })
	rows := [][]string{{"PACING", "VIA", "STATE", "RATE", "QUEUE", "BASE", "LOSS", "COPIES"}}
	for i := range peers {
		name := clip(peers[i].Name, pacedWidth)
		for j := range peers[i].Paths {
			w := &peers[i].Paths[j]
			p := w.Pacing
			if p == nil || !w.Carries() || len(w.Lanes) == 0 {
				continue
			}
			rows = append(rows, []string{
				name, clip(orElse(w.Uplink, w.Kind), uplinkWidth), p.State, rate(p.Rate), delay(p.Queue), rtt(p.BaseRTT), share(p.Loss), copies(p.Copies),
			})
			name = ""
		}
	}
	if len(rows) == 1 {
		return
	}
	a.table(b, rows, func(_, col int, cell string) string {
		switch state := strings.TrimSpace(cell); {
		case col == 2 && state == conduit.PaceSteady:
			return a.paint(a.Stdout, green, cell)
		case col == 2 && (state == conduit.PaceDraining || state == conduit.PaceCompeting):
			return a.paint(a.Stdout, yellow, cell)
		}
		return cell
	})
	b.WriteByte('\n')
}

// paced says in one line how a path is paced.
func paced(p *conduit.PacingStatus) string {
	s := rate(p.Rate) + " (" + orElse(p.State, p.Strategy) + ")"
	if p.Delivery > 0 {
		s += ", arrives at " + rate(p.Delivery)
	}
	if p.BaseRTT > 0 {
		s += fmt.Sprintf(", queue %s beyond %s, noise %s", delay(p.Queue), rtt(p.BaseRTT), delay(p.Noise))
	}
	if l := share(p.Loss); l != "-" {
		s += ", loss " + l
	}
	switch {
	case p.Copies == 1:
		s += ", 1 copy"
	case p.Copies > 1:
		s += fmt.Sprintf(", %d copies", p.Copies)
	}
	if p.Waiting > 0 {
		s += ", " + size(uint64(p.Waiting)) + " wait"
	}
	return s
}

// rate writes bits per second with decimal units; 0 is no limit.
func rate(bps float64) string {
	if bps <= 0 {
		return "no limit"
	}
	unit := "bit/s"
	for _, u := range []string{"kbit/s", "Mbit/s", "Gbit/s"} {
		if bps < 999.5 {
			break
		}
		bps, unit = bps/1000, u
	}
	if bps >= 999.5 {
		return strconv.FormatFloat(bps, 'f', 0, 64) + " " + unit
	}
	return fmt.Sprintf("%.3g %s", bps, unit)
}

// delay is like rtt for what may well be nothing.
func delay(ms float64) string {
	if ms < 0.005 {
		return "-"
	}
	return rtt(ms)
}

func copies(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// wait is the mean and the longest wait in a lane.
func wait(l *local.Lane) string {
	if l.SojournMS < 0.005 && l.SojournMaxMS < 0.005 {
		return "-"
	}
	return millis(l.SojournMS*1000) + "/" + millis(l.SojournMaxMS*1000) + " ms"
}

func (a *App) writeLanes(b *strings.Builder, st *local.Status) {
	rows := [][]string{{"LANE", "SENT", "BYTES", "DROPPED", "RECEIVED", "BYTES", "QUEUED", "WAIT"}}
	queued := 0
	for _, name := range laneNames {
		l := st.Lanes[name]
		queued += l.Queued
		rows = append(rows, []string{
			name, count(l.TxPackets), size(l.TxBytes), count(l.Dropped), count(l.RxPackets), size(l.RxBytes), count(uint64(max(l.Queued, 0))), wait(&l),
		})
	}
	c := st.Counters
	rows = append(rows, []string{"total", count(c.TxPackets), size(c.TxBytes), count(c.TxDropped), count(c.RxPackets), size(c.RxBytes), count(uint64(max(queued, 0))), ""})
	a.table(b, rows, nil)
	for _, name := range laneNames {
		l := st.Lanes[name]
		reasons(b, "dropped in "+name+":", l.DroppedBy)
		if l.Marked > 0 {
			fmt.Fprintf(b, "marked in %s rather than dropped (ECN): %s\n", name, count(l.Marked))
		}
		if l.Demoted > 0 {
			fmt.Fprintf(b, "demoted into %s: %s\n", name, count(l.Demoted))
		}
	}
	reasons(b, "dropped while sending:", c.TxReasons)
	reasons(b, "dropped while receiving:", c.RxReasons)
	for i := range st.Policy.Alarms {
		fmt.Fprintf(b, "%s %s\n", a.paint(a.Stdout, red, "over budget:"), alarm(&st.Policy.Alarms[i]))
	}
}

// reasons writes the counts of what happened, if anything did.
func reasons(b *strings.Builder, what string, by map[string]uint64) {
	var parts []string
	for reason, n := range by {
		if n > 0 {
			parts = append(parts, reason+" "+count(n))
		}
	}
	if sort.Strings(parts); len(parts) > 0 {
		fmt.Fprintf(b, "%s %s\n", what, strings.Join(parts, ", "))
	}
}

// alarm says who exceeds which budget.
func alarm(p *conduit.PolicyAlarm) string {
	s := "rule " + oneLine(p.Rule)
	if p.Peer != "" {
		s += ", " + p.Peer
	}
	if p.Lane != "" {
		s += " in " + p.Lane
	}
	s += ": " + plural(p.Packets, "packet")
	switch p.Action {
	case "demote":
		s += " demoted"
	case "deny":
		s += " denied"
	}
	if !p.Since.IsZero() {
		s += " in " + span(max(time.Since(p.Since), 0))
	}
	return s
}
