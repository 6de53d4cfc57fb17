// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/lab/hubload"
)

func joinsCommand() *cli.Command {
	return &cli.Command{
		Name: "joins", Usage: "how many machines join per second (goal 500)",
		Description: `Each join is a TCP connection, a TLS 1.3 handshake, a certificate request and an
answer after the durable commit. Example:

  hubload joins --nodes 5000 --concurrency 64`,
		Flags: []cli.Flag{
			nodesFlag(5000),
			&cli.IntFlag{Name: "concurrency", Value: 32, Usage: "`N` machines at a time"},
		},
		Action: func(c *cli.Context) error {
			return measure(c, func(ctx context.Context, l *hubload.Lab) (hubload.JoinsResult, error) {
				return l.Join(ctx, c.Int("nodes"))
			}, joinsText)
		},
	}
}

func connectCommand() *cli.Command {
	return &cli.Command{
		Name: "connect", Usage: "what connected nodes cost in memory (goal 128 KB each) and idle CPU",
		Description: `Memory is the resident set of the hub's process. Examples:

  hubload connect --nodes 10000
  hubload connect --nodes 2000 --one-stream --env GOGC=50`,
		Flags: []cli.Flag{
			nodesFlag(10000),
			&cli.IntFlag{Name: "rate", Value: 400, Usage: "`N` nodes connect per second"},
			&cli.DurationFlag{Name: "settle", Value: 30 * time.Second, Usage: "read memory `D` after the last has connected"},
			&cli.DurationFlag{Name: "idle", Value: 30 * time.Second, Usage: "watch the CPU for `D`"},
			&cli.BoolFlag{Name: "one-stream", Usage: "open WatchTopology only"},
		},
		Action: func(c *cli.Context) error {
			return measure(c, func(ctx context.Context, l *hubload.Lab) (hubload.ConnectResult, error) {
				r, f, err := l.Connect(ctx, hubload.ConnectConfig{
					Nodes: c.Int("nodes"), Rate: c.Int("rate"), Settle: c.Duration("settle"), Idle: c.Duration("idle"),
					NoSignal: c.Bool("one-stream"),
				})
				if err == nil {
					f.Close()
				}
				return r, err
			}, connectText)
		},
	}
}

func rateFlag() cli.Flag {
	return &cli.IntFlag{Name: "connect-rate", Value: 400, Usage: "`N` nodes connect per second"}
}

// held connects nodes before it measures with them.
func held[T any](c *cli.Context, f func(context.Context, *hubload.Lab, *hubload.Fleet) (T, error), text func(io.Writer, T) bool) error {
	return measure(c, func(ctx context.Context, l *hubload.Lab) (res T, err error) {
		fleet, err := l.Gather(ctx, c.Int("nodes"), c.Int("connect-rate"), hubload.FleetConfig{})
		if err != nil {
			return res, err
		}
		defer fleet.Close()
		return f(ctx, l, fleet)
	}, text)
}

func fanoutCommand() *cli.Command {
	return &cli.Command{
		Name: "fanout", Usage: "how long a change takes to all watchers (goal p99 500 ms, in a scope of 200 25 ms)",
		Description: `The time is from the call that makes the change, commit included, to each node's
reader. Examples:

  hubload fanout --nodes 10000                               (revocations, which all hear of)
  hubload fanout --nodes 10000 --sites 50 --change tags      (scopes of 200)
  hubload fanout --nodes 500 --change join`,
		Flags: []cli.Flag{
			nodesFlag(10000), rateFlag(),
			&cli.StringFlag{Name: "change", Value: hubload.ChangeRevoke, Usage: "what changes: `revoke`, tags or join"},
			&cli.IntFlag{Name: "changes", Value: 20, Usage: "how many, `N`"},
			&cli.DurationFlag{Name: "pause", Value: 500 * time.Millisecond, Usage: "wait `D` between two"},
		},
		Action: func(c *cli.Context) error {
			switch c.String("change") {
			case hubload.ChangeRevoke, hubload.ChangeTags, hubload.ChangeJoin:
			default:
				return usageError{fmt.Errorf("--change is revoke, tags or join")}
			}
			return held(c, func(ctx context.Context, l *hubload.Lab, f *hubload.Fleet) (hubload.FanoutResult, error) {
				return l.Fanout(ctx, f, hubload.FanoutConfig{
					Change: c.String("change"), Changes: c.Int("changes"), Pause: c.Duration("pause"),
				})
			}, fanoutText)
		},
	}
}

func resyncCommand() *cli.Command {
	return &cli.Command{
		Name: "resync", Usage: "how long a fleet takes to come back after kill -9 of the hub (goal 30 s, no snapshot)",
		Description: `The hub is started again at once; each node's first retry is spread over 10 s.
Example:

  hubload resync --nodes 10000`,
		Flags: []cli.Flag{
			nodesFlag(10000), rateFlag(),
			&cli.IntFlag{Name: "missed", Value: 20, Usage: "`N` machines join before the fleet is back"},
			&cli.IntFlag{Name: "rounds", Value: 1, Usage: "kill the hub `N` times"},
		},
		Action: func(c *cli.Context) error {
			return held(c, func(ctx context.Context, l *hubload.Lab, f *hubload.Fleet) ([]hubload.ResyncResult, error) {
				return resyncs(ctx, l, f, c.Int("rounds"), c.Int("missed"))
			}, resyncText)
		},
	}
}

