// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// overlays are prefixes of the names of interfaces that lead into other overlays or
// to containers.
var overlays = []string{"bauxite", "docker", "br-", "virbr", "podman", "cni", "wg", "tailscale", "zt", "utun", "nebula"}

// System lists the interfaces that could carry the mesh, for a machine on which no
// node runs that knows better. skip leaves out more of them.
func System(skip func(name string) bool) ([]Uplink, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []Uplink
	for i := range ifaces {
		f := &ifaces[i]
		if f.Flags&(net.FlagUp|net.FlagLoopback) != net.FlagUp || skip(f.Name) ||
			slices.ContainsFunc(overlays, func(p string) bool { return strings.HasPrefix(f.Name, p) }) {
			continue
		}
		addrs, err := f.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		u := Uplink{Name: f.Name}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
				u.Addresses = append(u.Addresses, p.Addr().Unmap())
			}
		}
		if len(u.Addresses) > 0 {
			out = append(out, u)
		}
	}
	return out, nil
}
