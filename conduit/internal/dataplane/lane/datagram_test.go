// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// fragments records what became of each datagram.
type fragments struct {
	r         *rig
	out, lost map[uint64]int
}

func watch(r *rig) *fragments {
	f := &fragments{r: r, out: map[uint64]int{}, lost: map[uint64]int{}}
	r.onDr = func(b *packet.Buf, why Drop) {
		if b.Datagram != 0 && why != Closed {
			f.lost[b.Datagram]++
		}
	}
	return f
}

func (f *fragments) left(_ *Pipe, b *packet.Buf, _ bool) {
	if b.Datagram != 0 {
		f.out[b.Datagram]++
	}
}

// check fails where a datagram left in part.
func (f *fragments) check(t testing.TB, size func(key uint64) int) (whole, none int) {
	t.Helper()
	for key, n := range f.out {
		if f.lost[key] > 0 || size != nil && n != size(key) {
			t.Errorf("%d fragments of datagram %d left, %d were dropped", n, key, f.lost[key])
		}
		whole++
	}
	return whole, len(f.lost)
}

// Bursts of large datagrams through a pipe that is far too slow for them, beside a
// flow with a standing queue: overflow, CoDel, age. What leaves is whole.
func TestWholeDatagrams(t *testing.T) {
	for _, tt := range []struct {
		name string
		lane packet.Lane
		dem  bool
		cfg  Config
		rate float64
		why  Drop
	}{
		{"bulk overflow", packet.Bulk, false, Config{Bulk: 300}, 1e6, Overflow},
		{"bulk bytes", packet.Bulk, false, Config{}, 1e6, Overflow},
		{"bulk codel", packet.Bulk, false, Config{}, 4e6, CoDel},
		{"telemetry overflow", packet.Telemetry, false, Config{Telemetry: 200}, 2e6, Overflow},
		{"telemetry age", packet.Telemetry, false, Config{}, 1e6, Age},
		{"demoted", packet.Bulk, true, Config{}, 1e6, Age},
		{"critical", packet.Critical, false, Config{Critical: 100}, 1e6, Overflow},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(7, 8))
			r := newRig(t, tt.cfg)
			f := watch(r)
			u := r.AddUplink()
			pipes := []*Pipe{u.AddPipe(congestion.NewFixed(tt.rate), 60), u.AddPipe(congestion.NewFixed(tt.rate), 60)}
			key := uint64(0)
			for r.clock < 10000*ms {
				for range rng.IntN(4) {
					key++
					p := pipes[key%2]
					bufs := datagram(tt.lane, uint32(key%6), key, 48)
					for _, b := range bufs {
						b.Demoted = tt.dem
					}
					if rng.IntN(2) == 0 {
						r.put(p, bufs...)
					} else { // beside another one, with time between
						key++
						other := datagram(tt.lane, uint32(key%6), key, 48)
						for i := range bufs {
							other[i].Demoted = tt.dem
							r.put(p, bufs[i], other[i])
							if rng.IntN(20) == 0 {
								r.run(r.clock+rng.Int64N(3)*ms, 1+rng.IntN(64), f.left)
							}
						}
					}
					r.fill(p, rng.IntN(20), tt.lane, 6, 1000)
				}
				r.run(r.clock+rng.Int64N(60)*ms, 1+rng.IntN(64), f.left)
				r.check()
			}
			r.run(r.clock+4000*ms, 64, f.left)
			whole, none := f.check(t, func(uint64) int { return 48 })
			if whole < 10 || none < 10 || r.drops[tt.why] < 10 || tt.why != Age && r.drops[Datagram] < 47*10 {
				t.Errorf("%d whole ones left, %d did not, drops %v", whole, none, r.drops)
			}
		})
	}
}

