// SPDX-License-Identifier: Apache-2.0

// Package fleet runs the built hub and nodes inside a lab, by the command
// lines that users type, and reads what they print. The end-to-end tests and
// the demo share it.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/netns"
)

// The hub's ports, which are its defaults.
const (
	NodePort  = 8440
	AdminPort = 8441
	STUNPort  = 3478
)

const (
	// stopPatience is how long a program may take to end on SIGTERM.
	stopPatience = 5 * time.Second
	// pollEvery is the time between two looks at a status that is awaited.
	pollEvery = 100 * time.Millisecond
)

// nodeURL is what the hub prints when it is ready.
var nodeURL = regexp.MustCompile(`https://\S+`)

// Hub is a running hub.
type Hub struct {
	Host *netns.Host
	Proc *netns.Proc
	Data string // its state
	URL  string // what nodes join

	bin   string
	flags []string
}

// StartHub starts a hub on a public host, with its state in the folder data and
// more flags of `serve`, and waits until it is ready.
func StartHub(ctx context.Context, h *netns.Host, bin build.Binaries, data string, flags ...string) (*Hub, error) {
	hub := &Hub{Host: h, Data: data, bin: bin.Dispatch, flags: flags}
	if err := hub.Start(ctx); err != nil {
		return nil, err
	}
	return hub, nil
}

// Start starts the hub's process and waits until it is ready.
func (h *Hub) Start(ctx context.Context) error {
	addr := h.Host.Addr4().String()
	args := append([]string{
		"serve",
		"--data", h.Data,
		"--listen", net.JoinHostPort(addr, fmt.Sprint(NodePort)),
		"--admin-listen", net.JoinHostPort("127.0.0.1", fmt.Sprint(AdminPort)),
		"--stun-listen", net.JoinHostPort(addr, fmt.Sprint(STUNPort)),
		"--public-url", fmt.Sprintf("https://%s", net.JoinHostPort(addr, fmt.Sprint(NodePort))),
	}, h.flags...)
	var err error
	h.Proc, err = h.Host.Command(context.WithoutCancel(ctx), netns.ProcConfig{}, h.bin, args...)
	if err != nil {
		return fmt.Errorf("start hub: %w", err)
	}
	m, err := h.Proc.WaitStdout(ctx, nodeURL)
	if err != nil {
		return fmt.Errorf("start hub: %w", err)
	}
	h.URL = m[0]
	return nil
}

// Stop ends the hub with SIGTERM. Its state stays, and Start brings it back.
func (h *Hub) Stop() { h.Proc.Stop(stopPatience) }

// NodeAddr is the address that nodes speak TLS with.
func (h *Hub) NodeAddr() netip.AddrPort { return netip.AddrPortFrom(h.Host.Addr4(), NodePort) }

// Token has the hub make a join token, with more flags of `token create`.
func (h *Hub) Token(ctx context.Context, flags ...string) (string, error) {
	args := append([]string{"token", "create", "--data", h.Data, "--json"}, flags...)
	r, err := h.Host.Run(ctx, h.bin, args...)
	if err != nil {
		return "", fmt.Errorf("create token: %w", err)
	}
	var v struct{ Token string }
	if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
		return "", fmt.Errorf("create token: parse %q: %w", r.Stdout, err)
	}
	if v.Token == "" {
		return "", fmt.Errorf("create token: no token in %q", r.Stdout)
	}
	return v.Token, nil
}

// Node is one robot: a host with a home folder, and a process while it runs.
type Node struct {
	Host *netns.Host
	Name string
	Home string
	Proc *netns.Proc // nil before Start

	bin string
}

// NewNode names a node on a host. Its home is under the lab's folder, short
// enough for a unix socket in it.
func NewNode(h *netns.Host, bin build.Binaries, dir, name string) *Node {
	return &Node{Host: h, Name: name, Home: filepath.Join(dir, "home-"+name), bin: bin.Bauxite}
}

// Cmd runs a short command of the node's program: the subcommand, --home, and
// the rest.
func (n *Node) Cmd(ctx context.Context, sub string, args ...string) (netns.Result, error) {
	return n.Host.Run(ctx, n.bin, append([]string{sub, "--home", n.Home}, args...)...)
}

