// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/relay"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/turn"
)

const (
	scrapeTime   = 10 * time.Second
	databaseTime = 2 * time.Second
	maxScrapes   = 4
)

// Sources are the functions that the exporter asks for figures of the hub at each
// scrape. They are called concurrently and must not block for long. A nil one
// leaves its figures out.
type Sources struct {
	// Version is that of the program.
	Version string
	// Connected is how many nodes have a signalling stream, Watchers how many watch
	// the topology.
	Connected, Watchers func() int
	// RingLag is how many events the slowest watcher is behind.
	RingLag func() uint64
	// Database describes the store.
	Database func(context.Context) (Database, error)
	// IntermediateExpires is the end of the intermediate certificate.
	IntermediateExpires func() time.Time
	// Relay is the relay over streams, TURN that over UDP.
	Relay func() relay.Stats
	TURN  func() turn.Stats
}

// Database are figures of the store.
type Database struct {
	// RV is the newest resource version, AuditSeq the newest audit entry, Policy the
	// active version.
	RV, AuditSeq, Policy uint64
	// Bytes is the size of the database file, WALBytes of its log.
	Bytes, WALBytes int64
	// Nodes are enrolled nodes by state, as "active".
	Nodes map[string]int
}

// nodeStates are the states of nodes that are told apart.
var nodeStates = []string{"active", "pending", "revoked", "locked"}

// Exporter shows all figures. It has a registry of its own.
type Exporter struct {
	reg     *prometheus.Registry
	log     *slog.Logger
	version string
}

// NewExporter returns an exporter of src, reports and meters. reports and meters
// may be nil; logger nil discards.
func NewExporter(src Sources, reports *Reports, meters *Meters, logger *slog.Logger) *Exporter {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	e := &Exporter{reg: prometheus.NewPedanticRegistry(), log: logger, version: src.Version}
	e.reg.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newCollector(src, reports, logger),
	)
	if meters != nil {
		e.reg.MustRegister(meters.collectors()...)
	}
	return e
}

// Handler serves the figures in the text format of Prometheus, at any path.
func (e *Exporter) Handler() http.Handler {
	return promhttp.HandlerFor(e.reg, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(e.log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTime,
	})
}
