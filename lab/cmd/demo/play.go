// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
)

const (
	fileSize = 100_000_000
	pings    = 20
	echoPort = 7000
	stepTime = 30 * time.Second // bounds each step but the transfer
)

// demo is one performance.
type demo struct {
	screen *screen
	bin    build.Binaries
	tails  string // last log lines, when a step failed

	hub  *fleet.Hub
	a, b *fleet.Node
	peer netip.Addr // of b inside the mesh

	latency  probe.Latency
	transfer probe.Transfer
}

// play makes the world and runs all steps in it.
func (d *demo) play(ctx context.Context, lab *netns.Lab) error {
	wan := lab.WAN("internet")
	hubHost := wan.Host("hub", netns.Link{})
	dir := lab.LogDir()
	for i, n := range []**fleet.Node{&d.a, &d.b} {
		home := lab.NAT(fmt.Sprintf("home%d", i+1), netns.NATConfig{
			Kind: netns.PortRestricted, Upstream: wan, LAN: netip.MustParsePrefix("192.168.1.0/24"),
		})
		name := fmt.Sprintf("robot%d", i+1)
		*n = fleet.NewNode(home.Host(name, netns.Link{}), d.bin, dir, name)
	}
	d.screen.say("\n%s", lab.Draw())

	steps := []struct {
		name string
		run  func(ctx context.Context, note func(string, ...any)) error
	}{
		{"starting the hub", func(ctx context.Context, note func(string, ...any)) (err error) {
			if d.hub, err = fleet.StartHub(ctx, hubHost, d.bin, filepath.Join(dir, "hub")); err == nil {
				note("%s", d.hub.URL)
			}
			return err
		}},
		{"joining both robots with one token", d.join},
		{"starting both robots", d.start},
		{"path from robot1 to robot2", d.connect},
		{"pinging robot2 from robot1", d.ping},
	}
	for _, s := range steps {
		stepCtx, cancel := context.WithTimeout(ctx, stepTime)
		err := d.step(s.name, func(note func(string, ...any)) error { return s.run(stepCtx, note) })
		cancel()
		if err != nil {
			return err
		}
	}
	err := d.step("moving a file of 100 MB through the tunnel", func(note func(string, ...any)) error {
		return d.move(ctx, dir, note)
	})
	if err != nil {
		return err
	}
	if err := d.summary(ctx); err != nil {
		return err
	}
	d.screen.say("\n%s\n%s\n", d.screen.paint(bold, "The same on two real machines"), realMachines)
	return nil
}

const realMachines = `  On a machine that both can reach:
    bauxite-dispatch serve --data /var/lib/bauxite-dispatch --public-url https://HUB:8440
    bauxite-dispatch token create --data /var/lib/bauxite-dispatch --uses 2
  On each robot, as root:
    bauxite join TOKEN https://HUB:8440 --name robot1
    bauxite run
  The hub needs TCP 8440 and UDP 3478 open; the robots need nothing open.
  Then bauxite status, and ping the other's address that it shows.`

func (d *demo) join(ctx context.Context, note func(string, ...any)) error {
	token, err := d.hub.Token(ctx, "--uses", "2")
	if err != nil {
		return err
	}
	for _, n := range []*fleet.Node{d.a, d.b} {
		if _, err := n.Join(ctx, token, d.hub.URL); err != nil {
			return err
		}
		note("%s is a member", n.Name)
	}
	note("")
	return nil
}

