// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

const (
	// wantGap is the least time between two requests for one peer's session.
	wantGap = int64(250 * time.Millisecond)
	// wakeGap is after how long without packets the next one is news.
	wakeGap = int64(5 * time.Second)
)

// sendBatch is how many packets leave the lanes at a time.
const sendBatch = 64

// readTun takes packets from one queue of the device, finds their peer and puts
// them into their lanes.
func (d *Dataplane) readTun(queue int) {
	dev := d.cfg.Device
	n := dev.BatchSize()
	bufs := make([]*packet.Buf, n)
	raw := make([][]byte, n)
	sizes := make([]int, n)
	ready := make([]*packet.Buf, 0, n)
	for {
		for i := range bufs {
			if bufs[i] == nil {
				bufs[i] = packet.Get()
				raw[i] = bufs[i].Raw()[:packet.Headroom+packet.MaxInner]
			}
		}
		got, err := dev.Read(queue, raw, sizes, packet.Headroom)
		now := d.Now()
		for i := range got {
			b := bufs[i]
			bufs[i] = nil
			b.N = sizes[i]
			if d.admit(b, now) {
				ready = append(ready, b)
			}
		}
		if len(ready) > 0 {
			d.lanes.Enqueue(ready)
			ready = ready[:0]
		}
		if err != nil {
			select {
			case <-d.done: // closed by us
			default:
				d.stats.deviceErrs.Add(1)
				d.cfg.Logger.Error("the tun device is gone; nothing can be sent any more", "device", dev.Name(), "err", err)
			}
			break
		}
	}
	for _, b := range bufs {
		if b != nil {
			b.Release()
		}
	}
}

// admit decides about one packet from the device: it fills lane and destination
// and reports whether b may enter its lane. Otherwise b is held or released.
func (d *Dataplane) admit(b *packet.Buf, now int64) bool {
	var info packet.Info
	if !packet.Parse(b.Bytes(), &info) {
		return d.drop(b, nil, TxMalformed)
	}
	if info.Dst.IsMulticast() { // the kernel sends some by itself, to learn of routers
		return d.drop(b, nil, TxMulticast)
	}
	if _, ours := d.local[info.Src]; !ours {
		return d.drop(b, nil, TxSource)
	}
	b.FlowHash = info.Hash()
	b.Lane = d.classify.Class(&info, b.FlowHash, now)
	p, ok := d.routes.Lookup(info.Dst)
	if !ok {
		d.ask(b, info.Dst, now)
		return false
	}
	b.Dest = p
	if !d.cfg.Policy.Outbound(p.Rules, &info, b.Lane, now).Allow {
		return d.drop(b, p, TxPolicy)
	}
	d.classify.Queued(b.FlowHash, b.Lane)
	last := p.lastTx.Swap(now)
	if p.active.Load() != nil {
		if last == 0 || now-last > wakeGap {
			d.cfg.Want(p) // an idle path is probed rarely; now it is needed
		}
		return true
	}
	b.Enqueued = now
	held, evicted := p.hold(b)
	if evicted != nil {
		d.classify.Left(evicted.FlowHash, evicted.Lane)
		d.drop(evicted, p, TxNoSession)
	}
	if !held {
		return true // a session came meanwhile
	}
	if last = p.wanted.Load(); last == 0 || now-last >= wantGap {
		if p.wanted.CompareAndSwap(last, now) {
			d.cfg.Want(p)
		}
	}
	return false
}

func (d *Dataplane) drop(b *packet.Buf, p *Peer, why TxReason) bool {
	if p != nil {
		p.txDropped.Add(1)
	}
	d.stats.tx[why].Add(1)
	b.Release()
	return false
}

