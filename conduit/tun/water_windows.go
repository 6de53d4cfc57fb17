// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"net/netip"

	"github.com/songgao/water"
)

// waterConfig tells the TAP driver our network: it answers ARP for nothing else.
func waterConfig(cfg Config) water.Config {
	c := water.Config{DeviceType: water.TUN}
	c.ComponentID = "tap0901" // the adapter that OpenVPN's driver makes
	for _, a := range cfg.Addrs {
		if !a.Addr().Is4() {
			continue
		}
		c.Network = a.String()
		// A wider route is what the peers are behind.
		for _, r := range cfg.Routes {
			if r.Bits() < a.Bits() && r.Contains(a.Addr()) {
				c.Network = netip.PrefixFrom(a.Addr(), r.Bits()).String()
			}
		}
		break
	}
	return c
}
