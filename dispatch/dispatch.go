// SPDX-License-Identifier: Apache-2.0

// Package dispatch is the hub of a Bauxite mesh: it lets machines join, signs
// their certificates, tells each node of the others and relays the messages with
// which two nodes set up a connection. Traffic goes from node to node. What has no
// better way may pass through the hub, which cannot read any.
//
// # Use
//
// [New] checks a [Config], [Server.Serve] runs the hub until its context ends.
// The program cmd/bauxite-dispatch is a thin shell around both. Tests of other
// modules start a whole hub on loopback with package dispatchtest.
//
// # State
//
// Everything lives in one directory: dispatch.db (SQLite), ca/ (the certificate
// authority), psk (the mesh's pre-shared key), audit.key, dispatch.sock (the administrator's
// socket). Whoever may open the socket administers the hub.
package dispatch

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/metrics"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/relay"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/rpc"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/signal"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/topology"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/turn"
)

// Errors that callers branch on.
var (
	// ErrInUse is returned where another hub runs on the data directory.
	ErrInUse = errors.New("another hub uses this data directory")
	// ErrFixed is returned for a mesh prefix that differs from that of the first
	// start.
	ErrFixed = errors.New("mesh prefix cannot change after the first start")
	// ErrClosed is returned by Serve after Close. It is net.ErrClosed.
	ErrClosed = net.ErrClosed
)

const (
	keepChanges  = 100_000
	compactEvery = time.Hour
	drainTime    = 3 * time.Second
)

// Server is one hub. Its methods are safe for concurrent use.
type Server struct {
	cfg Config
	log *slog.Logger

	stop   chan struct{} // closed by Close
	ready  chan struct{} // closed by Serve
	closed sync.Once

	mu      sync.Mutex // guards serving
	serving chan struct{}

	// Written by Serve before ready is closed, never after.
	api        *rpc.API
	relay      *relay.Registry // nil where it is off
	turn       *turn.Server    // nil where it is off
	meshKey    *meshKey        // nil where the operator keeps it
	meters     *metrics.Meters
	reports    *metrics.Reports
	exporter   *metrics.Exporter
	url        string
	firstToken string
	ownerLink  string
	adminURL   string
	addrs      addrs
}

type addrs struct {
	node, admin, metrics net.Addr
	stun                 netip.AddrPort
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure hub: %w", err)
	}
	return &Server{cfg: cfg, log: cfg.Logger, stop: make(chan struct{}), ready: make(chan struct{})}, nil
}

// Ready is closed once the hub serves. It stays open where Serve fails before.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// URL returns the node URL. Like the other getters it is meaningful once Ready is
// closed.
func (s *Server) URL() string { return s.url }

// FirstToken returns the join token that the very first start made, single use,
// good for 24 hours; empty at later starts. It is a secret.
func (s *Server) FirstToken() string { return s.firstToken }

// NodeAddr returns the address of the node port.
func (s *Server) NodeAddr() net.Addr { return s.addrs.node }

// AdminAddr returns the address of the admin port, nil where it is off.
func (s *Server) AdminAddr() net.Addr { return s.addrs.admin }

// STUNAddr returns the address of the STUN server, invalid where it is off.
func (s *Server) STUNAddr() netip.AddrPort { return s.addrs.stun }

// CreateToken makes a join token for uses machines (0 means 1), good for ttl (0
// means 24 hours), and returns its text, which is a secret.
func (s *Server) CreateToken(ctx context.Context, uses uint32, ttl time.Duration, tags ...string) (string, error) {
	if ttl == 0 {
		ttl = rpc.DefaultTTL
	}
	t, _, err := s.api.NewToken(ctx, rpc.TokenSpec{Uses: uses, TTL: ttl, Tags: tags})
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

// Revoke shuts a node out for good and ends its streams.
func (s *Server) Revoke(ctx context.Context, id identity.PeerID, reason string) error {
	return s.api.Revoke(ctx, id, reason)
}

// Close ends Serve and waits for it. It may be called again.
func (s *Server) Close() error {
	s.closed.Do(func() { close(s.stop) })
	s.mu.Lock()
	serving := s.serving
	s.mu.Unlock()
	if serving != nil {
		<-serving
	}
	return nil
}

// Serve runs the hub until ctx ends or Close is called, then returns nil. It may
// be called once.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.serving != nil {
		s.mu.Unlock()
		return errors.New("serve: called twice")
	}
	done := make(chan struct{})
	s.serving = done
	s.mu.Unlock()
	defer close(done)
	select {
	case <-s.stop:
		return fmt.Errorf("serve: %w", ErrClosed)
	default:
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	})
	err := s.serve(ctx)
	cancel()
	wg.Wait()
	return err
}

