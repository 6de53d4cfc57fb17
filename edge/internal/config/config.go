// SPDX-License-Identifier: Apache-2.0

// Package config reads and writes config.toml, strictly: a key that is not known
// is an error with its line, because a robot that ignores a misspelt setting
// fails later and further away.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
)

// MaxSize is the largest config.toml, in bytes.
const MaxSize = 64 << 10

// Limits and defaults.
const (
	MinMTU = 1280 // IPv6 wants no less (RFC 8200)
	MaxMTU = 2000 // what the tun driver takes
	// MaxSTUN bounds the STUN servers.
	MaxSTUN = 8
	// PublicSTUN is asked after the hub's own server.
	PublicSTUN = "stun.l.google.com:19302"
	// HubSTUNPort is where a hub answers STUN.
	HubSTUNPort = "3478"
)

// ErrConfig is what every error about the file's content Is.
var ErrConfig = errors.New("bad configuration")

// Config is config.toml. `bauxite join` writes hub, node and psk.
type Config struct {
	Hub       Hub       `toml:"hub" comment:"The hub that this node belongs to.\nproxy = \"http://host:port\" to reach it, or \"none\"; HTTPS_PROXY and NO_PROXY of the environment"`
	Node      Node      `toml:"node" comment:"What the hub says of this node. The certificate says the same, and counts."`
	PSK       PSK       `toml:"psk" comment:"The secret that all nodes of the mesh share."`
	Tun       Tun       `toml:"tun" comment:"name = \"bauxite0\"; \"none\" for no interface\nmtu = 1350"`
	Transport Transport `toml:"transport" comment:"port = 0, which means any; the same on every interface\ncipher = \"chacha20poly1305\"; \"auto\" for AES where both ends are fast at it;\n  \"aes256gcm\" for AES with every peer\nstun_servers = [...], \"host:port\" each; the hub's and then a public one\nrelay = false; true lets peers that cannot reach each other send through here\ndscp = true; false sends packets without a mark for routers and Wi-Fi"`
	Bonding   Bonding   `toml:"bonding" comment:"How each lane uses several interfaces: \"duplicate\" sends on all at once,\n\"redundant-adaptive\" does so while the best one loses, \"balance\" spreads the flows,\n\"active-backup\" uses the best one alone.\ncritical = \"duplicate\"\ntelemetry = \"redundant-adaptive\"\nbulk = \"balance\"\n\nRules about interfaces; the first whose name matches counts:\n[[uplink]]\nname = \"wwan*\"\nmetered = true     # no Telemetry and Bulk while another interface reaches the peer\nbudget = \"500MB\"   # a day; when it is spent, only where nothing else is left\nrate = \"20Mbit\"    # send no more than this\nignore = false     # true: never use it"`
	Uplinks   []Uplink  `toml:"uplink,omitempty"`
	Pacing    Pacing    `toml:"pacing" comment:"How fast each path is filled, so that what is urgent need not wait in a modem's queue:\nstrategy = \"delay-rate\" measures it, \"fixed\" sends at rate, \"none\" at once.\nrate = \"20Mbit\"        # of \"fixed\"\nfloor = 0.3            # share of the rate that is kept beside traffic which fills the queue\ncritical_share = 0.4   # how much of the rate Critical may take\n\nRules for the lane of what is sent; the first that matches counts. Then ICMP and packets\nunder 100 bytes are critical, port 5006 is telemetry, and the rest is bulk:\n[[lane]]\nlane = \"critical\"\nproto = \"udp\"          # or \"tcp\", \"icmp\", a number\nport = \"7400-7499\"     # of either side, or src_port, dst_port\ndscp = [\"ef\", 40]      # marks that the sender made\nbelow = 300            # bytes"`
	Lanes     []Lane    `toml:"lane,omitempty"`
	Metrics   Metrics   `toml:"metrics" comment:"Where Prometheus may read how the node is doing, in plain HTTP at /metrics:\nlisten = \"127.0.0.1:9464\", or \"none\""`
	Log       Log       `toml:"log" comment:"format = \"console\" on a terminal, else \"json\"\nlevel = \"info\", or \"debug\", \"warn\", \"error\""`
}

