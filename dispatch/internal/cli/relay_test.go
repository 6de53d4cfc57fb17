// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/dispatch"
)

func TestRelayFlags(t *testing.T) {
	parse := func(args ...string) (cfg dispatch.Config, err error) {
		app := &cli.App{
			Flags: relayFlags(), Writer: io.Discard, ErrWriter: io.Discard, ExitErrHandler: func(*cli.Context, error) {},
			Action: func(c *cli.Context) error { return relayConfig(c, &cfg) },
		}
		return cfg, app.Run(append([]string{"hub"}, args...))
	}
	for _, tt := range []struct {
		name string
		args []string
		want dispatch.Config
	}{
		{"defaults", nil, dispatch.Config{RelayRate: 1e6, TURN: dispatch.TURN{Rate: 1e6, MinPort: 50000, MaxPort: 50999}}},
		{"off", []string{"--turn=false", "--relay=false"}, dispatch.Config{RelayRate: -1, TURN: dispatch.TURN{Off: true, Rate: 1e6, MinPort: 50000, MaxPort: 50999}}},
		{
			"all",
			[]string{"--turn-addr", "192.0.2.1", "--turn-addr", "2001:db8::1", "--turn-ports", "40000-40000", "--turn-allow", "10.0.0.0/8", "--relay-rate", "5"},
			dispatch.Config{RelayRate: 5, TURN: dispatch.TURN{
				Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, Rate: 5,
				MinPort: 40000, MaxPort: 40000, AllowPeers: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			}},
		},
	} {
		got, err := parse(tt.args...)
		if d := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); err != nil || d != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, d)
		}
	}
	for _, args := range [][]string{
		{"--turn-addr", "hub.example"},
		{"--turn-ports", "50000"},
		{"--turn-ports", "9-8"},
		{"--turn-ports", "0-8"},
		{"--turn-ports", "1-70000"},
		{"--turn-allow", "10.0.0.0"},
		{"--relay-rate", "0"},
	} {
		if _, err := parse(args...); err == nil {
			t.Errorf("%q passed", args)
		}
	}
}
