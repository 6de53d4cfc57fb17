// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"net/netip"
)

// NATKind is how a NAT box maps and filters UDP (RFC 4787 words).
type NATKind int

// The kinds of NAT boxes.
const (
	// PortRestricted keeps one mapping per inside socket and lets in only
	// answers of the address and port that were sent to. Home routers.
	PortRestricted NATKind = iota
	// EndpointIndependent ("full cone") keeps one mapping and lets in anyone
	// who sends to it. Only the first host behind the box has it; the others
	// are port-restricted.
	EndpointIndependent
	// Symmetric takes a new mapping for each destination. Many LTE carriers.
	Symmetric
)

// String names the kind.
func (k NATKind) String() string {
	switch k {
	case PortRestricted:
		return "port-restricted"
	case EndpointIndependent:
		return "endpoint-independent"
	case Symmetric:
		return "symmetric"
	}
	return "unknown"
}

// NATConfig describes a NAT box.
type NATConfig struct {
	Kind     NATKind
	Upstream Network // required: a WAN, or another NAT box
	Link     Link    // the cable to Upstream

	// LAN is the inside's IPv4 /24, so that two boxes may use the same one.
	// The zero value takes the next 192.168.N.0/24.
	LAN netip.Prefix
	// IPv6 also routes a global /64 to the inside, behind a stateful
	// firewall and without translation. It needs a WAN as Upstream. Without
	// it the inside has unique local addresses that lead nowhere.
	IPv6 bool
}

// NAT is a box with a LAN behind it.
type NAT struct {
	host    *Host
	cfg     NATConfig
	net     subnet
	next    int
	exposed bool
}

const natInside = "lan0"

// NAT makes a NAT box.
func (l *Lab) NAT(name string, cfg NATConfig) *NAT {
	l.tb.Helper()
	if cfg.Upstream == nil {
		l.tb.Fatalf("lab: NAT box %s has no upstream", name)
	}
	n := &NAT{host: l.host(name, cfg.Kind.String()+" NAT"), cfg: cfg, net: l.nextLAN(), next: 2}
	if cfg.LAN.IsValid() {
		n.net.v4 = cfg.LAN.Masked()
	}
	wan, onWAN := cfg.Upstream.(*WAN)
	if cfg.IPv6 {
		if !onWAN {
			l.tb.Fatalf("lab: NAT box %s: IPv6 needs a WAN as upstream", name)
		}
		n.net.v6 = l.nextWAN().v6
	}
	out := n.host.Attach(cfg.Upstream, cfg.Link)
	l.check(n.host.Do(func() error {
		if err := setRouter(); err != nil {
			return err
		}
		own4, own6 := n.net.addr(1)
		if err := makeBridge(natInside, own4, own6); err != nil {
			return err
		}
		if err := out.addDefaults(); err != nil { // forwarding=1 dropped them
			return err
		}
		return setNAT(cfg.Kind, out.Name, natInside, netip.Addr{})
	}), "NAT box %s", name)
	if cfg.IPv6 {
		l.check(wan.host.Do(func() error {
			return addRoute(out.port, n.net.v6, out.Addr6.Addr(), 0)
		}), "route to %s", name)
	}
	return n
}

// Host makes a host behind the box.
func (n *NAT) Host(name string, link Link) *Host {
	n.host.lab.tb.Helper()
	return hostOn(n, name, link)
}

// Box is the box itself, on whose namespace programs and captures can run.
func (n *NAT) Box() *Host { return n.host }

// Outside is the box's attachment to its upstream.
func (n *NAT) Outside() *Iface { return n.host.ifaces[0] }

func (n *NAT) owner() *Host { return n.host }

func (n *NAT) place() placement {
	p := placement{bridge: natInside}
	p.v4, p.v6 = n.net.addr(n.next)
	n.next++
	own4, own6 := n.net.addr(1)
	p.gw4 = own4.Addr()
	if n.cfg.IPv6 {
		p.gw6 = own6.Addr()
	}
	if n.cfg.Kind == EndpointIndependent && !n.exposed {
		n.exposed = true
		l := n.host.lab
		l.check(n.host.Do(func() error {
			return setNAT(n.cfg.Kind, n.Outside().Name, natInside, p.v4.Addr())
		}), "expose %v at %s", p.v4.Addr(), n.host.name)
	}
	return p
}
