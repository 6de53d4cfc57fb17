// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

const (
	// wantGap is the least time between two requests for one peer's session.
	wantGap = int64(250 * time.Millisecond)
	// wakeGap is after how long without packets the next one is news.
	wakeGap = int64(5 * time.Second)
)

// readTun takes packets from one queue of the device, finds their peer and puts
// them into their lanes.
func (d *Dataplane) readTun(queue int) {
	dev := d.cfg.Device
	n := dev.BatchSize()
	bufs := make([]*packet.Buf, n)
	raw := make([][]byte, n)
	sizes := make([]int, n)
	ready := make([]*packet.Buf, 0, n)
	var pipes []*lane.Pipe
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
			ready = d.admit(ready, b, now)
		}
		if len(ready) > 0 {
			pipes = d.queue(ready, pipes)
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

// admit decides about one packet from the device. It fills lane and destination
// and appends to ready what may enter its lane: b, its fragments, or nothing, when
// b is held or was dropped.
func (d *Dataplane) admit(ready []*packet.Buf, b *packet.Buf, now int64) []*packet.Buf {
	var info packet.Info
	if !packet.Parse(b.Bytes(), &info) {
		d.drop(b, nil, TxMalformed)
		return ready
	}
	if info.Dst.IsMulticast() { // the kernel sends some by itself, to learn of routers
		d.drop(b, nil, TxMulticast)
		return ready
	}
	if _, ours := d.local[info.Src]; !ours {
		d.drop(b, nil, TxSource)
		return ready
	}
	b.FlowHash = info.Hash()
	b.Lane = d.classify.Class(b.Bytes(), &info, b.FlowHash, now)
	info.Mark(b)
	p, ok := d.routes.Lookup(info.Dst)
	if !ok {
		d.ask(b, info.Dst, now)
		return ready
	}
	b.Dest = p
	v := d.cfg.Policy.Send(p.Rules, b.Bytes(), &info, b.Lane, now)
	if !v.Allow {
		d.drop(b, p, TxPolicy)
		return ready
	}
	switch over := v.Demote || b.Lane == packet.Critical && !d.police(p, b, now); {
	case info.Fragment == packet.LaterFragment: // shares the fate of the first
		if b.Lane != packet.Bulk && d.classify.Demoted(&info) {
			b.Lane = packet.Bulk
		}
	case over:
		d.demote(b, &info)
	}
	last := p.lastTx.Swap(now)
	if s := p.active.Load(); s != nil {
		if last == 0 || now-last > wakeGap {
			d.cfg.Want(p) // an idle path is probed rarely; now it is needed
		}
		if room := p.room(s); room > 0 {
			if info.TCPFlags&packet.TCPSYN != 0 {
				packet.ClampMSS(b.Bytes(), &info, room)
			}
			if b.N > room {
				return d.refit(ready, b, &info, room, now)
			}
		}
		d.classify.Queued(b.FlowHash, b.Lane)
		return append(ready, b)
	}
	d.classify.Queued(b.FlowHash, b.Lane)
	b.Enqueued = now
	held, evicted := p.hold(b)
	if evicted != nil {
		d.classify.Left(evicted.FlowHash, evicted.Lane)
		d.drop(evicted, p, TxNoSession)
	}
	if !held {
		return append(ready, b) // a session came meanwhile
	}
	if last = p.wanted.Load(); last == 0 || now-last >= wantGap {
		if p.wanted.CompareAndSwap(last, now) {
			d.cfg.Want(p)
		}
	}
	return ready
}

// policed reports whether Critical of size bytes that a peer makes us send to p is
// within what p's path can have beside the rest.
func policed(p *Peer, size int, now int64) bool {
	pipe := p.pipe(packet.Critical, 0)
	return pipe == nil || pipe.Police(now, size)
}

// police reports whether a Critical packet is within what its path can have beside
// the rest.
func (d *Dataplane) police(p *Peer, b *packet.Buf, now int64) bool {
	if policed(p, b.N, now) {
		return true
	}
	d.stats.policed.Add(1)
	return false
}

// demote makes a packet that is more than is allowed in its lane go as Bulk. The
// receiver takes on Bulk what its policy allows on any lane.
func (d *Dataplane) demote(b *packet.Buf, info *packet.Info) {
	if b.Lane != packet.Bulk && info.Fragment == packet.FirstFragment {
		d.classify.Demote(info)
	}
	b.Lane = packet.Bulk
	// What TCP sends stays with its flow, and a datagram together; the rest gets what
	// the others leave.
	b.Demoted = info.Proto != packet.ProtoTCP && info.Fragment == packet.NotFragment
}

// urgentOf returns where a peer's Critical waits.
func (d *Dataplane) urgentOf(p *Peer) *lane.Pipe {
	if pipe := p.urgent.Load(); pipe != nil {
		return pipe
	}
	p.urgent.CompareAndSwap(nil, d.urgent.AddPipe(nil, 0))
	return p.urgent.Load()
}

// queue puts packets into their lanes. It returns pipes, grown to be used again.
func (d *Dataplane) queue(bufs []*packet.Buf, pipes []*lane.Pipe) []*lane.Pipe {
	pipes = pipes[:0]
	for _, b := range bufs {
		var pipe *lane.Pipe
		if p, ok := b.Dest.(*Peer); ok {
			if b.Lane == packet.Critical {
				pipe = d.urgentOf(p)
			} else {
				pipe = p.pipe(b.Lane, b.FlowHash)
			}
		}
		pipes = append(pipes, pipe)
	}
	d.lanes.Enqueue(bufs, pipes)
	clear(pipes)
	return pipes
}

func (d *Dataplane) drop(b *packet.Buf, p *Peer, why TxReason) {
	d.countDrop(p, why)
	b.Release()
}

func (d *Dataplane) countDrop(p *Peer, why TxReason) {
	if p != nil {
		p.txDropped.Add(1)
	}
	d.stats.tx[why].Add(1)
}