// Hub says where the hub is.
type Hub struct {
	// URL of the node port. Required.
	URL string `toml:"url"`
	// Proxy is the HTTP proxy that leads to the hub, as ParseProxy reads it; empty
	// means HTTPS_PROXY and NO_PROXY of the environment, "none" means none.
	Proxy string `toml:"proxy,omitempty"`
}

// Node is the node as the hub enrolled it. Required, but VirtualIP6.
type Node struct {
	Name       string          `toml:"name"`
	ID         identity.PeerID `toml:"id"`
	MeshID     string          `toml:"mesh_id"`
	VirtualIP  netip.Addr      `toml:"virtual_ip"`
	VirtualIP6 netip.Addr      `toml:"virtual_ip6,omitzero"`
	// MeshCIDRs are routed into the mesh.
	MeshCIDRs []netip.Prefix `toml:"mesh_cidrs"`
}

// PSK says where the pre-shared key is.
type PSK struct {
	// File is relative to the home directory; empty means "psk".
	File string `toml:"file,omitempty"`
	// Epoch tells keys apart while the mesh changes from one to the next.
	Epoch uint8 `toml:"epoch"`
}

// Tun describes the mesh's network interface.
type Tun struct {
	// Name; empty means tun.DefaultName, "none" means no interface.
	Name string `toml:"name,omitempty"`
	// MTU in bytes; 0 means tun.DefaultMTU.
	MTU int `toml:"mtu,omitempty"`
}

// Transport describes the UDP side.
type Transport struct {
	// Port is the local UDP port; 0 means any.
	Port int `toml:"port,omitempty"`
	// STUNServers are "host:port"; absent means the hub's host on port 3478, then
	// PublicSTUN. An empty list means none.
	STUNServers []string `toml:"stun_servers,omitempty"`
	// Cipher is chacha20poly1305, aes256gcm or auto, as conduit.Config has it;
	// empty means chacha20poly1305.
	Cipher string `toml:"cipher,omitempty"`
	// Relay lets peers that cannot reach each other send through this node, which
	// cannot read what it carries.
	Relay bool `toml:"relay,omitempty"`
	// DSCP marks the outer packets by lane; nil means true.
	DSCP *bool `toml:"dscp,omitempty"`
}

// Log describes what `bauxite run` writes to stderr.
type Log struct {
	// Format is console or json; empty means console on a terminal, else json.
	Format string `toml:"format,omitempty"`
	// Level is debug, info, warn or error; empty means info.
	Level string `toml:"level,omitempty"`
}

// Parse reads and checks a config.toml. Its errors give the line and, where one
// can be had, a proposal.
func Parse(text []byte) (*Config, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrConfig, len(text), MaxSize)
	}
	var c Config
	d := toml.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrConfig, explain(err))
	}
	if err := c.Validate(); err != nil {
		if v, ok := errors.AsType[*valueError](err); ok {
			err = v.at(text)
		}
		return nil, err
	}
	return &c, nil
}

// Load reads a file that only its owner may read.
func Load(name string) (*Config, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.Size() > MaxSize {
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d", name, ErrConfig, fi.Size(), MaxSize)
	}
	text, err := identity.ReadSecret(name)
	if err != nil {
		return nil, err
	}
	c, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// Marshal returns c as a file with comments.
func (c *Config) Marshal() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# Written by `bauxite join`. Every setting that is not here has its default.\n\n")
	if err := toml.NewEncoder(&b).Encode(c); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return b.Bytes(), nil
}

