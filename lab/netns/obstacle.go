// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Obstacles of the internet: firewalls, narrow links and new addresses.

// BlockUDP drops, silently, the UDP datagrams that the router would forward from
// one of the attachments to another; with none, all UDP that it would forward.
// BlockUDP(false) lets everything through again.
func (w *WAN) BlockUDP(on bool, among ...*Iface) {
	w.host.lab.tb.Helper()
	w.host.lab.check(w.host.Do(func() error {
		if !on {
			return dropTable("block-udp")
		}
		var rules []rule
		if len(among) == 0 {
			rules = append(rules, join(isUDP(), drop()))
		}
		for _, a := range among {
			for _, b := range among {
				if a != b {
					rules = append(rules, join(iifname(a.port), oifname(b.port), isUDP(), drop()))
				}
			}
		}
		return setForward("block-udp", rules)
	}), "block UDP at %s", w.host.name)
}

// Narrow drops the UDP packets of more than mtu bytes, IP header included, on
// their way to or from the attachment, and tells nobody: a path whose "too big"
// messages a firewall eats. (TCP is spared; routers clamp its segments.) 0 undoes
// it. The cables on the way must be PerPacket, or the router would see several
// packets as one.
func (w *WAN) Narrow(i *Iface, mtu int) {
	w.host.lab.tb.Helper()
	name := "narrow-" + i.port
	w.host.lab.check(w.host.Do(func() error {
		if mtu == 0 {
			return dropTable(name)
		}
		long := rule{
			&expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(mtu))},
		}
		return setForward(name, []rule{join(iifname(i.port), isUDP(), long, drop()), join(oifname(i.port), isUDP(), long, drop())})
	}), "narrow %s", i)
}

func isUDP() rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
	}
}

// setForward replaces a table by rules about what the calling thread's
// namespace forwards.
func setForward(name string, rules []rule) error {
	return setTable(nftables.TableFamilyINet, name, base{
		name: "forward", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		prio: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept, rules: rules,
	})
}

// dropTable deletes a table, and is content where there is none.
func dropTable(name string) error {
	err := deleteTable(nftables.TableFamilyINet, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Renumber gives the host's end other addresses of the same networks, as a new
// lease does: the old ones are gone and the default routes are new.
func (i *Iface) Renumber() {
	l := i.Host.lab
	l.tb.Helper()
	l.check(i.Host.Do(func() error {
		link, err := netlink.LinkByName(i.Name)
		if err != nil {
			return fmt.Errorf("find %s: %w", i.Name, err)
		}
		old4, old6 := i.Addr4, i.Addr6
		i.moves++
		i.Addr4, i.Addr6 = subnet{old4, old6}.addr(64)
		if i.moves%2 == 0 { // back to the first
			i.Addr4, i.Addr6 = i.place.v4, i.place.v6
		}
		if err := netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(old4)}); err != nil {
			return fmt.Errorf("remove %v: %w", old4, err)
		}
		if old6.IsValid() {
			if err := netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(old6)}); err != nil {
				return fmt.Errorf("remove %v: %w", old6, err)
			}
		}
		if err := addAddrs(i.Name, i.Addr4, i.Addr6); err != nil {
			return err
		}
		return i.addDefaults()
	}), "renumber %s", i)
}

// AddAddr4 gives the host's end one more IPv4 address, the n-th of its network.
func (i *Iface) AddAddr4(n int) netip.Addr {
	l := i.Host.lab
	l.tb.Helper()
	a, _ := subnet{v4: netip.PrefixFrom(i.Addr4.Masked().Addr(), i.Addr4.Bits())}.addr(n)
	l.check(i.Host.Do(func() error { return addAddrs(i.Name, a) }), "add %v to %s", a, i)
	return a.Addr()
}
