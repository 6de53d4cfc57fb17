// SPDX-License-Identifier: Apache-2.0

// Package daemon is `bauxite run`: it puts the parts together, starts them in
// order and stops them in the reverse one.
package daemon

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
	"github.com/bauxite-mesh/bauxite/edge/internal/config"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	"github.com/bauxite-mesh/bauxite/edge/internal/join"
	"github.com/bauxite-mesh/bauxite/edge/internal/local"
	"github.com/bauxite-mesh/bauxite/edge/internal/logging"
	"github.com/bauxite-mesh/bauxite/edge/internal/metrics"
)

// stopTime is how long an orderly stop may take; after it the process goes
// without, because a supervisor waits and the kernel tidies up.
const stopTime = 3 * time.Second

// ErrTun tells that the mesh's network interface cannot be made.
var ErrTun = errors.New("cannot make the network interface")

// Config is what `bauxite run` was told. Empty values leave config.toml's.
type Config struct {
	Home      string
	Tun       string // interface name; "none" means no interface
	Port      int    // UDP port; negative leaves config.toml's
	LogFormat string
	LogLevel  string
	Version   string
	// Log is where the log goes, and Terminal whether people read it there.
	Log      io.Writer
	Terminal bool
	Colour   bool
}

// Node is the data plane; *conduit.Node is one.
type Node interface {
	Start(ctx context.Context) error
	Connect(ctx context.Context, id identity.PeerID, progress func(state string)) error
	Lookup(ctx context.Context, text string) (conduit.Peer, error)
	Ping(ctx context.Context, id identity.PeerID, o conduit.PingOptions) (conduit.PingResult, error)
	Policy(ctx context.Context) (*conduit.PolicyInForce, error)
	Status(ctx context.Context) (*conduit.Status, error)
	SetCertificate(c *identity.Certificate) error
	SetPSK(psk []byte, epoch uint8) error
	Close() error
}

// Deps are the parts that tests replace; zero means the real ones.
type Deps struct {
	OpenTun func(tun.Config) (tun.Device, error)
	NewNode func(conduit.Config) (Node, error)
	// RecoverRetry bounds the first delay between two tries to recover.
	RecoverRetry time.Duration
}

func (d Deps) withDefaults() Deps {
	if d.OpenTun == nil {
		d.OpenTun = tun.Open
	}
	if d.NewNode == nil {
		d.NewNode = func(c conduit.Config) (Node, error) { return conduit.New(c) }
	}
	if d.RecoverRetry == 0 {
		d.RecoverRetry = recoverRetry
	}
	return d
}

// Run is `bauxite run`. It returns nil after ctx ended.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	if home.HalfJoined(cfg.Home) {
		if err := join.Resume(ctx, cfg.Home); err != nil {
			return err
		}
	}
	lock, err := home.TakeLock(cfg.Home)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s does not exist", home.ErrNotJoined, cfg.Home)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	now := time.Now()
	id, err := home.Load(cfg.Home, now)
	late := errors.Is(err, home.ErrExpired) && now.After(id.Certificate.NotAfter)
	if err != nil && !late {
		return err
	}
	override(id.Config, cfg)
	if err := id.Config.Validate(); err != nil {
		return err
	}
	log, err := logger(id.Config.Log, cfg)
	if err != nil {
		return err
	}
	d := &daemon{cfg: cfg, id: id, log: log}
	deps = deps.withDefaults()
	if err := d.connect(); err != nil {
		return err
	}
	if late {
		if err := d.recoverFirst(ctx, deps.RecoverRetry); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
	}
	if err := d.start(ctx, deps); err != nil {
		_ = d.stop()
		return err
	}
	defer notify("STOPPING=1")
	notify("READY=1")
	d.tellState(ctx)
	log.Info("node is up", "name", id.Config.Node.Name, "id", id.Certificate.ID.Short(),
		"virtual_ip", id.Certificate.Virtual4.String(), "tun", d.dev.Name(), "home", cfg.Home)
	stopWatchdog := watchdog()
	<-ctx.Done()
	stopWatchdog()
	log.Info("stopping")
	return d.stop()
}

// tellState says what a node that starts without its hub goes by.
func (d *daemon) tellState(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	st, err := d.node.Status(ctx)
	if err != nil || !st.Hub.FromSnapshot {
		return
	}
	d.log.Info("peers and policy are those from the state file until the hub answers",
		"peers", len(st.Peers), "policy", st.Policy.Version, "file", home.SnapshotFile)
}

