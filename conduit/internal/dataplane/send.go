// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// sendBatch is how many packets leave the lanes at a time.
const sendBatch = 64

// sender is the state of the goroutine that seals and sends.
type sender struct {
	d       *Dataplane
	now     int64
	links   []*link
	touched []*link // those that the batch has packets for
	// ringed are the peers that have a resend ring, owned the buffers that the batch
	// made itself.
	ringed []*Peer
	owned  []*packet.Buf
}

// drainLanes sends what the lanes hold, the most urgent first. Counters are
// assigned here, so a Critical packet that overtakes Bulk leaves no gap.
func (d *Dataplane) drainLanes() {
	s := &sender{d: d}
	bufs := make([]*packet.Buf, sendBatch)
	for d.lanes.Wait(d.done) {
		if n := d.lanes.Dequeue(bufs); n > 0 {
			s.batch(bufs[:n])
		}
	}
	for _, p := range s.ringed {
		p.out.ring.free()
	}
}

// batch seals and sends packets of one lane.
func (s *sender) batch(bufs []*packet.Buf) {
	s.now, s.links = s.d.Now(), s.d.list()
	lane := bufs[0].Lane
	for _, b := range bufs {
		s.packet(b)
	}
	for _, l := range s.touched {
		l.touched = false
		s.d.flush(l, lane)
	}
	clear(s.touched)
	s.touched = s.touched[:0]
	for i, b := range bufs {
		if f, ok := b.Dest.(*flushDest); ok {
			close(f.done)
		}
		b.Release()
		bufs[i] = nil
	}
	for _, b := range s.owned {
		b.Release()
	}
	clear(s.owned)
	s.owned = s.owned[:0]
}

// packet seals one packet, in its own buffer, and hands it to the links of its
// paths.
func (s *sender) packet(b *packet.Buf) {
	switch dest := b.Dest.(type) {
	case *Peer:
		s.peer(dest, b)
	case *controlDest:
		s.control(dest, b)
	case *rawDest:
		if l := s.link(dest.path.Bind); l != nil {
			o := &l.data
			if dest.stun {
				o = &l.stun
			}
			o.add(transport.Message{Buf: b.Bytes(), Addr: dest.path.Remote}, b)
		}
	case *kickDest:
		s.follow(dest.peer, dest.peer.ways.Load())
	case *sweepDest:
		s.sweep()
	}
}

// link returns a live link and notes that the batch has something for it.
func (s *sender) link(bind int) *link {
	l := linkOf(s.links, bind)
	if l == nil {
		s.d.stats.tx[TxNoPath].Add(1)
		return nil
	}
	if !l.touched {
		l.touched = true
		s.touched = append(s.touched, l)
	}
	return l
}

// put hands a sealed packet to the link of one path.
func (s *sender) put(w *way, b *packet.Buf, sealed []byte) bool {
	l := s.link(w.Bind)
	if l == nil {
		return false
	}
	l.data.add(transport.Message{Buf: sealed, Addr: w.Remote}, b)
	if w.stat != nil {
		w.stat.txPackets.Add(1)
		w.stat.txBytes.Add(uint64(len(sealed)))
	}
	return true
}

// peer sends a packet of an application, or one that is relayed, to p.
func (s *sender) peer(p *Peer, b *packet.Buf) {
	d := s.d
	sess := p.active.Load()
	if sess == nil || sess.expired(s.now) {
		d.countDrop(p, TxNoSession)
		return
	}
	set := p.ways.Load()
	var ways []way
	if set != nil {
		ways = set.choose(b.Lane, b.FlowHash)
	}
	critical := b.Lane == packet.Critical
	if critical {
		s.follow(p, set) // what a new path has missed goes first
	}
	if len(ways) == 0 && !critical {
		d.countDrop(p, TxNoPath)
		return
	}
	h := wire.Header{Type: wire.TypeData, Lane: b.Lane}
	data := b.Type == 0
	if !data {
		h.Type = wire.Type(b.Type)
		stampEcho(b, s.now)
	}
	n := b.N
	sealed, ok := s.seal(sess, b, &h)
	if !ok {
		d.countDrop(p, TxNoSession)
		return
	}
	sent := 0
	for i := range ways {
		if s.put(&ways[i], b, sealed) {
			sent++
		}
	}
	if sent == 0 && len(ways) > 0 {
		p.txDropped.Add(1) // link has counted the reason
	}
	if critical {
		slot := s.keep(p, b, sealed)
		// What found no way may find one within a second.
		slot.unsent, slot.uncounted = sent == 0, len(ways) == 0
	}
	if data && (sent > 0 || critical) {
		d.stats.txPackets[b.Lane].Add(1)
		d.stats.txBytes[b.Lane].Add(uint64(n))
		p.txPackets.Add(1)
		p.txBytes.Add(uint64(n))
	}
}

