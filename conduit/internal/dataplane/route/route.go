// SPDX-License-Identifier: Apache-2.0

// Package route finds the peer that has a virtual address.
package route

import (
	"net/netip"
	"sync/atomic"
)

// Table maps addresses to destinations. Readers take no lock and see either the
// old table or the new one, whole. The zero value is empty.
type Table[T any] struct {
	m atomic.Pointer[map[netip.Addr]T]
}

// Set replaces the table. The caller must not change m afterwards.
func (t *Table[T]) Set(m map[netip.Addr]T) { t.m.Store(&m) }

// Lookup finds the destination of a.
func (t *Table[T]) Lookup(a netip.Addr) (dest T, ok bool) {
	if m := t.m.Load(); m != nil {
		dest, ok = (*m)[a]
	}
	return dest, ok
}
