// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/fips140"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
)

// Version returns the module's version as the build recorded it, "devel" for a
// build from a working tree.
func Version() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok || bi.Main.Version == "" || bi.Main.Version == "(devel)" {
		return "devel"
	}
	return bi.Main.Version
}

func revision() (rev string, modified bool) {
	bi, _ := debug.ReadBuildInfo()
	if bi == nil {
		return "", false
	}
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			rev = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	return rev, modified
}

// fipsModule returns the version of the cryptographic module of a FIPS build, and
// nothing of a plain one.
func fipsModule() string {
	if !fips.Build {
		return ""
	}
	return fips140.Version()
}

func (a *App) versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version", UsageText: "bauxite version [--json]",
		Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := nargs(c, 0, 0); err != nil {
				return err
			}
			rev, modified := revision()
			if c.Bool("json") {
				return json.NewEncoder(a.Stdout).Encode(struct {
					Version  string `json:"version"`
					Revision string `json:"revision,omitempty"`
					Modified bool   `json:"modified,omitempty"`
					Go       string `json:"go"`
					OS       string `json:"os"`
					Arch     string `json:"arch"`
					FIPS     string `json:"fips,omitempty"` // version of the module, in a FIPS build
				}{Version(), rev, modified, runtime.Version(), runtime.GOOS, runtime.GOARCH, fipsModule()})
			}
			s := "bauxite " + Version()
			if len(rev) >= 12 {
				s += " (" + rev[:12]
				if modified {
					s += ", modified"
				}
				s += ")"
			}
			if m := fipsModule(); m != "" {
				s += ", FIPS 140-3 module " + m
			}
			_, err := fmt.Fprintf(a.Stdout, "%s %s/%s %s\n", s, runtime.GOOS, runtime.GOARCH, runtime.Version())
			return err
		},
	}
}

func jsonFlag() *cli.BoolFlag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }
