// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/hubload"
)

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

var errMissed = errors.New("a goal was missed")

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:      "hubload",
		Usage:     "measure the hub under the load of a large fleet",
		UsageText: "hubload COMMAND [options]",
		Description: `All commands build the hub, start it on loopback in a temporary folder and
remove everything in the end. Examples:

  hubload joins --nodes 5000
  hubload connect --nodes 10000 --state /tmp/fleet    (keeps the nodes for the next run)
  hubload fanout --nodes 10000 --state /tmp/fleet --json`,
		Writer: stdout, ErrWriter: stderr,
		HideVersion:    true,
		ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{
			joinsCommand(), connectCommand(), fanoutCommand(), resyncCommand(), signalCommand(), allCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usageError{fmt.Errorf("unknown command %q", c.Args().First())}
			}
			return cli.ShowAppHelp(c)
		},
	}
	app.OnUsageError = onUsageError
	for _, c := range app.Commands {
		c.OnUsageError = onUsageError
		c.Flags = append(c.Flags, commonFlags()...)
	}
	return app
}

func onUsageError(_ *cli.Context, err error, _ bool) error { return usageError{err} }

func commonFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "hub", Usage: "use this built bauxite-dispatch, `FILE`, rather than building one"},
		&cli.StringFlag{Name: "state", Usage: "keep hub and nodes in `DIR` and find them there"},
		&cli.StringSliceFlag{Name: "env", Usage: "set `NAME=VALUE` in the hub's environment; repeatable"},
		&cli.IntFlag{Name: "sites", Usage: "divide the nodes over `N` scopes (default: none)"},
		&cli.DurationFlag{Name: "timeout", Value: 15 * time.Minute, Usage: "give up after `D`"},
		&cli.BoolFlag{Name: "check", Usage: "exit with 3 where a goal is missed"},
		&cli.BoolFlag{Name: "json", Usage: "print JSON, whose fields are stable"},
		&cli.BoolFlag{Name: "quiet", Usage: "no progress on standard error"},
	}
}

func nodesFlag(n int) cli.Flag {
	return &cli.IntFlag{Name: "nodes", Value: n, Usage: "how many nodes, `N`"}
}

// measure opens a lab, has f measure in it and prints what came out.
func measure[T any](c *cli.Context, f func(context.Context, *hubload.Lab) (T, error), text func(io.Writer, T) bool) error {
	if c.NArg() > 0 {
		return usageError{fmt.Errorf("%s: unexpected argument %q", c.Command.Name, c.Args().First())}
	}
	if c.IsSet("nodes") && c.Int("nodes") < 1 {
		return usageError{errors.New("--nodes is at least 1")}
	}
	ctx, cancel := context.WithTimeoutCause(c.Context, c.Duration("timeout"), fmt.Errorf("not done within %v", c.Duration("timeout")))
	defer cancel()
	start := time.Now()
	progress := func(format string, args ...any) {
		if !c.Bool("quiet") {
			_, _ = fmt.Fprintf(c.App.ErrWriter, "%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
		}
	}
	bin := c.String("hub")
	if bin == "" {
		progress("building the hub")
		b, err := build.Build(ctx, nil)
		if err != nil {
			return err
		}
		bin = b.Dispatch
	}
	lab, err := hubload.Open(ctx, hubload.Config{
		Bin: bin, Dir: c.String("state"), Env: c.StringSlice("env"), Sites: c.Int("sites"),
		Concurrency: c.Int("concurrency"), Progress: progress,
	})
	if err != nil {
		return err
	}
	defer lab.Close()
	res, err := f(ctx, lab)
	if err != nil {
		return err
	}
	var met bool
	if c.Bool("json") {
		met = text(io.Discard, res)
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		err = e.Encode(res)
	} else {
		met = text(c.App.Writer, res)
	}
	if err == nil && !met && c.Bool("check") {
		err = errMissed
	}
	return err
}
