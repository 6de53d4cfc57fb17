// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/edge/internal/daemon"
)

func (a *App) runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "run the node in the foreground", UsageText: "bauxite run [options]",
		Description: "The log goes to stderr. SIGINT and SIGTERM stop the node in order.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "tun", Usage: "`NAME` of the network interface; \"none\" for no interface (default: config.toml, else bauxite0)"},
			&cli.IntFlag{Name: "port", Value: -1, DefaultText: "config.toml, else any", Usage: "local UDP port `N`; 0 means any"},
			&cli.StringFlag{Name: "log-format", Usage: "`FORMAT` console or json (default: config.toml, else console on a terminal)"},
			&cli.StringFlag{Name: "log-level", Usage: "`LEVEL` debug, info, warn or error (default: config.toml, else info)"},
		},
		Action: a.run,
	}
}

func (a *App) run(c *cli.Context) error {
	if err := nargs(c, 0, 0); err != nil {
		return err
	}
	for flag, allowed := range map[string][]string{
		"log-format": {"console", "json"}, "log-level": {"debug", "info", "warn", "error"},
	} {
		if err := choice(c, flag, allowed); err != nil {
			return err
		}
	}
	port := c.Int("port")
	if c.IsSet("port") && (port < 0 || port > 65535) {
		return usagef("--port is %d, want 0 to 65535", port)
	}
	dir, err := homeDir(c)
	if err != nil {
		return err
	}
	terminal := isTerminal(a.Stderr)
	return daemon.Run(c.Context, daemon.Config{
		Home: dir, Tun: c.String("tun"), Port: port, Version: Version(),
		LogFormat: c.String("log-format"), LogLevel: c.String("log-level"),
		Log: a.Stderr, Terminal: terminal, Colour: terminal && os.Getenv("NO_COLOR") == "",
	}, a.Deps)
}

func choice(c *cli.Context, flag string, allowed []string) error {
	have := c.String(flag)
	if have == "" {
		return nil
	}
	if slices.Contains(allowed, have) {
		return nil
	}
	return usagef("--%s is %q, want one of %q", flag, have, allowed)
}
