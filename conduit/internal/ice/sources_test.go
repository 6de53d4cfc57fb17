// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v2"
)

// A peer that forges sources makes us send little to those: not more than a
// response and a check for each of its checks.
func TestReflection(t *testing.T) {
	for _, controlling := range []bool{true, false} {
		t.Run(fmt.Sprintf("controlling=%v", controlling), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w, ma, mb := fakePair(t)
				a, b := newPeer(t, ma, controlling), newPeer(t, mb, !controlling)
				connect(t, a, b)
				a.path(t)
				var (
					mu                        sync.Mutex
					in, out, inBytes, outByte int
				)
				victims := make([]netip.AddrPort, 2*maxCandidates)
				for i := range victims {
					victims[i] = netip.MustParseAddrPort(fmt.Sprintf("198.51.100.%d:53", i+1))
					w.mu.Lock()
					w.hosts[victims[i]] = func(msg []byte, _ netip.AddrPort) {
						mu.Lock()
						defer mu.Unlock()
						out++
						outByte += len(msg)
					}
					w.mu.Unlock()
				}
				role := stun.RawAttribute{Type: stun.AttrICEControlling, Value: make([]byte, 8)}
				if controlling {
					role.Type = stun.AttrICEControlled
				}
				send := func(rounds int) {
					for range rounds {
						for _, v := range victims {
							msg := check(a.ufrag+":"+b.ufrag, a.pwd, role, stun.RawAttribute{Type: stun.AttrPriority, Value: []byte{1, 2, 3, 4}})
							mu.Lock()
							in++
							inBytes += len(msg)
							mu.Unlock()
							ma.Handle(0, msg, v)
						}
						pass(100 * time.Millisecond)
					}
					pass(15 * time.Second)
				}
				send(1)
				mu.Lock()
				t.Logf("one check from each of %d sources: %d bytes in, %d bytes out (%.2fx), %d datagrams out", len(victims), inBytes, outByte, float64(outByte)/float64(inBytes), out)
				if out > 2*maxUnproven {
					t.Errorf("%d datagrams to strangers, want at most %d", out, 2*maxUnproven)
				}
				// What is refused is no excuse: count only what was taken.
				if f := float64(outByte) / (float64(inBytes) * maxUnproven / float64(len(victims))); f > 2.1 {
					t.Errorf("%.2f times as many bytes out as taken in", f)
				}
				in, out, inBytes, outByte = 0, 0, 0, 0
				mu.Unlock()
				send(20)
				mu.Lock()
				defer mu.Unlock()
				t.Logf("20 checks: %d bytes in, %d bytes out (%.2fx)", inBytes, outByte, float64(outByte)/float64(inBytes))
				if f := float64(outByte) / (float64(inBytes) * maxUnproven / float64(len(victims))); f > 2.1 {
					t.Errorf("%.2f times as many bytes out as taken in", f)
				}
			})
		})
	}
}

func TestSources(t *testing.T) {
	addr := func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i)) }
	var s sources
	if !s.spend(0, addr(1)) {
		t.Error("a check to no source was refused")
	}
	for i := range maxUnproven {
		if !s.request(0, addr(i+1)) {
			t.Fatalf("source %d was refused", i)
		}
	}
	if s.request(0, addr(99)) {
		t.Error("one more unproven source was taken")
	}
	if !s.request(0, addr(1)) {
		t.Error("a known source was refused")
	}
	for i, want := range []bool{true, true, false} { // two checks came
		if got := s.spend(0, addr(1)); got != want {
			t.Errorf("check %d = %v, want %v", i, got, want)
		}
	}
	if s.spend(1, addr(2)) {
		t.Error("a socket spent what another earned")
	}
	for range 10 {
		s.request(0, addr(3))
	}
	n := 0
	for s.spend(0, addr(3)) {
		n++
	}
	if n != maxCredit {
		t.Errorf("%d checks in store, want %d", n, maxCredit)
	}
	s.release(addr(3))
	s.release(addr(3))
	for range 10 {
		if !s.spend(1, addr(3)) {
			t.Fatal("a proven source has a limit")
		}
	}
	if !s.request(0, addr(99)) || s.request(0, addr(98)) {
		t.Error("a proven source makes room for one")
	}
	for i := range 4 * maxCandidates { // proven ones are bounded too
		s.request(0, addr(200+i))
		s.release(addr(200 + i))
	}
	if len(s.m) > maxSources {
		t.Errorf("%d sources", len(s.m))
	}
}

// What the peer signals is free, whether it was a source before or not, and
// bounded all the same.
func TestSignalledSources(t *testing.T) {
	addr := func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i)) }
	var e entry
	e.sources.request(0, addr(1))
	if !e.mayCheck(0, addr(1)) || e.mayCheck(0, addr(1)) {
		t.Error("a source has another limit than one check")
	}
	e.signalled(addr(1))
	e.signalled(addr(2))
	for range 10 {
		e.sources.request(0, addr(2))
		if !e.mayCheck(0, addr(1)) || !e.mayCheck(3, addr(2)) {
			t.Fatal("a signalled address has a limit")
		}
	}
	if e.sources.unproven != 0 {
		t.Errorf("%d unproven sources", e.sources.unproven)
	}
	for i := range maxCandidates - 2 {
		e.signalled(addr(100 + i))
	}
	if !e.sources.request(0, addr(99)) {
		t.Error("a peer with all its candidates has no room for a source")
	}
	for i := range 10 * maxSources {
		e.signalled(addr(100 + i))
	}
	if n := len(e.sources.m); n != maxSources {
		t.Errorf("%d sources are kept", n)
	}
}
