// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/edge/internal/local"
)

// watchEvery is how often --watch looks.
const watchEvery = time.Second

func (a *App) pathsCommand() *cli.Command {
	return &cli.Command{
		Name: "paths", Usage: "show every path to a peer, or to all", UsageText: "bauxite paths [--watch | --json] [PEER]",
		Description: "PEER is a name, an id or the beginning of one, or a virtual address. A path is\n" +
			"direct, or leads over a TURN server, another node (peer-relay) or the hub\n" +
			"(hub-relay). It is new, probing, valid, suspect (silent) or dead. LANES are those\n" +
			"that use it now: C critical, T telemetry, B bulk.\n\n" +
			"Examples:\n  bauxite paths robot7 --watch\n" +
			"  bauxite paths --json | jq '.[] | .name, (.paths[]? | select(.state == \"suspect\"))'",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "show it anew every second, until interrupted"},
		},
		BashComplete: a.completePeers,
		Action:       a.paths,
	}
}

func (a *App) paths(c *cli.Context) error {
	if err := nargs(c, 0, 1); err != nil {
		return err
	}
	if c.Bool("watch") && c.Bool("json") {
		return usagef("paths: --watch is for people and --json for programs")
	}
	cl, err := a.client(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	show := func(ctx context.Context) (string, error) {
		raw, err := cl.StatusJSON(ctx)
		if err != nil {
			return "", err
		}
		if c.Bool("json") {
			return pathsJSON(raw, c.Args().First())
		}
		return a.pathsText(raw, c.Args().First())
	}
	if !c.Bool("watch") {
		text, err := show(c.Context)
		if err == nil {
			_, err = a.Stdout.Write([]byte(text))
		}
		return err
	}
	if !isTerminal(a.Stdout) {
		return usagef("paths: --watch needs a terminal")
	}
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	return a.watch(c.Context, t.C, show)
}

// watch redraws the terminal at each tick until ctx ends.
func (a *App) watch(ctx context.Context, tick <-chan time.Time, show func(context.Context) (string, error)) error {
	const home, toEnd, toLineEnd = "\x1b[H", "\x1b[J", "\x1b[K"
	if _, err := a.Stdout.Write([]byte(home + toEnd)); err != nil {
		return err
	}
	for {
		text, err := show(ctx)
		if ctx.Err() != nil {
			return nil // to interrupt it is how it ends
		}
		if err != nil {
			return err
		}
		// Over the old text rather than after clearing it, which would flicker.
		frame := home + strings.ReplaceAll(fit(text, lines(a.Stdout)), "\n", toLineEnd+"\n") + toEnd
		if _, err := a.Stdout.Write([]byte(frame)); err != nil {
			return err
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return nil
		}
	}
}

// fit cuts what a terminal of so many lines could not show without scrolling; 0 lines
// are as many as wanted. The cursor stands on the last one.
func fit(text string, height int) string {
	all := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	if height < 3 || len(all) < height {
		return text
	}
	return strings.Join(all[:height-2], "") + fmt.Sprintf("… and %d lines more\n", len(all)-height+2)
}

// pathsText shows the paths to one peer, or to all.
func (a *App) pathsText(raw []byte, what string) (string, error) {
	var st local.Status
	if err := json.Unmarshal(raw, &st); err != nil {
		return "", fmt.Errorf("read status: %w", err)
	}
	if what != "" {
		p, err := st.Resolve(what)
		if err != nil {
			return "", err
		}
		st.Peers = []local.Peer{*p}
	}
	var b strings.Builder
	if len(st.Peers) == 0 {
		b.WriteString("no peers yet: join another machine to this mesh\n")
	}
	sort.Slice(st.Peers, func(i, j int) bool { return st.Peers[i].Name < st.Peers[j].Name })
	for i := range st.Peers {
		if i > 0 {
			b.WriteByte('\n')
		}
		a.writePaths(&b, &st.Peers[i])
	}
	if slices.ContainsFunc(st.Peers, func(p local.Peer) bool { return len(p.Paths) > 0 }) {
		b.WriteString("\nlanes: C critical, T telemetry, B bulk\n")
	}
	return b.String(), nil
}

// pathsJSON is the part of the document that is about paths, of one peer or of all.
func pathsJSON(raw []byte, what string) (string, error) {
	var st local.Status
	var doc struct {
		Peers []struct {
			ID    json.RawMessage `json:"id"`
			Name  json.RawMessage `json:"name"`
			State json.RawMessage `json:"state"`
			Path  json.RawMessage `json:"path,omitempty"`
			Paths json.RawMessage `json:"paths"`
			Keys  json.RawMessage `json:"keys,omitempty"`
		} `json:"peers"`
	}
	for _, v := range []any{&st, &doc} {
		if err := json.Unmarshal(raw, v); err != nil {
			return "", fmt.Errorf("read status: %w", err)
		}
	}
	for i := range doc.Peers {
		if doc.Peers[i].Paths == nil {
			doc.Peers[i].Paths = json.RawMessage("[]")
		}
	}
	if what != "" {
		p, err := st.Resolve(what)
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(st.Peers, func(q local.Peer) bool { return q.ID == p.ID })
		doc.Peers = doc.Peers[i : i+1]
	}
	out, err := json.MarshalIndent(doc.Peers, "", "  ")
	if err != nil {
		return "", err
	}
	if doc.Peers == nil {
		out = []byte("[]")
	}
	return string(out) + "\n", nil
}

// completePeers offers the names of the peers that the daemon knows, where one runs.
func (a *App) completePeers(c *cli.Context) {
	// What stands before the word that asks for completion.
	if n := len(os.Args); n > 2 && strings.HasPrefix(os.Args[n-2], "-") {
		cli.DefaultCompleteWithFlags(c.Command)(c)
		return
	}
	if c.NArg() == 0 {
		a.peerNames(c)
	}
}

// peerNames prints the names of the peers, where a daemon runs.
func (a *App) peerNames(c *cli.Context) {
	cl, err := a.client(c)
	if err != nil {
		return
	}
	defer cl.Close()
	raw, err := cl.StatusJSON(c.Context)
	if err != nil {
		return
	}
	var st local.Status
	if json.Unmarshal(raw, &st) == nil {
		for _, p := range st.Peers {
			fmt.Fprintln(a.Stdout, p.Name)
		}
	}
}
