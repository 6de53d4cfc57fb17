// SPDX-License-Identifier: Apache-2.0

// Command release makes a release out of the commit that is checked out.
// RELEASING.md says when to run which step:
//
//	GOWORK=off go -C tools run ./release required [-push]
//	GOWORK=off go -C tools run ./release consumer
//	GOWORK=off go -C tools run ./release installed [-push]
//
// A tag is forever. So each step rehearses or checks first, and without
// -push it leaves the tags in this clone, where they can still be deleted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/publish"
	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := realMain(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		stop()
		os.Exit(1)
	}
}

func realMain(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("want required, consumer or installed; see RELEASING.md")
	}
	flags := flag.NewFlagSet("release "+args[0], flag.ContinueOnError)
	push := flags.Bool("push", false, "push the tags to origin; this cannot be taken back")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	os.Unsetenv("GOWORK")
	root, err := repo.Root(".")
	if err != nil {
		return err
	}
	plan, err := publish.NewPlan(root)
	if err != nil {
		return err
	}
	r := &release{root: root, plan: plan, push: *push, run: step.NewRunner(os.Stdout)}
	switch args[0] {
	case "required":
		r.required(ctx)
	case "consumer":
		r.consumer(ctx)
	case "installed":
		r.installed(ctx)
	default:
		return fmt.Errorf("no step %q; want required, consumer or installed", args[0])
	}
	return r.run.Finish(ctx)
}

type release struct {
	root string
	plan publish.Plan
	push bool
	run  *step.Runner
}

// required rehearses the whole release and then tags what others require.
func (r *release) required(ctx context.Context) {
	if !r.ready(ctx) || !publish.Rehearse(ctx, r.run, r.root) {
		return
	}
	r.tag(ctx, r.root, r.plan.Required)
}

// consumer does with the pushed tags what a stranger does, through whatever
// proxy the go command is set to.
func (r *release) consumer(ctx context.Context) bool {
	dir, err := os.MkdirTemp("", "bauxite-consumer-")
	if err != nil {
		return r.run.Run(ctx, "consumer", func(context.Context, *step.Log) error { return err })
	}
	defer os.RemoveAll(dir)
	for _, t := range r.plan.Required {
		if t.Module == "conduit" {
			return publish.Consume(ctx, r.run, dir, []string{"GOWORK=off"}, t)
		}
	}
	return r.run.Run(ctx, "consumer", func(context.Context, *step.Log) error {
		return errors.New("find conduit in versions.yaml: it is in no set")
	})
}

// installed tags what others install, on a commit without replaces that is
// made in a work tree of its own.
func (r *release) installed(ctx context.Context) {
	if !r.ready(ctx) || !r.consumer(ctx) {
		return
	}
	dir, err := os.MkdirTemp("", "bauxite-release-")
	if err != nil {
		r.run.Run(ctx, "work tree", func(context.Context, *step.Log) error { return err })
		return
	}
	tree := filepath.Join(dir, "bauxite")
	git := step.Cmd{Dir: r.root}
	ok := r.run.Run(ctx, "work tree", func(ctx context.Context, log *step.Log) error {
		return git.Run(ctx, log, "git", "worktree", "add", "-q", "--detach", tree, "HEAD")
	})
	if ok {
		ok = r.run.Run(ctx, "commit without replaces", func(ctx context.Context, log *step.Log) error {
			return publish.Detach(ctx, log, tree, nil, r.plan.Installed)
		})
		if ok {
			r.tag(ctx, tree, r.plan.Installed)
		}
		r.run.Run(ctx, "remove work tree", func(ctx context.Context, log *step.Log) error {
			return git.Run(ctx, log, "git", "worktree", "remove", "--force", tree)
		})
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "remove the work tree:", err)
	}
}

// ready wants a clean main, a section for the version in CHANGELOG.md, and
// none of the tags that this step makes.
func (r *release) ready(ctx context.Context) bool {
	return r.run.Run(ctx, "ready to release", func(ctx context.Context, log *step.Log) error {
		git := step.Cmd{Dir: r.root}
		status, err := git.Output(ctx, log, "git", "status", "--porcelain")
		if err != nil {
			return err
		}
		if status != "" {
			return fmt.Errorf("the tree has changes that are not committed:\n%s", status)
		}
		if err := git.Run(ctx, log, "git", "fetch", "-q", "origin", "main"); err != nil {
			return err
		}
		if err := git.Run(ctx, log, "git", "merge-base", "--is-ancestor", "HEAD", "FETCH_HEAD"); err != nil {
			return errors.New("HEAD is not on origin's main: merge first")
		}
		changes, err := os.ReadFile(filepath.Join(r.root, "CHANGELOG.md"))
		if err != nil {
			return err
		}
		for _, t := range slices.Concat(r.plan.Required, r.plan.Installed) {
			if v := strings.TrimPrefix(t.Version, "v"); !strings.Contains(string(changes), "\n## ["+v+"]") {
				return fmt.Errorf("CHANGELOG.md has no section [%s]", v)
			}
		}
		return nil
	})
}

func (r *release) tag(ctx context.Context, dir string, tags []publish.Tag) {
	names := make([]string, len(tags))
	for i, t := range tags {
		names[i] = t.String()
	}
	ok := r.run.Run(ctx, "tag "+strings.Join(names, " "), func(ctx context.Context, log *step.Log) error {
		return publish.TagAll(ctx, log, dir, tags)
	})
	if !ok {
		return
	}
	args := append([]string{"push", "--atomic", "origin"}, names...)
	if !r.push {
		fmt.Printf("not pushed; to push: git %s\n", strings.Join(args, " "))
		return
	}
	r.run.Run(ctx, "push tags", func(ctx context.Context, log *step.Log) error {
		return step.Cmd{Dir: dir}.Run(ctx, log, "git", args...)
	})
}
