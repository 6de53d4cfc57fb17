// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net/netip"
	"testing"
)

func TestConfig(t *testing.T) {
	ok := Config{Host: "h", Admit: (&admission{}).admit, RelayAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	if _, err := ok.withDefaults(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no_host":    func(c *Config) { c.Host = "" },
		"no_admit":   func(c *Config) { c.Admit = nil },
		"no_address": func(c *Config) { c.RelayAddrs = nil },
		"any":        func(c *Config) { c.RelayAddrs = []netip.Addr{netip.IPv4Unspecified()} },
		"twice":      func(c *Config) { c.RelayAddrs = append(c.RelayAddrs, netip.MustParseAddr("192.0.2.2")) },
		"ports":      func(c *Config) { c.MinPort, c.MaxPort = 10, 9 },
		"short_key":  func(c *Config) { c.Key = []byte("k") },
		"burst":      func(c *Config) { c.Burst = 10 },
	} {
		t.Run(name, func(t *testing.T) {
			c := ok
			c.RelayAddrs = append([]netip.Addr(nil), ok.RelayAddrs...)
			spoil(&c)
			if _, err := c.withDefaults(); err == nil {
				t.Error("accepted")
			}
		})
	}
}
