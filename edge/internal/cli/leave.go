// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/edge/internal/config"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
)

func (a *App) leaveCommand() *cli.Command {
	return &cli.Command{
		Name: "leave", Usage: "leave the mesh and delete this machine's identity", UsageText: "bauxite leave [--yes]",
		Description: "The hub is told, so that all peers forget this node. Where it cannot be\nreached the identity is deleted here all the same, and an operator removes the\nnode at the hub; without its keys nobody can act as it.",
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
	if err := a.tellHub(c.Context, dir); err != nil {
		return err
	}
	if err := home.Remove(dir); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Stdout, "deleted %s\n", who)
	return err
}

// tellHub takes the node out of the mesh. That the hub cannot be told is said and
// stops nothing; that the home is in use does.
func (a *App) tellHub(ctx context.Context, dir string) error {
	l, err := home.TakeLock(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	err = func() error {
		n, err := home.Load(dir, time.Now())
		if err != nil {
			return err
		}
		proxy, err := config.ParseProxy(n.Config.Hub.Proxy)
		if err != nil {
			return err
		}
		link, err := hub.New(hub.Config{URL: n.Config.Hub.URL, Roots: n.Roots, Proxy: proxy, Certificate: n.TLSCertificate})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return link.Leave(ctx)
	}()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		fmt.Fprintf(a.Stderr, "bauxite: %s the hub was not told: %s\n", a.paint(a.Stderr, yellow, "warning:"), oneLine(err.Error()))
		fmt.Fprintln(a.Stderr, "bauxite: hint: an operator removes the node there: bauxite-dispatch node revoke NAME")
	}
	return nil
}
