// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/bauxite-mesh/bauxite/lab/hubload"
)

// The goals of the hub on two cores that it shares with the generator.
const (
	goalJoins = 500 // per second
	goalRSS   = 128 // KB per connected node
)

// verdict puts a measured value beside its goal.
func verdict(w io.Writer, met bool, format string, args ...any) bool {
	word := "met   "
	if !met {
		word = "MISSED"
	}
	_, _ = fmt.Fprintf(w, "  %s  %s\n", word, fmt.Sprintf(format, args...))
	return met
}

func line(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, "  "+format+"\n", args...) }

func joinsText(w io.Writer, r hubload.JoinsResult) bool {
	_, _ = fmt.Fprintf(w, "joins: %d by %d at a time\n", r.Joins, r.Concurrency)
	met := verdict(w, r.PerSecond >= goalJoins, "%.0f joins/s (goal at least %d)", r.PerSecond, goalJoins)
	line(w, "        latency %v", r.Latency)
	line(w, "        hub CPU %.2f ms per join", r.HubCPU)
	return met
}

func connectText(w io.Writer, r hubload.ConnectResult) bool {
	_, _ = fmt.Fprintf(w, "connect: %d nodes, %d stream(s) each\n", r.Nodes, r.Streams)
	met := verdict(w, r.KBPerNodeWhole <= goalRSS, "%.1f KB RSS per node (goal at most %d); without the bare hub %.1f", r.KBPerNodeWhole, goalRSS, r.KBPerNode)
	line(w, "        RSS %d MB before, %d MB after, %d MB peak", r.RSSBefore>>20, r.RSSAfter>>20, r.RSSPeak>>20)
	if r.GoroutinesPerNode > 0 {
		line(w, "        per node: %.2f goroutines, heap %.1f KB, stacks %.1f KB", r.GoroutinesPerNode, r.HeapKBPerNode, r.StackKBPerNode)
	}
	line(w, "        connected in %.1f s, %.2f ms of the hub's CPU each", r.Seconds, r.ConnectCPU)
	line(w, "        idle: %.1f %% of one core over %.0f s; %d connections lost", r.IdleCPU, r.IdleSeconds, r.Losses)
	return met
}
