// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setUp gives an existing interface its MTU, addresses and routes.
func setUp(cfg Config) error {
	link, err := netlink.LinkByName(cfg.Name)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", cfg.MTU, err)
	}
	if err := netlink.LinkSetTxQLen(link, cfg.TxQueueLen); err != nil {
		return fmt.Errorf("set queue length: %w", err)
	}
	quietIPv6(cfg.Name, link)
	for _, a := range cfg.Addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // nobody else is on this link
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w%s", a, err, hintIPv6(a, err))
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	for _, r := range cfg.Routes {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r), Scope: netlink.SCOPE_LINK}
		for _, a := range cfg.Addrs { // packets to the mesh carry our mesh address
			if a.Addr().Is4() == r.Addr().Is4() {
				route.Src = a.Addr().AsSlice()
			}
		}
		if r.Addr().Is6() {
			route.Scope = netlink.SCOPE_UNIVERSE
			route.Src = nil
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("add route %s: %w", r, err)
		}
	}
	return nil
}

// quietIPv6 keeps the kernel from talking by itself on the link: no link-local
// address, no router solicitations. Both fail where IPv6 is off, which is fine.
func quietIPv6(name string, link netlink.Link) {
	_ = netlink.LinkSetIP6AddrGenMode(link, nl6AddrGenModeNone)
	for _, knob := range []string{"accept_ra", "router_solicitations", "autoconf"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+knob, []byte("0"), 0o644)
	}
}

// IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const nl6AddrGenModeNone = 1

func hintIPv6(a netip.Prefix, err error) string {
	if a.Addr().Is6() && (errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EACCES)) {
		return " (IPv6 may be off: see net.ipv6.conf.all.disable_ipv6)"
	}
	return ""
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
