// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"fmt"
	"strings"

	"github.com/bauxite-mesh/bauxite/lab/bench"
)

// writeMatrix shows the cells of the NAT matrix as a grid, and the goals below.
func writeMatrix(b *strings.Builder, figs []*bench.Figure) {
	find := func(name, what string) *bench.Figure {
		for _, f := range figs {
			if f.Case == name && f.What == what {
				return f
			}
		}
		return &bench.Figure{}
	}
	fmt.Fprintf(b, "| first \\ second | %s |\n|---|%s\n", strings.Join(NATs, " | "), strings.Repeat("---|", len(NATs)))
	for _, first := range NATs {
		fmt.Fprintf(b, "| **%s**", first)
		for _, second := range NATs {
			name := first + " × " + second
			path, cold, known := find(name, "path"), find(name, "cold"), find(name, "known")
			text := fmt.Sprintf("%s; cold %s / %s; known %s / %s", path.Show(), half(cold), bench.Number(cold.Value()), half(known), bench.Number(known.Value()))
			if !path.OK() || path.Words == nil {
				text += " **missed**"
			}
			b.WriteString(" | " + text)
		}
		b.WriteString(" |\n")
	}
	b.WriteString("\nEach cell: the path, the first answer cold and known, both p50 / p95 in ms. ")
	paths, wrong := 0, 0
	for _, f := range figs {
		if f.What == "path" {
			paths++
			wrong += min(f.Wrong, 1)
		}
	}
	all := func(f *bench.Figure) string {
		verdict := "holds"
		if !f.OK() {
			verdict = "**missed**"
		}
		return fmt.Sprintf("%s / %s / %s ms of %d, goal p95 %s: %s", half(f), bench.Number(f.Value()),
			bench.Number((&bench.Figure{Samples: f.Samples, Stat: bench.Worst}).Value()), len(f.Samples), f.ShowGoal(), verdict)
	}
	fmt.Fprintf(b, "All cells together, p50 / p95 / worst: cold %s; known %s. %d of %d cells have the path that theory allows.\n",
		all(find(allCells, "cold")), all(find(allCells, "known")), paths-wrong, paths)
}

func half(f *bench.Figure) string {
	return bench.Number((&bench.Figure{Samples: f.Samples, Stat: bench.Median}).Value())
}
