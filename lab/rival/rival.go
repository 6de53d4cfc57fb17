// SPDX-License-Identifier: Apache-2.0

// Package rival runs other tunnels between two hosts of a lab, as their manuals
// say, so that what Bauxite does can be measured beside them in the same run.
package rival

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/bauxite-mesh/bauxite/lab/netns"
)

// BinEnv names a folder with other builds of the programs, which then are used
// in the place of those that the system has.
const BinEnv = "BAUXITE_LAB_RIVALS"

// find returns the path of a program.
func find(name string) (string, error) {
	if dir := os.Getenv(BinEnv); dir != "" {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return exec.LookPath(name)
}

// program is find for programs that Usable has found.
func program(name string) string {
	path, err := find(name)
	if err != nil {
		return name
	}
	return path
}

// stopPatience is how long a program may take to end on SIGTERM.
const stopPatience = 3 * time.Second

// End is one end of a tunnel.
type End struct {
	Host *netns.Host
	// Addr is where the other end sends at first: an underlay address.
	Addr netip.Addr
}

// Tunnel is a running one.
type Tunnel struct {
	// Virtual are the addresses of the ends inside the tunnel.
	Virtual [2]netip.Addr
	// Procs are the daemons, helper the third one, if there is one.
	Procs  [2]*netns.Proc
	helper *netns.Proc
	// Port is the UDP port of both ends.
	Port uint16
}

// Stop ends the daemons.
func (t *Tunnel) Stop() {
	for _, p := range append(t.Procs[:], t.helper) {
		if p != nil {
			p.Stop(stopPatience)
		}
	}
}

// System is another tunnel.
type System struct {
	Name string
	// Package is what to install on Debian, Programs what must be there then.
	Package  string
	Programs []string

	version []string
	start   func(ctx context.Context, dir string, ends [2]End, third End) (*Tunnel, error)
}

// All are the systems known here.
func All() []System {
	return []System{
		{
			Name: "wireguard-go", Package: "wireguard-go wireguard-tools", Programs: []string{"wireguard-go", "wg"},
			version: []string{"wireguard-go", "--version"}, start: startWireGuard,
		},
		{
			Name: "nebula", Package: "nebula", Programs: []string{"nebula", "nebula-cert"},
			version: []string{"nebula", "-version"}, start: startNebula,
		},
	}
}

// Usable says what lacks, or nil.
func (s System) Usable() error {
	if netns.InUserNamespace() {
		return fmt.Errorf("use %s: needs root", s.Name)
	}
	for _, p := range s.Programs {
		if _, err := find(p); err != nil {
			return fmt.Errorf("use %s: %w (apt-get install %s)", s.Name, err, s.Package)
		}
	}
	return nil
}

// Version is what the program says of itself.
func (s System) Version(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, program(s.version[0]), s.version[1:]...).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	v := regexp.MustCompile(`v?\d+\.\d+\.\d+\S*`).FindString(string(out))
	if v == "" {
		v = strings.TrimSpace(string(out))
	}
	return v
}

// Start starts the tunnel, with its files in dir. A system that has a place for
// a public helper (Nebula's lighthouse and relay) runs it on third. Whether the
// tunnel carries anything is for the caller to see.
func (s System) Start(ctx context.Context, dir string, a, b, third End) (*Tunnel, error) {
	t, err := s.start(ctx, dir, [2]End{a, b}, third)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	return t, nil
}

// port is that of all rivals; each runs in a namespace of its own.
const port = 51820

var virtual = [2]netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2")}

// devices numbers the WireGuard interfaces of this process: their control
// sockets are files that all namespaces share.
var devices atomic.Int64

