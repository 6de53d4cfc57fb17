// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/dispatch"
)

// observeFlags are the flags of serve about health and figures.
func observeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.UintFlag{Name: "min-disk-free", Value: 64, Usage: "the hub is ready only with `MIB` free for its state"},
		&cli.StringFlag{Name: "otlp-endpoint", Usage: "send figures by OTLP/HTTP to `URL`, as https://collector.example.org:4318"},
		&cli.StringFlag{Name: "otlp-headers", Usage: "`FILE` with lines \"Name: value\" for --otlp-endpoint, mode 0600"},
		&cli.DurationFlag{Name: "otlp-every", Usage: "how often to send them, `D` (default: 30s)"},
	}
}

func observeConfig(c *cli.Context, cfg *dispatch.Config) {
	cfg.MinDiskFree = uint64(c.Uint("min-disk-free")) << 20
	cfg.OTLP = dispatch.OTLP{
		Endpoint: c.String("otlp-endpoint"), HeadersFile: c.String("otlp-headers"), Every: c.Duration("otlp-every"),
	}
}
