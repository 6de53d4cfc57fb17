// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// junk is what strangers can send at the port.
func junk(r *rig) map[string][]byte {
	sealed := r.from(wire.TypeData, packet.Bulk, udp(addrB, addrA, 100))
	tag := r.from(wire.TypeData, packet.Bulk, udp(addrB, addrA, 100))
	tag[len(tag)-1] ^= 1
	high := append([]byte(nil), tag...)
	binary.BigEndian.PutUint64(high[8:], 1<<40)
	index := append([]byte(nil), sealed...)
	index[5] ^= 1
	return map[string][]byte{"unknown index": index, "bad tag": tag, "high counter": high, "first byte": make([]byte, 15), "replay": sealed}
}

// Junk is not answered, allocates nothing and leaves no trace in the window.
func TestJunk(t *testing.T) {
	r := newRig(t)
	kinds := junk(r)
	rd := &reader{d: r.d, link: r.d.list()[0], now: 2}
	good := append([]byte(nil), kinds["replay"]...)
	rd.datagram(good, Path{Remote: outerB})
	<-r.ctl // the first
	rd.plain = rd.plain[:0]
	scratch := make([]byte, 2048)
	for name, b := range kinds {
		if n := testing.AllocsPerRun(1000, func() {
			k := copy(scratch, b) // a failed Open clears what it was given
			rd.datagram(scratch[:k:k], Path{Remote: outerB})
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if top := r.sess.recv[packet.Bulk].LastSeen(); top != 0 || len(rd.plain) != 0 || len(r.ctl) != 0 || len(r.bind.out) != 0 {
		t.Errorf("window at %d, %d delivered, %d events, %d answers", top, len(rd.plain), len(r.ctl), len(r.bind.out))
	}
}

func BenchmarkJunk(b *testing.B) {
	r := newRig(b)
	kinds := junk(r)
	for _, name := range []string{"first byte", "unknown index", "bad tag", "high counter", "replay"} {
		b.Run(name, func(b *testing.B) {
			rd := &reader{d: r.d, link: r.d.list()[0], now: 2}
			rd.datagram(append([]byte(nil), kinds["replay"]...), Path{Remote: outerB})
			rd.plain = rd.plain[:0]
			drain(r.ctl)
			scratch := make([]byte, 2048)
			b.ReportAllocs()
			for b.Loop() {
				k := copy(scratch, kinds[name])
				rd.datagram(scratch[:k:k], Path{Remote: outerB})
			}
		})
	}
}
