// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	"github.com/bauxite-mesh/bauxite/edge/internal/local"
	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
)

func (a *App) connectCommand() *cli.Command {
	return &cli.Command{
		Name: "connect", Usage: "connect to a peer now", UsageText: "bauxite connect PEER",
		Description: "PEER is a name, an id or the beginning of one, or a virtual address. Traffic\n" +
			"connects peers by itself; this shows the steps, and why there is no path.",
		BashComplete: a.completePeers,
		Action:       a.connect,
	}
}

// client returns a client for the daemon of the command's home.
func (a *App) client(c *cli.Context) (*local.Client, error) {
	dir, err := homeDir(c)
	if err != nil {
		return nil, err
	}
	return local.NewClient(filepath.Join(dir, home.SocketFile)), nil
}

func (a *App) connect(c *cli.Context) error {
	if err := nargs(c, 1, 1); err != nil {
		return err
	}
	cl, err := a.client(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	var last *edgev1.ConnectResponse
	err = cl.Connect(c.Context, c.Args().First(), func(m *edgev1.ConnectResponse) {
		last = m
		switch m.GetState() {
		case local.StateConnected, local.StateFailed:
		default:
			fmt.Fprintf(a.Stderr, "bauxite: %s %s\n", m.GetState(), oneLine(m.GetDetail()))
		}
	})
	if err != nil {
		return err
	}
	switch {
	case last.GetState() == local.StateFailed:
		return fmt.Errorf("%w to %s: %s", errNoPath, c.Args().First(), last.GetDetail())
	case last.GetState() != local.StateConnected:
		return fmt.Errorf("%w to %s: bauxite run ended meanwhile", errNoPath, c.Args().First())
	}
	answer := last.GetDetail() + ": " + last.GetPathType()
	if to := last.GetRemote(); to != "" { // the hub's stream has no address
		answer += " " + to
	}
	if ms := last.GetRttMs(); ms > 0 { // a path that has just come up is not measured yet
		answer += ", rtt " + rtt(ms)
	}
	_, err = fmt.Fprintln(a.Stdout, answer)
	return err
}
