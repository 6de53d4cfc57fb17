// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"net/netip"
	"slices"
	"testing"
)

func TestUplink(t *testing.T) {
	c := Config{
		Exclude: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")},
		Rules: []Rule{
			{Name: "eth9", Ignore: true}, {Name: "wg0"}, {Name: "wg*", Metered: true}, {Name: "lte*", Metered: true, Budget: 5}, {Name: "lte1", Budget: 9},
		},
	}
	down := testLink("eth0", 1, "192.0.2.1")
	down.up = false
	lo := testLink("lo", 1, "127.0.0.1", "10.0.0.9")
	lo.loopback = true
	tests := []struct {
		link  link
		addrs []string // nil: no uplink
		rule  string
	}{
		{testLink("eth0", 1, "192.0.2.1"), []string{"192.0.2.1"}, ""},
		{testLink("eth0", 1, "2001:db8::1", "192.0.2.1", "fe80::1", "::ffff:192.0.2.2"), []string{"2001:db8::1", "192.0.2.1", "192.0.2.2"}, ""},
		{testLink("veth0", 1, "192.0.2.1"), []string{"192.0.2.1"}, ""},
		{down, nil, ""},
		{lo, nil, ""},
		{testLink("eth0", 1), nil, ""},
		{testLink("eth0", 1, "fe80::1", "169.254.1.1"), nil, ""},
		{testLink("tun7", 1, "100.64.0.9"), nil, ""},
		{testLink("eth9", 1, "192.0.2.1"), nil, ""},
		{testLink("wg0", 1, "192.0.2.1"), []string{"192.0.2.1"}, "wg0"},
		{testLink("wg1", 1, "192.0.2.1"), nil, ""},
		{testLink("lte1", 1, "192.0.2.1"), []string{"192.0.2.1"}, "lte*"},
		{testLink("bauxite0", 1, "192.0.2.1"), nil, ""},
		{testLink("docker0", 1, "192.0.2.1"), nil, ""},
		{testLink("br-1234", 1, "192.0.2.1"), nil, ""},
		{testLink("br0", 1, "192.0.2.1"), []string{"192.0.2.1"}, ""},
		{testLink("tailscale0", 1, "192.0.2.1"), nil, ""},
		{testLink("ztabc", 1, "192.0.2.1"), nil, ""},
		{testLink("utun3", 1, "192.0.2.1"), nil, ""},
	}
	for _, tt := range tests {
		u, ok := c.uplink(&tt.link)
		var got []string
		for _, a := range u.Addrs {
			got = append(got, a.String())
		}
		if ok != (tt.addrs != nil) || ok && (!slices.Equal(got, tt.addrs) || u.Rule.Name != tt.rule) {
			t.Errorf("%s %v = %v %+v, %v; want %v by rule %q", tt.link.name, tt.link.addrs, got, u.Rule, ok, tt.addrs, tt.rule)
		}
	}
	c.IncludeLoopback = true
	if u, ok := c.uplink(&lo); !ok || len(u.Addrs) != 2 {
		t.Errorf("loopback = %+v, %v", u, ok)
	}
}
