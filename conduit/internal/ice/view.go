// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"net"
	"net/netip"
	"sync"
)

// base is a socket as pion sees it.
type base struct {
	socket  int
	label   netip.AddrPort
	family4 bool
}

// view is the mux as one agent of pion sees it (pion's UDPMux): one listen
// address per socket. The address is only a label, since everything leaves
// through the socket whatever its candidate is called, and so may be unspecified.
// That keeps pairs few and outlives changes of address.
type view struct {
	mux   *Mux
	entry *entry

	once  sync.Once
	list  []base
	index map[netip.AddrPort]int // label → position in list
}

func newView(m *Mux, e *entry) *view { return &view{mux: m, entry: e} }

// bases returns the sockets of this agent: those that the mux had at first use.
func (v *view) bases() []base {
	v.once.Do(func() {
		v.index = make(map[netip.AddrPort]int)
		for _, i := range v.mux.order() {
			s := v.mux.socket(i)
			if s == nil {
				continue
			}
			label := unmap(s.LocalAddr())
			if !label.Addr().IsUnspecified() && v.mux.forbidden(label.Addr()) {
				continue
			}
			// Sockets of different interfaces can be bound to the same address; pion
			// would close the second as a duplicate.
			for port := uint16(1); ; port++ {
				if _, taken := v.index[label]; !taken {
					break
				}
				label = netip.AddrPortFrom(label.Addr(), port)
			}
			v.index[label] = len(v.list)
			v.list = append(v.list, base{i, label, label.Addr().Is4()})
		}
	})
	return v.list
}

// socket returns the socket that a label stands for.
func (v *view) socket(label netip.AddrPort) (int, bool) {
	list := v.bases()
	i, ok := v.index[label]
	if !ok {
		return 0, false
	}
	return list[i].socket, true
}

// GetListenAddresses returns a label per socket.
func (v *view) GetListenAddresses() []net.Addr {
	var out []net.Addr
	for _, b := range v.bases() {
		out = append(out, net.UDPAddrFromAddrPort(b.label))
	}
	return out
}

// GetConn returns the agent's connection on the socket that addr labels.
func (v *view) GetConn(ufrag string, addr net.Addr) (net.PacketConn, error) {
	udp, ok := addr.(*net.UDPAddr)
	if !ok || ufrag != v.entry.ufrag {
		return nil, net.InvalidAddrError("not of this agent")
	}
	sock, ok := v.socket(unmap(udp.AddrPort()))
	if !ok {
		return nil, net.InvalidAddrError("no such socket")
	}
	return v.entry.conn(v.mux, sock, udp)
}

// RemoveConnByUfrag forgets the agent. pion also calls it with no ufrag, before
// it took ours.
func (v *view) RemoveConnByUfrag(ufrag string) {
	if ufrag == v.entry.ufrag {
		v.mux.unregister(v.entry)
	}
}

// Close does nothing: the mux is shared.
func (v *view) Close() error { return nil }
