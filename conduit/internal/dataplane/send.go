// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
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
	// sent is what the batch put on which pipe, in order.
	sent []sentOn
	from *lane.Pipe // that the batch waited in
	// train is set while a batch is to leave back to back, alone while datagrams may
	// not be coalesced.
	train, alone bool
	repairing    []*Peer // that have copies to send
	gated        []*link
}

// sentOn is packets of one session and lane that left by one pipe.
type sentOn struct {
	pipe  *lane.Pipe
	what  congestion.Sent
	first int // bytes of the first packet
}

// drainLanes sends what the lanes hold, the most urgent first and no faster than
// the pipes allow. Counters are assigned here, so a Critical packet that overtakes
// Bulk leaves no gap.
func (d *Dataplane) drainLanes() {
	s := &sender{d: d}
	bufs := make([]*packet.Buf, sendBatch)
	for d.lanes.Wait(d.done) {
		s.now, s.links = d.Now(), d.list()
		s.ungate()
		s.repair()
		n, pipe, train := d.lanes.Dequeue(bufs)
		if n == 0 {
			continue
		}
		s.from, s.train = pipe, train
		// A run that is coalesced here arrives as one, with one stamp: what is paced so
		// slowly that this matters leaves singly.
		s.alone = train || s.paceOf(bufs[0], pipe) < aloneBelow
		s.batch(bufs[:n])
	}
	for _, p := range s.ringed {
		p.out.ring.free()
	}
}

// paceOf is the rate of the path that a batch is for; Critical waits at none.
func (s *sender) paceOf(b *packet.Buf, pipe *lane.Pipe) float64 {
	if p, ok := b.Dest.(*Peer); ok && b.Lane == packet.Critical {
		pipe = p.pipe(b.Lane, b.FlowHash)
	}
	if pipe == nil {
		return math.Inf(1)
	}
	return pipe.Rate()
}

// aloneBelow is 200 Mbit/s, in bytes per second.
const aloneBelow = 25e6

// batch seals and sends packets of one lane.
func (s *sender) batch(bufs []*packet.Buf) {
	s.now, s.links = s.d.Now(), s.d.list()
	l := bufs[0].Lane
	if bufs[0].Demoted {
		l = packet.Bulk
	}
	for _, b := range bufs {
		s.packet(b)
	}
	s.flush(l)
	for i, b := range bufs {
		if f, ok := b.Dest.(*flushDest); ok {
			close(f.done)
		}
		b.Release()
		bufs[i] = nil
	}
}

// flush gives what was collected to the sockets, and tells the pipes.
func (s *sender) flush(l packet.Lane) {
	for _, k := range s.touched {
		k.touched = false
		s.d.flush(k, l)
		s.gate(k, l)
	}
	clear(s.touched)
	s.touched = s.touched[:0]
	for _, b := range s.owned {
		b.Release()
	}
	clear(s.owned)
	s.owned = s.owned[:0]
	for i := range s.sent {
		o := &s.sent[i]
		o.pipe.SentAt(s.now, o.what)
		if w := &o.what; s.train && w.Lane == uint8(packet.Bulk) && w.Session != 0 {
			o.pipe.TrainSent(congestion.Train{Session: w.Session, First: w.First, Last: w.Last, Packets: w.Packets, Bytes: w.Bytes - o.first})
		}
		o.pipe = nil
	}
	s.sent = s.sent[:0]
}

// account remembers that a packet leaves by a pipe.
func (s *sender) account(pipe *lane.Pipe, id *ident, size, copies int) {
	if n := len(s.sent); n > 0 {
		o := &s.sent[n-1]
		w := &o.what
		if o.pipe == pipe && w.Session == id.session && w.Lane == uint8(id.lane) && id.counter > w.Last && w.Copies == 0 && copies == 0 {
			w.Last = id.counter
			w.Packets++
			w.Bytes += size
			return
		}
	}
	s.sent = append(s.sent, sentOn{pipe, congestion.Sent{
		Lane: uint8(id.lane), Session: id.session, First: id.counter, Last: id.counter, Packets: 1, Bytes: size, Copies: copies,
	}, size})
}

