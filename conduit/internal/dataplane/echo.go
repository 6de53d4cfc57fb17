// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// Errors of Echo.
var (
	ErrEchoSession = errors.New("no session with the peer")
	ErrEchoCaps    = errors.New("the peer's version answers no echoes")
	ErrEchoSize    = errors.New("size does not fit")
	ErrEchoBusy    = errors.New("too many echoes wait for an answer")
)

// The body of an ECHO. Its receiver returns it with the length that it came with,
// so nobody gets more than he sent, and writes how long it kept it into the last
// field; what follows is padding, which returns as zeros.
//
//	0   8  identifier, random: the answer's name among those that wait
//	8   4  wait: how long it waited in the sender's lane, in microseconds
//	12  4  hold: in a reply, the time from its arrival until it left the receiver's
//	       lane, in microseconds; in an ECHO 0
const (
	// MinEcho is the length of the body without padding.
	MinEcho = 16

	echoWait, echoHold = 8, 12
	// maxEchoes bounds the echoes that wait for an answer.
	maxEchoes = 1024
	// Echoes are answered 200 times a second in a session, some at once.
	echoGap, echoSlack = int64(time.Second / 200), 39 * echoGap
)

// EchoReply is the answer to an echo.
type EchoReply struct {
	// RTT is the time from Echo to the answer's arrival. Wait of that went by in our
	// lane, Hold at the peer: both have a resolution of a microsecond.
	RTT, Wait, Hold time.Duration
	// Path is what the answer came on.
	Path Path
}

// echoes are those that wait for an answer.
type echoes struct {
	mu      sync.Mutex // guards the rest
	waiting map[uint64]*echo
}

type echo struct {
	peer *Peer
	lane packet.Lane
	size int
	sent int64
	done func(EchoReply)
}

// Echo queues an ECHO of size bytes, at least MinEcho, for p, in a lane, as if it
// were an application's packet. done is called once, on a goroutine of the packet
// path, where an answer comes; it must not block. cancel, which is to be called in
// any case, forgets the echo. What is dropped on its way is never told of.
//
// The policy is not asked: an echo belongs to the mesh, like a probe. What the lane
// allows a peer counts for it as for all that is in the lane.
func (d *Dataplane) Echo(p *Peer, lane packet.Lane, size int, done func(EchoReply)) (cancel func(), err error) {
	s, now := p.active.Load(), d.Now()
	switch {
	case s == nil || s.expired(now):
		return nil, ErrEchoSession
	case s.caps&wire.CapReport == 0:
		return nil, ErrEchoCaps
	case size < MinEcho || size > d.EchoRoom(p) || lane >= packet.NumLanes:
		return nil, ErrEchoSize
	}
	e := &echo{peer: p, lane: lane, size: size, sent: now, done: done}
	id, ok := d.echoes.add(e)
	if !ok {
		return nil, ErrEchoBusy
	}
	if last := p.lastTx.Swap(now); last == 0 || now-last > wakeGap {
		d.cfg.Want(p)
	}
	d.sendEcho(p, wire.TypeEcho, lane, size, now, func(b []byte) { binary.BigEndian.PutUint64(b, id) })
	return func() { d.echoes.take(id) }, nil
}

// EchoRoom is the largest size that Echo takes for p now.
func (d *Dataplane) EchoRoom(p *Peer) int {
	if s := p.active.Load(); s != nil {
		if room := p.room(s); room > 0 {
			return min(room, packet.MaxInner)
		}
	}
	return packet.MaxInner
}

// sendEcho queues an echo or an answer to one; since is when it began to wait.
func (d *Dataplane) sendEcho(p *Peer, t wire.Type, lane packet.Lane, size int, since int64, fill func([]byte)) {
	b := packet.Get()
	b.N = size
	body := b.Bytes()
	clear(body)
	fill(body)
	b.Lane, b.Dest, b.Type, b.Enqueued = lane, p, uint8(t), since
	// Each takes a way of its own among those that Bulk is spread over.
	b.FlowHash = uint32(mix(binary.BigEndian.Uint64(body)))
	d.classify.Queued(b.FlowHash, lane)
	if p.active.Load() == nil { // the ECHO was the first packet of a session
		held, evicted := p.hold(b)
		if evicted != nil {
			d.discard(p, []*packet.Buf{evicted}, TxNoSession)
		}
		if held {
			return
		}
	}
	d.queue([]*packet.Buf{b}, nil)
}

// stampEcho writes into an echo, or an answer to one, how long it has waited. The
// sealing goroutine calls it.
func stampEcho(b *packet.Buf, now int64) {
	at := echoWait
	switch wire.Type(b.Type) {
	case wire.TypeEchoReply:
		at = echoHold
	case wire.TypeEcho:
	default:
		return
	}
	if b.N >= MinEcho {
		waited := min(max(now-b.Enqueued, 0)/1000, 1<<32-1)
		binary.BigEndian.PutUint32(b.Bytes()[at:], uint32(waited))
	}
}

// echo handles an ECHO, which is answered in the same lane with as many bytes, and
// an answer to one.
func (r *reader) echo(s *Session, body []byte, from Path) {
	lane, d := r.hdr.Lane, r.d
	switch {
	case len(body) < MinEcho:
		r.drop(RxMalformed)
	case r.hdr.Type == wire.TypeEchoReply:
		d.echoes.answered(d, s.Peer, lane, body, from, r.now)
	case s.caps&wire.CapReport == 0:
		r.drop(RxType)
	case !s.echoes.allow(r.now, echoGap, echoSlack):
		r.drop(RxEchoRate)
	case lane == packet.Critical && !policed(s.Peer, len(body), r.now):
		r.drop(RxEchoRate)
	default:
		d.sendEcho(s.Peer, wire.TypeEchoReply, lane, len(body), r.now, func(b []byte) { copy(b[:echoHold], body) })
	}
}

// add remembers an echo under a new identifier.
func (w *echoes) add(e *echo) (id uint64, ok bool) {
	var b [8]byte
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) >= maxEchoes {
		return 0, false
	}
	for {
		_, _ = rand.Read(b[:])
		id = binary.BigEndian.Uint64(b[:])
		if w.waiting[id] == nil {
			break
		}
	}
	if w.waiting == nil {
		w.waiting = make(map[uint64]*echo)
	}
	w.waiting[id] = e
	return id, true
}

// take forgets an echo and returns it, nil where it is not known.
func (w *echoes) take(id uint64) *echo {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.waiting[id]
	delete(w.waiting, id)
	return e
}

// answered ends the echo that body answers, where p was asked that in this lane and
// with this size.
func (w *echoes) answered(d *Dataplane, p *Peer, lane packet.Lane, body []byte, from Path, at int64) {
	id := binary.BigEndian.Uint64(body)
	w.mu.Lock()
	e := w.waiting[id]
	if e == nil || e.peer != p || e.lane != lane || e.size != len(body) {
		w.mu.Unlock()
		d.stats.rx[RxEcho].Add(1)
		return
	}
	delete(w.waiting, id)
	w.mu.Unlock()
	us := func(at int) time.Duration {
		return time.Duration(binary.BigEndian.Uint32(body[at:])) * time.Microsecond
	}
	rtt := time.Duration(max(at-e.sent, 0))
	e.done(EchoReply{RTT: rtt, Wait: min(us(echoWait), rtt), Hold: min(us(echoHold), rtt), Path: from})
}
