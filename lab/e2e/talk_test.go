// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
)

// marker goes through the tunnel in clear and must not be seen outside it.
const marker = "PLAINTEXT-MARKER-7f3a91c2"

// TestTalk pings and transfers both ways across each kind of underlay while
// the uplinks are watched.
func TestTalk(t *testing.T) {
	for _, tt := range []struct {
		name  string
		where func(w *world) (a, b netns.Network)
	}{
		{"same LAN", func(w *world) (a, b netns.Network) {
			home := w.nat("home", netns.PortRestricted)
			return home, home
		}},
		{"both port-restricted", func(w *world) (a, b netns.Network) {
			return w.nat("home-a", netns.PortRestricted), w.nat("home-b", netns.PortRestricted)
		}},
		{"one NATed, one public", func(w *world) (a, b netns.Network) {
			return w.nat("home", netns.PortRestricted), w.wan
		}},
		{"endpoint-independent and symmetric", func(w *world) (a, b netns.Network) {
			return w.nat("home", netns.EndpointIndependent), w.nat("carrier", netns.Symmetric)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			netA, netB := tt.where(w)
			a, b := w.robot(t, netA, "robot1"), w.robot(t, netB, "robot2")
			t.Logf("\n%s", w.lab.Draw())
			talk(t, w, a, b)
		})
	}
}

func talk(t *testing.T, w *world, a, b *fleet.Node) {
	var captures []*netns.Capture
	for _, n := range []*fleet.Node{a, b} {
		c, err := n.Host.Iface(0).Capture()
		if err != nil {
			t.Fatal(err)
		}
		captures = append(captures, c)
	}
	sa, sb := start(t, a, b)
	if p, _ := sa.Peer(b.Name); p.Path.Type != fleet.PathNone {
		t.Errorf("path before any packet = %q, want none", p.Path.Type)
	}
	if p, _ := sa.Peer(b.Name); p.ID != sb.Node.ID || p.VirtualIP != sb.Node.VirtualIP {
		t.Errorf("robot1 knows %s as %+v, itself it says %+v", b.Name, p, sb.Node)
	}

	ping(t, a, sb.Node.VirtualIP) // the first packet triggers the connection
	ping(t, b, sa.Node.VirtualIP)
	ping(t, a, sb.Node.VirtualIP6)
	checkPeer(t, direct(t, a, b.Name))
	checkPeer(t, direct(t, b, a.Name))
	transfer(t, a, b, sb.Node.VirtualIP, 3<<20)
	transfer(t, b, a, sa.Node.VirtualIP, 3<<20)
	checkStatus(t, a)
	for i, n := range []*fleet.Node{a, b} {
		if !n.Stop() {
			t.Errorf("%s did not end on SIGTERM", n.Name)
		}
		checkCapture(t, n.Name, captures[i], w.hub.NodeAddr())
	}
}

