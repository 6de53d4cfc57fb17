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

	"github.com/bauxite-mesh/bauxite/conduit/identity"
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
	// Cipher is "chacha20poly1305" (also the zero value), "aes256gcm", or "auto":
	// AES where both ends prefer it.
	Cipher string
	// Rehandshake is the age at which a session's keys are replaced by a full
	// handshake through the hub; the old ones serve until the new ones do. Zero
	// means one hour, negative never.
	Rehandshake time.Duration
	// Hub is the link to the control plane.
	Hub HubConnector
	// Device gives and takes the inner packets. The node closes it. tun.Open makes
	// a kernel interface, tun.Pipe one in memory that needs no root.
	Device tun.Device
	// Port is the UDP port for all traffic; 0 lets the system choose.
	Port int
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

// ErrConfig is returned by New for a Config that cannot work.
var ErrConfig = errors.New("bad configuration")

// Clone returns a copy that shares nothing that either side may change.
func (c *Config) Clone() *Config {
	o := *c
	o.PSK = slices.Clone(c.PSK)
	o.STUNServers = slices.Clone(c.STUNServers)
	o.MeshPrefixes = slices.Clone(c.MeshPrefixes)
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
	if _, err := c.suites(); err != nil {
		return bad("%v", err)
	}
	return nil
}

func (c *Config) suites() ([]wire.Suite, error) {
	switch c.Cipher {
	case "", "chacha20poly1305":
		// The other is accepted where the peer insists on it.
		return []wire.Suite{wire.SuiteChaCha, wire.SuiteAES}, nil
	case "aes256gcm", "auto":
		return []wire.Suite{wire.SuiteAES, wire.SuiteChaCha}, nil
	}
	return nil, fmt.Errorf("cipher %q: want chacha20poly1305, aes256gcm or auto", c.Cipher)
}