func (s *Server) serve(ctx context.Context) (err error) {
	dir := s.cfg.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(filepath.Join(dir, restoreMark)); err == nil {
		return fmt.Errorf("data directory %s: %w", dir, ErrUnfinished)
	}
	authority, err := ca.Open(filepath.Join(dir, caDir))
	if err != nil {
		return err
	}
	auditKey, err := auditKey(dir)
	if err != nil {
		return err
	}
	s.meters = metrics.NewMeters()
	if err := checkDatabase(dir); err != nil {
		return err
	}
	st, feed, err := s.openStore(ctx, authority)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	state, err := st.State(ctx)
	if err != nil {
		return err
	}
	s.relay = s.newRelay()
	s.reports = s.loadReports(ctx, st)
	cfg := rpc.Config{
		Store: st, CA: authority, Feed: feed, MeshKey: s.meshKeyOf, URL: s.URL, Logger: s.log, CertLifetime: s.cfg.CertLifetime,
		AdminURL: s.AdminURL,
		Audit:    auditKey, Version: s.cfg.Version,
		Registry: signal.NewRegistry(func(id identity.PeerID, site string, online bool, instance uint64) {
			feed.Publish(topology.EncodePresence(id, site, online, instance))
		}),
		Relay: s.relay, TURN: s.turnCredentials, OnRevoke: s.revoked,
		Reports: s.reports, Meters: s.meters, Health: s.newHealth(st, authority),
		Backup: func(ctx context.Context, w io.Writer, withRootKey bool) error {
			return s.backup(ctx, st, w, withRootKey)
		},
	}
	if s.cfg.AdminCert == "" {
		cfg.AdminPin = authority.Pin()
	}
	if !s.cfg.ExternalPSK {
		if s.meshKey, err = openMeshKey(dir, state.PSKEpoch, state.RV <= 1); err != nil {
			return err
		}
		cfg.RotateMeshKey = func(ctx context.Context) (uint32, error) { return s.meshKey.rotate(ctx, st) }
	}
	if err := markUsed(dir); err != nil {
		return err
	}
	s.api = rpc.New(cfg)
	s.exporter = s.newExporter(st, authority, feed, cfg.Registry)
	return s.listenAndServe(ctx, st, authority)
}

// auditKey reads the key that signs the checkpoints of the audit log, or makes it.
func auditKey(dir string) (ed25519.PrivateKey, error) {
	name := filepath.Join(dir, auditKeyFile)
	key, err := ca.ReadKey(name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return nil, fmt.Errorf("generate audit key: %w", err)
		}
		err = ca.WriteKey(name, key)
	}
	return key, err
}

// openStore opens the database and the feed that its commits go to.
func (s *Server) openStore(ctx context.Context, authority *ca.CA) (*store.Store, *topology.Feed, error) {
	ini := store.Meta{MeshID: authority.MeshID, CIDR: s.cfg.MeshCIDR, CIDR6: s.cfg.MeshCIDR6}
	if !ini.CIDR.IsValid() {
		ini.CIDR = DefaultMeshCIDR
	}
	if !ini.CIDR6.IsValid() {
		var err error
		if ini.CIDR6, err = randomULA(); err != nil {
			return nil, nil, err
		}
	}
	if err := store.CheckPrefixes(ini.CIDR, ini.CIDR6); err != nil {
		return nil, nil, err
	}
	// The writer publishes only after Open, when feed is set.
	var feed *topology.Feed
	st, err := store.Open(ctx, store.Config{
		Path: filepath.Join(s.cfg.DataDir, databaseFile), Init: ini, Logger: s.log,
		Encode: topology.EncodeChange, Publish: func(e []store.Event) { feed.Commit(e) },
		Observe: func(ops int, took time.Duration, err error) { s.meters.Commit(took, ops, err) },
	})
	if err != nil {
		return nil, nil, err
	}
	state, err := st.State(ctx)
	if err == nil {
		feed = topology.NewFeed(st, st.Meta().Epoch, state, topology.Limits{LazyAbove: s.cfg.LazyAbove})
		err = s.checkMeta(st.Meta(), authority)
	}
	if err == nil {
		err = st.InitPolicy(ctx, initialPolicy())
	}
	if err != nil {
		return nil, nil, errors.Join(err, st.Close())
	}
	return st, feed, nil
}

// checkRestored reports whether a hub could start on what is in dir.
func checkRestored(ctx context.Context, dir string) error {
	authority, err := ca.Open(filepath.Join(dir, caDir))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBackup, err)
	}
	st, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, databaseFile)})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBackup, err)
	}
	if st.Meta().MeshID != authority.MeshID {
		err = fmt.Errorf("%w: database is of mesh %s, certificate authority of %s", ErrBackup, st.Meta().MeshID, authority.MeshID)
	}
	return errors.Join(err, st.Close())
}

