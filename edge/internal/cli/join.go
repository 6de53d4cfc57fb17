// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/join"
)

func (a *App) joinCommand() *cli.Command {
	return &cli.Command{
		Name:      "join",
		Usage:     "make this machine a node of a mesh",
		UsageText: "bauxite join [options] TOKEN HUB_URL",
		Description: "TOKEN comes from: bauxite-dispatch token create. A dash reads it from\n" +
			"stdin, and --token-file from a file, so that other users cannot see it in\n" +
			"the list of processes.\n\nExit codes:\n" + exitTable(),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the node: a DNS label in lower case (default: the hub chooses)"},
			&cli.BoolFlag{Name: "force", Usage: "replace the identity that is there"},
			&cli.StringFlag{Name: "token-file", Usage: "read the token from `FILE`, and leave TOKEN out"},
			&cli.StringFlag{Name: "proxy", Usage: "HTTP proxy `URL` to the hub, kept for the node; or none (default: HTTPS_PROXY and NO_PROXY, each time)"},
			&cli.BoolFlag{Name: "hub-key", Usage: "let the hub make the first key, which this machine replaces at once"},
			&cli.DurationFlag{Name: "wait", Value: 10 * time.Minute, Usage: "wait `D` for an administrator's approval, where the token wants one"},
			&cli.StringFlag{Name: "psk-file", Usage: "`FILE` with the mesh's pre-shared key, where the hub does not have it"},
		},
		Action: a.join,
	}
}

func (a *App) join(c *cli.Context) error {
	token, hubURL, err := a.token(c)
	if err != nil {
		return err
	}
	dir, err := homeDir(c)
	if err != nil {
		return err
	}
	// Other users see the command line.
	if u, err := url.Parse(c.String("proxy")); err == nil && u.User != nil {
		return fmt.Errorf("%w: --proxy carries a user name", join.ErrProxy)
	}
	res, err := join.Run(c.Context, join.Config{
		Token: token, HubURL: hubURL, Home: dir, Version: Version(),
		Name: c.String("name"), Force: c.Bool("force"), PSKFile: c.String("psk-file"),
		Proxy: c.String("proxy"), HubKey: c.Bool("hub-key"), Wait: c.Duration("wait"),
		Progress: func(text string) { fmt.Fprintf(a.Stderr, "bauxite: %s\n", oneLine(text)) },
	})
	if err != nil {
		return err
	}
	n := res.Config.Node
	addrs := n.VirtualIP.String()
	if n.VirtualIP6.IsValid() {
		addrs += ", " + n.VirtualIP6.String()
	}
	fmt.Fprintf(a.Stdout, "joined mesh %s as %s (%s)\n", n.MeshID, n.Name, addrs)
	fmt.Fprintf(a.Stderr, "bauxite: identity %s is in %s\n", n.ID.Short(), dir)
	next := "bauxite run"
	if c.IsSet("home") {
		next += " --home " + dir
	}
	fmt.Fprintf(a.Stderr, "bauxite: %s now start the node: %s\n", a.paint(a.Stderr, green, "hint:"), next)
	return nil
}

func (a *App) token(c *cli.Context) (token, hubURL string, err error) {
	if file := c.String("token-file"); file != "" {
		if err := nargs(c, 1, 1); err != nil {
			return "", "", err
		}
		f, err := os.Open(file)
		if err != nil {
			return "", "", fmt.Errorf("read token: %w", err)
		}
		defer f.Close()
		token, err = readToken(f)
		return token, c.Args().First(), err
	}
	if err := nargs(c, 2, 2); err != nil {
		return "", "", err
	}
	if token = c.Args().First(); token == "-" {
		token, err = readToken(a.Stdin)
	}
	return token, c.Args().Get(1), err
}

// readToken reads the first line, at most 4 KiB.
func readToken(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read token: %w", err)
	}
	if line = strings.TrimSpace(line); line == "" {
		return "", fmt.Errorf("%w: nothing to read", identity.ErrToken)
	}
	return line, nil
}