// control sends a packet of a session on the paths that it names, else on those of
// its peer's Critical packets.
func (s *sender) control(c *controlDest, b *packet.Buf) {
	d, sess := s.d, c.session
	var ways []way
	if len(c.paths) > 0 {
		ways = make([]way, len(c.paths))
		for i, path := range c.paths {
			ways[i] = way{Path: path, stat: sess.Peer.statOf(path)}
		}
	} else if set := sess.Peer.ways.Load(); set != nil {
		ways = set.lanes[packet.Critical]
	}
	if len(ways) == 0 {
		d.stats.tx[TxNoPath].Add(1)
		return
	}
	if sess.expired(s.now) {
		d.stats.tx[TxNoSession].Add(1)
		return
	}
	sealed, ok := s.seal(sess, b, &wire.Header{Type: c.typ, Lane: b.Lane})
	if !ok {
		d.stats.tx[TxNoSession].Add(1)
		return
	}
	for i := range ways {
		s.put(&ways[i], b, sealed)
	}
}

func (s *sender) seal(sess *Session, b *packet.Buf, h *wire.Header) ([]byte, bool) {
	h.Time, h.Index = uint16(s.now/(wire.TimeUnit*1000)), sess.RemoteIndex
	sealed, err := sess.send[b.Lane].Seal(b.Raw(), b.N, h)
	return sealed, err == nil
}

// outbound is what the sealing goroutine remembers of a peer.
type outbound struct {
	followed *wayset
	ring     resendRing
	ringed   bool
}

// keep remembers a sealed Critical packet for a second.
func (s *sender) keep(p *Peer, b *packet.Buf, sealed []byte) *ringSlot {
	slot, lost := p.out.ring.push(b, sealed, s.now)
	s.lost(p, lost)
	if !p.out.ringed {
		p.out.ringed = true
		s.ringed = append(s.ringed, p)
	}
	s.d.armSweep()
	return slot
}

func (s *sender) lost(p *Peer, n int) {
	if n > 0 {
		p.txDropped.Add(uint64(n))
		s.d.stats.tx[TxNoPath].Add(uint64(n))
	}
}

// follow notices that p's ways have changed and sends again, on each path that is
// new among those of Critical, what that path has missed.
func (s *sender) follow(p *Peer, set *wayset) {
	old := p.out.followed
	if set == old || set == nil {
		return
	}
	p.out.followed = set
	set.seen.Store(true)
	ring := &p.out.ring
	s.lost(p, ring.expire(s.now))
	if ring.n == 0 {
		return
	}
	added := make([]*way, 0, 4)
	for i := range set.lanes[packet.Critical] {
		w := &set.lanes[packet.Critical][i]
		if old == nil || !slices.ContainsFunc(old.lanes[packet.Critical], func(o way) bool { return o.Path == w.Path }) {
			added = append(added, w)
		}
	}
	if len(added) == 0 {
		return
	}
	for i := range ring.n {
		if slot := ring.slot(i); slot.at >= set.since || slot.unsent {
			s.resend(slot, added)
		}
	}
}

// resend sends a kept packet once more.
func (s *sender) resend(slot *ringSlot, added []*way) {
	b := packet.Get() // it may have to wait for room, longer than the slot
	sealed := b.Raw()[:copy(b.Raw(), slot.bytes())]
	s.owned = append(s.owned, b)
	for _, w := range added {
		if s.put(w, b, sealed) {
			slot.unsent = false
			s.d.stats.resent.Add(1)
		}
	}
}

// sweep forgets what is too old in all rings.
func (s *sender) sweep() {
	keep := s.ringed[:0]
	for _, p := range s.ringed {
		s.lost(p, p.out.ring.expire(s.now))
		if p.out.ring.n > 0 {
			keep = append(keep, p)
			continue
		}
		p.out.ring.free()
		p.out.ringed = false
	}
	clear(s.ringed[len(keep):])
	s.ringed = keep
	s.d.sweeping.Store(false)
	if len(keep) > 0 {
		s.d.armSweep()
	}
}
