// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
)

func TestMain(m *testing.M) { netns.Main(m) }

const (
	// startTime bounds starting programs and the first contact.
	startTime = 30 * time.Second
	// connectTime bounds finding a direct path, from the first packet.
	connectTime = 20 * time.Second
)

// within is the test's context with a time limit.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// world is a lab with a WAN and a running hub.
type world struct {
	lab *netns.Lab
	wan *netns.WAN
	hub *fleet.Hub
	bin build.Binaries
}

func newWorld(t *testing.T) *world {
	t.Helper()
	lab := netns.New(t)
	w := &world{lab: lab, bin: build.ForTest(t), wan: lab.WAN("wan")}
	h := w.wan.Host("hub", netns.Link{})
	var err error
	if w.hub, err = fleet.StartHub(within(t, startTime), h, w.bin, filepath.Join(lab.LogDir(), "hub")); err != nil {
		t.Fatal(err)
	}
	return w
}

// nat adds a NAT box on the WAN.
func (w *world) nat(name string, kind netns.NATKind) *netns.NAT {
	return w.lab.NAT(name, netns.NATConfig{Kind: kind, Upstream: w.wan, Link: netns.Link{PerPacket: true}})
}

// robot makes a host on net and joins it to the mesh. The cable shows wire
// packets to captures.
func (w *world) robot(t *testing.T, net netns.Network, name string) *fleet.Node {
	t.Helper()
	n := fleet.NewNode(net.Host(name, netns.Link{PerPacket: true}), w.bin, w.lab.LogDir(), name)
	ctx := within(t, startTime)
	token, err := w.hub.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Join(ctx, token, w.hub.URL); err != nil {
		t.Fatal(err)
	}
	return n
}

// start runs both nodes until they know the hub and each other, and returns
// their states.
func start(t *testing.T, a, b *fleet.Node) (sa, sb fleet.Status) {
	t.Helper()
	ctx := within(t, startTime)
	for _, n := range []*fleet.Node{a, b} {
		if err := n.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return ready(t, a, b.Name), ready(t, b, a.Name)
}

func ready(t *testing.T, n *fleet.Node, peers ...string) fleet.Status {
	t.Helper()
	s, err := n.WaitReady(within(t, startTime), peers...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// direct waits for a direct path from n to peer.
func direct(t *testing.T, n *fleet.Node, peer string) fleet.Peer {
	t.Helper()
	p, err := n.WaitPath(within(t, connectTime), peer, fleet.PathDirect)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// connect asks for a path explicitly and waits until it is direct.
func connect(t *testing.T, n *fleet.Node, peer string) {
	t.Helper()
	if _, err := n.Cmd(within(t, connectTime), "connect", peer); err != nil {
		t.Fatal(err)
	}
	direct(t, n, peer)
}

// ping runs the system's ping until it has five answers.
func ping(t *testing.T, n *fleet.Node, to netip.Addr) {
	t.Helper()
	if _, err := exec.LookPath("ping"); err != nil {
		t.Fatal("no ping here: install iputils-ping")
	}
	// The first ones trigger the connection and may be lost.
	r, err := n.Host.Run(within(t, connectTime), "ping", "-n", "-c", "5", "-i", "0.2", "-w", "15", to.String())
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Stdout)
	}
}
