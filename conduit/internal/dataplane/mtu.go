// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

const (
	// bigSlots tells the flows apart that are told of their size; a power of two.
	bigSlots = 1024
	bigGap   = int64(200 * time.Millisecond)
	// minRoom is the least MTU that is taken seriously (RFC 791: what every host
	// takes), minMTU6 that of IPv6 (RFC 8200, section 5).
	minRoom = 576
	minMTU6 = 1280
)

// room returns the largest inner packet that p's paths carry in session s; 0 means
// unknown.
func (p *Peer) room(s *Session) int {
	w := p.ways.Load()
	if w == nil || w.mtu == 0 {
		return 0
	}
	return max(w.mtu-s.overhead, minRoom)
}

// refit deals with a packet that does not fit: it is fragmented where it may be,
// else its sender is told.
func (d *Dataplane) refit(ready []*packet.Buf, b *packet.Buf, info *packet.Info, room int, now int64) []*packet.Buf {
	if info.Src.Is6() && b.N <= minMTU6 {
		// IPv6 has no smaller packets. The outer packet may be fragmented on its way.
		d.classify.Queued(b.FlowHash, b.Lane)
		return append(ready, b)
	}
	p, _ := b.Dest.(*Peer)
	if !packet.Fragmentable(b.Bytes()) {
		d.countDrop(p, TxTooBig)
		if d.big[b.FlowHash%bigSlots].allow(now, bigGap, 0) {
			d.tellTooBig(b.Bytes(), info, room)
		}
		b.Release()
		return ready
	}
	var piece packet.Info
	for off := 0; off >= 0; {
		f := packet.Get()
		f.N, off = packet.Fragment(f.Raw()[packet.Headroom:packet.Headroom+packet.MaxInner], b.Bytes(), room, off)
		f.Lane, f.FlowHash, f.Dest, f.Demoted = b.Lane, b.FlowHash, b.Dest, b.Demoted
		if packet.Parse(f.Bytes(), &piece) {
			piece.Mark(f)
		}
		d.classify.Queued(f.FlowHash, f.Lane)
		ready = append(ready, f)
	}
	b.Release()
	return ready
}

// tellTooBig writes an ICMP message about pkt into the device. It comes from the
// address that pkt went to: Linux drops what claims to be from one of its own.
func (d *Dataplane) tellTooBig(pkt []byte, info *packet.Info, room int) {
	b := packet.Get()
	defer b.Release()
	b.N = packet.TooBig(b.Raw()[packet.Headroom:packet.Headroom+packet.MaxInner], pkt, info, room)
	if b.N == 0 {
		return
	}
	_, _ = d.cfg.Device.Write(0, [][]byte{b.Raw()[:packet.Headroom+b.N]}, packet.Headroom)
}
