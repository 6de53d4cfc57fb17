// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// What a FIPS build is made with; conduit/fips says what it means.
const (
	fipsModule = "GOFIPS140=v1.0.0"
	fipsTag    = "bauxite_fips"
)

// fips tests the FIPS build: its binaries start and refuse as they should, and talk
// in the mode that they ship with; the unit tests of what runs on a robot pass in the
// one where Go refuses what is not approved, those of the hub in the former.
func (e *env) fips(ctx context.Context) {
	dir, err := os.MkdirTemp("", "bauxite-fips-*")
	if err != nil {
		e.do(ctx, "fips", func(context.Context, *step.Log) error { return err })
		return
	}
	defer os.RemoveAll(dir)
	e.do(ctx, "fips: start of the binaries", func(ctx context.Context, log *step.Log) error { return e.fipsStart(ctx, log, dir) })
	e.do(ctx, "fips: two robots talk", func(ctx context.Context, log *step.Log) error {
		c := step.Cmd{Dir: e.path(endToEndModule), Env: []string{"BAUXITE_BIN=" + filepath.Join(dir, "good")}, Tests: true}
		return c.Run(ctx, log, "go", "test", "-count=1", "-timeout=5m", "-run=^TestTalk$/^same_LAN$", "./e2e")
	})
	for _, leg := range []struct {
		mode, module string
		args         []string
	}{
		{"only", "conduit", []string{"./..."}},
		{"only", "edge", []string{"./..."}},
		// The hub's tests speak TURN themselves, with MD5. Most of them are about its
		// store, and pass with any cryptography or none.
		{"on", "dispatch", []string{"-run=Incident|Join|Rotate|Renew|Signaling|Credentials|TestRelay$|TestServer|TestOpen|Chain|Checkpoint", "-skip=Incident(19|23)", ".", "./internal/audit", "./internal/ca", "./internal/turn"}},
	} {
		e.do(ctx, fmt.Sprintf("fips %s: %s", leg.mode, leg.module), func(ctx context.Context, log *step.Log) error {
			c := step.Cmd{Dir: e.path(leg.module), Env: []string{fipsModule, "GODEBUG=fips140=" + leg.mode}, Tests: true}
			return c.Run(ctx, log, "go", append([]string{"test", "-short", "-shuffle=on", "-timeout=5m", "-tags=" + fipsTag}, leg.args...)...)
		})
	}
}

// fipsStart builds both binaries into dir/good as `make fips` does, and once without the module.
func (e *env) fipsStart(ctx context.Context, log *step.Log, dir string) error {
	good, bad := filepath.Join(dir, "good")+"/", filepath.Join(dir, "bad")+"/"
	build := []string{"build", "-tags=" + fipsTag, "-o"}
	if err := (step.Cmd{Dir: e.root, Env: []string{fipsModule}}).Run(ctx, log, "go", append(build, good, "./edge/cmd/bauxite", "./dispatch/cmd/bauxite-dispatch")...); err != nil {
		return err
	}
	if err := (step.Cmd{Dir: e.root, Env: []string{"GOFIPS140=off"}}).Run(ctx, log, "go", append(build, bad, "./edge/cmd/bauxite")...); err != nil {
		return err
	}
	for _, tc := range []struct {
		program, debug string
		code           int
	}{
		{good + "bauxite", "fips140=on", 35}, // it starts, and finds no bauxite run
		{good + "bauxite", "fips140=off", 50},
		{good + "bauxite-dispatch", "fips140=off", 21},
		{bad + "bauxite", "fips140=off", 50},
		{bad + "bauxite", "fips140=on", 50}, // the mode alone is no module
	} {
		cmd := exec.CommandContext(ctx, tc.program, "status")
		cmd.Env = append(os.Environ(), "GODEBUG="+tc.debug, "BAUXITE_HOME="+dir, "BAUXITE_DISPATCH_DATA="+dir)
		out, err := cmd.CombinedOutput()
		log.Printf("$ GODEBUG=%s %s status\n%s", tc.debug, strings.TrimPrefix(tc.program, dir), out)
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != tc.code {
			return fmt.Errorf("%s with %s: %w, want exit code %d", strings.TrimPrefix(tc.program, dir), tc.debug, err, tc.code)
		}
	}
	return nil
}
