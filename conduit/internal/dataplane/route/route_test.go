// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"testing"
)

func TestTable(t *testing.T) {
	var tab Table[string]
	a, b := netip.MustParseAddr("10.66.0.2"), netip.MustParseAddr("fd66::2")
	if _, ok := tab.Lookup(a); ok {
		t.Error("empty table found something")
	}
	tab.Set(map[netip.Addr]string{a: "robot", b: "robot"})
	for _, x := range []netip.Addr{a, b} {
		if got, ok := tab.Lookup(x); !ok || got != "robot" {
			t.Errorf("Lookup(%s) = %q, %v", x, got, ok)
		}
	}
	if n := testing.AllocsPerRun(100, func() { tab.Lookup(b) }); n != 0 {
		t.Errorf("lookup allocates %v times, want 0", n)
	}
	tab.Set(nil)
	if _, ok := tab.Lookup(a); ok {
		t.Error("replaced table still finds the old entry")
	}
}

func BenchmarkLookup(b *testing.B) {
	m := map[netip.Addr]int{}
	a := netip.MustParseAddr("10.66.0.1")
	for i := range 1000 {
		m[a] = i
		a = a.Next()
	}
	var tab Table[int]
	tab.Set(m)
	a = a.Prev()
	for b.Loop() {
		tab.Lookup(a)
	}
}
