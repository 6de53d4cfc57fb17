// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// envPrefix begins the name of each variable that stands for a flag.
const envPrefix = "BAUXITE_DISPATCH_"

// fromEnv lets a variable stand for each of flags: BAUXITE_DISPATCH_PUBLIC_URL
// for --public-url. A flag wins over its variable.
func fromEnv(flags ...cli.Flag) []cli.Flag {
	for _, f := range flags {
		vars := []string{envPrefix + strings.ToUpper(strings.ReplaceAll(f.Names()[0], "-", "_"))}
		switch f := f.(type) {
		case *cli.StringFlag:
			f.EnvVars = vars
		case *cli.StringSliceFlag:
			f.EnvVars = vars
		case *cli.DurationFlag:
			f.EnvVars = vars
		case *cli.BoolFlag:
			f.EnvVars = vars
		case *cli.IntFlag:
			f.EnvVars = vars
		case *cli.Int64Flag:
			f.EnvVars = vars
		case *cli.UintFlag:
			f.EnvVars = vars
		case *cli.Uint64Flag:
			f.EnvVars = vars
		case *cli.Float64Flag:
			f.EnvVars = vars
		default:
			panic("fromEnv: kind of flag " + f.Names()[0])
		}
	}
	return flags
}
