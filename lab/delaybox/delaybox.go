// SPDX-License-Identifier: Apache-2.0

// Package delaybox is a cable in user space: it moves frames between two
// ports and gives each direction a delay, jitter, a rate with a tail-drop
// queue, and random loss. The lab needs it because many kernels come without
// netem.
//
// Usually the ports are two TAP devices (see [OpenTAP]), one in each of the
// network namespaces that the cable joins. A TAP offers no segmentation
// offload, so the kernel has cut GSO packets before the box sees them: loss
// and queueing are per wire packet, and routing or bridging at either end
// needs no special rules.
package delaybox

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultQueue is the queue of a rate limit, in bytes, when Params.Queue is 0.
const DefaultQueue = 256 << 10

// inbox bounds the frames read but not yet scheduled. When it is full the
// reader waits, and what the sender's device cannot queue the kernel drops.
const inbox = 1024

// Params is what one direction of the cable does to a frame. The zero value
// passes everything on at once.
type Params struct {
	// Delay is added to each frame, after the rate limit.
	Delay time.Duration
	// Jitter adds a uniform ±Jitter to Delay. Frames may overtake each other.
	Jitter time.Duration
	// Loss is the chance that a frame is dropped, 0 to 1. Unless it is 1,
	// address resolution (ARP, neighbour discovery) is spared: its retries
	// take a second and would drown what a test measures.
	Loss float64
	// Rate limits the direction, in bits per second. Zero means no limit.
	Rate int64
	// Queue is how many bytes may wait for the rate limit before new frames
	// are dropped. Zero means DefaultQueue.
	Queue int
}

// Validate reports the first value out of range.
func (p Params) Validate() error {
	switch {
	case p.Delay < 0 || p.Jitter < 0:
		return fmt.Errorf("delay %v ± %v: must not be negative", p.Delay, p.Jitter)
	case p.Loss < 0 || p.Loss > 1:
		return fmt.Errorf("loss %v: must be within 0 and 1", p.Loss)
	case p.Rate < 0 || p.Queue < 0:
		return fmt.Errorf("rate %d, queue %d: must not be negative", p.Rate, p.Queue)
	}
	return nil
}

// Direction names one way through the box.
type Direction int

// The two directions, named after the arguments of New.
const (
	AToB Direction = iota
	BToA
)

// Stats counts the frames of one direction.
type Stats struct {
	In   uint64 // read from the source port
	Out  uint64 // written to the destination port
	Lost uint64 // dropped by Params.Loss
	Full uint64 // dropped because the rate limit's queue was full
	Err  uint64 // refused by the destination port, for instance while it is down
}

// Box joins two ports. Its methods may be called from any goroutine.
type Box struct {
	ports [2]io.ReadWriteCloser
	lanes [2]*lane
	done  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

// New makes a box between a and b, which it owns from then on; each Read and
// Write of a port moves one whole frame. New does no I/O: Start does.
func New(a, b io.ReadWriteCloser, ab, ba Params) (*Box, error) {
	if err := errors.Join(ab.Validate(), ba.Validate()); err != nil {
		return nil, fmt.Errorf("make delay box: %w", err)
	}
	x := &Box{ports: [2]io.ReadWriteCloser{a, b}, done: make(chan struct{})}
	x.lanes[AToB] = newLane(a, b, ab, x.done)
	x.lanes[BToA] = newLane(b, a, ba, x.done)
	return x, nil
}

// Start begins to move frames. It must be called once.
func (x *Box) Start() {
	for _, l := range x.lanes {
		x.wg.Go(l.read)
		x.wg.Go(l.write)
	}
}

// Set changes one direction. Frames already scheduled keep their times.
func (x *Box) Set(d Direction, p Params) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("set delay box: %w", err)
	}
	x.lanes[d].params.Store(&p)
	return nil
}

// Stats returns the counters of one direction.
func (x *Box) Stats(d Direction) Stats {
	l := x.lanes[d]
	return Stats{In: l.in.Load(), Out: l.out.Load(), Lost: l.lost.Load(), Full: l.full.Load(), Err: l.errs.Load()}
}

// Close closes both ports, drops what waits and returns when the box's
// goroutines have ended. It may be called more than once.
func (x *Box) Close() error {
	var err error
	x.once.Do(func() {
		close(x.done)
		err = errors.Join(x.ports[0].Close(), x.ports[1].Close())
	})
	x.wg.Wait()
	return err
}

