// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// Defaults of Config.
const (
	DefaultListen        = ":8440"
	DefaultAdminListen   = "127.0.0.1:8441"
	DefaultMetricsListen = "127.0.0.1:8442"
	DefaultSTUNListen    = ":3478"
)

// DefaultMeshCIDR is away from 10.0.0.0/16 and the other ranges that sites use
// most, and from 100.64.0.0/10, which LTE carriers use.
var DefaultMeshCIDR = netip.MustParsePrefix("10.66.0.0/16")

var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

const (
	minCertLifetime = time.Minute
	maxCertLifetime = 90 * 24 * time.Hour
)

// Off disables a listener.
const Off = "off"

// Config is how a Server behaves. The zero value of each field but DataDir is its
// documented default.
type Config struct {
	// DataDir holds all state of the hub. It is made with mode 0700.
	DataDir string
	// Listen is the TCP address of the node port; empty means ":8440". Port 0 picks
	// a free one.
	Listen string
	// AdminListen is the TCP address of the admin port, where API keys are good;
	// empty means "127.0.0.1:8441", Off none. It speaks TLS.
	AdminListen string
	// AdminURL is what administrators reach the admin port by, as
	// "https://hub.example.org:8441". Empty takes the address that it listens on, or
	// the host of the node URL.
	AdminURL string
	// AdminCert and AdminKey are PEM files for the admin port, as of a public
	// authority; they are read again when they change. Empty takes a certificate of
	// the mesh's own authority.
	AdminCert, AdminKey string
	// MetricsListen is the TCP address of health checks and metrics, in plain HTTP:
	// keep it on loopback. Empty means "127.0.0.1:8442", or Off where AdminListen is
	// Off; Off none.
	MetricsListen string
	// STUNListen is the UDP address of the STUN and TURN server; empty means ":3478",
	// Off none.
	STUNListen string
	// TURN is how the TURN server on STUNListen behaves.
	TURN TURN
	// RelayRate is what a node may send over the relay stream, in bytes per second;
	// zero means 1,000,000 (8 Mbit/s), below zero turns the stream off.
	RelayRate int
	// PublicURL is what nodes join with, as "https://hub.example.org:8440". Empty
	// guesses it from the address of the default route.
	PublicURL string
	// MeshCIDR and MeshCIDR6 number the nodes. They are chosen at the first start:
	// zero then means DefaultMeshCIDR and a random unique local /64 (RFC 4193).
	// Later they are zero or unchanged.
	MeshCIDR, MeshCIDR6 netip.Prefix
	// ExternalPSK keeps the mesh's pre-shared key out of the hub: joining nodes get
	// none, and the operator brings it to them.
	ExternalPSK bool
	// LazyAbove is how many nodes a site may have before the hub stops to tell each
	// of them of all others, and they ask for those that they need; 0 means 512.
	LazyAbove int
	// Version is that of the program, for people.
	Version string
	// MinDiskFree is how many bytes must be free for DataDir, else the hub says that
	// it is not ready; zero means 64 MiB.
	MinDiskFree uint64
	// OTLP is where the hub's figures are sent; zero sends them nowhere.
	OTLP OTLP
	// CertLifetime is how long the nodes' certificates are good for; zero means 7
	// days, the least is a minute and the most 90 days.
	CertLifetime time.Duration
	// Logger nil discards.
	Logger *slog.Logger
}

// withDefaults returns cfg complete, or why it cannot be.
func (c Config) withDefaults() (Config, error) {
	if c.DataDir == "" {
		return c, errors.New("data directory is not set")
	}
	if c.MetricsListen == "" && c.AdminListen == Off {
		c.MetricsListen = Off
	}
	for _, f := range []struct {
		addr     *string
		def      string
		optional bool
		what     string
	}{
		{&c.Listen, DefaultListen, false, "node"},
		{&c.AdminListen, DefaultAdminListen, true, "admin"},
		{&c.MetricsListen, DefaultMetricsListen, true, "metrics"},
		{&c.STUNListen, DefaultSTUNListen, true, "STUN"},
	} {
		if *f.addr == "" {
			*f.addr = f.def
		}
		if *f.addr == Off && f.optional {
			continue
		}
		if _, _, err := net.SplitHostPort(*f.addr); err != nil {
			return c, fmt.Errorf("%s listen address: %w", f.what, err)
		}
	}
	if err := c.TURN.check(); err != nil {
		return c, err
	}
	if err := c.OTLP.check(); err != nil {
		return c, err
	}
	for _, f := range []struct {
		url  *string
		what string
	}{{&c.PublicURL, "public"}, {&c.AdminURL, "admin"}} {
		if *f.url == "" {
			continue
		}
		u, err := url.Parse(*f.url)
		if err != nil {
			return c, fmt.Errorf("%s URL: %w", f.what, err)
		}
		if u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
			return c, fmt.Errorf("%s URL %q: want https://HOST[:PORT]", f.what, *f.url)
		}
		*f.url = "https://" + u.Host
	}
	if (c.AdminCert == "") != (c.AdminKey == "") {
		return c, errors.New("certificate of the admin port: want both files, the certificate and its key")
	}
	if c.MeshCIDR.IsValid() || c.MeshCIDR6.IsValid() {
		v4, v6 := c.MeshCIDR, c.MeshCIDR6
		if !v4.IsValid() {
			v4 = netip.MustParsePrefix("10.0.0.0/28") // any that fits
		}
		if !v6.IsValid() {
			v6 = netip.MustParsePrefix("fd00::/64")
		}
		if err := store.CheckPrefixes(v4, v6); err != nil {
			return c, err
		}
	}
	if c.CertLifetime == 0 {
		c.CertLifetime = ca.NodeLifetime
	}
	if c.CertLifetime < minCertLifetime || c.CertLifetime > maxCertLifetime {
		return c, fmt.Errorf("certificate lifetime %v: want %v to %v", c.CertLifetime, minCertLifetime, maxCertLifetime)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