func startWireGuard(ctx context.Context, dir string, ends [2]End, _ End) (_ *Tunnel, err error) {
	t := &Tunnel{Virtual: virtual, Port: port}
	defer func() {
		if err != nil {
			t.Stop()
		}
	}()
	var public [2]string
	var files [2]string
	for i := range ends {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make key: %w", err)
		}
		files[i] = filepath.Join(dir, fmt.Sprintf("wg%d.key", i))
		if err := os.WriteFile(files[i], []byte(base64.StdEncoding.EncodeToString(key.Bytes())+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("write key: %w", err)
		}
		public[i] = base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
	}
	for i, e := range ends {
		name := fmt.Sprintf("wg%d-%d", os.Getpid()%100000, devices.Add(1))
		// In the foreground it does not ask whether the kernel could do better.
		t.Procs[i], err = e.Host.Command(context.WithoutCancel(ctx), netns.ProcConfig{
			Name: "wireguard-go", Env: []string{"WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD=1"},
		}, program("wireguard-go"), "-f", name)
		if err != nil {
			return nil, err
		}
		if err := awaitFile(ctx, t.Procs[i], "/var/run/wireguard/"+name+".sock"); err != nil {
			return nil, err
		}
		other := 1 - i
		if _, err := e.Host.Run(ctx, program("wg"), "set", name, "private-key", files[i], "listen-port", fmt.Sprint(port),
			"peer", public[other], "endpoint", netip.AddrPortFrom(ends[other].Addr, port).String(),
			"allowed-ips", virtual[other].String()+"/32", "persistent-keepalive", "25"); err != nil {
			return nil, err
		}
		if err := e.Host.Do(func() error { return configure(name, virtual[i]) }); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// configure brings up a tunnel's interface with its address.
func configure(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.AddrAdd(link, &netlink.Addr{IPNet: netlink.NewIPNet(addr.AsSlice())})
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	other := virtual[0]
	if other == addr {
		other = virtual[1]
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(other.AsSlice())}); err != nil {
		return fmt.Errorf("route %v over %s: %w", other, name, err)
	}
	return nil
}

func awaitFile(ctx context.Context, p *netns.Proc, path string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return fmt.Errorf("%s ended (%w):\n%s", p.Args[0], errors.Join(p.Wait(ctx)), p.Tail(10))
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", path, context.Cause(ctx))
		}
	}
}

// lighthouse is the third one's address inside the tunnel.
var lighthouse = netip.MustParseAddr("10.77.0.254")

const nebulaConfig = `pki:
  ca: %[1]s/ca.crt
  cert: %[1]s/node%[2]d.crt
  key: %[1]s/node%[2]d.key
static_host_map:
  "%[3]v": ["%[4]v"]
lighthouse:
  am_lighthouse: %[6]v
  interval: 10
  hosts: [%[7]s]
relay:
  am_relay: %[6]v
  use_relays: true
  relays: [%[7]s]
listen:
  host: 0.0.0.0
  port: %[5]d
punchy:
  punch: true
  respond: true
tun:
  dev: nebula1
  mtu: 1300
logging:
  level: info
firewall:
  outbound:
    - {port: any, proto: any, host: any}
  inbound:
    - {port: any, proto: any, host: any}
`

func startNebula(ctx context.Context, dir string, ends [2]End, third End) (_ *Tunnel, err error) {
	t := &Tunnel{Virtual: virtual, Port: port}
	defer func() {
		if err != nil {
			t.Stop()
		}
	}()
	file := func(name string) string { return filepath.Join(dir, name) }
	cert := func(args ...string) error {
		_, err := third.Host.Run(ctx, program("nebula-cert"), args...)
		return err
	}
	if err := cert("ca", "-name", "lab", "-out-crt", file("ca.crt"), "-out-key", file("ca.key")); err != nil {
		return nil, err
	}
	// The lighthouse first: the others ask it for each other.
	for _, n := range []struct {
		number int
		host   *netns.Host
		addr   netip.Addr
		proc   **netns.Proc
	}{
		{2, third.Host, lighthouse, &t.helper},
		{0, ends[0].Host, virtual[0], &t.Procs[0]},
		{1, ends[1].Host, virtual[1], &t.Procs[1]},
	} {
		name := fmt.Sprintf("node%d", n.number)
		if err := cert("sign", "-ca-crt", file("ca.crt"), "-ca-key", file("ca.key"), "-name", name, "-ip", n.addr.String()+"/24",
			"-out-crt", file(name+".crt"), "-out-key", file(name+".key")); err != nil {
			return nil, err
		}
		helper := n.addr == lighthouse
		hosts := fmt.Sprintf("%q", lighthouse)
		if helper {
			hosts = ""
		}
		text := fmt.Sprintf(nebulaConfig, dir, n.number, lighthouse, netip.AddrPortFrom(third.Addr, port), port, helper, hosts)
		if err := os.WriteFile(file(name+".yml"), []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("write configuration: %w", err)
		}
		*n.proc, err = n.host.Command(context.WithoutCancel(ctx), netns.ProcConfig{Name: "nebula"}, program("nebula"), "-config", file(name+".yml"))
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}
