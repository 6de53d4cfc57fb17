// SPDX-License-Identifier: Apache-2.0

package store

import (
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// quarantine is how long a released address stays unused, so that a peer that was
// away does not take its successor for it.
const quarantine = 24 * time.Hour

// CheckPrefixes reports whether the two prefixes can number a mesh: an IPv4
// prefix between /8 and /28, an IPv6 one with at least as many host bits.
func CheckPrefixes(v4, v6 netip.Prefix) error {
	switch {
	case !v4.IsValid() || !v4.Addr().Is4() || v4 != v4.Masked():
		return fmt.Errorf("mesh prefix %v is not an IPv4 network", v4)
	case v4.Bits() < 8 || v4.Bits() > 28:
		return fmt.Errorf("mesh prefix %v: want a length between /8 and /28", v4)
	case !v6.IsValid() || !v6.Addr().Is6() || v6.Addr().Is4In6() || v6 != v6.Masked():
		return fmt.Errorf("mesh prefix %v is not an IPv6 network", v6)
	case 128-v6.Bits() < 32-v4.Bits():
		return fmt.Errorf("mesh prefix %v is smaller than %v", v6, v4)
	}
	return nil
}

// Addresses returns both addresses of an index.
func (m Meta) Addresses(index uint32) (v4, v6 netip.Addr) {
	a := m.CIDR.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+index)
	b := m.CIDR6.Addr().As16()
	binary.BigEndian.PutUint32(b[12:], binary.BigEndian.Uint32(b[12:])+index)
	return netip.AddrFrom4(a), netip.AddrFrom16(b)
}

// index is the inverse of Addresses.
func (m Meta) index(a netip.Addr) (uint32, bool) {
	var i uint32
	switch a = a.Unmap(); {
	case a.Is4() && m.CIDR.Contains(a):
		x, base := a.As4(), m.CIDR.Addr().As4()
		i = binary.BigEndian.Uint32(x[:]) - binary.BigEndian.Uint32(base[:])
	case a.Is6() && m.CIDR6.Contains(a):
		x, base := a.As16(), m.CIDR6.Addr().As16()
		i = binary.BigEndian.Uint32(x[12:]) - binary.BigEndian.Uint32(base[12:])
	default:
		return 0, false
	}
	v4, v6 := m.Addresses(i)
	return i, a == v4 || a == v6
}

// lastIndex is the highest index for a node: the one below the broadcast address.
func (m Meta) lastIndex() uint32 { return 1<<(32-m.CIDR.Bits()) - 2 }

// allocate takes the lowest free index: one whose quarantine is over, else the
// next that was never used. Every released index is below that one.
func (t *tx) allocate(m Meta, now time.Time) (uint32, error) {
	index, err := t.q.TakeQuarantined(bg, now.UnixMicro())
	if err == nil {
		return uint32(index), nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("reuse address: %w", err)
	}
	next, err := t.q.TakeNextIP(bg, int64(m.lastIndex()))
	if errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("%w in %v", ErrExhausted, m.CIDR)
	}
	if err != nil {
		return 0, fmt.Errorf("take address: %w", err)
	}
	return uint32(next - 1), nil
}

func (t *tx) release(index uint32, now time.Time) error {
	err := t.q.QuarantineIP(bg, db.QuarantineIPParams{Ip: int64(index), Until: now.Add(quarantine).UnixMicro()})
	if err != nil {
		return fmt.Errorf("release address: %w", err)
	}
	return nil
}
