// SPDX-License-Identifier: Apache-2.0

// Command demo shows Bauxite's main job on one machine: it builds the two
// programs, makes a small internet of network namespaces with a hub and two
// robots behind NATs, joins both, and lets them ping and move a file through
// the tunnel. DEMO_SECONDS bounds the whole (default 180). Ctrl-C ends it; in
// no case does anything stay behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/netns"
)

const (
	secondsEnv     = "DEMO_SECONDS"
	defaultSeconds = 180
)

var (
	errTime        = errors.New("time is up")
	errInterrupted = errors.New("interrupted")
)

func main() {
	netns.Reexec()
	os.Exit(run())
}

func run() int {
	s := newScreen(os.Stdout)
	limit, err := timeLimit(os.Getenv(secondsEnv))
	if err != nil {
		s.fail(err)
		return 2
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	ctx, stopTimer := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w after %v (%s)", errTime, limit, secondsEnv))
	defer stopTimer()
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-sig
		signal.Stop(sig) // a second one ends the process; its supervisor cleans up
		cancel(errInterrupted)
	}()

	began := time.Now()
	d := &demo{screen: s}
	err = d.run(ctx)
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx) // what failed then failed because of it
	}
	switch {
	case errors.Is(err, errInterrupted):
		s.endLine()
		s.say("Interrupted; everything is removed.")
		return 130
	case err != nil:
		s.fail(err)
		if d.tails != "" {
			s.say("%s", d.tails)
		}
		return 1
	}
	s.say("Done in %.0f s; everything is removed.", time.Since(began).Seconds())
	return 0
}

// timeLimit reads DEMO_SECONDS.
func timeLimit(text string) (time.Duration, error) {
	if text == "" {
		return defaultSeconds * time.Second, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 86400 {
		return 0, fmt.Errorf("%s=%q: want a whole number of seconds from 1 to 86400", secondsEnv, text)
	}
	return time.Duration(n) * time.Second, nil
}

// run builds and then plays inside a lab.
func (d *demo) run(ctx context.Context) error {
	d.screen.title("Bauxite demo: two robots behind NATs meet through a hub")
	if err := netns.Usable(); err != nil {
		return fmt.Errorf("this machine cannot run the demo: %w; run it as root", err)
	}
	err := d.step("building bauxite and bauxite-dispatch", func(note func(string, ...any)) error {
		n := 0
		var err error
		d.bin, err = build.Build(ctx, func(pkg string) {
			n++
			note("%d packages, %s", n, pkg)
		})
		note("")
		return err
	})
	if err != nil {
		return err
	}
	return netns.Run(ctx, "demo", func(lab *netns.Lab) error {
		err := d.play(ctx, lab)
		if err != nil && !errors.Is(context.Cause(ctx), errInterrupted) {
			d.tails = lab.Tails(12)
		}
		return err
	})
}
