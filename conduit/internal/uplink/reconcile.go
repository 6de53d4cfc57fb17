// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// want is a socket that should be there.
type want struct {
	key
	uplink Uplink // zero for the fallback
	origin origin
}

// reconcile makes the sockets fit the system. What is gone is always acted upon;
// what is new only if gain is true. It returns when to call it again with gain, 0
// for not at all.
func (m *Manager) reconcile(gain bool) (again time.Duration) {
	links, err := m.cfg.system.scan()
	if err != nil {
		m.log.Warn("list network interfaces", "err", err)
		return retry
	}
	if gain && len(m.socks) == 0 {
		if err := m.openFallback(); err != nil {
			m.log.Warn("open sockets", "err", err)
			return retry
		}
	}
	wants, alive := m.wants(links)
	if gain {
		if err := m.open(wants); errors.Is(err, os.ErrPermission) && m.mode == byDevice {
			m.log.Warn("cannot bind sockets to interfaces, binding to addresses instead", "err", err)
			m.mode = byAddress
			wants, alive = m.wants(links)
			err = m.open(wants)
			again = retryIf(err)
		} else {
			again = retryIf(err)
		}
	}
	next := m.report(wants)
	if !gain {
		next = m.losses(next)
	}
	if m.tell(next) && again == 0 {
		again = settle
	}
	m.removeDead(alive)
	return again
}

func retryIf(err error) time.Duration {
	if err != nil {
		return retry
	}
	return 0
}

// wants lists the sockets that can be used now, best first, and those that may
// stay open: a link without carrier or address may be back in a moment.
func (m *Manager) wants(links []link) (wants []want, alive map[key]bool) {
	alive = make(map[key]bool)
	for i := range links {
		l := &links[i]
		o4, o6 := origin{l.src4, l.gw4}, origin{l.src6, l.gw6}
		if l.name == "" {
			for _, w := range []want{{key: key{}, origin: o4}, {key: key{v6: true}, origin: o6}} {
				if w.origin.src.IsValid() {
					w.uplink.Addrs = []netip.Addr{w.origin.src}
				}
				wants = append(wants, w)
			}
			continue
		}
		if _, ok := Rules(m.cfg.Rules).Find(l.name); ok && m.mode == byDevice {
			alive[key{index: l.index}], alive[key{index: l.index, v6: true}] = true, true
		}
		u, ok := m.cfg.uplink(l)
		if !ok || m.mode == byNothing {
			continue
		}
		u.Number = m.number(u.Name)
		for _, v6 := range []bool{false, true} {
			w := want{key: key{index: l.index, v6: v6}, uplink: u, origin: o4}
			has := u.V4
			if v6 {
				w.origin, has = o6, u.V6
			}
			if !has {
				continue
			}
			if !slices.Contains(u.Addrs, w.origin.src) {
				w.origin.src = u.Addrs[slices.IndexFunc(u.Addrs, func(a netip.Addr) bool { return a.Is6() == v6 })]
			}
			if m.mode == byAddress {
				w.addr = w.origin.src
				alive[w.key] = true
			}
			wants = append(wants, w)
		}
	}
	alive[key{}], alive[key{v6: true}] = true, true
	slices.SortStableFunc(wants, func(a, b want) int {
		return cmp.Or(
			order(a.index == 0, b.index == 0), order(a.uplink.Rule.Metered, b.uplink.Rule.Metered),
			cmp.Compare(a.index, b.index), order(a.v6, b.v6),
		)
	})
	return wants, alive
}

// order puts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// number returns the number of an interface, a new one for a new name.
func (m *Manager) number(name string) uint8 {
	n, ok := m.numbers[name]
	if !ok && len(m.numbers) < 255 {
		n = uint8(len(m.numbers) + 1) //nolint:gosec // at most 255
		m.numbers[name] = n
	}
	return n
}

// openFallback opens the sockets that are bound to nothing. They come first,
// because they take the port for all interfaces.
func (m *Manager) openFallback() error {
	const tries = 10 // another program may have the port on IPv6
	for try := 1; ; try++ {
		v4, err4 := m.listen("udp4", m.port, nil)
		port := m.port
		if err4 == nil {
			port = int(v4.LocalAddr().Port())
		}
		v6, err6 := m.listen("udp6", port, nil)
		switch {
		case err4 != nil && err6 != nil:
			return fmt.Errorf("listen on udp port %d: %w", m.port, err4)
		case errors.Is(err4, syscall.EADDRINUSE), errors.Is(err6, syscall.EADDRINUSE):
			for _, b := range []transport.Bind{v4, v6} {
				if b != nil {
					_ = b.Close()
				}
			}
			if m.port == 0 && try < tries {
				continue
			}
			return fmt.Errorf("listen on udp port %d: %w", port, errors.Join(err4, err6))
		}
		if v4 != nil {
			m.socks[key{}] = sock{-1, v4}
		}
		if v6 != nil {
			m.socks[key{v6: true}] = sock{-1, v6}
			port = int(v6.LocalAddr().Port())
		}
		m.port = port
		m.mu.Lock()
		m.portMu = port
		m.mu.Unlock()
		return nil
	}
}

