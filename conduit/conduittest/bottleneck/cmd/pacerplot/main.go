// SPDX-License-Identifier: Apache-2.0

// Command pacerplot draws what pacing does to a link that is full: the delay of
// Critical packets, the queue in front of the link and the rate of Bulk over time,
// with DelayRate and with Null. It writes pacer-*.svg, which docs show:
//
//	cd conduit && go run ./conduittest/bottleneck/cmd/pacerplot -out ../docs/img
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest/bottleneck"
	"github.com/bauxite-mesh/bauxite/conduit/congestion"
)

func main() {
	out := flag.String("out", "docs/img", "directory to write to")
	flag.Parse()
	if err := write(*out); err != nil {
		fmt.Fprintln(os.Stderr, "pacerplot:", err)
		os.Exit(1)
	}
}

// figure is a scenario to draw from 0 to its end.
type figure struct {
	name, title string
	scenario    bottleneck.Scenario
	capacity    string // what the grey line of the rate is
}

func figures() []figure {
	bulk := []bottleneck.Robot{{Flows: bottleneck.Flows(bottleneck.CUBIC, 4, time.Second)}}
	steady := bottleneck.Scenario{
		Seed: 1, Duration: 20 * time.Second, Sample: 10 * time.Millisecond,
		Link: bottleneck.Link{Rate: 20 * bottleneck.Mbit}, Robots: bulk,
	}
	step := steady
	step.Duration = 30 * time.Second
	step.Link = bottleneck.Link{RateAt: func(at time.Duration) float64 {
		if at >= 10*time.Second && at < 20*time.Second {
			return 5 * bottleneck.Mbit
		}
		return 20 * bottleneck.Mbit
	}}
	two := steady
	two.Duration = 25 * time.Second
	two.Robots = []bottleneck.Robot{bulk[0], {Flows: bottleneck.Flows(bottleneck.CUBIC, 4, 8*time.Second)}}
	lte := steady
	lte.Link.Service = bottleneck.LTE
	return []figure{
		{"steady", "A link of 20 Mbit/s with a queue of 256 KiB; Bulk from 1 s on", steady, "link"},
		{"step", "The link falls from 20 to 5 Mbit/s at 10 s and rises at 20 s", step, "link"},
		{"two", "A second robot joins at 8 s; rate of the first", two, "half of the link"},
		{"lte", "A cell that grants 20 Mbit/s each 10 to 20 ms", lte, "link"},
	}
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	for _, f := range figures() {
		b := draw(f)
		path := filepath.Join(dir, "pacer-"+f.name+".svg")
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
			continue
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return fmt.Errorf("write plot: %w", err)
		}
	}
	return nil
}

// curves are one run, in steps of step.
type curves struct {
	delay, queue, rate []float64 // ms, ms, Mbit/s
}

const step = 100 * time.Millisecond

// trace runs the scenario with a strategy in all robots. A delay is the worst of its
// step, so that no peak is hidden.
func trace(s bottleneck.Scenario, strategy func() congestion.Strategy) curves {
	s.Robots = append([]bottleneck.Robot(nil), s.Robots...)
	for i := range s.Robots {
		s.Robots[i].Strategy = strategy
	}
	n := int(s.Duration / step)
	s.Duration += time.Second // what leaves last arrives too
	r := bottleneck.Run(s)
	c := curves{make([]float64, n), make([]float64, n), make([]float64, n)}
	worst := func(to []float64, at, v time.Duration) {
		if i := int(at / step); i < n {
			to[i] = max(to[i], float64(v)/float64(time.Millisecond))
		}
	}
	for _, p := range r.Critical {
		worst(c.delay, p.Sent, p.Delay)
	}
	for _, x := range r.Series {
		worst(c.queue, x.At, x.Queue)
	}
	for i := range n {
		at := time.Duration(i) * step
		c.rate[i] = r.Rate(0, at, at+step) / bottleneck.Mbit
	}
	return c
}

func draw(f figure) []byte {
	paced := trace(f.scenario, func() congestion.Strategy {
		return congestion.NewDelayRate(congestion.DelayRateConfig{})
	})
	free := trace(f.scenario, congestion.NewNull)

	n := int(f.scenario.Duration / step)
	capacity := make([]float64, n)
	top := 0.0
	for i := range n {
		at := time.Duration(i) * step
		capacity[i] = f.scenario.Link.Rate
		if f.scenario.Link.RateAt != nil {
			capacity[i] = f.scenario.Link.RateAt(at)
		}
		capacity[i] /= bottleneck.Mbit * float64(len(f.scenario.Robots))
		top = max(top, capacity[i], paced.rate[i], free.rate[i])
	}

	p := newPlot(f.title, f.scenario.Duration)
	p.panel("Critical: delay, ms", logScale(0.1, 1000), free.delay, paced.delay, nil, "")
	p.panel("queue of the link, ms", logScale(0.1, 1000), free.queue, paced.queue, nil, "")
	p.panel("Bulk, Mbit/s", linearScale(top), free.rate, paced.rate, capacity, f.capacity)
	return p.bytes()
}
