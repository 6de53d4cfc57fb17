// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// debian lists the packages that tests and the demo use, and why. Go, make,
// git and node are what a person installs before typing make.
var debian = []struct{ name, command, why string }{
	{"gcc", "gcc", "the race detector needs cgo"},
	{"libc6-dev", "", "the race detector needs cgo"},
	{"iputils-ping", "ping", "the demo and the tests ping through the tunnel"},
	{"systemd", "systemd-analyze", "the hub's unit is checked with it"},
	{"wireguard-go", "wireguard-go", "the lab measures it beside Bauxite"},
	{"wireguard-tools", "wg", "the lab measures wireguard-go beside Bauxite"},
	{"nebula", "nebula", "the lab measures it beside Bauxite"},
}

// setup installs the packages that are missing when it may, and otherwise
// says what to install.
func (e *env) setup(ctx context.Context) {
	e.do(ctx, "setup: system packages", func(ctx context.Context, log *step.Log) error {
		if _, err := exec.LookPath("dpkg-query"); err != nil {
			return missing(e.ci, lackingCommands(), "install them with your package manager")
		}
		lacking := lackingPackages(ctx)
		if len(lacking) == 0 {
			return nil
		}
		if os.Geteuid() != 0 {
			return missing(e.ci, lacking, "run: sudo apt-get install -y "+strings.Join(lacking, " "))
		}
		apt := step.Cmd{Env: []string{"DEBIAN_FRONTEND=noninteractive"}}
		if err := apt.Run(ctx, log, "apt-get", "-q", "update"); err != nil {
			log.Printf("going on with the package lists at hand")
		}
		args := append([]string{"-q", "install", "-y", "--no-install-recommends"}, lacking...)
		if err := apt.Run(ctx, log, "apt-get", args...); err != nil {
			return fmt.Errorf("install %s: %w", strings.Join(lacking, ", "), err)
		}
		log.Note("installed %s", strings.Join(lacking, ", "))
		return nil
	})
}

// missing is the outcome when something lacks and cannot be installed: an
// error in CI; elsewhere a hint, because the tests that need it skip.
func missing(ci bool, lacking []string, hint string) error {
	if len(lacking) == 0 {
		return nil
	}
	text := fmt.Sprintf("lacking %s; %s", strings.Join(lacking, ", "), hint)
	if ci {
		return errors.New(text)
	}
	return step.Skip(text)
}

func lackingPackages(ctx context.Context) []string {
	var lacking []string
	for _, p := range debian {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", p.name).Output()
		if err != nil || string(out) != "installed" {
			lacking = append(lacking, p.name)
		}
	}
	return lacking
}

func lackingCommands() []string {
	var lacking []string
	for _, p := range debian {
		if p.command == "" {
			continue
		}
		if _, err := exec.LookPath(p.command); err != nil {
			lacking = append(lacking, p.command)
		}
	}
	return lacking
}
