// SPDX-License-Identifier: Apache-2.0

package signal

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

var a, b, c = identity.PeerID{1}, identity.PeerID{2}, identity.PeerID{3}

func TestPresence(t *testing.T) {
	type event struct {
		ID     identity.PeerID
		Online bool
	}
	var got []event
	var instances []uint64
	r := NewRegistry(func(id identity.PeerID, _ string, online bool, instance uint64) {
		got = append(got, event{id, online})
		instances = append(instances, instance)
	})
	a1 := r.Open(a, "")
	a2 := r.Open(a, "")
	select {
	case <-a1.Gone():
	default:
		t.Error("the older stream was not told")
	}
	a1.Close() // late: must not take the newer one down
	b1 := r.Open(b, "")
	online := 0
	r.Online("", func(identity.PeerID, uint64) { online++ })
	if online != 2 {
		t.Errorf("%d online, want 2", online)
	}
	a2.Close()
	a2.Close()
	b1.Close()
	want := []event{{a, true}, {a, true}, {b, true}, {a, false}, {b, false}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("presence (-want +got):\n%s", d)
	}
	if instances[0] >= instances[1] || instances[1] >= instances[2] || instances[3] != instances[1] {
		t.Errorf("instances = %v", instances)
	}
}

func TestSites(t *testing.T) {
	r := NewRegistry(func(identity.PeerID, string, bool, uint64) {})
	in := func(site string) (n int) {
		r.Online(site, func(id identity.PeerID, instance uint64) {
			if at, i, ok := r.streams[id].Site, r.streams[id].Instance, true; at != site || i != instance || !ok {
				t.Errorf("%s of %s is told as of %s", id.Short(), at, site)
			}
			n++
		})
		return n
	}
	a1, b1 := r.Open(a, "berlin"), r.Open(b, "berlin")
	a2 := r.Open(a, "bonn") // moved
	if in("berlin") != 1 || in("bonn") != 1 || in("") != 0 {
		t.Errorf("%d in berlin, %d in bonn, %d nowhere; want 1, 1, 0", in("berlin"), in("bonn"), in(""))
	}
	a1.Close() // late
	if in("bonn") != 1 {
		t.Error("the end of the older stream took the newer one out of its site")
	}
	a2.Close()
	b1.Close()
	if len(r.sites) != 0 || len(r.streams) != 0 {
		t.Errorf("%d sites and %d streams are left", len(r.sites), len(r.streams))
	}
}

func TestSend(t *testing.T) {
	r := NewRegistry(func(identity.PeerID, string, bool, uint64) {})
	sa, sb := r.Open(a, ""), r.Open(b, "")
	for i := range QueueLen {
		if got := sa.Send(b, []byte{byte(i)}); got != Delivered {
			t.Fatalf("message %d: %v", i, got)
		}
	}
	for _, tt := range []struct {
		name string
		to   identity.PeerID
		body []byte
		want Reason
	}{
		{"full", b, []byte("x"), Busy},
		{"absent", c, []byte("x"), Offline},
		{"itself", a, []byte("x"), Invalid},
		{"empty", b, nil, Invalid},
		{"large", b, make([]byte, MaxBody+1), Invalid},
	} {
		if got := sa.Send(tt.to, tt.body); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	for i := range QueueLen {
		if e := <-sb.Queue(); e.From != a || e.Body[0] != byte(i) {
			t.Fatalf("message %d = %v", i, e)
		}
	}
}

func TestAllow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewRegistry(func(identity.PeerID, string, bool, uint64) {}).Open(a, "")
		take := func() (n int) {
			for s.Allow() {
				n++
			}
			return n
		}
		if n := take(); n != Burst {
			t.Errorf("at once = %d, want %d", n, Burst)
		}
		time.Sleep(time.Second)
		if n := take(); n != Rate {
			t.Errorf("after a second = %d, want %d", n, Rate)
		}
		time.Sleep(time.Hour)
		if n := take(); n != Burst {
			t.Errorf("after an hour = %d, want %d", n, Burst)
		}
	})
}

// TestAllowAcrossStreams: who opens a new stream has not a whole burst again, until
// he would have it anyway.
func TestAllowAcrossStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(func(identity.PeerID, string, bool, uint64) {})
		take := func() (n int) {
			s := r.Open(a, "")
			defer s.Close()
			for s.Allow() {
				n++
			}
			return n
		}
		if n := take() + take() + take(); n != Burst {
			t.Errorf("at once = %d, want %d", n, Burst)
		}
		for i := range 2 * minSweep { // others, which fill the table
			r.Open(identity.PeerID{9, byte(i), byte(i >> 8)}, "").Close()
		}
		if n := take(); n != 0 {
			t.Errorf("after others have come and gone = %d, want 0", n)
		}
		time.Sleep(time.Second)
		if n := take(); n != Rate {
			t.Errorf("after a second = %d, want %d", n, Rate)
		}
		time.Sleep(time.Hour)
		for i := range 2 * minSweep {
			r.Open(identity.PeerID{8, byte(i), byte(i >> 8)}, "").Close()
		}
		if n := len(r.buckets); n > 2*minSweep+1 {
			t.Errorf("%d buckets are kept of nodes that have gone", n)
		}
	})
}