func resyncs(ctx context.Context, l *hubload.Lab, f *hubload.Fleet, rounds, missed int) (out []hubload.ResyncResult, err error) {
	if missed == 0 {
		missed = -1
	}
	for range max(1, rounds) {
		r, err := l.Resync(ctx, f, hubload.ResyncConfig{Missed: missed})
		if err != nil {
			return out, err
		}
		out = append(out, r)
	}
	return out, nil
}

func signalCommand() *cli.Command {
	return &cli.Command{
		Name: "signal", Usage: "how long a signalling message takes from node to node (goal p99 5 ms at 1,000/s)",
		Description: `Example:

  hubload signal --nodes 10000 --rate 1000 --duration 30s`,
		Flags: []cli.Flag{
			nodesFlag(10000), rateFlag(),
			&cli.IntFlag{Name: "rate", Value: 1000, Usage: "`N` messages per second by all nodes together"},
			&cli.DurationFlag{Name: "duration", Value: 20 * time.Second, Usage: "send for `D`"},
			&cli.IntFlag{Name: "senders", Value: 200, Usage: "`N` nodes send; the hub allows each 50 a second"},
			&cli.IntFlag{Name: "size", Value: 1200, Usage: "bodies of `N` bytes"},
		},
		Action: func(c *cli.Context) error {
			return held(c, func(ctx context.Context, l *hubload.Lab, f *hubload.Fleet) (hubload.SignalResult, error) {
				return l.Signal(ctx, f, hubload.SignalConfig{
					Rate: c.Int("rate"), Duration: c.Duration("duration"), Senders: c.Int("senders"), Size: c.Int("size"),
				})
			}, signalText)
		},
	}
}

// allResults are those of every measurement, made with one hub and one fleet.
type allResults struct {
	Machine machine                `json:"machine"`
	Joins   hubload.JoinsResult    `json:"joins"`
	Connect hubload.ConnectResult  `json:"connect"`
	Signal  hubload.SignalResult   `json:"signal"`
	Fanout  []hubload.FanoutResult `json:"fanout"`
	Resync  []hubload.ResyncResult `json:"resync"`
}

func allCommand() *cli.Command {
	return &cli.Command{
		Name: "all", Usage: "every measurement, with one hub and one fleet",
		Description: `With --state, joins are measured as far as nodes are missing there. Example, for the figures in docs/benchmarks/hub.md:

  hubload all --nodes 10000 --sites 50 --json > hub.json`,
		Flags: []cli.Flag{
			nodesFlag(10000), rateFlag(),
			&cli.IntFlag{Name: "concurrency", Value: 32, Usage: "`N` machines join at a time"},
			&cli.IntFlag{Name: "rounds", Value: 3, Usage: "kill the hub `N` times"},
			&cli.StringSliceFlag{Name: "change", Usage: "what changes: revoke, tags or join; repeatable (default: revoke, and tags with --sites)"},
			&cli.DurationFlag{Name: "settle", Value: 30 * time.Second, Usage: "read memory `D` after the last has connected"},
			&cli.DurationFlag{Name: "idle", Value: 30 * time.Second, Usage: "watch the CPU for `D`"},
		},
		Action: func(c *cli.Context) error {
			return measure(c, func(ctx context.Context, l *hubload.Lab) (allResults, error) { return all(ctx, c, l) }, allText)
		},
	}
}

func all(ctx context.Context, c *cli.Context, l *hubload.Lab) (res allResults, err error) {
	res.Machine = thisMachine()
	n := c.Int("nodes")
	if missing := n - l.Enrolled(); missing > 0 {
		if res.Joins, err = l.Join(ctx, missing); err != nil {
			return res, err
		}
	}
	var f *hubload.Fleet
	res.Connect, f, err = l.Connect(ctx, hubload.ConnectConfig{
		Nodes: n, Rate: c.Int("connect-rate"), Settle: c.Duration("settle"), Idle: c.Duration("idle"),
	})
	if err != nil {
		return res, err
	}
	defer f.Close()
	if res.Signal, err = l.Signal(ctx, f, hubload.SignalConfig{}); err != nil {
		return res, err
	}
	changes := c.StringSlice("change")
	if len(changes) == 0 {
		if changes = []string{hubload.ChangeRevoke}; c.Int("sites") > 0 {
			changes = append(changes, hubload.ChangeTags)
		}
	}
	for _, change := range changes {
		r, err := l.Fanout(ctx, f, hubload.FanoutConfig{Change: change})
		if err != nil {
			return res, err
		}
		res.Fanout = append(res.Fanout, r)
	}
	res.Resync, err = resyncs(ctx, l, f, c.Int("rounds"), 20)
	return res, err
}
