// SPDX-License-Identifier: Apache-2.0

package bottleneck

import (
	"math"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/report"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	ipUDP    = 28              // IPv4 and UDP around a datagram
	overhead = ipUDP + 16 + 16 // and header and tag around an inner packet
)

// batch is how many packets one Dequeue gives at most, as in the packet path.
const batch = 64

// robot is a sender, its lanes and its strategy, and the receiver of one path.
type robot struct {
	*loop
	cfg      Robot
	link     *link
	bulk     int // source of Bulk and Telemetry
	urgent   int // source of Critical
	path     path
	timer    int64
	lanes    *lane.Scheduler
	pipe     *lane.Pipe
	strategy congestion.Strategy

	session  uint32
	renewed  int64
	counters [packet.NumLanes]uint64
	wake     int64 // when send is due; never: not at all
	bufs     [batch]*packet.Buf
	copies   uint64

	receiver *report.Receiver
	clock0   int64 // the receiver's clock began anywhere
	takeAt   int64
	runAt    int64 // when the coalesced run began that arrives
	runSize  int
	lastBack int64

	critical []Probe
	demoted  int
	dropped  map[string]int
	marked   int
	faults   int
}

func newRobot(l *loop, cfg Robot, s *Scenario, k *link, bulk, urgent int) *robot {
	r := &robot{
		loop: l, cfg: cfg, link: k, bulk: bulk, urgent: urgent,
		path: path{delay: int64(cfg.RTT / 2)}, timer: int64(s.Timer),
		strategy: cfg.Strategy(),
		session:  1 + l.rng.Uint32N(math.MaxUint32), wake: never, takeAt: never,
		clock0: l.rng.Int64N(1000 * second), receiver: new(report.Receiver), dropped: make(map[string]int),
	}
	r.lanes = lane.New(lane.Config{Now: func() int64 { return l.now }, OnDrop: r.drop})
	r.pipe = r.lanes.AddUplink().AddPipe(r.strategy, overhead)
	return r
}

func (r *robot) start() {
	for i, cfg := range r.cfg.Flows {
		f := newFlow(r.loop, cfg, WirePacket, r.bulk, r.path.delay, r.enqueue)
		f.hash = uint32(i+1) * 2654435761
		f.start()
	}
	if r.cfg.Critical > 0 {
		gap := 1e9 / r.cfg.Critical
		r.every(int64(r.uniform(0, gap)), func() int64 { return int64(gap * r.uniform(0.95, 1.05)) }, func() {
			d := &datagram{size: r.cfg.CriticalSize, source: r.urgent, seq: int64(len(r.critical))}
			r.critical = append(r.critical, Probe{Sent: time.Duration(r.now), Delay: -1})
			r.enqueue(d)
		})
	}
}

// enqueue puts a packet into its lane, as the reader of the device does.
func (r *robot) enqueue(d *datagram) {
	d.robot = r
	b := packet.Get()
	b.Dest = d
	b.N = d.size - overhead
	b.Lane = packet.Critical
	capable := false
	if f := d.flow; f != nil {
		b.Lane, b.FlowHash, capable = packet.Bulk, f.hash, f.ECN
		if f.Telemetry {
			b.Lane = packet.Telemetry
		}
	}
	writeInner(b.Bytes(), b.FlowHash, capable)
	if b.Lane == packet.Critical && !r.pipe.Police(r.now, b.N) {
		b.Lane, b.Demoted = packet.Bulk, true
		r.critical[d.seq].Demoted = true
		r.demoted++
	}
	bufs, pipes := [1]*packet.Buf{b}, [1]*lane.Pipe{r.pipe}
	r.lanes.Enqueue(bufs[:], pipes[:])
	r.send()
}

func (r *robot) drop(b *packet.Buf, why lane.Drop) {
	if b.Lane != packet.Critical && !b.Demoted {
		r.dropped[why.String()]++
	}
}

// send lets leave what the lanes give, and sleeps until they give more.
func (r *robot) send() {
	if r.now-r.renewed >= int64(r.cfg.Rekey) {
		r.renewed = r.now
		r.session++
		clear(r.counters[:])
	}
	for {
		n, pipe, train := r.lanes.Dequeue(r.bufs[:])
		if n == 0 {
			break
		}
		r.seal(r.bufs[:n], pipe, train)
	}
	at := r.lanes.NextAt()
	if at >= never {
		return
	}
	at = max(at, r.now+r.timer)
	if at < r.wake || r.wake <= r.now {
		r.wake = at
		r.at(at, func() {
			if r.wake == r.now {
				r.wake = never
				r.send()
			}
		})
	}
}

