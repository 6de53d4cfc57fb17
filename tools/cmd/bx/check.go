// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// alone switches the workspace off, as it is for those who use one module.
var alone = []string{"GOWORK=off"}

func (e *env) build(ctx context.Context) {
	for _, m := range e.modules {
		e.do(ctx, "build: "+m, func(ctx context.Context, log *step.Log) error {
			return step.Cmd{Dir: e.path(m)}.Run(ctx, log, "go", "build", "./...")
		})
	}
}

// tidyCheck looks at each module without the workspace, which hides a missing
// require from everyone but the consumer.
func (e *env) tidyCheck(ctx context.Context) {
	dirs, err := repo.ModuleDirs(e.root)
	if err != nil {
		e.do(ctx, "tidy", func(context.Context, *step.Log) error { return err })
		return
	}
	for _, m := range dirs {
		e.do(ctx, "tidy, build and vet alone: "+m, func(ctx context.Context, log *step.Log) error {
			c := step.Cmd{Dir: e.path(m), Env: alone}
			if err := c.Run(ctx, log, "go", "mod", "tidy", "-diff"); err != nil {
				return err
			}
			if m == "tools/vuln" { // pins a tool and has no package
				return nil
			}
			if err := c.Run(ctx, log, "go", "build", "./..."); err != nil {
				return err
			}
			return c.Run(ctx, log, "go", "vet", "./...")
		})
	}
}

func (e *env) lint(ctx context.Context) {
	for _, m := range append(slices.Clip(e.modules), "tools") {
		e.do(ctx, "lint: "+m, func(ctx context.Context, log *step.Log) error {
			c := step.Cmd{Dir: e.path(m)}
			if m == "tools" {
				c.Env = alone
			}
			return c.Run(ctx, log, e.path(".bin", "golangci-lint"), "run", "--allow-parallel-runners", "./...")
		})
	}
	e.do(ctx, "lint: depguard rules bite", func(ctx context.Context, log *step.Log) error {
		c := step.Cmd{Dir: e.path("tools"), Env: append([]string{"CI=true"}, alone...), Tests: true}
		return c.Run(ctx, log, "go", "test", "-count=1", "-run", "^TestDepguard", ".")
	})
	buf := func(args ...string) func(context.Context, *step.Log) error {
		return func(ctx context.Context, log *step.Log) error {
			return step.Cmd{Dir: e.root}.Run(ctx, log, e.path(".bin", "buf"), args...)
		}
	}
	e.do(ctx, "buf lint", buf("lint"))
	e.do(ctx, "buf format", buf("format", "--diff", "--exit-code"))
	e.do(ctx, "buf breaking", func(ctx context.Context, log *step.Log) error {
		tags, err := step.Cmd{Dir: e.root}.Output(ctx, log, "git", "tag", "--merged", "HEAD", "--list", "proto/v*", "--sort=-v:refname")
		if err != nil {
			return err
		}
		tag, _, _ := strings.Cut(tags, "\n")
		if tag == "" {
			return step.Skip("no release to compare with")
		}
		return buf("breaking", "--against", ".git#tag="+tag)(ctx, log)
	})
}

// platform is a target that must compile.
type platform struct{ goos, arch string }

// crossBuild compiles what runs on robots and on the machines beside them.
func (e *env) crossBuild(ctx context.Context) {
	arm64 := platform{"linux", "arm64"}
	robots := []platform{arm64, {"linux", "arm"}, {"darwin", "arm64"}, {"windows", "amd64"}}
	for _, b := range []struct {
		module string
		on     []platform
	}{{"conduit", robots}, {"edge", robots}, {"dispatch", []platform{arm64}}} {
		for _, p := range b.on {
			e.do(ctx, fmt.Sprintf("cross-build: %s %s/%s", b.module, p.goos, p.arch), func(ctx context.Context, log *step.Log) error {
				c := step.Cmd{Dir: e.path(b.module), Env: []string{"GOOS=" + p.goos, "GOARCH=" + p.arch, "CGO_ENABLED=0"}}
				return c.Run(ctx, log, "go", "build", "./...")
			})
		}
	}
}

// hygiene runs the rules of the tree. Uncached: what they read is not in
// this module, so the go command cannot see it change.
func (e *env) hygiene(ctx context.Context) {
	e.do(ctx, "hygiene", func(ctx context.Context, log *step.Log) error {
		c := step.Cmd{Dir: e.path("tools"), Env: alone, Tests: true}
		return c.Run(ctx, log, "go", "test", "-count=1", "-shuffle=on", "./...")
	})
}
