// SPDX-License-Identifier: Apache-2.0

// Command bx holds the logic behind the Makefile: it installs what a build
// needs, checks the tree and runs the tests, each as a named step. Run it as
//
//	GOWORK=off go -C tools run ./cmd/bx COMMAND
//
// or, better, through make. It needs nothing but the standard library, so it
// starts before anything is installed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/bauxite-mesh/bauxite/tools/internal/publish"
	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// env is what every command works with.
type env struct {
	root    string
	modules []string // of go.work, in its order
	run     *step.Runner
	ci      bool // a missing tool is an error, not a reason to skip
	args    []string
}

// do runs one step. What follows it does not depend on it.
func (e *env) do(ctx context.Context, name string, f func(context.Context, *step.Log) error) {
	e.run.Run(ctx, name, f)
}

// path joins names to the root of the workspace.
func (e *env) path(names ...string) string {
	return filepath.Join(append([]string{e.root}, names...)...)
}

type command struct {
	name, help string
	run        func(ctx context.Context, e *env) error
}

func commands() []command {
	return []command{
		{"setup", "install the Debian packages that tests and the demo need", steps((*env).setup)},
		{"tools", "install the pinned tools into .bin", steps((*env).tools)},
		{"build", "build every module", steps((*env).build)},
		{"test", "everything that must hold before a change lands", steps(
			(*env).setup, (*env).tools, (*env).hygiene, (*env).generateCheck, (*env).tidyCheck, (*env).lint,
			(*env).unit, (*env).race, (*env).fips, (*env).crossBuild, (*env).endToEnd, (*env).rehearse)},
		{"unit", "unit tests of every module, without the race detector", steps((*env).unit)},
		{"race", "unit tests of every module, with the race detector", steps((*env).race)},
		{"fips", "tests of the FIPS build", steps((*env).fips)},
		{"e2e", "tests of the built binaries in network namespaces", steps((*env).setup, (*env).endToEnd)},
		{"lint", "linters of Go and of the wire contracts", steps((*env).tools, (*env).lint)},
		{"generate", "write the stubs anew; -check only compares", generateCommand},
		{"tidycheck", "each module by itself: tidy, builds, vets", steps((*env).tidyCheck)},
		{"crossbuild", "compile for the other platforms", steps((*env).crossBuild)},
		{"hygiene", "rules of the tree", steps((*env).hygiene)},
		{"fuzz", "every fuzz target for FUZZ_SECONDS each (default 30)", steps((*env).fuzz)},
		{"rehearse", "rehearse a release, offline", steps((*env).rehearse)},
		{"package", "Debian packages of the hub, into dist", steps((*env).debs)},
		{"proxies", "a node joins through each example proxy that is installed", steps((*env).proxies)},
		{"vuln", "known vulnerabilities; -require fails where the database is out of reach", vulnCommand},
		{"absent", "say that a target has no content yet, and fail", absent},
	}
}

// steps makes a command of parts; a part that fails does not stop the rest.
func steps(parts ...func(*env, context.Context)) func(context.Context, *env) error {
	return func(ctx context.Context, e *env) error {
		for _, part := range parts {
			part(e, ctx)
		}
		return e.run.Finish(ctx)
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := realMain(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bx:", err)
		stop()
		os.Exit(1)
	}
}

func realMain(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bx", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: bx COMMAND")
		for _, c := range commands() {
			fmt.Fprintf(flags.Output(), "  %-11s %s\n", c.name, c.help)
		}
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	i := slices.IndexFunc(commands(), func(c command) bool { return c.name == flags.Arg(0) })
	if i < 0 {
		flags.Usage()
		return fmt.Errorf("no command %q", flags.Arg(0))
	}
	// The caller switches the workspace off to start this program; what the
	// program starts decides for itself.
	os.Unsetenv("GOWORK")
	trimPath()
	root, err := repo.Root(".")
	if err != nil {
		return err
	}
	modules, err := repo.Uses(ctx, root)
	if err != nil {
		return err
	}
	e := &env{
		root: root, modules: modules, run: step.NewRunner(os.Stdout),
		ci: os.Getenv("CI") == "true", args: flags.Args()[1:],
	}
	return commands()[i].run(ctx, e)
}

// trimPath makes every go command use -trimpath, so that all of them, in
// every folder and clone, share one build cache.
func trimPath() {
	if f := os.Getenv("GOFLAGS"); !strings.Contains(f, "-trimpath") {
		os.Setenv("GOFLAGS", strings.TrimSpace(f+" -trimpath"))
	}
}

// absent reports that a target of the Makefile waits for its content.
func absent(_ context.Context, e *env) error {
	return fmt.Errorf("make %s has no content yet; see the status section of README.md", strings.Join(e.args, " "))
}

func (e *env) rehearse(ctx context.Context) {
	publish.Rehearse(ctx, e.run, e.root)
}