// Validate checks every value.
func (c *Config) Validate() error {
	bad := func(key, format string, a ...any) error {
		return &valueError{key: key, err: fmt.Errorf(format, a...)}
	}
	if _, err := hub.ParseURL(c.Hub.URL); err != nil {
		return bad("hub.url", "%v", err)
	}
	if _, err := ParseProxy(c.Hub.Proxy); err != nil {
		return bad("hub.proxy", "%v", err)
	}
	n := c.Node
	switch {
	case !identity.ValidName(n.Name):
		return bad("node.name", "%q is no DNS label in lower case", n.Name)
	case n.ID.IsZero():
		return bad("node.id", "is missing")
	case !identity.ValidName(n.MeshID):
		return bad("node.mesh_id", "is missing or malformed")
	case !n.VirtualIP.Is4():
		return bad("node.virtual_ip", "is no IPv4 address")
	case n.VirtualIP6.IsValid() && (!n.VirtualIP6.Is6() || n.VirtualIP6.Is4In6() || n.VirtualIP6.Zone() != ""):
		return bad("node.virtual_ip6", "is no IPv6 address")
	case len(n.MeshCIDRs) == 0 || len(n.MeshCIDRs) > 16:
		return bad("node.mesh_cidrs", "has %d prefixes, want 1 to 16", len(n.MeshCIDRs))
	}
	for _, p := range n.MeshCIDRs {
		if !p.IsValid() || p.Masked() != p || p.Bits() == 0 {
			return bad("node.mesh_cidrs", "%v is no network", p)
		}
	}
	if c.Tun.Name != "" && !validInterface(c.Tun.Name) {
		return bad("tun.name", "%q is no interface name: at most 15 letters, digits, '-', '_' or '.'", c.Tun.Name)
	}
	if c.Tun.MTU != 0 && (c.Tun.MTU < MinMTU || c.Tun.MTU > MaxMTU) {
		return bad("tun.mtu", "is %d, want %d to %d", c.Tun.MTU, MinMTU, MaxMTU)
	}
	if c.Transport.Port < 0 || c.Transport.Port > 65535 {
		return bad("transport.port", "is %d, want 0 to 65535", c.Transport.Port)
	}
	if len(c.Transport.STUNServers) > MaxSTUN {
		return bad("transport.stun_servers", "has %d servers, at most %d", len(c.Transport.STUNServers), MaxSTUN)
	}
	for _, s := range c.Transport.STUNServers {
		if h, p, err := net.SplitHostPort(s); err != nil || h == "" || p == "" {
			return bad("transport.stun_servers", "%q is not host:port", s)
		}
	}
	if f := c.PSK.File; f != "" && (len(f) > 4096 || strings.ContainsRune(f, 0)) {
		return bad("psk.file", "is no file name")
	}
	for _, check := range []func() error{c.checkUplinks, c.checkLanes, c.checkPacing, c.checkMetrics} {
		if err := check(); err != nil {
			return err
		}
	}
	for _, o := range []struct {
		key, have string
		want      []string
	}{
		{"transport.cipher", c.Transport.Cipher, []string{"auto", "chacha20poly1305", "aes256gcm"}},
		{"bonding.critical", c.Bonding.Critical, Modes},
		{"bonding.telemetry", c.Bonding.Telemetry, Modes},
		{"bonding.bulk", c.Bonding.Bulk, Modes},
		{"log.format", c.Log.Format, []string{"console", "json"}},
		{"log.level", c.Log.Level, []string{"debug", "info", "warn", "error"}},
	} {
		if err := oneOf(o.have, o.want); err != nil {
			return bad(o.key, "%w", err)
		}
	}
	return nil
}

// STUN returns the servers in force.
func (c *Config) STUN() []string {
	if c.Transport.STUNServers != nil {
		return c.Transport.STUNServers
	}
	out := []string{PublicSTUN}
	if u, err := hub.ParseURL(c.Hub.URL); err == nil {
		out = []string{net.JoinHostPort(u.Hostname(), HubSTUNPort), PublicSTUN}
	}
	return out
}

// TunName returns the interface name in force; empty where there is to be none.
func (c *Config) TunName() string {
	switch c.Tun.Name {
	case "":
		return tun.DefaultName
	case "none":
		return ""
	}
	return c.Tun.Name
}

// TunMTU returns the MTU in force.
func (c *Config) TunMTU() int {
	if c.Tun.MTU == 0 {
		return tun.DefaultMTU
	}
	return c.Tun.MTU
}

func validInterface(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

func oneOf(have string, want []string) error {
	if have == "" || slices.Contains(want, have) {
		return nil
	}
	s := fmt.Sprintf("%.40q is not one of %s", have, strings.Join(want, ", "))
	near := nearestOf(have, want)
	if i := slices.IndexFunc(want, func(w string) bool { return strings.HasPrefix(w, have) }); near == "" && i >= 0 {
		near = want[i]
	}
	if near != "" {
		s += "; did you mean " + near + "?"
	}
	return errors.New(s)
}
