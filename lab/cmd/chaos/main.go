// SPDX-License-Identifier: Apache-2.0

// Command chaos kills a hub under load again and again and checks that it loses
// nothing; see package chaos.
//
//	chaos [-kills N] [-seed S] [-json] [-dir DIR]
//
// CHAOS_KILLS and CHAOS_SEED stand for the first two. Progress goes to standard
// error, the report to standard output. The exit code is 1 where a promise was
// broken; the data directory is then kept.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/chaos"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	cfg := chaos.Config{Kills: 1000, Progress: os.Stderr, Require: chaos.AllOps}
	if err := fromEnv("CHAOS_KILLS", func(s string) (err error) { cfg.Kills, err = strconv.Atoi(s); return err }); err != nil {
		return err
	}
	if err := fromEnv("CHAOS_SEED", func(s string) (err error) { cfg.Seed, err = strconv.ParseUint(s, 10, 64); return err }); err != nil {
		return err
	}
	fs := flag.NewFlagSet("chaos", flag.ExitOnError)
	fs.IntVar(&cfg.Kills, "kills", cfg.Kills, "how often the hub is killed")
	fs.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "seed of all choices; 0 takes one from the clock")
	fs.StringVar(&cfg.Dir, "dir", "", "where the data directory is made; a short path")
	asJSON := fs.Bool("json", false, "print the report as JSON")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	b, err := build.Build(ctx, nil)
	if err != nil {
		return err
	}
	cfg.Bin = b.Dispatch
	rep, err := chaos.Run(ctx, cfg)
	if rep == nil {
		return err
	}
	if *asJSON {
		return errors.Join(rep.WriteJSON(os.Stdout), err)
	}
	return errors.Join(rep.WriteText(os.Stdout), err)
}

func fromEnv(name string, set func(string) error) error {
	s := os.Getenv(name)
	if s == "" {
		return nil
	}
	if err := set(s); err != nil {
		return fmt.Errorf("read %s=%q: want a number", name, s)
	}
	return nil
}