// transfer moves size bytes full of the marker from a host to another over
// TCP through the tunnel.
func transfer(t *testing.T, from, to *fleet.Node, addr netip.Addr, size int64) {
	t.Helper()
	ctx := within(t, time.Minute)
	ln, err := to.Host.ListenTCP(net.JoinHostPort(addr.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	received := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			_, err = probe.Receive(ctx, conn, nil, size)
			_ = conn.Close()
		}
		received <- err
	}()
	conn, err := from.Host.DialTCP(ctx, ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent, err := probe.Send(ctx, conn, probe.Pattern(1, []byte(marker)), size, nil)
	if err != nil {
		t.Fatalf("%s to %s: %v", from.Name, to.Name, err)
	}
	if err := <-received; err != nil {
		t.Errorf("%s to %s: %v", from.Name, to.Name, err)
	}
	t.Logf("%s to %s: %.0f Mbit/s", from.Name, to.Name, sent.Mbit())
}

func checkPeer(t *testing.T, p fleet.Peer) {
	t.Helper()
	if _, err := netip.ParseAddrPort(p.Path.Remote); err != nil {
		t.Errorf("remote of %s: %v", p.Name, err)
	}
	if p.Path.RTTms <= 0 || p.Cipher == "" || len(p.ID) != 52 {
		t.Errorf("peer = %+v, want a round trip time, a cipher and an id of 52 characters", p)
	}
}

// checkStatus looks at both forms of the answer after traffic.
func checkStatus(t *testing.T, n *fleet.Node) {
	t.Helper()
	ctx := within(t, startTime)
	s, err := n.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.Node.Name != n.Name || !s.Hub.Connected || s.Counters.TxPackets == 0 || s.Counters.TxBytes < 1<<20 {
		t.Errorf("status = %s, want name, hub and counters of the traffic", s.Raw)
	}
	for name, raw := range map[string]json.RawMessage{
		"tx_dropped": s.Counters.TxDropped, "critical": s.Lanes.Critical, "telemetry": s.Lanes.Telemetry, "bulk": s.Lanes.Bulk,
	} {
		if len(raw) == 0 {
			t.Errorf("status has no %s: %s", name, s.Raw)
		}
	}
	r, err := n.Cmd(ctx, "status")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("bauxite status\n%s", r.Stdout)
	words := []string{s.Node.Name, s.Node.VirtualIP.String(), "direct"}
	for _, p := range s.Peers {
		words = append(words, p.Name, p.VirtualIP.String(), p.Path.Remote, strings.TrimSuffix(p.Cipher, "poly1305"))
	}
	for _, word := range append(words, "critical", "telemetry", "bulk") {
		if !strings.Contains(strings.ToLower(r.Stdout), strings.ToLower(word)) {
			t.Errorf("status does not mention %q", word)
		}
	}
}

// checkCapture demands that an uplink carried nothing but what a watcher may
// see, and that the marker was not in it.
func checkCapture(t *testing.T, name string, c *netns.Capture, hub netip.AddrPort) {
	t.Helper()
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := c.Missed(); n > 0 {
		t.Errorf("%s: the capture missed %d frames and proves nothing", name, n)
	}
	tally, odd := netns.Classifier{Hubs: []netip.AddrPort{hub}}.Count(c.Frames(), netns.ClassICMPError)
	t.Logf("%s: on the uplink: %v", name, tally)
	for i, p := range odd {
		if i == 10 {
			t.Errorf("%s: … and %d more", name, len(odd)-i)
			break
		}
		t.Errorf("%s: on the uplink: %v", name, p)
	}
	if tally[netns.ClassMesh] < 1000 || tally[netns.ClassSTUN] == 0 || tally[netns.ClassHub] == 0 {
		t.Errorf("%s: %v, want mesh traffic, STUN and the hub's TLS", name, tally)
	}
	if found := c.Find([]byte(marker)); len(found) > 0 {
		t.Errorf("%s: %d frames on the uplink show the plaintext marker", name, len(found))
	}
}

// TestRelayed has two symmetric NATs, which cannot be punched: the hub relays.
func TestRelayed(t *testing.T) {
	w := newWorld(t)
	a := w.robot(t, w.nat("carrier-a", netns.Symmetric), "robot1")
	b := w.robot(t, w.nat("carrier-b", netns.Symmetric), "robot2")
	t.Logf("\n%s", w.lab.Draw())
	_, sb := start(t, a, b)
	ctx := within(t, time.Minute)
	r, err := a.Cmd(ctx, "connect", b.Name)
	if err != nil {
		t.Fatal(err)
	}
	// At once over the hub's stream; TURN takes over when it has an allocation.
	if !strings.Contains(r.Stdout, fleet.PathHubRelay) && !strings.Contains(r.Stdout, fleet.PathTurn) {
		t.Errorf("connect says %q, want a relay", r.Stdout)
	}
	ping(t, a, sb.Node.VirtualIP)
	transfer(t, a, b, sb.Node.VirtualIP, 1<<20)
	s, err := a.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if p, _ := s.Peer(b.Name); p.Path.Type != fleet.PathHubRelay && p.Path.Type != fleet.PathTurn {
		t.Errorf("path = %+v, want a relay", p.Path)
	}
}