// ident names a sealed packet.
type ident struct {
	session uint32
	lane    packet.Lane
	counter uint64
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
			s.account(l.up.free, &ident{}, b.N+overIP(dest.path.Remote.Addr()), 0)
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
// copies is 1 for what was sent before.
func (s *sender) put(w *way, b *packet.Buf, sealed []byte, id *ident, copies int) bool {
	l := s.link(w.Bind)
	if l == nil {
		return false
	}
	l.data.add(transport.Message{Buf: sealed, Addr: w.Remote, Alone: s.alone}, b)
	if w.stat != nil {
		w.stat.txPackets.Add(1)
		w.stat.txBytes.Add(uint64(len(sealed)))
	}
	pipe := w.pipe()
	if pipe == nil {
		pipe = l.up.free // of a path that is no way: a probe
	}
	s.account(pipe, id, len(sealed)+w.over, copies)
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
	} else if len(ways) > 0 && s.elsewhere(ways[0].pipe(), b) {
		return
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
	id := ident{sess.RemoteIndex, b.Lane, h.Counter}
	sent := 0
	for i := range ways {
		if i > 0 && sent > 0 && !s.second(&ways[i], b.Lane, len(sealed)) {
			continue
		}
		if s.put(&ways[i], b, sealed, &id, 0) {
			sent++
		}
	}
	if sent == 0 && len(ways) > 0 {
		p.txDropped.Add(1) // link has counted the reason
	}
	if critical {
		slot := s.keep(p, b, sealed, id)
		// What found no way may find one within a second.
		slot.unsent, slot.uncounted = sent == 0, len(ways) == 0
		if len(ways) == 1 && sent == 1 {
			s.repeat(p, slot, &ways[0])
		}
	}
	if data && (sent > 0 || critical) {
		d.stats.txPackets[b.Lane].Add(1)
		d.stats.txBytes[b.Lane].Add(uint64(n))
		p.txPackets.Add(1)
		p.txBytes.Add(uint64(n))
	}
}

// second reports whether a packet that has left on another way may leave on w too: a
// thin path is not filled with what a wide one has room for.
func (s *sender) second(w *way, l packet.Lane, size int) bool {
	pipe := w.pipe()
	switch {
	case pipe == nil || math.IsInf(pipe.Rate(), 1):
		return true
	case l == packet.Critical:
		return pipe.Police(s.now, size)
	}
	batch := 0 // what the pipe has not been told of
	for i := range s.sent {
		if s.sent[i].pipe == pipe {
			batch += s.sent[i].what.Bytes
		}
	}
	return float64(batch) <= pipe.Rate()*batchTime && pipe.Open()
}

// batchTime, in seconds, is how much of a pipe's rate may leave before it is told.
const batchTime = 1.5e-3

// control sends a packet of a session on the paths that it names, else on those of
// its peer's Critical packets.
func (s *sender) control(c *controlDest, b *packet.Buf) {
	d, sess := s.d, c.session
	var ways []way
	if len(c.paths) > 0 {
		ways = make([]way, len(c.paths))
		for i, path := range c.paths {
			ways[i] = way{Path: path, stat: sess.Peer.statOf(path), over: overIP(path.Remote.Addr())}
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
	h := wire.Header{Type: c.typ, Lane: b.Lane}
	sealed, ok := s.seal(sess, b, &h)
	if !ok {
		d.stats.tx[TxNoSession].Add(1)
		return
	}
	id := ident{sess.RemoteIndex, b.Lane, h.Counter}
	for i := range ways {
		s.put(&ways[i], b, sealed, &id, 0)
	}
}

// elsewhere queues a packet anew whose path is no more the one that it waited for:
// what piled up there must not fall on another all at once.
func (s *sender) elsewhere(pipe *lane.Pipe, b *packet.Buf) bool {
	if pipe == nil || s.from == nil || pipe == s.from || math.IsInf(pipe.Rate(), 1) {
		return false
	}
	s.d.classify.Queued(b.FlowHash, b.Lane)
	b.Retain()
	s.d.lanes.Enqueue([]*packet.Buf{b}, []*lane.Pipe{pipe})
	return true
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
	copies   copies
}

// keep remembers a sealed Critical packet for a second.
func (s *sender) keep(p *Peer, b *packet.Buf, sealed []byte, id ident) *ringSlot {
	slot, lost := p.out.ring.push(b, sealed, s.now)
	slot.id, slot.more = id, 0
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
	s.leave(old, set)
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

// leave has what waits for ways that are not used any more go elsewhere now: a path
// that fell silent may have no tokens for long.
func (s *sender) leave(old, set *wayset) {
	if old == nil {
		return
	}
	for l := packet.Telemetry; l < packet.NumLanes; l++ {
		for i := range old.lanes[l] {
			pipe := old.lanes[l][i].pipe()
			if pipe != nil && len(set.lanes[l]) > 0 && !set.paces(pipe) {
				pipe.Leave()
			}
		}
	}
}

// paces reports whether Telemetry or Bulk may wait for pipe.
func (s *wayset) paces(pipe *lane.Pipe) bool {
	for l := packet.Telemetry; l < packet.NumLanes; l++ {
		for i := range s.lanes[l] {
			if s.lanes[l][i].pipe() == pipe {
				return true
			}
		}
	}
	return false
}

// resend sends a kept packet once more.
func (s *sender) resend(slot *ringSlot, added []*way) {
	b := packet.Get() // it may have to wait for room, longer than the slot
	sealed := b.Raw()[:copy(b.Raw(), slot.bytes())]
	s.owned = append(s.owned, b)
	for _, w := range added {
		if s.put(w, b, sealed, &slot.id, 1) {
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