func (s *Server) checkMeta(m store.Meta, authority *ca.CA) error {
	if m.MeshID != authority.MeshID {
		return fmt.Errorf("data directory %s: database is of mesh %s, certificate authority of %s", s.cfg.DataDir, m.MeshID, authority.MeshID)
	}
	for _, p := range []struct{ want, have netip.Prefix }{{s.cfg.MeshCIDR, m.CIDR}, {s.cfg.MeshCIDR6, m.CIDR6}} {
		if p.want.IsValid() && p.want != p.have {
			return fmt.Errorf("%w: it is %v, not %v", ErrFixed, p.have, p.want)
		}
	}
	if m.CIDR.Overlaps(carrierNAT) {
		s.log.Warn("mesh prefix lies in 100.64.0.0/10, which LTE carriers use: nodes on such uplinks may lose theirs", "mesh_cidr", m.CIDR.String())
	}
	return nil
}

func (s *Server) makeFirstToken(ctx context.Context, st *store.Store) error {
	n, err := st.TokenCount(ctx)
	if err != nil || n > 0 {
		return err
	}
	t, _, err := s.api.NewToken(ctx, rpc.TokenSpec{TTL: rpc.DefaultTTL, Note: "made at the first start"})
	if err != nil {
		return err
	}
	s.firstToken = t.String()
	return nil
}

// listenAndServe opens the listeners, reports ready, and serves until ctx ends.
func (s *Server) listenAndServe(ctx context.Context, st *store.Store, authority *ca.CA) (err error) {
	var lc net.ListenConfig
	nodeLn, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for nodes: %w", err)
	}
	defer nodeLn.Close()
	s.addrs.node = nodeLn.Addr()
	pub := publicURL(ctx, s.cfg, nodeLn.Addr().(*net.TCPAddr))
	s.url = pub.url
	if pub.warning != "" {
		s.log.Warn(pub.warning, "url", pub.url)
	}
	sock, err := listenSocket(filepath.Join(s.cfg.DataDir, socketName))
	if err != nil {
		return err
	}
	defer sock.Close()

	// Ending rctx ends the requests; the listeners close after it.
	rctx, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	nodeSrv := rpc.NewHTTPServer(rctx, s.api.NodeHandler(), s.log)
	nodeSrv.TLSConfig = authority.ServerTLS(pub.hosts, func(ctx context.Context, id identity.PeerID, serial []byte) error {
		_, err := st.Admit(ctx, id, serial)
		return err
	})
	servers := []served{
		{nodeSrv, nodeLn, true},
		{rpc.NewHTTPServer(rctx, socketHandler(s.api), s.log), sock, false},
	}
	if s.cfg.AdminListen != Off {
		v, err := s.listenAdmin(ctx, rctx, authority, pub)
		if err != nil {
			return err
		}
		defer v.ln.Close()
		servers = append(servers, v)
	}
	if s.cfg.MetricsListen != Off {
		v, err := s.listenMetrics(ctx, rctx, metricsHandler(s.exporter, s.api.HealthHandler()))
		if err != nil {
			return err
		}
		defer v.ln.Close()
		servers = append(servers, v)
	}
	if s.cfg.STUNListen != Off {
		udp, err := s.listenUDP(ctx, st)
		if err != nil {
			return err
		}
		defer udp.Close()
	}
	pusher, err := s.newPusher(s.exporter, authority.MeshID)
	if err != nil {
		return err
	}
	// Only now: where a listener failed, nobody would see them.
	if err := s.makeFirstToken(ctx, st); err != nil {
		return err
	}
	if s.adminURL != "" {
		if s.ownerLink, err = s.api.FirstOwnerLink(ctx); err != nil {
			return err
		}
	}
	s.log.Info("hub is up", "url", s.url, "mesh_id", authority.MeshID, "mesh_cidr", st.Meta().CIDR.String(), "mesh_cidr6", st.Meta().CIDR6.String())
	close(s.ready)

	g, gctx := errgroup.WithContext(ctx)
	for _, v := range servers {
		g.Go(v.run)
	}
	g.Go(func() error { return s.compact(gctx, st) })
	g.Go(func() error { return s.watchClock(gctx, authority) })
	g.Go(func() error { return s.api.SignCheckpoints(gctx) })
	g.Go(func() error { return trim(gctx) })
	g.Go(func() error { return s.api.Upkeep(gctx) })
	g.Go(func() error {
		s.reports.Run(gctx)
		return nil
	})
	if pusher != nil {
		g.Go(func() error {
			pusher.Run(gctx)
			return nil
		})
	}
	g.Go(func() error { return s.api.StagePolicies(gctx) })
	g.Go(func() error { return s.api.RecordKeyUse(gctx) })
	g.Go(func() error {
		<-gctx.Done()
		endRequests()
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		return drain(dctx, servers)
	})
	err = g.Wait()
	s.log.Info("hub is down")
	return err
}

func (s *Server) compact(ctx context.Context, st *store.Store) error {
	t := time.NewTicker(compactEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := st.Compact(ctx, keepChanges); err != nil && ctx.Err() == nil {
				s.log.Error("compact the change log", "err", err)
			}
		}
	}
}
