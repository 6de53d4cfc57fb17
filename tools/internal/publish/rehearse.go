// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// Rehearse releases the commit that root has checked out, from a clone and
// to nobody, and then uses the release as a stranger would. It needs no
// network once the module cache is full: the clone stands in for the public
// address, and everything else comes out of that cache. It reports whether all of it worked.
func Rehearse(ctx context.Context, run *step.Runner, root string) bool {
	var (
		r    rehearsal
		plan Plan
	)
	ok := run.Run(ctx, "rehearse: clone HEAD", func(ctx context.Context, log *step.Log) (err error) {
		r, err = newRehearsal(ctx, log, root)
		if err != nil {
			return err
		}
		plan, err = NewPlan(r.clone)
		return err
	})
	defer r.remove()
	ok = ok && run.Run(ctx, "rehearse: modules are tidy", func(ctx context.Context, log *step.Log) error {
		// Asking also fills the module cache, which is all the proxy there is.
		for _, t := range slices.Concat(plan.Required, plan.Installed) {
			c := step.Cmd{Dir: filepath.Join(r.clone, t.Module), Env: []string{"GOWORK=off"}}
			if err := c.Run(ctx, log, "go", "mod", "tidy", "-diff"); err != nil {
				return err
			}
			if slices.Contains(plan.Required, t) {
				if err := c.Run(ctx, log, "go", "list", "-m", "all"); err != nil {
					return err
				}
			}
		}
		return nil
	})
	ok = ok && run.Run(ctx, "rehearse: tag what others require", func(ctx context.Context, log *step.Log) error {
		return TagAll(ctx, log, r.clone, plan.Required)
	})
	ok = ok && run.Run(ctx, "rehearse: tag what others install", func(ctx context.Context, log *step.Log) error {
		if err := Detach(ctx, log, r.clone, r.env, plan.Installed); err != nil {
			return err
		}
		return TagAll(ctx, log, r.clone, plan.Installed)
	})
	if !ok {
		return false
	}
	for _, t := range plan.Required {
		if t.Module == "conduit" {
			ok = Consume(ctx, run, r.scratch, r.env, t)
		}
	}
	return Install(ctx, run, r.scratch, r.env, plan.Installed) && ok
}

// rehearsal is the stage: a clone that plays the public repository, and a
// folder outside the workspace that plays the stranger's machine.
type rehearsal struct {
	dir, clone, scratch string
	env                 []string
}

func newRehearsal(ctx context.Context, log *step.Log, root string) (rehearsal, error) {
	dir, err := os.MkdirTemp("", "bauxite-rehearse-")
	if err != nil {
		return rehearsal{}, err
	}
	r := rehearsal{dir: dir, clone: filepath.Join(dir, "bauxite"), scratch: filepath.Join(dir, "scratch")}
	if err := os.Mkdir(r.scratch, 0o755); err != nil {
		return r, err
	}
	// Asked before the environment says otherwise.
	cache, err := step.Cmd{Dir: root}.Output(ctx, log, "go", "env", "GOMODCACHE")
	if err != nil {
		return r, err
	}
	proxy := "file://" + filepath.ToSlash(filepath.Join(strings.TrimSpace(cache), "cache", "download"))
	r.env = stage(r, proxy)

	git := step.Cmd{Dir: root}
	if dirty, err := git.Output(ctx, log, "git", "status", "--porcelain"); err != nil {
		return r, err
	} else if dirty != "" {
		log.Note("HEAD only: the tree has changes that are not committed")
	}
	if err := git.Run(ctx, log, "git", "clone", "-q", "--no-tags", root, r.clone); err != nil {
		return r, err
	}
	for _, kv := range [][2]string{{"user.name", "Release rehearsal"}, {"user.email", "rehearsal@localhost"}, {"commit.gpgsign", "false"}, {"tag.gpgsign", "false"}} {
		if err := (step.Cmd{Dir: r.clone}).Run(ctx, log, "git", "config", kv[0], kv[1]); err != nil {
			return r, err
		}
	}
	return r, nil
}

// stage is the environment in which the clone is the public repository.
func stage(r rehearsal, proxy string) []string {
	return []string{
		"GOWORK=off",
		"GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_KEY_0=url.file://" + r.clone + ".insteadOf",
		"GIT_CONFIG_VALUE_0=" + repo.Remote,
		"GOPRIVATE=" + repo.Prefix + "/*",
		// A cache of its own: the shared one may hold these versions from the
		// rehearsal before. Writable, so that it can be removed.
		"GOMODCACHE=" + filepath.Join(r.dir, "modcache"),
		"GOFLAGS=" + strings.TrimSpace(os.Getenv("GOFLAGS")+" -modcacherw"),
		"GOPROXY=" + proxy + ",off",
		// The hashes were checked when the modules entered the shared cache.
		"GONOSUMDB=*",
		"GOTOOLCHAIN=local",
	}
}

func (r rehearsal) remove() {
	if r.dir == "" {
		return
	}
	if err := os.RemoveAll(r.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "remove the rehearsal:", err)
	}
}
