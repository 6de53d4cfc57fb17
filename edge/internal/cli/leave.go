// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/edge/internal/config"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
)

func (a *App) leaveCommand() *cli.Command {
	return &cli.Command{
		Name: "leave", Usage: "delete this machine's identity", UsageText: "bauxite leave [--yes]",
		Description: "The identity is deleted here only. At the hub the node stays until an\noperator removes it; without its keys nobody can act as it.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}},
		Action:      a.leave,
	}
}

func (a *App) leave(c *cli.Context) error {
	if err := nargs(c, 0, 0); err != nil {
		return err
	}
	dir, err := homeDir(c)
	if err != nil {
		return err
	}
	if !home.Joined(dir) {
		return fmt.Errorf("%w: no %s in %s", home.ErrNotJoined, home.ConfigFile, dir)
	}
	who := "the identity"
	if cfg, err := config.Load(filepath.Join(dir, home.ConfigFile)); err == nil {
		who = fmt.Sprintf("the identity of %s in mesh %s", cfg.Node.Name, cfg.Node.MeshID)
	}
	if !c.Bool("yes") {
		fmt.Fprintf(a.Stderr, "This deletes %s from %s for good. Go on? [y/N] ", who, dir)
		line, err := bufio.NewReader(io.LimitReader(a.Stdin, 16)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if s := strings.ToLower(strings.TrimSpace(line)); s != "y" && s != "yes" {
			if line == "" {
				fmt.Fprintln(a.Stderr)
			}
			return errDecline
		}
	}
	if err := home.Remove(dir); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Stdout, "deleted %s\n", who)
	return err
}