// seal numbers and stamps packets of one lane and puts them on the link.
func (r *robot) seal(bufs []*packet.Buf, pipe *lane.Pipe, train bool) {
	ln := bufs[0].Lane
	first := r.counters[ln]
	total, after := 0, 0
	for i, b := range bufs {
		d := b.Dest.(*datagram)
		ce, ok := readInner(b.Bytes())
		if !ok || b.Lane != ln {
			r.faults++
		}
		if ce {
			d.ce = true
			r.marked++
		}
		d.lane, d.session, d.counter, d.sent = uint8(ln), r.session, r.counters[ln], r.now
		r.counters[ln]++
		total += d.size
		if i > 0 {
			after += d.size
		}
		b.Release()
		bufs[i] = nil
		r.link.send(d)
	}
	last := r.counters[ln] - 1
	pipe.Sent(congestion.Sent{Lane: uint8(ln), Session: r.session, First: first, Last: last, Packets: len(bufs), Bytes: total})
	if train {
		pipe.TrainSent(congestion.Train{Session: r.session, First: first, Last: last, Packets: len(bufs), Bytes: after})
	}
}

// clock is the receiver's.
func (r *robot) clock() int64 { return r.now + r.clock0 + int64(r.cfg.Drift*float64(r.now)) }

// receive is the far end: it notes the arrival for its report and passes the
// packet on.
func (r *robot) receive(d *datagram) {
	at := r.clock()
	follower := at-r.runAt < int64(r.cfg.Coalesce) && r.runSize == d.size
	if follower {
		at = r.runAt
	} else {
		r.runAt, r.runSize = at, d.size
	}
	r.take(r.receiver.Arrived(&report.Arrival{
		Lane: packet.Lane(d.lane), Session: d.session, Counter: d.counter, Size: d.size - ipUDP,
		Sent: uint16(d.sent / (64 * microsecond)), At: at, Follower: follower, Data: true,
	}))
	if d.flow != nil {
		d.flow.arrived(d)
		return
	}
	p := &r.critical[d.seq]
	p.Delay = time.Duration(r.now-int64(p.Sent)) - time.Duration(r.path.delay)
}

// take has a report be made when it is due, on the receiver's clock.
func (r *robot) take(due int64) {
	if due == math.MaxInt64 {
		return
	}
	at := r.now
	if wait := due - r.clock(); wait > 0 {
		at += int64(float64(wait) / (1 + r.cfg.Drift))
	}
	if r.takeAt > r.now && r.takeAt <= at {
		return
	}
	r.takeAt = at
	r.at(at, func() {
		if r.takeAt != r.now {
			return
		}
		r.takeAt = never
		r.report()
	})
}

// report goes back over a path that is never full.
func (r *robot) report() {
	var w wire.Report
	if !r.receiver.Take(r.clock(), &w) {
		return
	}
	body := w.Append(nil)
	if r.rng.Float64() < r.cfg.ReportLoss {
		return
	}
	if s := r.cfg.ReportSilence; s != nil && s(time.Duration(r.now)) {
		return
	}
	at := r.now + r.path.delay
	if r.cfg.ReportJitter > 0 {
		at += r.rng.Int64N(int64(r.cfg.ReportJitter))
	}
	r.lastBack = max(r.lastBack, at)
	r.at(r.lastBack, func() {
		var got wire.Report
		if err := got.Parse(body); err != nil {
			r.faults++
			return
		}
		rep := r.translate(&got)
		r.pipe.Report(&rep)
		r.send()
	})
}

// translate makes sizes those on the wire, and durations of units.
func (r *robot) translate(w *wire.Report) congestion.Report {
	us := func(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
	owd := func(n int32) time.Duration { return time.Duration(n) * 16 * time.Microsecond }
	r.copies += uint64(w.Copies - uint32(r.copies))
	c := congestion.Report{
		Packets: w.Packets - r.copies, Copies: r.copies, Bytes: w.Bytes + ipUDP*w.Packets,
		Session: w.Session, Lane: uint8(w.Lane), Counter: w.Counter,
		Received: us(w.Received), Hold: us(uint64(w.Hold)), Samples: int(w.Samples),
		DelayMin: owd(w.DelayMin), DelayP50: owd(w.DelayP50), DelayMax: owd(w.DelayMax), DelayLast: owd(w.Last),
		CE: w.CE,
	}
	if w.TrainBytes > 0 {
		c.Train = congestion.TrainSeen{
			First: w.TrainFirst, Bytes: int(w.TrainBytes) + ipUDP*int(w.TrainPackets),
			Dispersion: us(uint64(w.TrainDispersion)),
		}
	}
	return c
}