// drainLanes sends what the lanes hold, the most urgent first. Counters are
// assigned here, so a Critical packet that overtakes Bulk leaves no gap.
func (d *Dataplane) drainLanes() {
	bufs := make([]*packet.Buf, sendBatch)
	// STUN goes out by itself: that an address of the peer cannot be reached is the
	// ordinary outcome of a check and no lost packet.
	data, stun := make([][]transport.Message, len(d.cfg.Binds)), make([][]transport.Message, len(d.cfg.Binds))
	for i := range data {
		data[i], stun[i] = make([]transport.Message, 0, sendBatch), make([]transport.Message, 0, sendBatch)
	}
	for d.lanes.Wait(d.done) {
		n := d.lanes.Dequeue(bufs)
		if n == 0 {
			continue
		}
		now := d.Now()
		l := bufs[0].Lane // a batch holds one lane
		for _, b := range bufs[:n] {
			msg, bind, ok := d.seal(b, now)
			if !ok {
				continue
			}
			if _, raw := b.Dest.(*rawDest); raw {
				stun[bind] = append(stun[bind], msg)
			} else {
				data[bind] = append(data[bind], msg)
			}
		}
		for i := range data {
			if lost, err := d.send(i, l, &data[i]); lost > 0 {
				d.stats.tx[TxSend].Add(uint64(lost))
				if d.stats.sendErrs.Add(1) == 1 { // once: it may go on for long
					d.cfg.Logger.Warn("the system refuses to send to a peer; counting from now on", "lost", lost, "err", err)
				}
			}
			if lost, _ := d.send(i, l, &stun[i]); lost > 0 {
				d.stats.stunErrs.Add(uint64(lost))
			}
		}
		for i := range n {
			if f, ok := bufs[i].Dest.(*flushDest); ok {
				close(f.done)
			}
			bufs[i].Release()
			bufs[i] = nil
		}
	}
}

// send hands msgs to a socket, empties them, and returns how many it refused.
func (d *Dataplane) send(bind int, l packet.Lane, msgs *[]transport.Message) (lost int, err error) {
	if len(*msgs) == 0 {
		return 0, nil
	}
	sent, err := d.cfg.Binds[bind].Send(int(l), *msgs)
	bytes := 0
	for _, m := range *msgs {
		bytes += len(m.Buf)
	}
	d.stats.wireTx.Add(uint64(bytes))
	lost = len(*msgs) - sent
	clear(*msgs)
	*msgs = (*msgs)[:0]
	return lost, err
}

// seal turns a queued packet into a datagram, in its own buffer.
func (d *Dataplane) seal(b *packet.Buf, now int64) (msg transport.Message, bind int, ok bool) {
	h := wire.Header{Lane: b.Lane, Time: uint16(now / (wire.TimeUnit * 1000))}
	var s *Session
	var path *Path
	var peer *Peer
	switch dest := b.Dest.(type) {
	case *Peer:
		peer, h.Type = dest, wire.TypeData
		if s = peer.active.Load(); s == nil {
			d.countDrop(peer, TxNoSession)
			return msg, 0, false
		}
		path = s.path.Load()
	case *controlDest:
		s, h.Type, path = dest.session, dest.typ, dest.path
		if path == nil {
			path = s.path.Load()
		}
	case *flushDest:
		return msg, 0, false
	case *rawDest:
		return transport.Message{Buf: b.Bytes(), Addr: dest.path.Remote}, dest.path.Bind, true
	}
	if path == nil {
		d.countDrop(peer, TxNoPath)
		return msg, 0, false
	}
	h.Index = s.RemoteIndex
	sealed, err := s.send[b.Lane].Seal(b.Raw(), b.N, &h)
	if err != nil {
		d.countDrop(peer, TxNoSession)
		return msg, 0, false
	}
	if peer != nil {
		d.stats.txPackets[b.Lane].Add(1)
		d.stats.txBytes[b.Lane].Add(uint64(b.N))
		peer.txPackets.Add(1)
		peer.txBytes.Add(uint64(b.N))
	}
	return transport.Message{Buf: sealed, Addr: path.Remote}, path.Bind, true
}

func (d *Dataplane) countDrop(p *Peer, why TxReason) {
	if p != nil {
		p.txDropped.Add(1)
	}
	d.stats.tx[why].Add(1)
}
