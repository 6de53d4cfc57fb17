// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// asker is a packet path whose device and lanes stand still.
type asker struct {
	d     *Dataplane
	asked []netip.Addr
}

func newAsker(t *testing.T) *asker {
	t.Helper()
	a := &asker{}
	pol := policy.NewEngine(policy.Subject{ID: identity.PeerID{1}, Name: "a"})
	pol.Apply(policy.Default(), []policy.Subject{{ID: identity.PeerID{2}, Name: "b"}})
	a.d = New(Config{
		Device: newFakeDevice(), Policy: pol, Local: []netip.Addr{addrA}, Logger: slog.New(slog.DiscardHandler),
		Ask:  func(to netip.Addr) { a.asked = append(a.asked, to) },
		Mesh: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16")}, Want: func(*Peer) {},
	})
	t.Cleanup(func() { _ = a.d.Close() })
	return a
}

// send offers n packets to an address.
func (a *asker) send(to netip.Addr, n int) {
	for range n {
		b := packet.Get()
		raw := b.Raw()[packet.Headroom:]
		clear(raw[:28])
		raw[0], raw[8], raw[9] = 0x45, 64, 17
		binary.BigEndian.PutUint16(raw[2:], 28)
		copy(raw[12:], addrA.AsSlice())
		copy(raw[16:], to.AsSlice())
		raw[25] = 8
		b.N = 28
		a.d.admit(nil, b, a.d.Now())
	}
}

func (a *asker) dropped(why TxReason) uint64 { return a.d.stats.tx[why].Load() }

func host(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 66, byte(1 + i>>8), byte(i)}) }

func TestAskIsBounded(t *testing.T) {
	a := newAsker(t)
	a.send(host(0), maxAskedHeld+3)
	if len(a.asked) != 1 || a.dropped(TxNoSession) != 3 {
		t.Errorf("asked %d times, dropped %d, want 1 and 3", len(a.asked), a.dropped(TxNoSession))
	}
	for i := range 2 * maxAsked {
		a.send(host(i), 3)
	}
	if len(a.asked) != maxAsked || a.d.unknown.held > maxHeldAll {
		t.Errorf("asked %d times, held %d packets", len(a.asked), a.d.unknown.held)
	}
	a.send(netip.MustParseAddr("192.0.2.1"), 1)
	if len(a.asked) != maxAsked {
		t.Error("asked for an address outside of the mesh")
	}
}

func TestAskTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker(t)
		to := host(0)
		a.send(to, 2)
		a.d.Resolved(to, false, 5*time.Second)
		if a.dropped(TxNoRoute) != 2 {
			t.Errorf("dropped %d of 2 packets to nobody", a.dropped(TxNoRoute))
		}
		time.Sleep(4 * time.Second)
		a.send(to, 1)
		if len(a.asked) != 1 || a.dropped(TxNoRoute) != 3 {
			t.Error("asked again too early")
		}
		time.Sleep(time.Second)
		a.send(to, 1)
		if len(a.asked) != 2 {
			t.Error("not asked again")
		}
		// The answer comes late: what is stale by then is not delivered.
		time.Sleep(2 * time.Second)
		a.send(to, 1)
		p := &Peer{ID: identity.PeerID{2}, Rules: a.d.cfg.Policy.Peer(identity.PeerID{2}), Virtual4: to}
		a.d.SetRoutes(map[netip.Addr]*Peer{to: p})
		a.d.Resolved(to, true, 0)
		if len(p.held) != 1 || a.dropped(TxStale) != 1 || a.d.unknown.held != 0 {
			t.Errorf("%d wait for the session, %d were stale, %d are left", len(p.held), a.dropped(TxStale), a.d.unknown.held)
		}
		a.d.Abandon(p, TxNoSession)
		// A question without an answer does not last for ever.
		a.d.SetRoutes(nil)
		a.send(to, 1)
		time.Sleep(time.Duration(askLife))
		a.send(to, 1)
		if len(a.asked) != 4 {
			t.Errorf("asked %d times, want 4", len(a.asked))
		}
	})
}
