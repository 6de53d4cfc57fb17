// SPDX-License-Identifier: Apache-2.0

// Command paths measures how Bauxite keeps its peers through every change of the
// network, beside other tunnels; see package paths, and -h for the flags.
//
// The report goes to standard output, progress to standard error. The exit code
// is 1 where a goal was missed.
package main

import (
	"os"

	"github.com/bauxite-mesh/bauxite/lab/bench"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/paths"
)

var program = bench.Program{
	Name: "paths", Target: "make lab", Runs: 3,
	Page: bench.Page{
		Title: "Paths that never let go",
		Intro: "`make lab` runs the built binaries in network namespaces (`lab/paths`) and writes this page. Both robots, the hub, routers, delay boxes and traffic share one machine's cores.",
		Order: "interleaved; cases with little traffic two at a time",
	},
	// Five meetings in each cell of the NAT matrix are the least for a percentile.
	Plan: func(o bench.Options) []bench.Scenario { return paths.Plan(max(1, (5+o.Runs-1)/max(o.Runs, 1))) },
}

func main() {
	netns.Reexec()
	os.Exit(program.Main())
}
