// SPDX-License-Identifier: Apache-2.0

// Package rpc serves the hub's API over Connect. It translates between messages
// and the packages that hold state, and decides who may call what: a caller's
// identity is that of its TLS certificate, its API key or the unix socket, and
// never read from a message.
package rpc

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/metrics"
	hubpolicy "github.com/bauxite-mesh/bauxite/dispatch/internal/policy"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/relay"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/signal"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/topology"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/turn"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

const (
	maxJoin    = 64 << 10
	maxRequest = 1 << 20
	// maxSignalMessage is above signal.MaxBody, so that a body which is a little
	// too large is answered rather than cutting the stream.
	maxSignalMessage = 2 * signal.MaxBody
	// bookmarkEvery is how often an idle watcher hears that the hub is alive.
	bookmarkEvery = 30 * time.Second
)

// Config is what the API stands on. All fields but BookmarkEvery and CertLifetime
// are required.
type Config struct {
	Store    *store.Store
	CA       *ca.CA
	Feed     *topology.Feed
	Registry *signal.Registry
	// MeshKey returns the mesh key in force and its epoch; nil and 0 where the
	// operator distributes his own.
	MeshKey func() (psk []byte, epoch uint32)
	// RotateMeshKey makes the next one; nil where the operator distributes his own.
	RotateMeshKey func(ctx context.Context) (epoch uint32, err error)
	// OnRevoke is told of each node that is revoked, locked, replaced or deleted,
	// after its streams were cut; nil means nobody listens.
	OnRevoke func(identity.PeerID)
	// Audit signs the checkpoints of the audit log.
	Audit ed25519.PrivateKey
	// Backup writes the archive of CreateBackup.
	Backup func(ctx context.Context, w io.Writer, withRootKey bool) error
	// Version is that of the program.
	Version string
	// Relay carries packets; nil means that this hub relays none.
	Relay *relay.Registry
	// TURN makes credentials for an admitted node; nil means that there is no TURN
	// server.
	TURN func(identity.PeerID) turn.Credentials
	// URL returns the node URL.
	URL    func() string
	Logger *slog.Logger
	// BookmarkEvery zero means 30 s.
	BookmarkEvery time.Duration
	// CertLifetime is that of nodes' certificates; zero means ca.NodeLifetime.
	CertLifetime time.Duration
	// Reports keeps what nodes report; nil keeps it in a new one.
	Reports *metrics.Reports
	// Meters counts calls and messages; nil counts nothing.
	Meters *metrics.Meters
	// Health answers /healthz and /readyz; nil says yes to both.
	Health *metrics.Health
	// AdminURL returns the URL of the admin port, empty where there is none; nil
	// means none.
	AdminURL func() string
	// AdminPin is the pin of the root above the admin port's certificate; empty
	// where that is none of this mesh's.
	AdminPin string
}

// API is the hub's services.
type API struct {
	cfg   Config
	store *store.Store
	log   *slog.Logger
	gate  *gate
	keys  *keyring
	kinds map[string]kind // of all procedures
	// bodyTime is how long the one message of a request may take to arrive.
	bodyTime time.Duration
	// renewals bounds how many rows a node can add to the table of certificates.
	renewals, rejoins, rekeys *limiter
	talks                     *talks
	rollout                   *hubpolicy.Rollout
	challenges                challenger
	started                   time.Time

	mu   sync.Mutex                    // guards the following
	left map[identity.PeerID]time.Time // ends of streams that are not stored yet
	head []byte                        // the newest signed audit checkpoint
}

// New returns the API. It panics where a procedure has no class.
func New(cfg Config) *API {
	checkClasses(classes, apiFiles...)
	if cfg.BookmarkEvery == 0 {
		cfg.BookmarkEvery = bookmarkEvery
	}
	if cfg.CertLifetime == 0 {
		cfg.CertLifetime = ca.NodeLifetime
	}
	if cfg.Reports == nil {
		cfg.Reports = metrics.NewReports(metrics.Config{Logger: cfg.Logger})
	}
	if cfg.Health == nil {
		cfg.Health = metrics.NewHealth(nil, nil)
	}
	if cfg.AdminURL == nil {
		cfg.AdminURL = func() string { return "" }
	}
	a := &API{cfg: cfg, store: cfg.Store, log: cfg.Logger, renewals: newLimiter(renewEvery), rejoins: newLimiter(renewEvery), rekeys: newLimiter(rekeyEvery), talks: newTalks(cfg.Store), kinds: kinds(apiFiles...), bodyTime: bodyTime, started: time.Now(), left: make(map[identity.PeerID]time.Time)}
	a.keys = newKeyring(a.store, a.log)
	a.rollout = a.newRollout()
	a.gate = &gate{
		openers: newOpeners(),
		live:    make(map[subject]map[*context.CancelCauseFunc]struct{}),
		recheck: a.keys.recheck,
		admit: func(ctx context.Context, id identity.PeerID, serial []byte) (store.Standing, error) {
			st, err := a.store.Admit(ctx, id, serial)
			if errors.Is(err, store.ErrNotFound) {
				err = store.ErrNodeRevoked
			}
			if err != nil {
				return st, wireError(ctx, a.log, "admit node", err)
			}
			return st, nil
		},
	}
	return a
}

