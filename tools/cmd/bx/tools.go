// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// tools installs the pinned tools into .bin. They come as binaries because
// `go tool -modfile` is refused inside a workspace.
func (e *env) tools(ctx context.Context) {
	// Building golangci-lint takes minutes once, so say what the wait is for.
	e.do(ctx, "tools: Go (minutes, once)", func(ctx context.Context, log *step.Log) error {
		return e.unlessFresh("go-tools", []string{"tools/go.mod", "tools/go.sum"}, func() error {
			// Without the workspace, and with one cache whatever the caller's flags.
			c := step.Cmd{Env: []string{"GOWORK=off", "GOBIN=" + e.path(".bin")}}
			return c.Run(ctx, log, "go", "-C", e.path("tools"), "install", "tool")
		})
	})
	e.do(ctx, "tools: buf", func(ctx context.Context, log *step.Log) error {
		return e.unlessFresh("buf", []string{"tools/package.json", "tools/package-lock.json"}, func() error {
			return e.installBuf(ctx, log)
		})
	})
}

// installBuf takes buf from npm, the fastest way to have it: the package for
// this platform holds the binary as it is, and no install script runs. Where
// none is pinned, Go builds the same version in a minute or two.
func (e *env) installBuf(ctx context.Context, log *step.Log) error {
	version, pinned, err := bufPin(e.path("tools", "package.json"))
	if err != nil {
		return err
	}
	if !pinned {
		c := step.Cmd{Dir: e.path("tools"), Env: []string{"GOWORK=off", "GOBIN=" + e.path(".bin")}}
		return c.Run(ctx, log, "go", "install", "github.com/bufbuild/buf/cmd/buf@v"+version)
	}
	c := step.Cmd{Dir: e.path("tools")}
	if err := c.Run(ctx, log, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		return err
	}
	return installFile(e.path("tools", "node_modules", bufPackage(), "bin", "buf"), e.path(".bin", "buf"))
}

// bufPackage is the npm package with buf's binary for this platform.
func bufPackage() string {
	arch := map[string]string{"amd64": "x64", "arm64": "aarch64"}[runtime.GOARCH]
	return "@bufbuild/buf-" + runtime.GOOS + "-" + arch
}

// bufPin reads the pinned version, and whether this platform's package is
// among those pinned.
func bufPin(name string) (version string, here bool, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", false, err
	}
	var pins struct {
		Optional map[string]string `json:"optionalDependencies"`
	}
	if err := json.Unmarshal(b, &pins); err != nil {
		return "", false, fmt.Errorf("read %s: %w", name, err)
	}
	for _, v := range pins.Optional {
		if version != "" && v != version {
			return "", false, fmt.Errorf("read %s: buf at %s and at %s", name, version, v)
		}
		version = v
	}
	if version == "" {
		return "", false, fmt.Errorf("read %s: no buf", name)
	}
	_, here = pins.Optional[bufPackage()]
	return version, here, nil
}

// unlessFresh runs install unless .bin holds what the pins say: a stamp keeps
// the hash of the files that pin, and of the Go release that built.
func (e *env) unlessFresh(name string, pins []string, install func() error) error {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version())
	for _, p := range pins {
		b, err := os.ReadFile(e.path(p))
		if err != nil {
			return err
		}
		h.Write(b)
	}
	want := fmt.Sprintf("%x\n", h.Sum(nil))
	stamp := e.path(".bin", "."+name+".stamp")
	if have, err := os.ReadFile(stamp); err == nil && string(have) == want {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(e.path(".bin"), 0o755); err != nil {
		return err
	}
	if err := install(); err != nil {
		return err
	}
	return os.WriteFile(stamp, []byte(want), 0o644)
}

// installFile copies an executable and renames it into place, so that a copy
// that is running now is not disturbed.
func installFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(to), ".install-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(b); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Chmod(tmp.Name(), 0o755); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), to)
}