// frame is one frame with the time at which it leaves. In the inbox at is
// the time of arrival.
type frame struct {
	at  time.Time
	seq uint64
	b   []byte
}

// schedule is a heap by leaving time, then by arrival.
type schedule []frame

func (q schedule) Len() int { return len(q) }
func (q schedule) Less(i, j int) bool {
	if q[i].at.Equal(q[j].at) {
		return q[i].seq < q[j].seq
	}
	return q[i].at.Before(q[j].at)
}
func (q schedule) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *schedule) Push(x any)   { *q = append(*q, x.(frame)) }
func (q *schedule) Pop() any {
	old := *q
	f := old[len(old)-1]
	old[len(old)-1] = frame{} // or the array keeps the bytes alive
	*q = old[:len(old)-1]
	return f
}

// lane is one direction: a reader that stamps and loses, a writer that
// schedules and sends.
type lane struct {
	src, dst io.ReadWriter
	arrived  chan frame
	done     <-chan struct{}
	params   atomic.Pointer[Params]
	coarse   bool // wait with timers only; tests with fake time set it

	in, out, lost, full, errs atomic.Uint64

	// Owned by write.
	queue schedule
	seq   uint64
	free  time.Time // when the rate limit will have sent all it accepted
}

func newLane(src, dst io.ReadWriter, p Params, done <-chan struct{}) *lane {
	l := &lane{src: src, dst: dst, arrived: make(chan frame, inbox), done: done}
	l.params.Store(&p)
	return l
}

func (l *lane) read() {
	buf := make([]byte, 1<<16)
	for {
		n, err := l.src.Read(buf)
		if err != nil {
			return // closed, or its namespace is gone
		}
		l.in.Add(1)
		if p := l.params.Load().Loss; p > 0 && rand.Float64() < p && (p == 1 || !resolution(buf[:n])) {
			l.lost.Add(1)
			continue
		}
		select {
		case l.arrived <- frame{at: time.Now(), b: append([]byte(nil), buf[:n]...)}:
		case <-l.done:
			return
		}
	}
}

// resolution tells whether an Ethernet frame is ARP or neighbour discovery.
func resolution(b []byte) bool {
	if len(b) < 14 {
		return false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0806: // ARP
		return true
	case 0x86dd: // IPv6 that is ICMPv6 of the types 133 to 137
		return len(b) > 54 && b[20] == 58 && b[54] >= 133 && b[54] <= 137
	}
	return false
}

func (l *lane) write() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		for len(l.queue) > 0 && !l.queue[0].at.After(now) {
			l.send(heap.Pop(&l.queue).(frame).b)
		}
		wait := time.Hour
		if len(l.queue) > 0 {
			wait = time.Until(l.queue[0].at)
			if wait <= 0 {
				continue
			}
		}
		// Go's timers are good to about a millisecond: sleep most of the
		// way on one of them and the rest in the kernel.
		const fine = 1500 * time.Microsecond
		if !l.coarse && wait < fine {
			nap(wait)
			for len(l.arrived) > 0 {
				l.add(<-l.arrived)
			}
			select {
			case <-l.done:
				return
			default:
				continue
			}
		}
		if !l.coarse {
			wait -= fine - 300*time.Microsecond
		}
		timer.Reset(wait)
		select {
		case f := <-l.arrived:
			l.add(f)
		case <-timer.C:
		case <-l.done:
			return
		}
	}
}

func (l *lane) send(b []byte) {
	if _, err := l.dst.Write(b); err != nil {
		l.errs.Add(1)
		return
	}
	l.out.Add(1)
}

// add schedules a frame or drops it at the rate limit.
func (l *lane) add(f frame) {
	p := l.params.Load()
	if p.Rate > 0 {
		queue := p.Queue
		if queue == 0 {
			queue = DefaultQueue
		}
		if l.free.Before(f.at) {
			l.free = f.at
		}
		waiting := l.free.Sub(f.at).Seconds() * float64(p.Rate) / 8
		if int(waiting)+len(f.b) > queue {
			l.full.Add(1)
			return
		}
		l.free = l.free.Add(time.Duration(float64(len(f.b)) * 8 / float64(p.Rate) * float64(time.Second)))
		f.at = l.free
	}
	f.at = f.at.Add(p.Delay)
	if p.Jitter > 0 {
		f.at = f.at.Add(time.Duration((rand.Float64()*2 - 1) * float64(p.Jitter)))
	}
	f.seq = l.seq
	l.seq++
	heap.Push(&l.queue, f)
}