// Fragments that come after one was dropped are refused, for a second; a new first
// fragment begins anew.
func TestCondemned(t *testing.T) {
	r := newRig(t, Config{Telemetry: 4})
	f := watch(r)
	p := r.AddUplink().AddPipe(nil, 60)
	d := datagram(packet.Telemetry, 1, 7, 10)
	r.put(p, d[:6]...)
	if p.n[packet.Telemetry] != 0 || r.drops[Overflow] != 1 || r.drops[Datagram] != 5 {
		t.Errorf("%d wait, drops %v", p.n[packet.Telemetry], r.drops)
	}
	r.clock += 900 * ms
	r.put(p, d[6:8]...)
	if p.n[packet.Telemetry] != 0 || r.drops[Datagram] != 7 {
		t.Errorf("%d wait, drops %v", p.n[packet.Telemetry], r.drops)
	}
	again := datagram(packet.Telemetry, 1, 7, 3)
	r.put(p, again...)
	if n := r.step(64, f.left); n != 3 {
		t.Errorf("%d of a new datagram left, want 3", n)
	}
	r.check()
	r.put(p, datagram(packet.Telemetry, 1, 8, 6)...)
	r.clock += condemnedFor + 1
	late := pkt(packet.Telemetry, 1, 100)
	late.Datagram = 8
	r.put(p, late, d[8], d[9])
	if n := r.step(64, nil); n != 3 {
		t.Errorf("%d left after the second, want 3", n)
	}
	r.check()
}

// A fragment behind the last one, which reordering may cause, shares the fate.
func TestCondemnedBehindLast(t *testing.T) {
	r := newRig(t, Config{})
	f := watch(r)
	p := r.AddUplink().AddPipe(nil, 60)
	d := datagram(packet.Telemetry, 1, 7, 5)
	r.put(p, d[0], d[1], d[4])
	r.clock += telemetryAge
	r.put(p, d[2], d[3])
	r.clock += ms
	if n := r.step(64, f.left); n != 0 || r.drops[Age] != 1 || r.drops[Datagram] != 4 {
		t.Errorf("%d left, drops %v", n, r.drops)
	}
	r.check()
}

// Once a fragment has left the others come on top of any limit.
func TestBegun(t *testing.T) {
	r := newRig(t, Config{Telemetry: 4})
	f := watch(r)
	u := r.AddUplink()
	p := u.AddPipe(nil, 60)
	d := datagram(packet.Telemetry, 1, 7, 40)
	r.put(p, d[0])
	r.step(64, f.left)
	u.Hold(packet.Telemetry)
	r.put(p, d[1:20]...)
	r.fill(p, 10, packet.Telemetry, 1, 100)
	r.put(p, d[20:]...)
	r.clock += int64(time.Second) // too old as well
	u.Unhold(packet.Telemetry)
	for r.step(64, f.left) > 0 {
		r.check()
	}
	if f.out[7] != 40 {
		t.Errorf("%d of 40 fragments left, drops %v", f.out[7], r.drops)
	}
	r.check()
	// but not without end
	r.put(p, datagram(packet.Telemetry, 1, 9, 2000)[0])
	r.step(64, nil)
	endless := datagram(packet.Telemetry, 1, 9, 2000)
	r.put(p, endless[1:]...)
	if p.n[packet.Telemetry] > overdue(4) {
		t.Errorf("%d wait where 4 may", p.n[packet.Telemetry])
	}
	r.check()
}

// The table holds what is under way, and forgets the oldest.
func TestFates(t *testing.T) {
	var f fates
	b := packet.Get()
	defer b.Release()
	rng := rand.New(rand.NewPCG(1, 2))
	var keys []uint64
	for i := range 64 {
		b.Datagram = rng.Uint64() | 1
		keys = append(keys, b.Datagram)
		f.put(b, condemned, int64(i))
	}
	kept := 0
	for _, k := range keys {
		if f.is(k, condemned, 100) {
			kept++
		}
	}
	if kept < 62 {
		t.Errorf("%d of 64 are remembered", kept)
	}
	for _, k := range keys {
		if f.is(k, condemned, 64+condemnedFor) {
			t.Error("a datagram is condemned for ever")
		}
	}
	b.Datagram = 5
	f.put(b, begun, 1000)
	for i := range 10000 { // newer ones push it out, or none is worse off
		b.Datagram = rng.Uint64() | 1
		f.put(b, begun, 2000+int64(i))
	}
	if f.is(5, begun, 20000) {
		t.Error("the oldest is remembered")
	}
	if !f.is(b.Datagram, begun, 20000) {
		t.Error("the newest is forgotten")
	}
}