func override(c *config.Config, cfg Config) {
	if cfg.Tun != "" {
		c.Tun.Name = cfg.Tun
	}
	if cfg.Port >= 0 {
		c.Transport.Port = cfg.Port
	}
}

func logger(c config.Log, cfg Config) (*slog.Logger, error) {
	first := func(s ...string) string {
		for _, v := range s {
			if v != "" {
				return v
			}
		}
		return ""
	}
	format := "json"
	if cfg.Terminal {
		format = "console"
	}
	return logging.New(cfg.Log, first(cfg.LogFormat, c.Format, format), first(cfg.LogLevel, c.Level, "info"), cfg.Colour)
}

// daemon is what runs. start fills it in order and stop empties it.
type daemon struct {
	cfg Config
	id  *home.Node
	log *slog.Logger

	link  *hub.Connector
	renew *renewal
	key   *meshKey

	workers sync.WaitGroup
	cancel  context.CancelFunc // ends workers

	dev     tun.Device
	node    Node
	server  *local.Server
	metrics *metrics.Server // nil: nobody wants it
}

// connect prepares the link to the hub, and what works with it. It does no I/O.
func (d *daemon) connect() error {
	c := d.id.Config
	r := &renewal{
		keys: d.id.Keys, roots: d.id.Roots, log: d.log.With("part", "renewal"),
		file: filepath.Join(d.cfg.Home, home.CertFile), cert: d.id.Certificate,
	}
	r.tls.Store(d.id.TLS())
	d.key = &meshKey{
		log: d.log.With("part", "meshkey"), news: make(chan uint32, 1),
		store: func(psk []byte, epoch uint8) error { return home.StorePSK(d.cfg.Home, psk, epoch) },
	}
	proxy, err := config.ParseProxy(c.Hub.Proxy)
	if err != nil { // the configuration was checked
		return err
	}
	d.key.epoch.Store(uint32(d.id.PSKEpoch))
	d.link, err = hub.New(hub.Config{
		URL: c.Hub.URL, Roots: d.id.Roots, MeshKey: d.key.announce,
		Certificate: func() (*tls.Certificate, error) { return r.tls.Load(), nil },
		Proxy:       proxy,
		Logger:      d.log.With("part", "hub"),
	})
	if err != nil {
		return err
	}
	rec := &recovery{home: d.cfg.Home, keys: d.id.Keys, meshID: d.id.Config.Node.MeshID, ask: d.link.Recover}
	rec.check = func(chain [][]byte) error {
		_, err := r.check(chain, time.Now())
		return err
	}
	r.ask, r.recover, r.redial = d.link.Renew, rec.once, d.link.Redial
	r.set = func(*identity.Certificate) error { return nil } // until there is a node
	d.key.fetch = d.link.MeshKey
	d.renew = r
	return nil
}

func (d *daemon) start(ctx context.Context, deps Deps) (err error) {
	c, cert := d.id.Config, d.id.Certificate
	if name := c.TunName(); name == "" {
		d.dev = newIdle(c.TunMTU())
	} else {
		addrs := []netip.Prefix{netip.PrefixFrom(cert.Virtual4, 32)}
		if cert.Virtual6.IsValid() {
			addrs = append(addrs, netip.PrefixFrom(cert.Virtual6, 128))
		}
		d.dev, err = deps.OpenTun(tun.Config{
			Name: name, MTU: c.TunMTU(), Addrs: addrs, Routes: c.Node.MeshCIDRs, Logger: d.log.With("part", "tun"),
		})
		if err != nil {
			return fmt.Errorf("%w %s: %w", ErrTun, name, err)
		}
	}
	d.node, err = deps.NewNode(conduit.Config{
		Keys: d.id.Keys, Certificate: cert, Roots: d.id.Roots,
		PSK: d.id.PSK, PSKEpoch: d.id.PSKEpoch, Cipher: c.Transport.Cipher,
		Hub: d.link, Device: d.dev, Port: c.Transport.Port, STUNServers: c.STUN(),
		Uplinks: c.UplinkRules(), Bonding: c.BondingModes(), Relay: c.Transport.Relay,
		Lanes: c.LaneRules(), Pacing: c.PacingSettings(), NoDSCP: c.NoDSCP(),
		StateFile:    filepath.Join(d.cfg.Home, home.SnapshotFile),
		MeshPrefixes: c.Node.MeshCIDRs, Logger: d.log.With("part", "conduit"),
	})
	if err != nil {
		return err
	}
	// The node lives until stop, which closes it in order; ctx only ends the wait.
	if err := d.node.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	d.renew.set, d.key.set = d.node.SetCertificate, d.node.SetPSK
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d.cancel = cancel
	d.workers.Go(func() { d.renew.run(run) })
	d.workers.Go(func() { d.key.run(run) })
	rep := &reporter{
		log: d.log.With("part", "metrics"), version: d.cfg.Version, started: time.Now(),
		epoch: d.key.epoch.Load, status: d.node.Status, send: d.link.Report,
	}
	d.workers.Go(func() { rep.run(run) })
	d.serveMetrics(ctx)
	d.server, err = local.Serve(filepath.Join(d.cfg.Home, home.SocketFile), d, d.log.With("part", "local"))
	return err
}