func (m *Manager) listen(network string, port int, with func(*transport.Config)) (transport.Bind, error) {
	cfg := m.cfg.Socket
	cfg.Network, cfg.Port, cfg.Addr, cfg.Interface, cfg.Beside = network, port, netip.Addr{}, "", nil
	if with != nil {
		with(&cfg)
	}
	return m.cfg.listen(cfg)
}

// open opens what is missing, in order, and gives it to Add. It returns the last
// error; os.ErrPermission ends it at once.
func (m *Manager) open(wants []want) error {
	var last error
	for _, w := range wants {
		s, ok := m.socks[w.key]
		if !ok {
			beside, ok := m.socks[key{v6: w.v6}]
			if !ok || w.index == 0 {
				continue // the system does not have that family
			}
			network := "udp4"
			if w.v6 {
				network = "udp6"
			}
			b, err := m.listen(network, m.port, func(c *transport.Config) {
				c.Beside = beside.bound
				if m.mode == byDevice {
					c.Interface = w.uplink.Name
				} else {
					c.Addr = w.addr
				}
			})
			if err != nil {
				if m.mode == byDevice && errors.Is(err, os.ErrPermission) {
					return err
				}
				if !m.failed[w.key] {
					m.failed[w.key] = true
					m.log.Warn("open socket on interface", "interface", w.uplink.Name, "network", network, "err", err)
				}
				last = err
				continue
			}
			delete(m.failed, w.key)
			s = sock{-1, b}
		}
		if s.bind < 0 {
			if s.bind = m.cfg.Add(s.bound, w.uplink); s.bind < 0 {
				_ = s.bound.Close()
				delete(m.socks, w.key)
				continue
			}
			m.log.Debug("socket opened", "interface", w.uplink.Name, "number", w.uplink.Number, "ipv6", w.v6, "bind", s.bind)
		}
		m.socks[w.key] = s
	}
	return last
}

// report lists the sockets that are wanted and open.
func (m *Manager) report(wants []want) []Bound {
	var out []Bound
	for _, w := range wants {
		s, ok := m.socks[w.key]
		if !ok || s.bind < 0 {
			continue
		}
		b := Bound{Bind: s.bind, Uplink: w.uplink, V4: !w.v6, V6: w.v6, Fallback: w.index == 0}
		old := m.origins[originKey{w.uplink.Name, w.v6}]
		b.Moved = changed(old.src, w.origin.src) || changed(old.gw, w.origin.gw)
		b.origin = w.origin
		out = append(out, b)
	}
	return out
}

// changed tells whether a known address became another one.
func changed(old, now netip.Addr) bool { return old.IsValid() && now.IsValid() && old != now }

// losses returns what was told last less what next lacks.
func (m *Manager) losses(next []Bound) (out []Bound) {
	for _, b := range m.reported {
		if slices.ContainsFunc(next, func(n Bound) bool { return n.Bind == b.Bind }) {
			b.Moved = false
			out = append(out, b)
		}
	}
	return out
}

// same tells whether a and b say the same; b's Moved is news by itself.
func same(a, b Bound) bool {
	ua, ub := a.Uplink, b.Uplink
	return a.Bind == b.Bind && !b.Moved && ua.Name == ub.Name && ua.Index == ub.Index && ua.Number == ub.Number &&
		ua.Rule == ub.Rule && slices.Equal(ua.Addrs, ub.Addrs)
}

// tell calls Changed if there is something to tell, and reports whether it did.
func (m *Manager) tell(next []Bound) bool {
	if slices.EqualFunc(m.reported, next, same) {
		return false
	}
	for _, b := range next {
		k := originKey{b.Uplink.Name, b.V6}
		o := m.origins[k]
		o.src = cmp.Or(b.origin.src, o.src)
		o.gw = cmp.Or(b.origin.gw, o.gw)
		m.origins[k] = o
	}
	m.reported = next
	m.mu.Lock()
	m.bounds = slices.Clone(next)
	m.mu.Unlock()
	m.cfg.Changed(slices.Clone(next))
	return true
}

// removeDead gives back the sockets of interfaces that are gone.
func (m *Manager) removeDead(alive map[key]bool) {
	for k := range m.failed {
		if !alive[k] {
			delete(m.failed, k)
		}
	}
	var dead []int
	for k, s := range m.socks {
		if !alive[k] {
			delete(m.socks, k)
			dead = append(dead, s.bind)
		}
	}
	slices.Sort(dead)
	for _, bind := range dead {
		m.log.Debug("socket given back", "bind", bind)
		m.cfg.Remove(bind)
	}
}
