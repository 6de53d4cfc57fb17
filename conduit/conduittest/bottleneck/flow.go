// SPDX-License-Identifier: Apache-2.0

package bottleneck

import (
	"math"
	"time"
)

// control is the congestion control of an inner flow. Windows are in packets, times
// in nanoseconds, rates in bytes per second.
type control interface {
	// window is how many packets may be under way.
	window() float64
	// pace is how fast they may leave; 0: as fast as the window allows.
	pace() float64
	// acked takes an acknowledgement; recovering: of a packet sent before the window was
	// last cut.
	acked(now int64, a *sample, recovering bool)
	// congested cuts the window: loss or a mark, at most once a window.
	congested()
	// expired is a retransmission timeout; again: nothing was acknowledged since the
	// last one, so there is nothing new to learn of the path (RFC 5681, section 3.1).
	expired(again bool)
}

// sample is what one acknowledgement tells.
type sample struct {
	seq, next  int64
	inflight   int
	size       int
	rtt        int64 // of this packet
	srtt       float64
	delivered  int64 // bytes, all so far
	priorBytes int64 // delivered when this packet was sent
	sinceAcked int64 // from the newest acknowledgement then to now
}

// sentPacket is one that is under way, or was until an earlier one is settled.
type sentPacket struct {
	at        int64
	delivered int64 // of the flow, when it was sent
	ackedAt   int64 // the newest acknowledgement then
	acked     bool
}

// flow is a sender and its far end. Recovery counts packets, not bytes: each packet
// has a number of its own, is acknowledged by it, and counts as lost when three
// later ones arrived. What is lost is sent again under a new number, so a greedy
// flow need not remember it.
type flow struct {
	*loop
	Flow
	cc     control
	size   int
	source int
	hash   uint32 // names the flow to the lanes
	emit   func(*datagram)
	back   int64 // delay of an acknowledgement

	sent      []sentPacket
	first     int64 // number of sent[0]
	largest   int64
	recovery  int64 // the newest packet when the window was last cut
	inflight  int
	delivered int64
	lastAck   int64
	lastBack  int64
	expiries  int
	srtt      float64

	tokens   float64 // of the application
	filled   int64
	release  int64 // pacing
	sleeping bool
}

func newFlow(l *loop, cfg Flow, size, source int, back int64, emit func(*datagram)) *flow {
	f := &flow{loop: l, Flow: cfg, size: size, source: source, back: back, emit: emit, largest: -1, recovery: -1}
	switch cfg.Kind {
	case CUBIC:
		f.cc = newCubic()
	case Reno:
		f.cc = newReno()
	case BBR:
		f.cc = newBBR()
	default:
		if cfg.Rate <= 0 {
			panic("bottleneck: a UDP flow needs a Rate")
		}
	}
	return f
}

func (f *flow) start() {
	if f.Kind == UDP {
		gap := float64(f.size) / f.Rate * 1e9
		f.every(int64(f.Start), func() int64 { return int64(gap * f.uniform(0.9, 1.1)) }, func() {
			if f.active() {
				f.emit(&datagram{size: f.size, source: f.source, flow: f})
			}
		})
		return
	}
	f.at(int64(f.Start), func() {
		f.lastAck = f.now
		f.transmit()
		f.every(f.now+20*millisecond, func() int64 { return 20 * millisecond }, f.checkTimeout)
	})
}

func (f *flow) active() bool { return f.Active == nil || f.Active(time.Duration(f.now)) }

// transmit sends what the window, the pace and the application allow.
func (f *flow) transmit() {
	if f.sleeping {
		return
	}
	if !f.active() {
		f.sleep(20 * millisecond)
		return
	}
	for float64(f.inflight) < f.cc.window() {
		if f.Rate > 0 {
			f.tokens = min(30000, f.tokens+f.Rate*float64(f.now-f.filled)/1e9)
			f.filled = f.now
			if f.tokens < float64(f.size) {
				f.sleep(10 * millisecond)
				return
			}
		}
		if p := f.cc.pace(); p > 0 {
			if f.now < f.release {
				f.sleep(f.release - f.now)
				return
			}
			f.release = max(f.now, f.release) + int64(float64(f.size)/p*1e9)
		}
		f.tokens -= float64(f.size)
		f.sendNew()
	}
}

func (f *flow) sleep(d int64) {
	f.sleeping = true
	f.after(d, func() { f.sleeping = false; f.transmit() })
}

func (f *flow) sendNew() {
	if f.inflight == 0 {
		f.lastAck = f.now
	}
	seq := f.first + int64(len(f.sent))
	f.sent = append(f.sent, sentPacket{at: f.now, delivered: f.delivered, ackedAt: f.lastAck})
	f.inflight++
	f.emit(&datagram{size: f.size, source: f.source, flow: f, seq: seq})
}

// arrived is the far end: it acknowledges every packet, in order.
func (f *flow) arrived(d *datagram) {
	if f.Kind == UDP {
		return
	}
	at := f.now + f.back
	if f.AckJitter > 0 {
		at += f.rng.Int64N(int64(f.AckJitter))
	}
	f.lastBack = max(f.lastBack, at)
	f.carryAt(f.lastBack, f.acknowledged, d)
}

func (f *flow) acknowledged(d *datagram) {
	if d.seq < f.first || f.sent[d.seq-f.first].acked {
		return
	}
	p := &f.sent[d.seq-f.first]
	p.acked = true
	f.inflight--
	f.expiries = 0
	f.delivered += int64(f.size)
	rtt := f.now - p.at
	if f.srtt == 0 {
		f.srtt = float64(rtt)
	}
	f.srtt += (float64(rtt) - f.srtt) / 8
	a := sample{
		seq: d.seq, size: f.size, rtt: rtt, srtt: f.srtt, delivered: f.delivered,
		priorBytes: p.delivered, sinceAcked: f.now - p.ackedAt,
	}
	f.lastAck = f.now
	f.largest = max(f.largest, d.seq)
	cut := f.detectLoss()
	if cut || d.ce && d.seq > f.recovery {
		f.recovery = f.first + int64(len(f.sent)) - 1
		f.cc.congested()
	}
	a.next, a.inflight = f.first+int64(len(f.sent)), f.inflight
	f.cc.acked(f.now, &a, d.seq <= f.recovery)
	f.transmit()
}

// detectLoss settles all packets that three later ones overtook.
func (f *flow) detectLoss() (cut bool) {
	n := 0
	for n < len(f.sent) && f.first+int64(n) <= f.largest-3 {
		if !f.sent[n].acked {
			f.inflight--
			cut = cut || f.first+int64(n) > f.recovery
		}
		n++
	}
	f.sent = f.sent[n:]
	f.first += int64(n)
	return cut
}

func (f *flow) checkTimeout() {
	wait := second
	if f.srtt > 0 {
		wait = int64(max(200e6, 2.5*f.srtt))
	}
	wait <<= min(f.expiries, 5)
	if f.inflight == 0 || f.now-f.lastAck <= wait {
		return
	}
	f.first += int64(len(f.sent))
	f.sent = f.sent[:0]
	f.inflight = 0
	f.recovery = f.first - 1
	f.lastAck = f.now
	f.cc.expired(f.expiries > 0)
	f.expiries++
	f.transmit()
}

// never is a time or a window that is not reached.
const never = math.MaxInt64 / 4
