// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
	"net/netip"
)

func prefixes(ss ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(ss))
	for i, s := range ss {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// never are the ranges that no peer is in, whatever the configuration says.
var never = prefixes(
	"0.0.0.0/8",       // this network
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local, and the metadata services of clouds
	"192.0.0.0/24",    // protocol assignments, DS-Lite
	"192.88.99.0/24",  // 6to4 relays
	"224.0.0.0/4",     // multicast
	"240.0.0.0/4",     // reserved and broadcast
	"::/96",           // unspecified, loopback, IPv4-compatible
	"::ffff:0:0:0/96", // IPv4-translated (SIIT)
	// These carry an IPv4 address to which a gateway would pass the packet on, past
	// all rules about that address.
	"64:ff9b::/96", "64:ff9b:1::/48", // NAT64
	"2001::/32", "2002::/16", // Teredo, 6to4
	"100::/64",  // discard
	"fe80::/10", // link-local
	"fec0::/10", // site-local, deprecated
	"ff00::/8",  // multicast
)

// private are the ranges behind somebody's router, which may be the hub's. They
// are refused unless Config.AllowPeers names them: a hub in a data centre stands
// beside databases and metadata services that no robot should reach through it,
// and a hub that is reached over the internet has no use for them, since a node's
// private address means something at its own site only. A hub on the site's own
// network allows that network.
var private = prefixes(
	"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7",
)

// table says which peers are refused. It is immutable.
type table struct {
	own   map[netip.Addr]struct{} // addresses of this machine, and broadcasts
	mesh  []netip.Prefix
	allow []netip.Prefix
}

// newTable returns the table for a machine with these addresses and prefixes.
func newTable(cfg *Config, own []netip.Prefix) *table {
	t := &table{own: make(map[netip.Addr]struct{}), mesh: cfg.Mesh, allow: cfg.AllowPeers}
	for _, a := range cfg.RelayAddrs {
		t.own[a.Unmap()] = struct{}{}
	}
	for _, p := range own {
		a := p.Addr().Unmap().WithZone("")
		t.own[a] = struct{}{}
		if bits := p.Bits(); a.Is4() && bits >= 0 && bits < 31 {
			t.own[last4(netip.PrefixFrom(a, bits))] = struct{}{}
			t.own[netip.PrefixFrom(a, bits).Masked().Addr()] = struct{}{}
		}
	}
	return t
}

// last4 returns the broadcast address of an IPv4 prefix.
func last4(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// isOwn tells whether a is an address of this machine.
func (t *table) isOwn(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() {
		return true
	}
	_, ok := t.own[a]
	return ok
}

// refuses tells whether no packet may go to a.
func (t *table) refuses(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return true
	}
	a = a.Unmap()
	if t.isOwn(a) || within(never, a) || within(t.mesh, a) {
		return true
	}
	return within(private, a) && !within(t.allow, a)
}

func within(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// interfaces returns the machine's addresses with their prefixes.
func interfaces() []netip.Prefix {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		ip = ip.Unmap()
		if bits, size := n.Mask.Size(); size == ip.BitLen() {
			out = append(out, netip.PrefixFrom(ip, bits))
		} else {
			out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return out
}
