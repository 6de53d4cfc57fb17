// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// All functions of this file act on the calling thread's namespace.

// rule is a list of expressions; the helpers below read like nft's syntax.
type rule = []expr.Any

func join(parts ...rule) rule {
	var r rule
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

func iifname(name string) rule { return metaName(expr.MetaKeyIIFNAME, name) }
func oifname(name string) rule { return metaName(expr.MetaKeyOIFNAME, name) }

func metaName(key expr.MetaKey, name string) rule {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return rule{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b},
	}
}

// ctState matches connections in any of the states of mask.
func ctState(mask uint32) rule {
	return rule{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// udpPortAtLeast matches UDP datagrams to a port from first up.
func udpPortAtLeast(first uint16) rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: binaryutil.BigEndian.PutUint16(first)},
	}
}

// chance matches a random share of the packets, 0 to 1.
func chance(share float64) rule {
	const modulus = 1_000_000
	return rule{
		&expr.Numgen{Register: 1, Modulus: modulus, Type: unix.NFT_NG_RANDOM},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(share * modulus))},
	}
}

func accept() rule { return rule{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() rule   { return rule{&expr.Verdict{Kind: expr.VerdictDrop}} }

// masquerade rewrites the source to the outgoing address. It keeps the port
// where it can; random takes a new one for each destination.
func masquerade(random bool) rule { return rule{&expr.Masq{FullyRandom: random}} }

// dnat sends what is left on to an inside host, on the same port.
func dnat(to netip.Addr) rule {
	return rule{
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}
}

// base is a base chain with its rules.
type base struct {
	name   string
	typ    nftables.ChainType
	hook   *nftables.ChainHook
	prio   *nftables.ChainPriority
	policy nftables.ChainPolicy
	rules  []rule
}

// setTable replaces a whole table by chains, in one transaction.
func setTable(family nftables.TableFamily, name string, chains ...base) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: family, Name: name})
	c.DelTable(t) // adding first makes deleting safe
	t = c.AddTable(&nftables.Table{Family: family, Name: name})
	for _, b := range chains {
		ch := c.AddChain(&nftables.Chain{
			Name: b.name, Table: t, Type: b.typ, Hooknum: b.hook, Priority: b.prio, Policy: &b.policy,
		})
		for _, r := range b.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set nftables table %s: %w", name, err)
	}
	return nil
}

// deleteTable removes a table that exists.
func deleteTable(family nftables.TableFamily, name string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Family: family, Name: name})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("delete nftables table %s: %w", name, err)
	}
	return nil
}

// filterBoth drops what enters and what leaves by port, if it matches.
func filterBoth(table, port string, in, out rule) error {
	return setTable(nftables.TableFamilyINet, table,
		base{
			name: "in", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
			prio: nftables.ChainPriorityRaw, policy: nftables.ChainPolicyAccept,
			rules: []rule{join(iifname(port), in, drop())},
		},
		base{
			name: "out", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting,
			prio: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept,
			rules: []rule{join(oifname(port), out, drop())},
		})
}

// addLoss drops a random share of what enters (in) and leaves (out) by port.
func addLoss(port string, in, out float64) error {
	if in == 0 && out == 0 {
		return nil
	}
	return setLoss(port, in, out)
}

// setLoss is addLoss where there may be one already.
func setLoss(port string, in, out float64) error {
	return filterBoth("loss-"+port, port, chance(in), chance(out))
}

// setBlackhole drops all that crosses port, or stops to.
func setBlackhole(port string, on bool) error {
	if on {
		return filterBoth("hole-"+port, port, nil, nil)
	}
	return deleteTable(nftables.TableFamilyINet, "hole-"+port)
}

const (
	ctNew         = expr.CtStateBitNEW
	ctKnown       = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	firstFreePort = 1024
)

// setNAT loads the rules of a NAT box. Unsolicited input is dropped, also on
// the box itself: otherwise a datagram that arrives before the inside has
// sent one would occupy the port, and the box would turn into a symmetric one.
func setNAT(kind NATKind, outside, inside string, exposed netip.Addr) error {
	nat := []base{{
		name: "post", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
		prio: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept,
		rules: []rule{join(oifname(outside), masquerade(kind == Symmetric))},
	}}
	forward := []rule{
		join(iifname(inside), accept()),
		join(ctState(ctKnown), accept()),
	}
	if kind == EndpointIndependent && exposed.IsValid() {
		nat = append(nat, base{
			name: "pre", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting,
			prio: nftables.ChainPriorityNATDest, policy: nftables.ChainPolicyAccept,
			rules: []rule{join(iifname(outside), udpPortAtLeast(firstFreePort), dnat(exposed))},
		})
		forward = append(forward, join(iifname(outside), udpPortAtLeast(firstFreePort), ctState(ctNew), accept()))
	}
	if err := setTable(nftables.TableFamilyIPv4, "nat", nat...); err != nil {
		return err
	}
	return setTable(nftables.TableFamilyINet, "firewall",
		base{
			name: "forward", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
			prio: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop, rules: forward,
		},
		base{
			name: "input", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
			prio: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept,
			rules: []rule{
				join(iifname(outside), ctState(ctNew), rule{
					// Neighbour discovery must pass; ICMPv6 has no ports to occupy.
					&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
					&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
				}, drop()),
				// No hairpinning, and silence about it: two hosts behind one box also try
				// each other's outside address.
				join(iifname(inside), udpPortAtLeast(firstFreePort), ctState(ctNew), drop()),
			},
		})
}