func (d *demo) start(ctx context.Context, note func(string, ...any)) error {
	for _, n := range []*fleet.Node{d.a, d.b} {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	sa, err := d.a.WaitReady(ctx, d.b.Name)
	if err != nil {
		return err
	}
	sb, err := d.b.WaitReady(ctx, d.a.Name)
	if err != nil {
		return err
	}
	d.peer = sb.Node.VirtualIP
	note("%s is %v, %s is %v", d.a.Name, sa.Node.VirtualIP, d.b.Name, d.peer)
	return nil
}

// connect sends a first packet and watches the path appear.
func (d *demo) connect(ctx context.Context, note func(string, ...any)) error {
	echo, err := d.b.Host.ListenUDP(fmt.Sprintf("0.0.0.0:%d", echoPort))
	if err != nil {
		return err
	}
	e := probe.StartEcho(echo)
	defer e.Close()
	conn, err := d.a.Host.ListenUDP("")
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := d.a.Status(ctx)
	if err != nil {
		return err
	}
	before, _ := s.Peer(d.b.Name)
	note("%s", before.Path.Type)
	took, err := probe.WaitAnswer(ctx, conn, netip.AddrPortFrom(d.peer, echoPort), 0)
	if err != nil {
		return err
	}
	after, err := d.a.WaitPath(ctx, d.b.Name, fleet.PathDirect)
	if err != nil {
		return err
	}
	note("%s → %s via %s, first answer %.0f ms after the first packet",
		before.Path.Type, after.Path.Type, after.Path.Remote, float64(took)/1e6)
	return nil
}

func (d *demo) ping(ctx context.Context, note func(string, ...any)) error {
	r, err := d.a.Host.Run(ctx, "ping", "-n", "-c", "3", "-i", "0.2", "-w", "10", d.peer.String())
	if errors.Is(err, exec.ErrNotFound) {
		note("no ping program here, UDP only")
	} else if err != nil {
		return err
	} else {
		for line := range strings.Lines(r.Stdout) {
			if strings.Contains(line, "bytes from") {
				d.screen.say("    %s", strings.TrimSpace(line))
			}
		}
	}
	echo, err := d.b.Host.ListenUDP(fmt.Sprintf("0.0.0.0:%d", echoPort))
	if err != nil {
		return err
	}
	e := probe.StartEcho(echo)
	defer e.Close()
	conn, err := d.a.Host.ListenUDP("")
	if err != nil {
		return err
	}
	defer conn.Close()
	d.latency, err = probe.RoundTrips(ctx, conn, netip.AddrPortFrom(d.peer, echoPort),
		probe.Requests{Count: pings, Interval: 50 * time.Millisecond})
	if err != nil {
		return err
	}
	if d.latency.Got == 0 {
		return fmt.Errorf("none of %d requests was answered", d.latency.Sent)
	}
	note("%d of %d answered", d.latency.Got, d.latency.Sent)
	return nil
}

// move makes a file at one robot and sends it to the other over TCP.
func (d *demo) move(ctx context.Context, dir string, note func(string, ...any)) error {
	src, err := os.Create(filepath.Join(dir, "file-sent"))
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := io.CopyN(src, probe.Pattern(uint64(time.Now().UnixNano()), nil), fileSize); err != nil {
		return err
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return err
	}
	ln, err := d.b.Host.ListenTCP(net.JoinHostPort(d.peer.String(), "0"))
	if err != nil {
		return err
	}
	defer ln.Close()
	received := make(chan error, 1)
	go func() { received <- receive(ctx, ln, filepath.Join(dir, "file-received")) }()

	conn, err := d.a.Host.DialTCP(ctx, ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		return err
	}
	defer conn.Close()
	began := time.Now()
	d.transfer, err = probe.Send(ctx, conn, src, fileSize, func(sent int64) {
		note("%s %3d %%, %.0f Mbit/s", bar(sent, fileSize), sent*100/fileSize,
			float64(sent)*8/time.Since(began).Seconds()/1e6)
	})
	if err != nil {
		return err
	}
	if err := <-received; err != nil {
		return err
	}
	note("%.0f Mbit/s, SHA-256 equal at both ends", d.transfer.Mbit())
	return nil
}

func receive(ctx context.Context, ln net.Listener, path string) error {
	conn, err := ln.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	dst, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = probe.Receive(ctx, conn, dst, fileSize)
	return errors.Join(err, dst.Close())
}

func bar(done, total int64) string {
	const width = 24
	n := int(done * width / total)
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", width-n) + "]"
}

// summary prints the table.
func (d *demo) summary(ctx context.Context) error {
	s, err := d.a.Status(ctx)
	if err != nil {
		return err
	}
	p, ok := s.Peer(d.b.Name)
	if !ok {
		return fmt.Errorf("%s does not list %s any more", d.a.Name, d.b.Name)
	}
	ms := func(t time.Duration) string { return fmt.Sprintf("%.2f ms", float64(t)/1e6) }
	rows := [][2]string{
		{"path", fmt.Sprintf("%s via %s", p.Path.Type, p.Path.Remote)},
		{"cipher", p.Cipher},
		{"round trip", fmt.Sprintf("%s median, %s worst of %d", ms(d.latency.P50), ms(d.latency.Max), d.latency.Got)},
		{"throughput", fmt.Sprintf("%.0f Mbit/s (100 MB in %.1f s)", d.transfer.Mbit(), d.transfer.Duration.Seconds())},
		{"sent", fmt.Sprintf("%d packets, %d bytes", s.Counters.TxPackets, s.Counters.TxBytes)},
		{"dropped", counters(s.Counters.DroppedBy)},
		{"lane critical", counters(s.Lanes.Critical)},
		{"lane telemetry", counters(s.Lanes.Telemetry)},
		{"lane bulk", counters(s.Lanes.Bulk)},
	}
	d.screen.say("\n%s\n%s", d.screen.paint(bold, "robot1 → robot2"), table(rows))
	return nil
}

// counters shows a JSON object of numbers in one line, without its zeros.
func counters(raw json.RawMessage) string {
	var m map[string]json.Number
	if json.Unmarshal(raw, &m) != nil {
		return strings.TrimSpace(string(raw))
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] != "0" {
			parts = append(parts, strings.ReplaceAll(k, "_", " ")+" "+m[k].String())
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return strings.Join(parts, ", ")
}
