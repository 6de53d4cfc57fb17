// SPDX-License-Identifier: Apache-2.0

// Package build makes the binaries that the lab runs, once per process.
package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// BinEnv names a directory with prebuilt binaries, which then are used as
// they are.
const BinEnv = "BAUXITE_BIN"

// testTimeout bounds the build of a test process, from an empty cache.
const testTimeout = 10 * time.Minute

// Binaries are the paths of the two programs.
type Binaries struct {
	Bauxite  string
	Dispatch string
}

// targets are the programs with the workspace folder each is built from.
var targets = []struct{ name, dir string }{
	{"bauxite", "edge"},
	{"bauxite-dispatch", "dispatch"},
}

// TB is the part of testing.TB that ForTest needs.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// ForTest returns the binaries, built at its first call in this process, and
// fails the test when they do not build.
func ForTest(tb TB) Binaries {
	tb.Helper()
	b, err := once()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return b
}

var once = sync.OnceValues(func() (Binaries, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	return Build(ctx, nil)
})

// Build makes both binaries with -trimpath, into a folder of the user's cache
// that belongs to this working copy. It calls progress, if not nil, with each
// package as it compiles; packages that are cached are not mentioned. When
// BinEnv is set it only checks that both are there.
func Build(ctx context.Context, progress func(pkg string)) (Binaries, error) {
	if dir := os.Getenv(BinEnv); dir != "" {
		return prebuilt(dir)
	}
	root, err := Root()
	if err != nil {
		return Binaries{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "bauxite-lab", fmt.Sprintf("%x", sha256.Sum256([]byte(root)))[:12])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("make folder for binaries: %w", err)
	}
	for _, t := range targets {
		if err := buildOne(ctx, filepath.Join(root, t.dir), t.name, dir, progress); err != nil {
			return Binaries{}, err
		}
	}
	return prebuilt(dir)
}

func prebuilt(dir string) (Binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Binaries{}, fmt.Errorf("find binaries: %w", err)
	}
	for _, t := range targets {
		if _, err := os.Stat(filepath.Join(dir, t.name)); err != nil {
			return Binaries{}, fmt.Errorf("find binaries: %w", err)
		}
	}
	return Binaries{Bauxite: filepath.Join(dir, targets[0].name), Dispatch: filepath.Join(dir, targets[1].name)}, nil
}

// Root finds the workspace: the nearest folder with go.work, from the working
// directory up.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find workspace: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find workspace: no go.work here or above")
		}
		dir = parent
	}
}

// buildOne builds beside the target and renames, so that processes which
// build at the same time, and ones that run the old binary, do not collide.
func buildOne(ctx context.Context, module, name, dir string, progress func(string)) error {
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-v", "-o", filepath.Join(tmp, name), "./cmd/"+name)
	cmd.Dir = module
	// An interrupted go command ends its compilers too.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var said bytes.Buffer
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		switch text := lines.Text(); {
		case strings.ContainsAny(text, " :"):
			said.WriteString(text + "\n")
		case progress != nil: // the name of a package
			progress(text)
		}
	}
	_, _ = io.Copy(io.Discard, out) // whatever a very long line left
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, tail(said.String(), 20))
	}
	if err := os.Rename(filepath.Join(tmp, name), filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	return nil
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
