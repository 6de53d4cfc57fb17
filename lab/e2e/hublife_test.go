// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
)

// admin runs a command of the hub's program on the hub, and returns what it prints.
func (w *world) admin(t *testing.T, args ...string) string {
	t.Helper()
	args = append(args, "--data", w.hub.Data)
	r, err := w.hub.Host.Run(within(t, startTime), w.bin.Dispatch, args...)
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return r.Stdout
}

var answerTime = regexp.MustCompile(`(?m)^\[(\d+\.\d+)\] \d+ bytes from`)

// pinging pings to every 20 ms in the background. Once ten were answered it returns
// a function that waits for the end and tells when the last answer came.
func pinging(t *testing.T, n *fleet.Node, to string, count int) (last func() time.Time) {
	t.Helper()
	p, err := n.Host.Command(context.WithoutCancel(t.Context()), netns.ProcConfig{}, "ping", "-n", "-D", "-i", "0.02", "-c", strconv.Itoa(count), "-W", "1", to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WaitStdout(within(t, startTime), regexp.MustCompile(`icmp_seq=10 `)); err != nil {
		t.Fatal(err)
	}
	return func() time.Time {
		t.Helper()
		_ = p.Wait(within(t, 2*startTime))
		all := answerTime.FindAllStringSubmatch(p.Output(), -1)
		if len(all) < 10 {
			t.Fatalf("%d answers", len(all))
		}
		s, err := strconv.ParseFloat(all[len(all)-1][1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.UnixMicro(int64(s * 1e6))
	}
}

// TestRevoke: a node that is revoked while it talks is silent within a second, and
// comes back by no door.
func TestRevoke(t *testing.T) {
	w := newWorld(t)
	a, b := w.robot(t, w.wan, "robot1"), w.robot(t, w.wan, "robot2")
	sa, sb := start(t, a, b)
	connect(t, a, b.Name)
	last := pinging(t, a, sb.Node.VirtualIP.String(), 150)
	began := time.Now()
	w.admin(t, "node", "revoke", "robot2", "--reason", "stolen")
	if d := last().Sub(began); d > time.Second {
		t.Errorf("the last answer came %v after the revocation was ordered", d)
	} else {
		t.Logf("last answer %v after the order", d)
	}
	// The other way round: what it sends is not taken.
	if r, err := b.Host.Run(within(t, startTime), "ping", "-n", "-c", "5", "-i", "0.2", "-W", "1", sa.Node.VirtualIP.String()); err == nil {
		t.Errorf("the revoked node is answered: %s", r.Stdout)
	}
	b.Stop()
	w.hub.Stop()
	if err := w.hub.Start(within(t, startTime)); err != nil {
		t.Fatal(err)
	}
	token, err := w.hub.Token(within(t, startTime))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := b.Join(within(t, startTime), token, w.hub.URL); err == nil {
		t.Errorf("the revoked node joins again: %s", r.Stdout)
	}
	if out := w.admin(t, "node", "list", "--state", "revoked", "--json"); !strings.Contains(out, `"robot2"`) {
		t.Errorf("revoked nodes: %s", out)
	}
	if out := w.admin(t, "audit", "list", "--action", "node.revoke"); !strings.Contains(out, "stolen") {
		t.Errorf("audit: %s", out)
	}
}

// TestApproveAndRotate: a robot waits until a person lets it in; the mesh key is
// rotated while it talks, and nothing is lost.
func TestApproveAndRotate(t *testing.T) {
	w := newWorld(t)
	a := w.robot(t, w.wan, "robot1")
	token, err := w.hub.Token(within(t, startTime), "--approve")
	if err != nil {
		t.Fatal(err)
	}
	b := fleet.NewNode(w.wan.Host("robot2", netns.Link{}), w.bin, w.lab.LogDir(), "robot2")
	joined := make(chan error, 1)
	ctx := within(t, 2*startTime)
	go func() {
		_, err := b.Join(ctx, token, w.hub.URL, "--wait", "1m")
		joined <- err
	}()
	for !strings.Contains(w.admin(t, "node", "list", "--state", "pending", "--json"), `"robot2"`) {
		select {
		case err := <-joined:
			t.Fatalf("join ended before it was approved: %v", err)
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		default:
		}
	}
	w.admin(t, "node", "approve", "robot2")
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	_, sb := start(t, a, b)
	connect(t, a, b.Name)
	p, err := a.Host.Command(context.WithoutCancel(t.Context()), netns.ProcConfig{}, "ping", "-n", "-i", "0.05", "-c", "100", sb.Node.VirtualIP.String())
	if err != nil {
		t.Fatal(err)
	}
	w.admin(t, "psk", "rotate")
	_ = p.Wait(within(t, startTime))
	if !strings.Contains(p.Output(), " 0% packet loss") {
		t.Errorf("while the mesh key was rotated: %s", p.Tail(3))
	}
	for _, n := range []*fleet.Node{a, b} { // a third node has the new key only
		ready(t, n)
	}
	c := w.robot(t, w.wan, "robot3")
	if err := c.Start(within(t, startTime)); err != nil {
		t.Fatal(err)
	}
	ready(t, c, a.Name, b.Name)
	connect(t, c, a.Name)
	connect(t, c, b.Name)
}

// TestRestoreHub: the hub comes back from a backup while two robots talk. Neither
// notices in its traffic, and both are connected to it again by themselves.
func TestRestoreHub(t *testing.T) {
	w := newWorld(t)
	a, b := w.robot(t, w.wan, "robot1"), w.robot(t, w.wan, "robot2")
	_, sb := start(t, a, b)
	connect(t, a, b.Name)
	archive := filepath.Join(w.lab.LogDir(), "backup.tar")
	w.admin(t, "backup", archive)
	p, err := a.Host.Command(context.WithoutCancel(t.Context()), netns.ProcConfig{}, "ping", "-n", "-i", "0.05", "-c", "120", sb.Node.VirtualIP.String())
	if err != nil {
		t.Fatal(err)
	}
	epoch := func() uint64 {
		var v struct{ Epoch uint64 }
		if err := json.Unmarshal([]byte(w.admin(t, "status", "--json")), &v); err != nil {
			t.Fatal(err)
		}
		return v.Epoch
	}
	before := epoch()
	w.hub.Stop()
	w.admin(t, "restore", archive)
	if err := w.hub.Start(within(t, startTime)); err != nil {
		t.Fatal(err)
	}
	if epoch() == before {
		t.Error("the epoch is the same after the restore")
	}
	ready(t, a, b.Name)
	ready(t, b, a.Name)
	_ = p.Wait(within(t, startTime))
	if !strings.Contains(p.Output(), " 0% packet loss") {
		t.Errorf("while the hub was restored: %s", p.Tail(3))
	}
	w.admin(t, "audit", "verify")
	w.robot(t, w.wan, "robot3")
}