// Join makes the node a member.
func (n *Node) Join(ctx context.Context, token, url string, flags ...string) (netns.Result, error) {
	args := append(append([]string{"--name", n.Name}, flags...), token, url)
	return n.Cmd(ctx, "join", args...)
}

// Configure adds lines to the node's config.toml: tables, and what they hold. A
// table that the file has already gets the lines.
func (n *Node) Configure(lines string) error {
	name := filepath.Join(n.Home, "config.toml")
	b, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("configure %s: %w", n.Name, err)
	}
	if err := os.WriteFile(name, []byte(addTables(string(b), lines)), 0o600); err != nil {
		return fmt.Errorf("configure %s: %w", n.Name, err)
	}
	return nil
}

// addTables adds tables to a TOML file.
func addTables(file, tables string) string {
	file = "\n" + file + "\n"
	head := -1 // where the next line goes, -1 for the end
	for line := range strings.Lines(tables) {
		if strings.HasPrefix(line, "[") {
			head = strings.Index(file, "\n"+line)
			if head >= 0 && !strings.HasPrefix(line, "[[") {
				head += len("\n" + line)
				continue
			}
			head = -1
		}
		if head < 0 {
			file += line
			continue
		}
		file = file[:head] + line + file[head:]
		head += len(line)
	}
	return file[1:]
}

// Spawn starts the node's daemon and does not wait for it.
func (n *Node) Spawn(ctx context.Context, flags ...string) error {
	var err error
	args := append([]string{"run", "--home", n.Home, "--log-format", "json"}, flags...)
	n.Proc, err = n.Host.Command(context.WithoutCancel(ctx), netns.ProcConfig{Name: "run"}, n.bin, args...)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	return nil
}

// Start starts the node's daemon and waits until it answers `status`.
func (n *Node) Start(ctx context.Context, flags ...string) error {
	if err := n.Spawn(ctx, flags...); err != nil {
		return err
	}
	if _, err := n.WaitStatus(ctx, "an answer", func(Status) bool { return true }); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	return nil
}

// Stop ends the daemon with SIGTERM and tells whether it obeyed.
func (n *Node) Stop() bool { return n.Proc.Stop(stopPatience) }

// Status asks the daemon for `status --json`.
func (n *Node) Status(ctx context.Context) (Status, error) {
	r, err := n.Cmd(ctx, "status", "--json")
	if err != nil {
		return Status{}, err
	}
	return ParseStatus([]byte(r.Stdout))
}

// WaitStatus asks until ok is content, the daemon ends or ctx does; what says
// in the error what was awaited.
func (n *Node) WaitStatus(ctx context.Context, what string, ok func(Status) bool) (Status, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var last Status
	var lastErr error
	for {
		var s Status
		if s, lastErr = n.Status(ctx); lastErr == nil {
			if last = s; ok(s) {
				return s, nil
			}
		}
		select {
		case <-tick.C:
		case <-n.Proc.Done():
			return last, fmt.Errorf("wait for %s on %s: bauxite run ended (%w):\n%s",
				what, n.Name, errors.Join(n.Proc.Wait(ctx)), n.Proc.Tail(15))
		case <-ctx.Done():
			if lastErr == nil || last.Raw != nil { // the last command died of ctx
				lastErr = context.Cause(ctx)
			}
			return last, fmt.Errorf("wait for %s on %s: %w; last status: %s", what, n.Name, lastErr, last.Raw)
		}
	}
}

// WaitReady waits until the node is connected to the hub, its interface has
// an address and it knows the named peers.
func (n *Node) WaitReady(ctx context.Context, peers ...string) (Status, error) {
	return n.WaitStatus(ctx, "the hub and "+strings.Join(peers, ", "), func(s Status) bool {
		for _, p := range peers {
			if _, ok := s.Peer(p); !ok {
				return false
			}
		}
		return s.Hub.Connected && s.Node.VirtualIP.IsValid()
	})
}

// WaitPath waits until the path to a peer is of a type.
func (n *Node) WaitPath(ctx context.Context, peer, typ string) (Peer, error) {
	s, err := n.WaitStatus(ctx, typ+" path to "+peer, func(s Status) bool {
		p, ok := s.Peer(peer)
		return ok && p.Path.Type == typ
	})
	p, _ := s.Peer(peer)
	return p, err
}
