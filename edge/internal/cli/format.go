// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

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
		var line strings.Builder
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
			line.WriteString(cell)
			if !last {
				line.WriteString("  ")
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

func numeric(rows [][]string, x int) bool {
	switch rows[0][x] {
	case "SENT", "BYTES", "DROPPED", "RECEIVED", "RTT", "LOSS", "MTU", "SINCE", "RATE", "QUEUE", "BASE", "COPIES", "QUEUED", "WAIT",
		"MIN", "AVG", "P50", "P99", "MAX", "MDEV", "HERE", "THERE":
		return true
	}
	return false
}

// without drops a column that says nothing in any row.
func without(rows [][]string, heading string) [][]string {
	x := slices.Index(rows[0], heading)
	if x < 0 || slices.ContainsFunc(rows[1:], func(r []string) bool { return r[x] != "" && r[x] != "-" }) {
		return rows
	}
	for i := range rows {
		rows[i] = slices.Delete(rows[i], x, x+1)
	}
	return rows
}

// clip shortens s in the middle, so that an address keeps its port.
func clip(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	r := []rune(s)
	tail := width / 2
	return string(r[:width-tail-1]) + "…" + string(r[len(r)-tail:])
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

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return count(n) + " " + what + "s"
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

// share writes a part of 1 in percent; "-" where there is none to speak of.
func share(f float64) string {
	switch {
	case f < 0.0005:
		return "-"
	case f < 0.0995:
		return fmt.Sprintf("%.1f %%", f*100)
	}
	return fmt.Sprintf("%.0f %%", f*100)
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
