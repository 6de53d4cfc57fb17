// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

const (
	// maxParkedCritical bounds the Critical packets that wait for room in one
	// socket; the oldest goes first. It holds what is sent again on a new path.
	maxParkedCritical = 512
	// pumpBatch is how many packets a full socket is given at a time: few, so that a
	// Critical packet waits for few.
	pumpBatch = 16
)

// link is one bind and what waits for room in it.
type link struct {
	bind  transport.Bind
	index int
	up    *uplink
	// patient is set where the bind's Send can wait for room or return at once, as
	// it is told; nil where it does as it likes.
	patient transport.Waiter

	tx, rx atomic.Uint64 // bytes of UDP payload

	// data and stun are what the sealing goroutine collects of a batch; only it
	// touches them.
	data, stun outbox
	touched    bool

	// backlog tells what waits behind the socket; nil where nobody knows.
	backlog transport.Backlog
	// The sealing goroutine's: gated while it holds the lanes for the socket's sake,
	// until less than gateLimit waits there; it looks at gateAt, then after gateStep.
	gated            bool
	gateLimit        int
	gateAt, gateStep int64

	done chan struct{} // closed by RemoveBind
	wake chan struct{} // tells the pump that something is parked

	mu      sync.Mutex // guards the rest
	gone    bool
	pumping bool // the pump has taken packets that it has not yet sent
	parked  [packet.NumLanes]outbox
	holds   [packet.NumLanes]bool
}

// outbox is datagrams with the buffers that they lie in.
type outbox struct {
	msgs []transport.Message
	bufs []*packet.Buf
}

func (o *outbox) add(m transport.Message, b *packet.Buf) {
	o.msgs, o.bufs = append(o.msgs, m), append(o.bufs, b)
}

func (o *outbox) reset() {
	clear(o.msgs)
	clear(o.bufs)
	o.msgs, o.bufs = o.msgs[:0], o.bufs[:0]
}

// cut removes the first n.
func (o *outbox) cut(n int) {
	o.msgs, o.bufs = slices.Delete(o.msgs, 0, n), slices.Delete(o.bufs, 0, n)
}

// AddBind takes a socket in use and returns its index, by which paths name it. It
// may be called before Start and after it; the socket is the packet path's to
// close. Indexes are not used again. After Close the bind is closed at once.
//
// While a socket has no room the others go on: a bind that is a transport.Waiter is
// told not to wait, one that is not is given to a goroutine of its own where it is
// not the only one. A bind that never waits should have an empty SetSendWait.
//
// Binds of the same uplink number share its lanes and its rate; 0 gives the bind
// lanes of its own.
func (d *Dataplane) AddBind(b transport.Bind, uplink uint8) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	links := d.list()
	l := &link{bind: b, index: len(links), done: make(chan struct{}), wake: make(chan struct{}, 1)}
	l.backlog, _ = b.(transport.Backlog)
	if l.patient, _ = b.(transport.Waiter); l.patient != nil {
		l.patient.SetSendWait(-1)
	}
	if d.closed {
		_ = b.Close()
		l = nil
	} else {
		l.up = d.joinUplinkLocked(uplink)
	}
	links = append(slices.Clip(links), l)
	d.links.Store(&links)
	if l != nil {
		d.alive.Add(1)
		if d.started {
			d.serve(l)
		}
	}
	return len(links) - 1
}

// serve starts the goroutines of a socket.
func (d *Dataplane) serve(l *link) {
	for s := range l.bind.Sockets() {
		d.wg.Go(func() { d.readSocket(l, s) })
	}
	d.wg.Go(func() { d.pump(l) })
}

// RemoveBind closes a socket and ends its readers, without waiting for them.
// Packets to its paths are dropped from then on. Idempotent.
func (d *Dataplane) RemoveBind(bind int) {
	d.mu.Lock()
	l := linkOf(d.list(), bind)
	if l != nil {
		links := slices.Clone(d.list())
		links[bind] = nil
		d.links.Store(&links)
		d.alive.Add(-1)
	}
	d.mu.Unlock()
	if l != nil {
		d.retire(l) // which may take a while
		d.mu.Lock()
		d.leaveUplinkLocked(l.up)
		d.mu.Unlock()
	}
}

// retire closes a link's bind and drops what waits for it.
func (d *Dataplane) retire(l *link) {
	close(l.done)
	_ = l.bind.Close()
	d.stats.goneTx.Add(l.tx.Load())
	d.stats.goneRx.Add(l.rx.Load())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	for i := range l.parked {
		d.stats.tx[TxNoPath].Add(uint64(len(l.parked[i].bufs)))
		l.parked[i].release()
	}
	d.unholdLocked(l)
}

func (o *outbox) release() {
	for _, b := range o.bufs {
		b.Release()
	}
	o.reset()
}

// BindCounters returns how many bytes of UDP payload a socket has sent and
// received; zeros where it is gone.
func (d *Dataplane) BindCounters(bind int) (tx, rx uint64) {
	l := linkOf(d.list(), bind)
	if l == nil {
		return 0, 0
	}
	return l.tx.Load(), l.rx.Load()
}

