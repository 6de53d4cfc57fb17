// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"net"
	"net/netip"
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit/internal/uplink"
)

// HostAddr is an address at which a socket of ours can be reached on its link.
type HostAddr struct {
	// Socket is the index of the socket in the mux.
	Socket int
	// Addr is an interface address with the socket's port.
	Addr netip.AddrPort
}

// ifaceAddr is an address of an interface that is up.
type ifaceAddr struct {
	iface string
	addr  netip.Addr
}

// systemAddrs lists the addresses of all interfaces that are up, in the order of
// the system.
func systemAddrs() ([]ifaceAddr, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []ifaceAddr
	for i := range ifaces {
		if ifaces[i].Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := ifaces[i].Addrs()
		if err != nil {
			continue // it went away between the two calls
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, ifaceAddr{ifaces[i].Name, p.Addr().Unmap()})
			}
		}
	}
	return out, nil
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	reserved4   = netip.MustParsePrefix("240.0.0.0/4") // with broadcast
	compatible6 = netip.MustParsePrefix("::/96")       // deprecated IPv4-compatible
	siteLocal6  = netip.MustParsePrefix("fec0::/10")   // deprecated
	nat64       = netip.MustParsePrefix("64:ff9b::/96")
)

// forbidden tells whether a must not be an end of a path: it would reach this
// host itself, many hosts, no host, or the overlay through the overlay.
func (m *Mux) forbidden(a netip.Addr) bool { return m.Forbidden(a) }

// Forbidden reports whether an address must not be an end of a path: ErrForbidden
// says which.
func (m *Mux) Forbidden(a netip.Addr) bool {
	a = a.Unmap()
	if a.IsLoopback() {
		return !m.cfg.IncludeLoopback
	}
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Zone() != "" {
		return true
	}
	if a.Is4() {
		if thisNetwork.Contains(a) || reserved4.Contains(a) {
			return true
		}
	} else {
		if compatible6.Contains(a) || siteLocal6.Contains(a) {
			return true
		}
		if b := a.As16(); nat64.Contains(a) && m.forbidden(netip.AddrFrom4([4]byte(b[12:]))) {
			return true
		}
	}
	return slices.ContainsFunc(m.cfg.ExcludePrefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// HostAddrs lists the addresses behind the sockets, best first: the order of the
// sockets, then that of the system. A socket that is bound to no address counts
// with every address of its family that the filters leave; one that is bound to
// an interface with those of that interface, whatever its name. The list is made
// anew at each call.
func (m *Mux) HostAddrs() []HostAddr { return m.hostAddrs(m.order()) }

func (m *Mux) hostAddrs(order []int) []HostAddr {
	var (
		out    []HostAddr
		system []ifaceAddr
		loaded bool
	)
	add := func(h HostAddr) {
		if h.Addr.Port() != 0 && !m.forbidden(h.Addr.Addr()) && !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	for _, i := range order {
		s := m.socket(i)
		if s == nil {
			continue
		}
		local := unmap(s.LocalAddr())
		if !local.Addr().IsUnspecified() {
			add(HostAddr{i, local})
			continue
		}
		if !loaded {
			loaded = true
			var err error
			if system, err = m.interfaces(); err != nil {
				m.log.Warn("list interface addresses", "err", err)
			}
		}
		only := boundTo(s)
		for _, a := range system {
			switch {
			case a.addr.Is4() != local.Addr().Is4(), only != "" && a.iface != only:
			case only == "" && uplink.Overlay(a.iface), m.cfg.InterfaceFilter != nil && !m.cfg.InterfaceFilter(a.iface):
			default:
				add(HostAddr{i, netip.AddrPortFrom(a.addr, local.Port())})
			}
		}
	}
	return out
}

// unmap turns an IPv4-mapped IPv6 address into the IPv4 address.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
