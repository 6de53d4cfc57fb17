// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Destinations that stand for the Internet in questions to the routing table.
// Nothing is sent to them.
var (
	far4 = net.IPv4(8, 8, 8, 8)
	far6 = net.ParseIP("2001:4860:4860::8888")
)

// rtnetlink is the system by way of netlink, in the network namespace of the
// goroutine that calls it.
type rtnetlink struct{}

func newSystem() system { return rtnetlink{} }

func (rtnetlink) binding() binding { return byDevice }

// subscription is one socket for all kinds of events, so that they come in order.
type subscription struct{ sock *nl.NetlinkSocket }

func (rtnetlink) subscribe() (events, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	return subscription{s}, nil
}

// wait returns at every message: what it says is read anew by scan. An overrun
// (ENOBUFS) is a message too.
func (s subscription) wait() error {
	_, _, err := s.sock.Receive()
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

func (s subscription) close() { s.sock.Close() }

func (rtnetlink) scan() ([]link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	// The unnamed one is what a socket bound to nothing uses.
	out := make([]link, 1, len(links)+1)
	out[0].src4, out[0].gw4 = route(far4, nil)
	out[0].src6, out[0].gw6 = route(far6, nil)
	for _, x := range links {
		at := x.Attrs()
		l := link{
			name: at.Name, index: at.Index,
			up:       at.RawFlags&unix.IFF_UP != 0 && at.RawFlags&unix.IFF_RUNNING != 0,
			loopback: at.Flags&net.FlagLoopback != 0,
		}
		var temporary []netip.Addr
		for i := range addrs {
			a := &addrs[i]
			if a.LinkIndex != at.Index || a.IPNet == nil || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED) != 0 {
				continue
			}
			ip, ok := netip.AddrFromSlice(a.IP)
			if !ok {
				continue
			}
			// For IPv4 the flag of this value means a secondary address.
			if ip = ip.Unmap(); ip.Is6() && a.Flags&unix.IFA_F_TEMPORARY != 0 {
				temporary = append(temporary, ip)
			} else {
				l.addrs = append(l.addrs, ip)
			}
		}
		if l.up && len(l.addrs)+len(temporary) > 0 && !Overlay(l.name) {
			opt := &netlink.RouteGetOptions{OifIndex: at.Index}
			l.src4, l.gw4 = route(far4, opt)
			l.src6, l.gw6 = route(far6, opt)
			if slices.Contains(temporary, l.src6) {
				l.src6 = netip.Addr{} // our sockets prefer the lasting ones
			}
		}
		l.addrs = append(l.addrs, temporary...)
		out = append(out, l)
	}
	return out, nil
}

// route asks which source address and gateway the kernel chooses for to.
func route(to net.IP, opt *netlink.RouteGetOptions) (src, gw netip.Addr) {
	routes, err := netlink.RouteGetWithOptions(to, opt)
	if err != nil || len(routes) == 0 {
		return netip.Addr{}, netip.Addr{}
	}
	src, _ = netip.AddrFromSlice(routes[0].Src)
	gw, _ = netip.AddrFromSlice(routes[0].Gw)
	return src.Unmap(), gw.Unmap()
}
