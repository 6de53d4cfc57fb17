// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/metrics"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/signal"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/topology"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/turn"
)

// OTLP is where the hub's figures are sent, besides being there to be scraped. The
// zero value sends nothing.
type OTLP struct {
	// Endpoint is an http or https URL; without a path "/v1/metrics" is added.
	Endpoint string
	// HeadersFile holds lines "Name: value", such as one with a credential, that go
	// with each request. Its mode is 0600.
	HeadersFile string
	// Every is how often; zero means 30 s.
	Every time.Duration
}

func (o OTLP) check() error {
	if o.Endpoint == "" {
		if o.HeadersFile != "" {
			return errors.New("OTLP headers without an endpoint")
		}
		return nil
	}
	return metrics.CheckEndpoint(o.Endpoint)
}

// loadReports returns the reports of nodes, of which the newest are in st.
func (s *Server) loadReports(ctx context.Context, st *store.Store) *metrics.Reports {
	r := metrics.NewReports(metrics.Config{Sink: st, Logger: s.log})
	if err := r.Load(ctx); err != nil {
		// They are worth having, but no reason to keep a fleet waiting.
		s.log.WarnContext(ctx, "read the nodes' last reports", "err", err)
	}
	return r
}

// newHealth returns the checks of a hub.
func (s *Server) newHealth(st *store.Store, authority *ca.CA) *metrics.Health {
	return metrics.NewHealth([]metrics.Check{
		{Name: "writer", Run: st.CheckWriter},
	}, []metrics.Check{
		{Name: "database", Run: st.CheckWritable},
		metrics.DiskCheck(s.cfg.DataDir, s.cfg.MinDiskFree),
		metrics.ExpiryCheck("intermediate", func() time.Time { return authority.Intermediate().NotAfter }),
		metrics.ListenCheck("node_port", func() net.Addr { return s.addrs.node }),
		metrics.ListenCheck("socket", func() net.Addr {
			return &net.UnixAddr{Net: "unix", Name: filepath.Join(s.cfg.DataDir, socketName)}
		}),
	})
}

// newExporter returns what shows the hub's figures.
func (s *Server) newExporter(st *store.Store, authority *ca.CA, feed *topology.Feed, registry *signal.Registry) *metrics.Exporter {
	src := metrics.Sources{
		Version:   s.cfg.Version,
		Connected: registry.Count, Watchers: feed.Watchers, RingLag: feed.Lag,
		IntermediateExpires: func() time.Time { return authority.Intermediate().NotAfter },
		Database:            func(ctx context.Context) (metrics.Database, error) { return databaseFigures(ctx, st) },
	}
	if s.relay != nil {
		src.Relay = s.relay.Stats
	}
	if s.cfg.STUNListen != Off && !s.cfg.TURN.Off {
		src.TURN = func() turn.Stats {
			if s.turn == nil { // not yet
				return turn.Stats{}
			}
			return s.turn.Stats()
		}
	}
	return metrics.NewExporter(src, s.reports, s.meters, s.log)
}

func databaseFigures(ctx context.Context, st *store.Store) (d metrics.Database, err error) {
	state, err := st.State(ctx)
	if err != nil {
		return d, err
	}
	nodes, err := st.CountNodes(ctx)
	if err != nil {
		return d, err
	}
	a, err := st.Activation(ctx)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return d, err
	}
	d = metrics.Database{RV: state.RV, AuditSeq: state.AuditSeq, Policy: a.Active, Nodes: make(map[string]int, len(nodes))}
	for k, n := range nodes {
		d.Nodes[string(k)] = n
	}
	d.Bytes, d.WALBytes = st.Size()
	return d, nil
}

// metricsHandler serves the metrics port.
func metricsHandler(e *metrics.Exporter, health http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", e.Handler())
	mux.Handle("/", health)
	return mux
}

// newPusher returns what sends the figures by OTLP, nil where that is off.
func (s *Server) newPusher(e *metrics.Exporter, meshID string) (*metrics.Pusher, error) {
	o := s.cfg.OTLP
	if o.Endpoint == "" {
		return nil, nil
	}
	cfg := metrics.PushConfig{Endpoint: o.Endpoint, Every: o.Every, Instance: meshID, Logger: s.log}
	if o.HeadersFile != "" {
		h, err := metrics.ReadHeaders(o.HeadersFile)
		if err != nil {
			return nil, err
		}
		cfg.Headers = h
	}
	p, err := e.NewPusher(cfg)
	if err != nil {
		return nil, fmt.Errorf("send figures: %w", err)
	}
	return p, nil
}
