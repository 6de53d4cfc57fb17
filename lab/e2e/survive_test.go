// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
)

// natted is a world with two connected robots behind port-restricted NATs and
// an echo on the second.
func natted(t *testing.T) (w *world, a, b *fleet.Node, echo netip.AddrPort) {
	t.Helper()
	w = newWorld(t)
	a = w.robot(t, w.nat("home-a", netns.PortRestricted), "robot1")
	b = w.robot(t, w.nat("home-b", netns.PortRestricted), "robot2")
	_, sb := start(t, a, b)
	connect(t, a, b.Name)
	conn, err := b.Host.ListenUDP("0.0.0.0:7000")
	if err != nil {
		t.Fatal(err)
	}
	e := probe.StartEcho(conn)
	t.Cleanup(func() { e.Close() })
	return w, a, b, netip.AddrPortFrom(sb.Node.VirtualIP, 7000)
}

// answered returns how long it takes until the echo answers.
func answered(t *testing.T, from *fleet.Node, echo netip.AddrPort) time.Duration {
	t.Helper()
	conn, err := from.Host.ListenUDP("")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d, err := probe.WaitAnswer(within(t, startTime), conn, echo, 0)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestKillNode kills each node in turn: after its restart traffic must flow
// again soon, with the hub left alone.
func TestKillNode(t *testing.T) {
	const limit = 5 * time.Second
	_, a, b, echo := natted(t)
	answered(t, a, echo)
	for _, victim := range []*fleet.Node{a, b} {
		t.Run(victim.Name, func(t *testing.T) {
			if err := syscall.Kill(victim.Proc.Pid(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-victim.Proc.Done()
			began := time.Now()
			if err := victim.Start(within(t, startTime)); err != nil {
				t.Fatal(err)
			}
			answered(t, a, echo)
			if d := time.Since(began); d > limit {
				t.Errorf("traffic again %v after the restart, want within %v", d, limit)
			} else {
				t.Logf("traffic again after %v", d)
			}
			ping(t, a, echo.Addr())
		})
	}
}

// TestHubAway stops the hub: known peers go on talking, and all is well when
// it returns.
func TestHubAway(t *testing.T) {
	w, a, b, echo := natted(t)
	answered(t, a, echo)
	w.hub.Stop()
	if _, err := a.WaitStatus(within(t, startTime), "the loss of the hub", func(s fleet.Status) bool { return !s.Hub.Connected }); err != nil {
		t.Fatal(err)
	}
	conn, err := a.Host.ListenUDP("")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l, err := probe.RoundTrips(within(t, startTime), conn, echo, probe.Requests{Count: 200, Interval: 20 * time.Millisecond})
	if err != nil || l.Got != l.Sent {
		t.Errorf("without the hub %d of %d answered, %v", l.Got, l.Sent, err)
	}
	s, err := b.Status(within(t, startTime))
	if err != nil {
		t.Fatal(err)
	}
	transfer(t, a, b, s.Node.VirtualIP, 1<<20)

	if err := w.hub.Start(within(t, startTime)); err != nil {
		t.Fatal(err)
	}
	ready(t, a, b.Name)
	ready(t, b, a.Name)
	ping(t, a, s.Node.VirtualIP)
}
