// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/edge/internal/metrics"
)

func (a *App) metricsCommand() *cli.Command {
	return &cli.Command{
		Name: "metrics", Usage: "print the node's metrics as Prometheus reads them", UsageText: "bauxite metrics",
		Description: "For a Prometheus server write into config.toml:\n\n  [metrics]\n  listen = \"127.0.0.1:9464\"\n\n" +
			"Example, what waits in each lane:\n  bauxite metrics | grep ^bauxite_lane_queue",
		Action: a.metrics,
	}
}

func (a *App) metrics(c *cli.Context) error {
	raw, st, err := a.document(c)
	if err != nil {
		return err
	}
	var full conduit.Status
	if err := json.Unmarshal(raw, &full); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	_, err = a.Stdout.Write(metrics.Text(&full, st.Node.Version))
	return err
}