// stop closes in the order in which nothing new comes in: callers, node, device.
func (d *daemon) stop() error {
	done := make(chan error, 1)
	go func() {
		var errs []error
		if d.cancel != nil {
			d.cancel()
			d.workers.Wait()
		}
		if d.server != nil {
			errs = append(errs, d.server.Close())
		}
		if d.metrics != nil {
			errs = append(errs, d.metrics.Close())
		}
		if d.node != nil {
			errs = append(errs, d.node.Close())
		}
		if d.dev != nil {
			errs = append(errs, d.dev.Close())
		}
		done <- errors.Join(errs...)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(stopTime):
		return fmt.Errorf("stop: not done after %v", stopTime)
	}
}

// Connect implements local.Backend.
func (d *daemon) Connect(ctx context.Context, id identity.PeerID, progress func(state string)) error {
	return d.node.Connect(ctx, id, progress)
}

// Ping implements local.Backend.
func (d *daemon) Ping(ctx context.Context, id identity.PeerID, o conduit.PingOptions) (conduit.PingResult, error) {
	return d.node.Ping(ctx, id, o)
}

// Lookup implements local.Backend.
func (d *daemon) Lookup(ctx context.Context, what string) (identity.PeerID, error) {
	p, err := d.node.Lookup(ctx, what)
	if errors.Is(err, conduit.ErrUnknownPeer) {
		err = fmt.Errorf("%w: %w", local.ErrNoPeer, err)
	}
	return p.ID, err
}

// Policy implements local.Backend.
func (d *daemon) Policy(ctx context.Context) (*conduit.PolicyInForce, error) {
	return d.node.Policy(ctx)
}

// CheckHub implements local.Backend.
func (d *daemon) CheckHub(ctx context.Context) local.HubOffer {
	o := local.HubOffer{RelayOpen: d.link.Relaying()}
	if st, err := d.node.Status(ctx); err != nil {
		o.Error = err.Error()
	} else {
		o.Connected, o.Error = st.Hub.Connected, st.Hub.Error
	}
	servers, err := d.link.TurnServers(ctx)
	if err != nil {
		o.TurnError = err.Error()
	}
	for _, s := range servers {
		o.TurnServers = append(o.TurnServers, s.URL)
	}
	return o
}

// StatusJSON implements local.Backend: the node's own document, and what only the
// daemon knows.
func (d *daemon) StatusJSON(ctx context.Context) ([]byte, error) {
	st, err := d.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	// The outer fields hide those of the same name in Status.
	doc := struct {
		Node nodeStatus `json:"node"`
		Hub  hubStatus  `json:"hub"`
		*conduit.Status
	}{nodeStatus{NodeStatus: st.Node, MeshID: d.id.Config.Node.MeshID, Version: d.cfg.Version}, hubStatus{st.Hub, d.id.Config.Hub.URL}, st}
	doc.Node.Renewed, doc.Node.RenewalError = d.renew.status()
	return json.Marshal(doc)
}

type nodeStatus struct {
	conduit.NodeStatus
	MeshID  string `json:"mesh_id"`
	Version string `json:"version"`
	// Renewed is when the certificate was last renewed since the start.
	Renewed      time.Time `json:"certificate_renewed,omitzero"`
	RenewalError string    `json:"certificate_renewal_error,omitempty"`
}

type hubStatus struct {
	conduit.HubStatus
	URL string `json:"url"`
}
