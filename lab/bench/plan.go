// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Scenario is a chapter of the report.
type Scenario struct {
	Name  string // what -only takes
	Title string
	Text  string // how it was measured
	Cases []Case
	// Write writes the figures, nil for a table.
	Write func(b *strings.Builder, figs []*Figure)
}

// Case is what one lab is made for.
type Case struct {
	Name string
	// Limit bounds it, the making of the lab included.
	Limit time.Duration
	// Rivals can do it too, and Raw the network without a tunnel.
	Rivals, Raw bool
	// Slow cases run only where that is asked for.
	Slow bool
	// Alone is set where the case loads the machine: nothing else may run beside it.
	Alone bool

	Do func(ctx context.Context, lab *netns.Lab, s *Sheet, sys world.System) error
}

// Run makes a lab, runs the case in it and returns its figures. What keeps a case
// from ending is a figure as well: one that is wrong.
func (c Case) Run(ctx context.Context, scenario string, sys world.System) ([]Figure, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	s := &Sheet{Scenario: scenario, Case: c.Name, System: sys.Name}
	err := netns.Run(ctx, scenario, func(lab *netns.Lab) error { return c.Do(ctx, lab, s, sys) })
	s.Case = c.Name
	word, ok := "yes", true
	if err != nil {
		word, ok = "no", !sys.Built()
	}
	s.Word(ended, word, ok)
	return s.figures, err
}
