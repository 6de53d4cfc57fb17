// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
)

// Opening never joins the interface of another program, nor takes its routes.
func TestOpenLeavesOthersAlone(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		mesh := netip.MustParsePrefix("10.66.0.0/16")
		first, err := Open(Config{Name: "bxtest3", Queues: 2, Addrs: []netip.Prefix{netip.MustParsePrefix("10.66.0.2/32")}, Routes: []netip.Prefix{mesh}})
		if err != nil {
			t.Error(err)
			return
		}
		defer first.Close()
		if d, err := Open(Config{Name: "bxtest3", Queues: 2}); !errors.Is(err, ErrBusy) {
			t.Errorf("second open of a multi-queue interface: %v, want ErrBusy", err)
			if err == nil {
				_ = d.Close()
			}
		}
		d, err := Open(Config{Name: "bxtest4", Addrs: []netip.Prefix{netip.MustParsePrefix("10.66.0.3/32")}, Routes: []netip.Prefix{mesh}})
		if err == nil {
			t.Error("a route that another interface has was given away")
			_ = d.Close()
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(mesh)}, netlink.RT_FILTER_DST)
		if err != nil || len(routes) != 1 {
			t.Errorf("routes to the mesh = %v, %v; want the first one", routes, err)
		}
	})
}

// Where the prefix of an address covers a route, the kernel has made it already.
func TestOpenRouteOfAddress(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		d, err := Open(Config{
			Name:   "bxtest5",
			Addrs:  []netip.Prefix{netip.MustParsePrefix("10.66.0.2/16"), netip.MustParsePrefix("fd66::2/64")},
			Routes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16"), netip.MustParsePrefix("fd66::/64")},
		})
		if err != nil {
			t.Error(err)
			return
		}
		_ = d.Close()
	})
}

// A machine on which IPv6 is switched off still gets its IPv4 mesh.
func TestOpenWithoutIPv6(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		for _, f := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+f+"/disable_ipv6", []byte("1"), 0o644); err != nil {
				t.Error(err)
				return
			}
		}
		d, err := Open(Config{
			Name:   "bxtest6",
			Addrs:  []netip.Prefix{netip.MustParsePrefix("10.66.0.2/32"), netip.MustParsePrefix("fd66::2/128")},
			Routes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16"), netip.MustParsePrefix("fd66::/64")},
		})
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		echo(t, d)
	})
}
