// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// Rule says how to treat the interfaces whose name a pattern matches. The first
// rule that matches counts.
type Rule struct {
	// Name is a pattern of path.Match. A name without wildcards also takes in an
	// interface that looks like a tunnel or a bridge of containers.
	Name string
	// Ignore leaves the interface out.
	Ignore bool
	// Metered marks an interface that costs by volume.
	Metered bool
	// Budget is how many bytes a day it may carry; 0 means no limit. It is not
	// enforced here.
	Budget uint64
	// Rate bounds what is sent over it, in bits per second; 0 means no bound. It is not
	// enforced here either.
	Rate uint64
}

// Uplink is an interface that can carry the mesh.
type Uplink struct {
	// Name and Index are the system's.
	Name  string
	Index int
	// Number stands for Name, 1 to 255, as long as the Manager lives. It is 0 for
	// the fallback, and once all 255 are used up.
	Number uint8
	// V4 and V6 tell for which families there is a usable address.
	V4, V6 bool
	// Addrs are the usable addresses, preferred ones first: no link-local, no
	// excluded, tentative or deprecated ones, temporary ones last.
	Addrs []netip.Addr
	// Rule is the one that matched; its Name is empty where none did.
	Rule Rule
}

// Bound is a socket and what it is bound to.
type Bound struct {
	// Bind is what Config.Add returned for the socket.
	Bind int
	// Uplink is the interface; of the fallback only Name, "", and Addrs, the
	// source addresses that the routing table chooses now.
	Uplink Uplink
	// V4 and V6 tell which family the socket is of; one is true.
	V4, V6 bool
	// Fallback is the socket that is bound to no interface: the last choice.
	Fallback bool
	// Moved is true when datagrams leave with another source address than at the
	// last call, or through another gateway: NAT mappings and what peers know of
	// us are void. It is false when an uplink is seen for the first time.
	Moved bool

	origin origin
}

// overlays are prefixes of the names of interfaces that never carry the mesh:
// our own tunnel, other overlays and bridges of containers. veth is not among
// them: in network namespaces it is the uplink, and the host's ends have no
// address of their own.
var overlays = []string{
	"bauxite", "docker", "br-", "virbr", "podman", "cni", "wg", "tailscale", "zt", "utun", "nebula",
}

// Overlay tells whether an interface of that name is a tunnel or a bridge of
// containers, whose addresses must not become ends of paths.
func Overlay(name string) bool {
	return slices.ContainsFunc(overlays, func(p string) bool { return strings.HasPrefix(name, p) })
}

// Rules is an ordered list of rules.
type Rules []Rule

// Check validates the patterns.
func (r Rules) Check() error {
	for _, x := range r {
		if x.Name == "" {
			return fmt.Errorf("uplink rule: %w: empty name", path.ErrBadPattern)
		}
		if _, err := path.Match(x.Name, ""); err != nil {
			return fmt.Errorf("uplink rule %q: %w", x.Name, err)
		}
	}
	return nil
}

// Find returns the first rule that matches, and whether an interface of that name
// may be an uplink at all.
func (r Rules) Find(name string) (rule Rule, ok bool) {
	for _, x := range r {
		if m, err := path.Match(x.Name, name); err == nil && m {
			return x, !x.Ignore && (x.Name == name || !Overlay(name))
		}
	}
	return Rule{}, !Overlay(name)
}

// link is an interface as the system describes it.
type link struct {
	name     string
	index    int
	up       bool // administratively, with carrier
	loopback bool
	addrs    []netip.Addr // without tentative and deprecated ones, temporary last
	src4     netip.Addr   // what the kernel sends from over this link, if known
	src6     netip.Addr
	gw4      netip.Addr // of the default route over this link, if any
	gw6      netip.Addr
}

// usable tells whether a can be our end of a path.
func (c *Config) usable(a netip.Addr) bool {
	switch {
	case !a.IsValid(), a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast():
		return false
	case a.IsLoopback():
		return c.IncludeLoopback
	}
	return !slices.ContainsFunc(c.Exclude, func(p netip.Prefix) bool { return p.Contains(a) })
}

// uplink turns a link into an uplink, if it is one. Its number is not yet set.
func (c *Config) uplink(l *link) (u Uplink, ok bool) {
	if !l.up || (l.loopback && !c.IncludeLoopback) {
		return Uplink{}, false
	}
	rule, ok := Rules(c.Rules).Find(l.name)
	if !ok {
		return Uplink{}, false
	}
	u = Uplink{Name: l.name, Index: l.index, Rule: rule}
	for _, a := range l.addrs {
		if a = a.Unmap().WithZone(""); c.usable(a) && !slices.Contains(u.Addrs, a) {
			u.Addrs = append(u.Addrs, a)
			u.V4 = u.V4 || a.Is4()
			u.V6 = u.V6 || a.Is6()
		}
	}
	return u, u.V4 || u.V6
}
