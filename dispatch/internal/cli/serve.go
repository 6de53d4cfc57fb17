// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/dispatch"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "run the hub in the foreground",
		Description: `The hub is ready when it prints its node URL. The first start makes the
certificate authority, the database, a first join token and a one-time owner link,
which are printed on standard error: there is no other way in but the socket in
the data directory.

Examples:

  bauxite-dispatch serve --data /var/lib/bauxite-dispatch
  bauxite-dispatch serve --data ./hub --public-url https://hub.example.org:8440
  bauxite-dispatch serve --data ./hub --mesh-cidr 10.99.0.0/20   (first start only)`,
		Flags: fromEnv(append([]cli.Flag{
			dataFlag(),
			&cli.StringFlag{Name: "listen", Value: dispatch.DefaultListen, Usage: "`ADDR` of the node port (TCP)"},
			&cli.StringFlag{Name: "admin-listen", Value: dispatch.DefaultAdminListen, Usage: "`ADDR` of the admin port (TCP, TLS), or off"},
			&cli.StringFlag{Name: "admin-url", Usage: "`URL` that administrators reach the admin port by (default: from the address)"},
			&cli.StringFlag{Name: "admin-cert", Usage: "`FILE` with a certificate for the admin port, PEM (default: of the mesh's own authority)"},
			&cli.StringFlag{Name: "admin-key", Usage: "`FILE` with the key of --admin-cert"},
			&cli.StringFlag{Name: "metrics-listen", Usage: "`ADDR` of health checks and metrics in plain HTTP, or off (default: " + dispatch.DefaultMetricsListen + ", off without an admin port)"},
			&cli.StringFlag{Name: "stun-listen", Value: dispatch.DefaultSTUNListen, Usage: "`ADDR` of the STUN and TURN server (UDP), or off"},
			&cli.StringFlag{Name: "public-url", Usage: "`URL` that nodes join with (default: guessed)"},
			&cli.StringFlag{Name: "mesh-cidr", Usage: "IPv4 `PREFIX` of the mesh, at the first start only (default: " + dispatch.DefaultMeshCIDR.String() + ")"},
			&cli.StringFlag{Name: "mesh-cidr6", Usage: "IPv6 `PREFIX` of the mesh, at the first start only (default: a random fd…/64)"},
			&cli.StringFlag{Name: "psk", Value: "hub", Usage: "who keeps the mesh's pre-shared key: `hub` or external"},
			&cli.DurationFlag{Name: "cert-ttl", Value: 7 * 24 * time.Hour, Usage: "lifetime of node certificates, 1m to 90 days"},
			&cli.StringFlag{Name: "log-format", Value: "auto", Usage: "`console` or json (default: console on a terminal)"},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "debug, info, warn or error"},
		}, append(relayFlags(), observeFlags()...)...)...),
		Action: serve,
	}
}

func serve(c *cli.Context) error {
	cfg, err := serveConfig(c)
	if err != nil {
		return err
	}
	s, err := dispatch.New(cfg)
	if err != nil {
		return usageError{err}
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(c.Context) }()
	select {
	case <-s.Ready():
	case err := <-done:
		return err
	}
	if _, err := fmt.Fprintf(c.App.Writer, "bauxite-dispatch: node URL %s\n", s.URL()); err != nil {
		return fmt.Errorf("print node URL: %w", err)
	}
	notify("READY=1\nSTATUS=node URL " + s.URL())
	printSecrets(c, s)
	select {
	case err := <-done:
		return err
	case <-c.Done():
		notify("STOPPING=1")
		return <-done
	}
}

// printSecrets shows what the first start has made, once.
func printSecrets(c *cli.Context, s *dispatch.Server) {
	token, link := s.FirstToken(), s.OwnerLink()
	switch {
	case token == "" && link == "":
	case isJournal(c.App.ErrWriter):
		note(c, "the journal would keep the owner link and the first join token, so make them with:\n  bauxite-dispatch user link --data %[1]s\n  bauxite-dispatch token create --data %[1]s", c.String("data"))
	default:
		if link != "" {
			note(c, "one-time owner link, good for 24 hours; who redeems it first becomes the owner:\n  %s\nredeem it from anywhere: bauxite-dispatch user claim - --name YOU", link)
		}
		if token != "" {
			note(c, "first join token, for one machine, good for 24 hours:\n  bauxite join %s %s", token, s.URL())
		}
	}
}

func serveConfig(c *cli.Context) (dispatch.Config, error) {
	dir, err := dataDir(c)
	if err != nil {
		return dispatch.Config{}, err
	}
	cfg := dispatch.Config{
		DataDir: dir, Listen: c.String("listen"), AdminListen: c.String("admin-listen"),
		AdminURL: c.String("admin-url"), AdminCert: c.String("admin-cert"), AdminKey: c.String("admin-key"),
		MetricsListen: c.String("metrics-listen"),
		STUNListen:    c.String("stun-listen"), PublicURL: c.String("public-url"),
		CertLifetime: c.Duration("cert-ttl"), Version: programVersion(),
	}
	for _, f := range []struct {
		flag string
		to   *netip.Prefix
	}{{"mesh-cidr", &cfg.MeshCIDR}, {"mesh-cidr6", &cfg.MeshCIDR6}} {
		if v := c.String(f.flag); v != "" {
			if *f.to, err = netip.ParsePrefix(v); err != nil {
				return cfg, usagef("serve: --%s %q is not a prefix like 10.66.0.0/16", f.flag, v)
			}
		}
	}
	if err := relayConfig(c, &cfg); err != nil {
		return cfg, err
	}
	observeConfig(c, &cfg)
	switch c.String("psk") {
	case "hub":
	case "external":
		cfg.ExternalPSK = true
	default:
		return cfg, usagef("serve: --psk is hub or external")
	}
	cfg.Logger, err = newLogger(c.App.ErrWriter, c.String("log-format"), c.String("log-level"))
	return cfg, err
}

// newLogger writes with zerolog behind slog.
func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	lvl, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return nil, usagef("--log-level is debug, info, warn or error")
	}
	if format == "auto" {
		if format = "json"; isTerminal(w) {
			format = "console"
		}
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	switch format {
	case "json":
	case "console":
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: !isTerminal(w) || os.Getenv("NO_COLOR") != ""}
	default:
		return nil, usagef("--log-format is console or json")
	}
	return slog.New(zerolog.NewSlogHandler(zerolog.New(w).Level(lvl))), nil
}