// Backlog tells which lanes wait until a socket has room, and how many bytes of
// kernel memory wait behind it, 0 where nobody knows.
func (d *Dataplane) Backlog(bind int) (held []string, queued int) {
	l := linkOf(d.list(), bind)
	if l == nil {
		return nil, 0
	}
	if l.backlog != nil {
		queued = l.backlog.Queued()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, on := range l.holds {
		if on {
			held = append(held, packet.Lane(i).String())
		}
	}
	return held, queued
}

func (d *Dataplane) list() []*link {
	if p := d.links.Load(); p != nil {
		return *p
	}
	return nil
}

func linkOf(links []*link, bind int) *link {
	if uint(bind) >= uint(len(links)) {
		return nil
	}
	return links[bind]
}

// flush sends what the batch collected for l. What there is no room for is parked.
func (d *Dataplane) flush(l *link, lane packet.Lane) {
	// While the pump is at work the socket is its alone, else the order is lost, and
	// a Send may wait for its lock.
	direct := !l.busy() && (l.patient != nil || d.alive.Load() == 1)
	for _, o := range [...]*outbox{&l.stun, &l.data} {
		if len(o.msgs) == 0 {
			continue
		}
		tried := 0
		if direct {
			tried = d.hand(l, lane, o.msgs, o == &l.stun)
		}
		if tried < len(o.msgs) {
			d.park(l, lane, o, tried)
			direct = false
		}
		o.reset()
	}
}

// hand gives msgs to the socket and accounts for those that it refused. It returns
// how many are dealt with; for the rest is no room.
func (d *Dataplane) hand(l *link, lane packet.Lane, msgs []transport.Message, stun bool) (tried int) {
	sent, err := l.bind.Send(int(lane), msgs)
	tried = len(msgs)
	var se *transport.SendError
	if sent < tried {
		if se = sendError(err); se != nil {
			tried -= min(se.Left, tried)
		}
	}
	bytes := 0
	for i := range msgs[:tried] {
		bytes += len(msgs[i].Buf)
	}
	l.tx.Add(uint64(bytes))
	lost := tried - sent
	switch {
	case lost <= 0:
		return tried
	case stun:
		// That an address of the peer cannot be reached is the ordinary outcome of a
		// check and no lost packet.
		d.stats.stunErrs.Add(uint64(lost))
		return tried
	}
	d.stats.tx[TxSend].Add(uint64(lost))
	if d.stats.sendErrs.Add(1) == 1 { // once: it may go on for long
		d.cfg.Logger.Debug("the system refuses to send, a probe perhaps; counting from now on", "bind", l.index, "lost", lost, "err", err)
	}
	if se != nil && d.cfg.Refused != nil {
		for _, r := range se.Refused {
			if r.Index < len(msgs) && d.refusals.allow(d.Now(), refusedGap, refusedSlack) {
				d.cfg.Refused(Path{l.index, msgs[r.Index].Addr}, r)
			}
		}
	}
	return tried
}

// sendError returns the details of a failed Send, or nil.
func sendError(err error) *transport.SendError {
	if se, ok := errors.AsType[*transport.SendError](err); ok {
		return se
	}
	return nil
}

func (l *link) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busyLocked()
}

func (l *link) busyLocked() bool {
	return l.pumping || len(l.parked[0].msgs)+len(l.parked[1].msgs)+len(l.parked[2].msgs) > 0
}

// park keeps o from its first untried packet on until the socket has room.
func (d *Dataplane) park(l *link, lane packet.Lane, o *outbox, tried int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		d.stats.tx[TxNoPath].Add(uint64(len(o.msgs) - tried))
		return
	}
	q := &l.parked[lane]
	for i := tried; i < len(o.msgs); i++ {
		o.bufs[i].Retain()
		q.add(o.msgs[i], o.bufs[i])
	}
	if lane != packet.Critical {
		// No more of this lane or those below it leaves the lanes, which is where
		// their own rules of dropping hold.
		if !l.holds[lane] {
			l.holds[lane] = true
			l.up.lanes.Hold(lane)
		}
	} else if over := len(q.msgs) - maxParkedCritical; over > 0 {
		d.stats.tx[TxSend].Add(uint64(over))
		for _, b := range q.bufs[:over] {
			b.Release()
		}
		q.cut(over)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// unholdLocked opens the lanes of which nothing is parked.
func (d *Dataplane) unholdLocked(l *link) {
	for lane := range l.holds {
		if l.holds[lane] && len(l.parked[lane].msgs) == 0 {
			l.holds[lane] = false
			l.up.lanes.Unhold(packet.Lane(lane))
		}
	}
}

// pump sends what is parked, the most urgent first, as the socket makes room.
func (d *Dataplane) pump(l *link) {
	var now outbox
	for {
		lane, ok := l.take(&now)
		if !ok {
			select {
			case <-l.wake:
				continue
			case <-l.done:
				return
			}
		}
		if l.patient != nil {
			l.patient.SetSendWait(transport.DefaultSendWait)
		}
		start := d.Now()
		tried := d.hand(l, lane, now.msgs, false)
		if l.patient != nil {
			l.patient.SetSendWait(-1)
		}
		if left := len(now.msgs) - tried; left > 0 { // an uplink that does not move
			d.stats.tx[TxSend].Add(uint64(left))
			if d.Now()-start < int64(time.Millisecond) { // it does not wait either
				select {
				case <-time.After(time.Millisecond):
				case <-l.done:
				}
			}
		}
		now.release()
		l.mu.Lock()
		l.pumping = false
		d.unholdLocked(l)
		l.mu.Unlock()
	}
}

// take moves the most urgent parked packets to dst.
func (l *link) take(dst *outbox) (packet.Lane, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lane := range l.parked {
		q := &l.parked[lane]
		if len(q.msgs) == 0 {
			continue
		}
		n := min(pumpBatch, len(q.msgs))
		dst.msgs, dst.bufs = append(dst.msgs, q.msgs[:n]...), append(dst.bufs, q.bufs[:n]...)
		q.cut(n)
		l.pumping = true
		return packet.Lane(lane), true
	}
	return 0, false
}
