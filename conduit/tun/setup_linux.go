// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

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
	has6 := hasIPv6(cfg.Name)
	if !has6 && slices.ContainsFunc(cfg.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) && cfg.Logger != nil {
		cfg.Logger.Warn("IPv6 is off here, so the interface gets its IPv4 addresses only", "interface", cfg.Name)
	}
	for _, a := range cfg.Addrs {
		if a.Addr().Is6() && !has6 {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // nobody else is on this link
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	for _, r := range cfg.Routes {
		if r.Addr().Is6() && !has6 {
			continue
		}
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
		if err := addRoute(route); err != nil {
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

// hasIPv6 reports whether the interface name can have IPv6 addresses. Many robots
// have IPv6 switched off, in the kernel or by sysctl.
func hasIPv6(name string) bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
	return err == nil && len(b) > 0 && b[0] == '0'
}

// addRoute adds r, unless the kernel did so together with an address. A route that
// leads elsewhere is not replaced: another program lives on it.
func addRoute(r *netlink.Route) error {
	err := netlink.RouteAdd(r)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	family := netlink.FAMILY_V4
	if r.Dst.IP.To4() == nil {
		family = netlink.FAMILY_V6
	}
	same, lerr := netlink.RouteListFiltered(family, &netlink.Route{Dst: r.Dst}, netlink.RT_FILTER_DST)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	for _, o := range same {
		if o.LinkIndex == r.LinkIndex {
			return nil
		}
	}
	return fmt.Errorf("another interface has it: %w", err)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
