// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net"

	"github.com/bauxite-mesh/bauxite/edge/internal/metrics"
)

// serveMetrics opens the listener for Prometheus where config.toml wants one. A robot
// whose metrics cannot be read must still be reached, so that is no reason to end.
func (d *daemon) serveMetrics(ctx context.Context) {
	addr := d.id.Config.Metrics.Address()
	if addr == "" {
		return
	}
	log := d.log.With("part", "metrics")
	s, err := metrics.Serve(ctx, addr, d.cfg.Version, d.node.Status)
	if err != nil {
		log.Error("metrics are not served", "err", err)
		return
	}
	d.metrics = s
	if a, ok := s.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		log.Warn("metrics are served to whoever reaches them, with names and addresses of peers", "listen", addr)
		return
	}
	log.Info("metrics are served", "listen", addr)
}