// services registers every service. All listeners serve the same ones: who may
// call what is the gate's decision alone, by how the listener knows the caller.
func (a *API) services() http.Handler {
	mux := http.NewServeMux()
	opts := func(limit int) []connect.HandlerOption {
		return []connect.HandlerOption{
			// The meters come first, to count what the gate refuses.
			connect.WithInterceptors(a.cfg.Meters.Interceptor(), a.gate), connect.WithReadMaxBytes(limit),
			// Compressing each small message for each node costs more than it saves.
			connect.WithCompression("gzip", nil, nil),
		}
	}
	unary := []connect.HandlerOption{
		connect.WithInterceptors(a.cfg.Meters.Interceptor(), a.gate), connect.WithReadMaxBytes(maxRequest), connect.WithCompressMinBytes(1024),
	}
	mux.Handle(dispatchv1connect.NewProvisioningServiceHandler(provisioning{API: a}, opts(maxJoin)...))
	mux.Handle(dispatchv1connect.NewSignalingServiceHandler(signaling{a}, opts(maxSignalMessage)...))
	mux.Handle(dispatchv1connect.NewTopologyServiceHandler(topologyService{API: a}, opts(maxRequest)...))
	mux.Handle(dispatchv1connect.NewRelayServiceHandler(relayService{API: a}, opts(maxRelayMessage)...))
	mux.Handle(dispatchv1connect.NewMetricsServiceHandler(metricsService{API: a}, unary...))
	mux.Handle(dispatchv1connect.NewPolicyServiceHandler(policyService{API: a}, unary...))
	mux.Handle(dispatchv1connect.NewFleetServiceHandler(fleet{API: a}, unary...))
	mux.Handle(dispatchv1connect.NewAuditServiceHandler(auditService{API: a}, unary...))
	mux.Handle(dispatchv1connect.NewAccessServiceHandler(accessService{API: a}, unary...))
	mux.Handle(dispatchv1connect.NewHubServiceHandler(hubService{API: a}, unary...))
	return mux
}

// pieces writes in small pieces: HTTP/2 keeps a buffer of the size of the largest
// frame for as long as the connection lives, and one snapshot would set it to 16 KB.
// Each piece is flushed, or the pieces would be joined to one frame again.
//
// While it is held it leaves out the flush that each message of a stream ends with:
// many small ones then share a frame, a record of TLS and a write to the socket.
type pieces struct {
	http.ResponseWriter
	held bool
}

const pieceLen = 1024

func (p *pieces) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *pieces) Flush() {
	if f, ok := p.ResponseWriter.(http.Flusher); ok && !p.held {
		f.Flush()
	}
}

func (p *pieces) Write(b []byte) (n int, err error) {
	for {
		m, err := p.ResponseWriter.Write(b[:min(len(b), pieceLen)])
		n += m
		if b = b[m:]; err != nil || len(b) == 0 {
			return n, err
		}
		p.Flush()
	}
}

// NodeHandler serves the node port.
func (a *API) NodeHandler() http.Handler {
	next := a.services()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &pieces{ResponseWriter: w}
		c := &caller{class: anonymous, ip: remoteIP(r), hold: func(on bool) { p.held = on }}
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			id, err := a.cfg.CA.Peer(*r.TLS)
			if err != nil { // the handshake has checked this already
				unread(w, r)
				http.Error(w, "bad client certificate", http.StatusForbidden)
				return
			}
			c.class, c.id = node, id
			c.serial = r.TLS.PeerCertificates[0].SerialNumber.Bytes()
		}
		a.receive(p, r, c, next)
	})
}

// AdminHandler serves the unix socket. Whoever can open it may do all.
func (a *API) AdminHandler() http.Handler {
	next := a.services()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.receive(w, r, &caller{class: socket}, next)
	})
}

// HealthHandler serves /healthz and /readyz.
func (a *API) HealthHandler() http.Handler { return a.cfg.Health.Handler() }

// Revoke shuts a node out and ends its streams.
func (a *API) Revoke(ctx context.Context, id identity.PeerID, reason string) error {
	if err := a.store.RevokeNode(ctx, id, reason); err != nil {
		return err
	}
	a.dropped(id)
	a.log.InfoContext(ctx, "node revoked", "node", id.Short(), "reason", reason)
	return nil
}

// NewHTTPServer returns a server with the limits that fit long streams: no
// deadline on whole requests, pings that find dead peers, and small windows. ctx
// is that of all requests: ending it ends the streams.
func NewHTTPServer(ctx context.Context, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h,
		// It bounds the TLS handshake, too.
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 20 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 10 * time.Second,
			MaxConcurrentStreams: 16, MaxReceiveBufferPerConnection: 128 << 10, MaxReceiveBufferPerStream: 64 << 10,
		},
	}
}
