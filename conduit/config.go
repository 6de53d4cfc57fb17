// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
)

// Config describes a node. Keys, Certificate, Roots, Hub and Device are
// required; every other field has a working zero value. A Config is not changed
// by the node and may be used for one node only, because Device is.
type Config struct {
	// Keys are the node's own. Their PeerID must be the certificate's.
	Keys *identity.Keys
	// Certificate is the node's own, with the chain that peers verify.
	Certificate *identity.Certificate
	// Roots are the mesh's CA certificates.
	Roots *x509.CertPool
	// PSK is the mesh's pre-shared key: 32 bytes, or nil for a mesh without one.
	PSK []byte
	// PSKEpoch is the number under which the mesh knows PSK.
	PSKEpoch uint8
	// Cipher is "chacha20poly1305" (also the zero value), "aes256gcm" for AES with
	// every peer, or "auto": AES where both ends have hardware for it. A FIPS build
	// (package fips) takes only AES, and so refuses an explicit "chacha20poly1305".
	Cipher string
	// Rehandshake is the age at which a session is replaced by a full handshake,
	// inside it or through the hub; the old one serves until the new one does. Zero
	// means one hour, negative never. Its keys are replaced every two minutes anyhow.
	Rehandshake time.Duration
	// Hub is the link to the control plane.
	Hub HubConnector
	// Device gives and takes the inner packets. The node closes it. tun.Open makes
	// a kernel interface, tun.Pipe one in memory that needs no root.
	Device tun.Device
	// Port is the UDP port for all traffic, the same on every uplink; 0 lets the
	// system choose.
	Port int
	// Uplinks are rules about interfaces; the first whose Name matches counts.
	// Interfaces without a rule are used.
	Uplinks []UplinkRule
	// Bonding says how the paths over several uplinks are used.
	Bonding Bonding
	// Lanes are rules for what the node sends, ahead of the defaults; at most
	// MaxLaneRules.
	Lanes []LaneRule
	// Pacing says how fast the paths are filled.
	Pacing Pacing
	// NoDSCP leaves the outer packets without a code point, for networks that treat
	// marked traffic worse.
	NoDSCP bool
	// StateFile is where the node keeps what it must know to start without its hub:
	// peers, their last good addresses, what the paths to them carried, the policy.
	// Empty means nowhere.
	StateFile string
	// Relay lets other nodes, which cannot reach each other, send through this one
	// where the policy lets them talk. It cannot read what it carries.
	Relay bool
	// STUNServers are "host:port" of servers that tell our public address. None
	// means that only host addresses are offered to peers.
	STUNServers []string
	// MeshPrefixes are the overlay's own prefixes, which can never be addresses of
	// the underlay. Zero means the node's own virtual addresses only.
	MeshPrefixes []netip.Prefix
	// IncludeLoopback lets peers meet on loopback addresses, for tests and for
	// several nodes in one process.
	IncludeLoopback bool
	// Logger may be nil: nothing is logged. Nothing is ever logged per packet.
	Logger *slog.Logger
}

// UplinkRule is about the interfaces whose names match a pattern.
type UplinkRule struct {
	// Name is a pattern of path.Match, such as "wwan*".
	Name string
	// Ignore leaves the interface alone.
	Ignore bool
	// Metered keeps Telemetry and Bulk off while an interface that is not metered
	// reaches the peer.
	Metered bool
	// Budget is the bytes that may be sent and received in a day (UTC); an interface
	// that has spent it serves only where no other does. 0 means no limit.
	Budget uint64
	// Rate bounds all that is sent over the interface, in bits per second on the wire.
	// 0 means no bound but Pacing's.
	Rate uint64
}

// Bonding modes, by lane. Empty means the default.
type Bonding struct {
	// Critical, by default "duplicate", goes over all uplinks at once. Telemetry, by
	// default "redundant-adaptive", does so while the best path loses or jitters.
	// Bulk, by default "balance", is spread by flow. "active-backup" uses the best
	// path alone.
	Critical, Telemetry, Bulk string
}

// ErrConfig is returned by New for a Config that cannot work.
var ErrConfig = errors.New("bad configuration")

// Clone returns a copy that shares nothing that either side may change.
func (c *Config) Clone() *Config {
	o := *c
	o.PSK = slices.Clone(c.PSK)
	o.STUNServers = slices.Clone(c.STUNServers)
	o.MeshPrefixes = slices.Clone(c.MeshPrefixes)
	o.Uplinks = slices.Clone(c.Uplinks)
	o.Lanes = slices.Clone(c.Lanes)
	for i := range o.Lanes {
		o.Lanes[i].DSCP = slices.Clone(o.Lanes[i].DSCP)
	}
	return &o
}

func (c *Config) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, args...))
	}
	switch {
	case c.Keys == nil || c.Keys.Ed25519 == nil || c.Keys.X25519 == nil:
		return bad("Keys is required")
	case c.Certificate == nil:
		return bad("Certificate is required")
	case c.Certificate.ID != c.Keys.ID():
		return bad("certificate is for peer %s, keys are of %s", c.Certificate.ID.Short(), c.Keys.ID().Short())
	case c.Roots == nil:
		return bad("Roots is required")
	case c.Hub == nil:
		return bad("Hub is required")
	case c.Device == nil:
		return bad("Device is required; tun.Pipe makes one that needs no root")
	case c.PSK != nil && len(c.PSK) != 32:
		return bad("PSK has %d bytes, want 32", len(c.PSK))
	case c.Port < 0 || c.Port > 65535:
		return bad("port %d", c.Port)
	}
	if err := fips.Check(); err != nil {
		return err
	}
	if _, err := c.suites(); err != nil {
		return bad("%v", err)
	}
	if _, err := c.modes(); err != nil {
		return bad("%v", err)
	}
	if _, err := laneRules(c.Lanes); err != nil {
		return bad("%v", err)
	}
	if err := c.Pacing.Check(); err != nil {
		return bad("%v", err)
	}
	for _, u := range c.Uplinks {
		if u.Rate != 0 {
			if err := checkRate(float64(u.Rate)); err != nil {
				return bad("uplink %q: %v", u.Name, err)
			}
		}
	}
	return nil
}

// modes reads Bonding.
func (c *Config) modes() (m [packet.NumLanes]path.Mode, err error) {
	for l, name := range [packet.NumLanes]string{c.Bonding.Critical, c.Bonding.Telemetry, c.Bonding.Bulk} {
		if m[l], err = path.ParseMode(name); err != nil {
			return m, fmt.Errorf("bonding of %s: %w", packet.Lane(l), err)
		}
	}
	return m, nil
}

func (c *Config) suites() ([]wire.Suite, error) {
	return session.Suites(c.Cipher, session.HasAES())
}
