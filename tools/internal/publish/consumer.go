// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"bufio"
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// consumerProgram is what a stranger writes to embed conduit.
//
//go:embed testdata/consumer/main.go.txt
var consumerProgram []byte

// consumerModules is every module that a user of conduit gets into the graph.
//
//go:embed testdata/consumer/modules.txt
var consumerModules string

// Consume does what a third party does: get conduit into a module of its own
// in dir, build a program with it, run it, and look at what came along.
func Consume(ctx context.Context, run *step.Runner, dir string, env []string, conduit Tag) bool {
	c := step.Cmd{Dir: dir, Env: env}
	ok := run.Run(ctx, "consumer: go get "+conduit.String(), func(ctx context.Context, log *step.Log) error {
		if err := os.WriteFile(filepath.Join(dir, "main.go"), consumerProgram, 0o644); err != nil {
			return err
		}
		if err := c.Run(ctx, log, "go", "mod", "init", "example.com/consumer"); err != nil {
			return err
		}
		if err := c.Run(ctx, log, "go", "get", conduit.Path()+"@"+conduit.Version); err != nil {
			return err
		}
		return c.Run(ctx, log, "go", "mod", "tidy")
	})
	if !ok {
		return false
	}
	ran := run.Run(ctx, "consumer: build and run", func(ctx context.Context, log *step.Log) error {
		program := filepath.Join(dir, "consumer")
		if err := c.Run(ctx, log, "go", "build", "-o", program, "."); err != nil {
			return err
		}
		out, err := c.Output(ctx, log, program)
		if err != nil {
			return err
		}
		if want := "node1 received 33 bytes"; !strings.Contains(out, want) { // 28 of headers and "hello"
			return fmt.Errorf("the program printed %q, want %q in it", out, want)
		}
		log.Note("%s", strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
		return nil
	})
	listed := run.Run(ctx, "consumer: modules in its graph", func(ctx context.Context, log *step.Log) error {
		out, err := c.Output(ctx, log, "go", "list", "-m", "-f", "{{if not .Main}}{{.Path}}{{end}}", "all")
		if err != nil {
			return err
		}
		added, gone := diffModules(consumerModules, strings.Fields(out))
		if len(added)+len(gone) > 0 {
			return fmt.Errorf("go list -m all differs from modules.txt: new [%s], gone [%s]", strings.Join(added, " "), strings.Join(gone, " "))
		}
		log.Note("%d", len(strings.Fields(out)))
		return nil
	})
	return ran && listed
}

// diffModules compares the allow-list's text with what there is.
func diffModules(list string, have []string) (added, gone []string) {
	allowed := map[string]bool{}
	s := bufio.NewScanner(strings.NewReader(list))
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); line != "" && !strings.HasPrefix(line, "#") {
			allowed[line] = true
		}
	}
	for _, m := range have {
		if !allowed[m] {
			added = append(added, m)
		}
		delete(allowed, m)
	}
	for m := range allowed {
		gone = append(gone, m)
	}
	slices.Sort(gone)
	return added, gone
}

// Install installs each module's command by path and version into dir, and
// asks it for its version.
func Install(ctx context.Context, run *step.Runner, dir string, env []string, tags []Tag) bool {
	bin := filepath.Join(dir, "bin")
	c := step.Cmd{Dir: dir, Env: append(slices.Clone(env), "GOBIN="+bin)}
	good := true
	for _, t := range tags {
		name := Binaries[t.Module]
		path := t.Path() + "/cmd/" + name + "@" + t.Version
		good = run.Run(ctx, "go install "+strings.TrimPrefix(path, repo.Prefix+"/"), func(ctx context.Context, log *step.Log) error {
			if err := c.Run(ctx, log, "go", "install", path); err != nil {
				return err
			}
			return checkBinary(ctx, log, c, filepath.Join(bin, name+exe()), t)
		}) && good
	}
	return good
}

// checkBinary asks the binary and the go command what it was built from: no
// sibling may come from a folder.
func checkBinary(ctx context.Context, log *step.Log, c step.Cmd, binary string, t Tag) error {
	out, err := c.Output(ctx, log, binary, "version")
	if err != nil {
		return err
	}
	if !strings.Contains(out, strings.TrimPrefix(t.Version, "v")) {
		return fmt.Errorf("%s version says %q, want %s in it", filepath.Base(binary), strings.TrimSpace(out), t.Version)
	}
	built, err := c.Output(ctx, log, "go", "version", "-m", binary)
	if err != nil {
		return err
	}
	if strings.Contains(built, "\t=>\t") || strings.Contains(built, "(devel)") {
		return fmt.Errorf("%s is built from a replaced module:\n%s", filepath.Base(binary), built)
	}
	log.Note("%s", strings.TrimSpace(out))
	return nil
}

func exe() string {
	if runtime.GOOS == "windows" {
		return ".exe"
	}
	return ""
}
