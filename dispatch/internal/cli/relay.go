// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/dispatch"
)

func relayFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "turn", Value: true, Usage: "relay UDP for nodes that have no direct path"},
		&cli.StringSliceFlag{Name: "turn-addr", Usage: "public `ADDR` of relayed ports, one of a family (default: that of the node URL)"},
		&cli.StringFlag{Name: "turn-ports", Value: "50000-50999", Usage: "UDP port `RANGE` of relays; the firewall must let it in"},
		&cli.StringSliceFlag{Name: "turn-allow", Usage: "private `PREFIX` that relays may send to (default: none)"},
		&cli.BoolFlag{Name: "relay", Value: true, Usage: "carry packets over the node port for nodes that have TCP only"},
		&cli.IntFlag{Name: "relay-rate", Value: 1_000_000, Usage: "`BYTES` per second of one TURN relay, each way, and of one node on the relay stream"},
	}
}

// relayConfig reads relayFlags.
func relayConfig(c *cli.Context, cfg *dispatch.Config) error {
	rate := c.Int("relay-rate")
	if rate <= 0 {
		return usagef("serve: --relay-rate is above 0")
	}
	cfg.RelayRate, cfg.TURN.Rate, cfg.TURN.Off = rate, rate, !c.Bool("turn")
	if !c.Bool("relay") {
		cfg.RelayRate = -1
	}
	for _, v := range c.StringSlice("turn-addr") {
		a, err := netip.ParseAddr(v)
		if err != nil {
			return usagef("serve: --turn-addr %q is no address", v)
		}
		cfg.TURN.Addrs = append(cfg.TURN.Addrs, a)
	}
	for _, v := range c.StringSlice("turn-allow") {
		p, err := netip.ParsePrefix(v)
		if err != nil {
			return usagef("serve: --turn-allow %q is not a prefix like 10.1.0.0/16", v)
		}
		cfg.TURN.AllowPeers = append(cfg.TURN.AllowPeers, p)
	}
	lo, hi, ok := strings.Cut(c.String("turn-ports"), "-")
	from, err := strconv.ParseUint(lo, 10, 16)
	to, err2 := strconv.ParseUint(hi, 10, 16)
	if !ok || err != nil || err2 != nil || from == 0 || to < from {
		return usagef("serve: --turn-ports %q is not a range like 50000-50999", c.String("turn-ports"))
	}
	cfg.TURN.MinPort, cfg.TURN.MaxPort = uint16(from), uint16(to)
	return nil
}
