// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// newPeer returns a consistent peer, number n of the mesh.
func newPeer(tb testing.TB, n byte, name string, tags ...string) Peer {
	tb.Helper()
	k, err := identity.GenerateKeys()
	if err != nil {
		tb.Fatal(err)
	}
	return Peer{
		ID: k.ID(), Name: name, Tags: tags,
		Virtual4: netip.AddrFrom4([4]byte{10, 66, 0, n}),
		Virtual6: netip.AddrFrom16([16]byte{0: 0xfd, 15: n}),
		Ed25519:  k.Ed25519.Public().(ed25519.PublicKey), X25519: k.X25519.PublicKey(),
	}
}

func ids(peers []*Peer) (out []identity.PeerID) {
	for _, p := range peers {
		out = append(out, p.ID)
	}
	return out
}

func TestCheck(t *testing.T) {
	other := newPeer(t, 2, "other")
	for name, tc := range map[string]struct {
		spoil func(*Peer)
		ok    bool
		keys  bool // ErrKeys
	}{
		"good":           {func(*Peer) {}, true, false},
		"no IPv6":        {func(p *Peer) { p.Virtual6 = netip.Addr{} }, true, false},
		"no Ed25519":     {func(p *Peer) { p.Ed25519 = nil }, false, true},
		"short Ed25519":  {func(p *Peer) { p.Ed25519 = p.Ed25519[1:] }, false, true},
		"no X25519":      {func(p *Peer) { p.X25519 = nil }, false, true},
		"other Ed25519":  {func(p *Peer) { p.Ed25519 = other.Ed25519 }, false, true},
		"other X25519":   {func(p *Peer) { p.X25519 = other.X25519 }, false, true},
		"other id":       {func(p *Peer) { p.ID = other.ID }, false, true},
		"zero id":        {func(p *Peer) { p.ID = identity.PeerID{} }, false, true},
		"no IPv4":        {func(p *Peer) { p.Virtual4 = netip.Addr{} }, false, false},
		"IPv6 for IPv4":  {func(p *Peer) { p.Virtual4 = p.Virtual6 }, false, false},
		"IPv4 for IPv6":  {func(p *Peer) { p.Virtual6 = p.Virtual4 }, false, false},
		"mapped as IPv6": {func(p *Peer) { p.Virtual6 = netip.MustParseAddr("::ffff:10.66.0.1") }, false, false},
		"zone":           {func(p *Peer) { p.Virtual6 = netip.MustParseAddr("fe80::1%eth0") }, false, false},
		"no name":        {func(p *Peer) { p.Name = "" }, false, false},
		"bad name":       {func(p *Peer) { p.Name = "A b" }, false, false},
		"mapped as IPv4": {func(p *Peer) { p.Virtual4 = netip.MustParseAddr("::ffff:10.66.0.1") }, false, false},
	} {
		p := newPeer(t, 1, "robot")
		tc.spoil(&p)
		if err := p.Check(); (err == nil) != tc.ok || errors.Is(err, ErrKeys) != tc.keys {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEqual(t *testing.T) {
	a, other := newPeer(t, 1, "robot", "x"), newPeer(t, 2, "other")
	for name, change := range map[string]func(*Peer){
		"id":       func(p *Peer) { p.ID = other.ID },
		"name":     func(p *Peer) { p.Name = "other" },
		"IPv4":     func(p *Peer) { p.Virtual4 = other.Virtual4 },
		"IPv6":     func(p *Peer) { p.Virtual6 = other.Virtual6 },
		"key":      func(p *Peer) { p.Ed25519 = other.Ed25519 },
		"tag":      func(p *Peer) { p.Tags = []string{"y"} },
		"more tag": func(p *Peer) { p.Tags = []string{"x", "y"} },
		"no tags":  func(p *Peer) { p.Tags = nil },
	} {
		b := a
		if !a.Equal(&b) {
			t.Fatal("a copy is not equal")
		}
		change(&b)
		if a.Equal(&b) {
			t.Errorf("%s: equal", name)
		}
	}
}

func TestSyncAndApply(t *testing.T) {
	var r Registry
	a, b, c := newPeer(t, 1, "a"), newPeer(t, 2, "b"), newPeer(t, 3, "c")
	bad := newPeer(t, 4, "bad")
	bad.ID = identity.PeerID{4}
	renamed := b
	renamed.Name = "b2"
	badA := a
	badA.X25519 = b.X25519

	type ID = identity.PeerID
	steps := []struct {
		name     string
		do       func() Change
		upserts  []ID
		deletes  []ID
		rejected []ID
		all      []ID // by name
	}{
		{"first", func() Change { return r.Sync([]Peer{b, a}) }, []ID{b.ID, a.ID}, nil, nil, []ID{a.ID, b.ID}},
		{"same", func() Change { return r.Sync([]Peer{a, b}) }, nil, nil, nil, []ID{a.ID, b.ID}},
		{"upsert", func() Change { return r.Apply([]Peer{c, a}, nil) }, []ID{c.ID}, nil, nil, []ID{a.ID, b.ID, c.ID}},
		{"rename", func() Change { return r.Apply([]Peer{renamed}, nil) }, []ID{b.ID}, nil, nil, []ID{a.ID, b.ID, c.ID}},
		{"delete", func() Change { return r.Apply(nil, []ID{c.ID, {9}}) }, nil, []ID{c.ID}, nil, []ID{a.ID, b.ID}},
		{"delete and add", func() Change { return r.Apply([]Peer{a}, []ID{a.ID}) }, []ID{a.ID}, []ID{a.ID}, nil, []ID{a.ID, b.ID}},
		{"rejected", func() Change { return r.Apply([]Peer{bad, c}, nil) }, []ID{c.ID}, nil, []ID{bad.ID}, []ID{a.ID, b.ID, c.ID}},
		// A known peer whose keys someone exchanged stays what it was.
		{"exchanged keys", func() Change { return r.Apply([]Peer{badA}, nil) }, nil, nil, []ID{a.ID}, []ID{a.ID, b.ID, c.ID}},
		{"exchanged keys in a sync", func() Change { return r.Sync([]Peer{badA, b}) }, []ID{b.ID}, []ID{c.ID}, []ID{a.ID}, []ID{a.ID, b.ID}},
		{"nobody", func() Change { return r.Sync(nil) }, nil, []ID{a.ID, b.ID}, nil, nil},
	}
	sorted := func(in []ID) []ID {
		return slices.SortedFunc(slices.Values(in), func(a, b ID) int { return a.Compare(b) })
	}
	for _, s := range steps {
		got := s.do()
		if !slices.Equal(ids(got.Upserts), s.upserts) {
			t.Errorf("%s: upserts %v, want %v", s.name, ids(got.Upserts), s.upserts)
		}
		if !slices.Equal(sorted(got.Deletes), sorted(s.deletes)) {
			t.Errorf("%s: deletes %v, want %v", s.name, got.Deletes, s.deletes)
		}
		for _, id := range s.rejected {
			if !errors.Is(got.Rejected[id], ErrKeys) {
				t.Errorf("%s: rejected %v", s.name, got.Rejected)
			}
		}
		if len(got.Rejected) != len(s.rejected) || got.Empty() != (len(s.upserts)+len(s.deletes) == 0) {
			t.Errorf("%s: rejected %v, empty %v", s.name, got.Rejected, got.Empty())
		}
		if !slices.Equal(ids(r.All()), s.all) {
			t.Errorf("%s: all %v, want %v", s.name, ids(r.All()), s.all)
		}
	}
	if p := r.Get(a.ID); p != nil {
		t.Errorf("Get of a deleted peer = %v", p)
	}
	r.Apply([]Peer{a}, nil)
	if p := r.Get(a.ID); p == nil || !p.Equal(&a) {
		t.Errorf("Get = %v", p)
	}
}

// The registry keeps copies: what the caller does to its list changes nothing.
func TestApplyCopies(t *testing.T) {
	var r Registry
	list := []Peer{newPeer(t, 1, "a")}
	id := list[0].ID
	r.Sync(list)
	list[0].Name = "b"
	if got := r.Get(id).Name; got != "a" {
		t.Errorf("name = %q", got)
	}
}

func TestResolve(t *testing.T) {
	var r Registry
	a, b := newPeer(t, 1, "robot"), newPeer(t, 2, "arm-2")
	// A name that is a prefix of a's id, and one that looks like an address.
	named := newPeer(t, 3, a.ID.String()[:8])
	r.Sync([]Peer{a, b, named})
	bid := b.ID.String()
	for text, want := range map[string]*Peer{
		a.ID.String(): &a, strings.ToUpper(a.ID.String()): &a,
		bid[:8]: &b, bid[:51]: &b, strings.ToUpper(bid[:9]): &b,
		"robot": &a, "robot.mesh": &a, "Robot.Mesh": &a, " robot\n": &a, "arm-2": &b,
		"10.66.0.1": &a, "fd00::2": &b, "FD00:0::2": &b,
		a.ID.String()[:8]:           &named, // the exact name before the prefix
		a.ID.String()[:8] + ".mesh": &named,
		a.ID.String()[:9]:           &a,
	} {
		if got, err := r.Resolve(text); err != nil || got.ID != want.ID {
			t.Errorf("Resolve(%q) = %v, %v, want %s", text, got, err, want.Name)
		}
	}
	for _, text := range []string{"", "x", ".mesh", bid[:3], "robo", "robot.mesh.mesh", "robot.lan", "10.66.0.9", "fd00::9", bid + "a"} {
		if got, err := r.Resolve(text); !errors.Is(err, ErrUnknown) || got != nil {
			t.Errorf("Resolve(%q) = %v, %v, want ErrUnknown", text, got, err)
		}
	}
	if _, err := new(Registry).Resolve("robot"); !errors.Is(err, ErrUnknown) {
		t.Errorf("empty registry: %v", err)
	}
}

func TestResolveAmbiguous(t *testing.T) {
	// Keys that collide in four characters are not to be had: put in what Check
	// would refuse.
	x, y := identity.PeerID{0xab, 0xcd, 0xef, 1}, identity.PeerID{0xab, 0xcd, 0xef, 2}
	r := Registry{peers: map[identity.PeerID]*Peer{x: {ID: x, Name: "one"}, y: {ID: y, Name: "two"}}}
	_, err := r.Resolve(x.String()[:4])
	if !errors.Is(err, ErrAmbiguous) || !strings.Contains(err.Error(), "one (") || !strings.Contains(err.Error(), "two (") {
		t.Errorf("Resolve = %v, want ErrAmbiguous with both names", err)
	}
	if p, err := r.Resolve(y.String()); err != nil || p.ID != y {
		t.Errorf("the whole id: %v, %v", p, err)
	}
}

// A node may call itself what it likes, the PeerID of another included.
func TestResolveImpostor(t *testing.T) {
	victim := newPeer(t, 1, "zeta")
	thief := newPeer(t, 2, victim.ID.String())
	var r Registry
	if c := r.Sync([]Peer{victim, thief}); len(c.Upserts) != 2 {
		t.Fatalf("%+v", c)
	}
	if p, err := r.Resolve(victim.ID.String()); err != nil || p.ID != victim.ID {
		t.Errorf("resolved the victim's id to %v, %v", p, err)
	}
	r.Apply([]Peer{newPeer(t, 3, "zeta")}, nil)
	if _, err := r.Resolve("zeta"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("a name that two nodes have: %v, want ErrAmbiguous", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	var r Registry
	a, b := newPeer(t, 1, "a"), newPeer(t, 2, "b")
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 200 {
				switch (n + i) % 3 {
				case 0:
					r.Sync([]Peer{a, b})
				case 1:
					r.Apply([]Peer{a}, []identity.PeerID{b.ID})
				default:
					_, _ = r.Resolve(fmt.Sprintf("10.66.0.%d", i%3))
					r.Get(a.ID)
				}
			}
		})
	}
	wg.Wait()
}
