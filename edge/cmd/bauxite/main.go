// SPDX-License-Identifier: Apache-2.0

// Command bauxite makes a machine a node of an encrypted mesh.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/bauxite-mesh/bauxite/edge/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	app := &cli.App{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	os.Exit(app.Main(ctx, os.Args))
}
