// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Socket is one UDP port of the caller, who also reads it. An unspecified IPv6
// address stands for IPv6 alone; a dual-stack socket is to be given as two.
//
// A Socket may have more methods. Interface() string names the interface that it
// is bound to, so that an unspecified local address stands for that interface's
// addresses only. Rank() int orders the sockets, least first (those of one rank,
// and those without the method, which have rank 0, by index). Fallback() bool is
// true for a socket that is only used where there is no other of its family.
type Socket interface {
	// LocalAddr is the bound address; it may be unspecified, the port not.
	LocalAddr() netip.AddrPort
	// SendSTUN sends b, in the Critical lane or at once, or drops it. It must not
	// block (pion's task loop stands still meanwhile) and not keep b.
	SendSTUN(b []byte, to netip.AddrPort)
}

// maxSockets bounds the index of a socket.
const maxSockets = 1 << 16

func checkSocket(s Socket) error {
	if s == nil || !s.LocalAddr().IsValid() || s.LocalAddr().Port() == 0 {
		return errors.New("not bound to a port")
	}
	return nil
}

// SetSocket makes s the socket with that index; there may be gaps. Agents that
// exist use those that were there before their Start: make new ones and close the
// old when the new have a path.
func (m *Mux) SetSocket(i int, s Socket) error {
	if err := checkSocket(s); err != nil {
		return fmt.Errorf("set socket %d: %w", i, err)
	}
	if i < 0 || i >= maxSockets {
		return fmt.Errorf("set socket %d: index out of range", i)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	socks := slices.Clone(*m.sockets.Load())
	for len(socks) <= i {
		socks = append(socks, nil)
	}
	socks[i] = s
	m.sockets.Store(&socks)
	m.flushLocked(i)
	return nil
}

// RemoveSocket ends the use of a socket.
func (m *Mux) RemoveSocket(i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	socks := slices.Clone(*m.sockets.Load())
	if i < 0 || i >= len(socks) {
		return
	}
	socks[i] = nil
	m.sockets.Store(&socks)
	m.flushLocked(i)
}

// socket returns the socket with that index, or nil.
func (m *Mux) socket(i int) Socket {
	if socks := *m.sockets.Load(); i >= 0 && i < len(socks) {
		return socks[i]
	}
	return nil
}

func (m *Mux) send(sock int, b []byte, to netip.AddrPort) {
	if s := m.socket(sock); s != nil {
		s.SendSTUN(b, to)
	}
}

// order returns the indexes of the sockets in use, best first.
func (m *Mux) order() []int {
	socks := *m.sockets.Load()
	var out []int
	var have4, have6 bool // by others than the fallback
	for i, s := range socks {
		if s == nil {
			continue
		}
		out = append(out, i)
		if !fallback(s) {
			is4 := family4(s)
			have4, have6 = have4 || is4, have6 || !is4
		}
	}
	out = slices.DeleteFunc(out, func(i int) bool {
		s := socks[i]
		return fallback(s) && (family4(s) && have4 || !family4(s) && have6)
	})
	slices.SortStableFunc(out, func(a, b int) int { return cmp.Compare(rank(socks[a]), rank(socks[b])) })
	return out
}

func family4(s Socket) bool { return s.LocalAddr().Addr().Unmap().Is4() }

func fallback(s Socket) bool {
	f, ok := s.(interface{ Fallback() bool })
	return ok && f.Fallback()
}

func rank(s Socket) int {
	if r, ok := s.(interface{ Rank() int }); ok {
		return r.Rank()
	}
	return 0
}

func boundTo(s Socket) string {
	if b, ok := s.(interface{ Interface() string }); ok {
		return b.Interface()
	}
	return ""
}
