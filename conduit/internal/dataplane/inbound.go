// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"errors"
	"net"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/seal"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// reader is the state of one socket's goroutine.
type reader struct {
	d     *Dataplane
	bind  int
	now   int64
	nonce seal.Nonce
	hdr   wire.Header
	info  packet.Info
	// plain are opened packets, each a datagram cut before its tag, for one write
	// to the device.
	plain [][]byte
	wire  uint64
}

// readSocket takes datagrams from one socket.
func (d *Dataplane) readSocket(bind, socket int) {
	b := d.cfg.Binds[bind]
	msgs := make([]transport.Message, b.BatchSize())
	for i := range msgs {
		msgs[i].Buf = make([]byte, b.RecvBufSize())
	}
	r := &reader{d: d, bind: bind}
	for failures := 0; ; {
		n, err := b.Receive(socket, msgs)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if failures++; failures == 1 {
				d.cfg.Logger.Warn("receive datagrams", "bind", bind, "err", err)
			}
			select { // such as for want of memory: it passes
			case <-time.After(min(time.Duration(failures)*time.Millisecond, 100*time.Millisecond)):
			case <-d.done:
				return
			}
			continue
		}
		failures = 0
		r.now = d.Now()
		for i := range msgs[:n] {
			m := &msgs[i]
			seg := m.Segment
			if seg <= 0 {
				seg = m.N
			}
			for rest := m.Buf[:m.N]; len(rest) > 0; {
				k := min(seg, len(rest))
				r.datagram(rest[:k:k], m)
				rest = rest[k:]
			}
		}
		r.flush()
	}
}

// flush writes the opened packets to the device.
func (r *reader) flush() {
	r.d.stats.wireRx.Add(r.wire)
	r.wire = 0
	if len(r.plain) == 0 {
		return
	}
	n, err := r.d.cfg.Device.Write(0, r.plain, wire.HeaderLen)
	if err != nil || n < len(r.plain) {
		r.d.stats.rx[RxDevice].Add(uint64(len(r.plain) - n))
	}
	clear(r.plain)
	r.plain = r.plain[:0]
}

func (r *reader) drop(why RxReason) { r.d.stats.rx[why].Add(1) }

// datagram handles one datagram; b is the reader's until flush.
func (r *reader) datagram(b []byte, m *transport.Message) {
	r.wire += uint64(len(b))
	switch transport.Demux(b) {
	case transport.KindSTUN:
		r.d.cfg.STUN(r.bind, b, m.Addr)
		return
	case transport.KindUnknown:
		r.drop(RxUnknown)
		return
	case transport.KindMesh:
	}
	if !r.hdr.Parse(b) {
		r.drop(RxMalformed)
		return
	}
	s := r.d.sessions.lookup(r.hdr.Index)
	if s == nil {
		r.drop(RxIndex) // silence: an answer would tell a stranger who is here
		return
	}
	body, err := s.recv[r.hdr.Lane].Open(b, r.hdr.Counter, &r.nonce)
	switch {
	case errors.Is(err, seal.ErrReplay):
		r.drop(RxReplay)
		return
	case err != nil:
		r.drop(RxForged)
		return
	}
	s.lastRecv.Store(r.now)
	if r.hdr.Type != wire.TypeData && r.hdr.Lane != packet.Critical {
		r.drop(RxMalformed)
		return
	}
	switch r.hdr.Type {
	case wire.TypeData:
		r.data(s, b[:wire.HeaderLen+len(body)])
	case wire.TypeProbe:
		r.probe(s, body, len(b), m)
	case wire.TypeProbeAck, wire.TypeClose:
		r.d.cfg.Control(Control{
			Session: s, Type: r.hdr.Type, Body: bytes.Clone(body),
			Path: Path{Bind: r.bind, Remote: m.Addr}, At: r.now,
		})
	default: // of a later version
		r.drop(RxType)
	}
}

// data checks an inner packet and keeps it for the device. pkt has the header
// before it.
func (r *reader) data(s *Session, pkt []byte) {
	inner := pkt[wire.HeaderLen:]
	if !packet.Parse(inner, &r.info) {
		r.drop(RxMalformed)
		return
	}
	p := s.Peer
	// A peer may speak for its own addresses only, and only to us.
	if r.info.Src != p.Virtual4 && r.info.Src != p.Virtual6 {
		r.drop(RxSource)
		return
	}
	if _, ours := r.d.local[r.info.Dst]; !ours {
		r.drop(RxSource)
		return
	}
	if !r.d.cfg.Policy.Inbound(p.Rules, &r.info, r.hdr.Lane, r.now).Allow {
		r.drop(RxPolicy)
		return
	}
	r.d.stats.rxPackets[r.hdr.Lane].Add(1)
	r.d.stats.rxBytes[r.hdr.Lane].Add(uint64(len(inner)))
	p.rxPackets.Add(1)
	p.rxBytes.Add(uint64(len(inner)))
	r.plain = append(r.plain, pkt)
}

// probe answers on the path on which it came.
func (r *reader) probe(s *Session, body []byte, size int, m *transport.Message) {
	if !s.probes.allow(r.now) {
		r.drop(RxProbeRate)
		return
	}
	var ack wire.ProbeAck
	if ack.Probe.Parse(body) != nil {
		r.drop(RxMalformed)
		return
	}
	ack.Size = uint16(size)
	ack.Hold = uint32(max(0, (r.d.Now()-r.now)/1000))
	var b [wire.ProbeAckLen]byte
	r.d.SendControl(s, wire.TypeProbeAck, ack.Append(b[:0]), &Path{Bind: r.bind, Remote: m.Addr})
}
