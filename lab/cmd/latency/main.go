// SPDX-License-Identifier: Apache-2.0

// Command latency measures what load does to Critical, beside other tunnels; see
// package latency, and -h for the flags.
//
// The report goes to standard output, progress to standard error. The exit code
// is 1 where a goal was missed.
package main

import (
	"os"

	"github.com/bauxite-mesh/bauxite/lab/bench"
	"github.com/bauxite-mesh/bauxite/lab/latency"
	"github.com/bauxite-mesh/bauxite/lab/netns"
)

var program = bench.Program{
	Name: "latency", Target: "make bench", Runs: 5,
	Page: bench.Page{
		Title: "Critical at idle latency",
		Intro: "`make bench` runs the built binaries in network namespaces (`lab/latency`) and writes this page. Both robots, the hub, routers, delay boxes and traffic share one machine's cores.",
		Order: "interleaved, one case at a time",
	},
	Plan: func(o bench.Options) []bench.Scenario { return latency.Plan(o.Time) },
}

func main() {
	netns.Reexec()
	os.Exit(program.Main())
}
