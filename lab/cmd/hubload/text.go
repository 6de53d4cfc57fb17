// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bauxite-mesh/bauxite/lab/hubload"
)

// The goals of the hub on two cores that it shares with the generator.
const (
	goalJoins = 500 // per second
	goalRSS   = 128 // KB per connected node

	goalFanout = 500 * time.Millisecond // p99 to all
	goalScope  = 25 * time.Millisecond  // p99 to a scope of about 200
	smallScope = 250                    // watchers
	goalResync = 30                     // seconds
	goalSignal = 5 * time.Millisecond   // p99
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

func fanoutText(w io.Writer, r hubload.FanoutResult) bool {
	goal := goalFanout
	if r.Watchers <= smallScope {
		goal = goalScope
	}
	_, _ = fmt.Fprintf(w, "fanout: %d changes (%s) to %d watchers of %d nodes\n", r.Changes, r.Change, r.Watchers, r.Nodes)
	met := verdict(w, r.Latency.P99 <= goal && r.Missed == 0, "p99 %.1f ms (goal at most %v); of the worst change %.1f ms", float64(r.Latency.P99.Microseconds())/1000, goal, r.WorstP99)
	line(w, "        latency %v", r.Latency)
	line(w, "        the call is answered after %v", r.Answered)
	line(w, "        %d deliveries missed, %d strays; hub CPU %.0f us per delivery", r.Missed, r.Strays, r.HubCPU)
	return met
}

func resyncText(w io.Writer, rs []hubload.ResyncResult) bool {
	met := true
	for _, r := range rs {
		_, _ = fmt.Fprintf(w, "resync: %d nodes after kill -9\n", r.Nodes)
		met = verdict(w, r.Seconds <= goalResync, "all are back after %.1f s (goal at most %d s)", r.Seconds, goalResync) && met
		met = verdict(w, r.Snapshots == 0, "%d snapshots (goal 0)", r.Snapshots) && met
		line(w, "        downtime %v", r.Downtime)
		line(w, "        hub serves again after %.2f s; %d attempts failed; hub CPU %.2f ms per node", r.Restart, r.Attempts, r.HubCPU)
		line(w, "        %d missed changes made up for, %d came twice, %d missing", r.Deltas, r.Duplicates, r.Missing)
	}
	return met
}

func signalText(w io.Writer, r hubload.SignalResult) bool {
	_, _ = fmt.Fprintf(w, "signal: %d messages of %d bytes by %d of %d nodes, %.0f/s\n", r.Sent, r.Size, r.Senders, r.Nodes, r.Rate)
	met := verdict(w, r.Latency.P99 <= goalSignal, "p99 %.2f ms (goal at most %v)", float64(r.Latency.P99.Microseconds())/1000, goalSignal)
	met = verdict(w, r.Lost == 0 && r.Refused >= r.Absent, "%d lost, %d of %d to absent nodes came back", r.Lost, min(r.Refused, r.Absent), r.Absent) && met
	line(w, "        latency %v", r.Latency)
	line(w, "        hub CPU %.0f us per message", r.HubCPU)
	return met
}

func allText(w io.Writer, r allResults) bool {
	_, _ = fmt.Fprintf(w, "%s, %d cores, Linux %s, %s\n", r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Go)
	met := r.Joins.Joins == 0 || joinsText(w, r.Joins)
	met = connectText(w, r.Connect) && met
	met = signalText(w, r.Signal) && met
	for _, f := range r.Fanout {
		met = fanoutText(w, f) && met
	}
	return resyncText(w, r.Resync) && met
}

// machine is where a measurement was made.
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for l := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	return m
}
