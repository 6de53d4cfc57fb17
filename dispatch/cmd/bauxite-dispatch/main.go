// SPDX-License-Identifier: Apache-2.0

// Command bauxite-dispatch is the hub of a Bauxite mesh.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
