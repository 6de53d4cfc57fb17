// SPDX-License-Identifier: Apache-2.0

// Command hubload measures bauxite-dispatch under the load of a large fleet: it
// builds and starts a hub, lets simulated nodes join it over loopback and holds
// them connected. Standard output is the answer, progress goes to standard error.
// `hubload help` lists the measurements.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

func main() {
	// The generator has memory to spare and shares its cores with the hub.
	debug.SetGCPercent(400)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args))
}

// run returns the exit code: 0 done, 1 failed, 2 wrong usage, 3 a goal was missed
// and --check given, 130 interrupted.
func run(ctx context.Context, args []string) int {
	err := newApp(os.Stdout, os.Stderr).RunContext(ctx, args)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "hubload: interrupted")
		return 130
	}
	fmt.Fprintf(os.Stderr, "hubload: %v\n", err)
	switch {
	case errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "hubload: hint: hubload help")
		return 2
	case errors.Is(err, errMissed):
		return 3
	}
	return 1
}
