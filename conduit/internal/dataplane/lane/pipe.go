// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// tickEvery is how often a Strategy is asked while something waits.
const tickEvery = int64(time.Millisecond)

const (
	// Bulk that waits for a pipe is at most what its rate sends in maxWait seconds.
	minBytes = 512 << 10
	maxWait  = 0.15
	// policeBurst is the least burst of Critical in bytes, policeSpan the usual one in
	// seconds.
	policeBurst = 4096
	policeSpan  = 50e-3
	// Critical is policed for strictFor after other lanes had to wait, and for
	// strictQueue after a report of a queue of more than badQueue: where it is alone on
	// a path that is wide enough, its rate is nobody's business.
	strictFor   = int64(100 * time.Millisecond)
	strictQueue = int64(300 * time.Millisecond)
	badQueue    = 5 * time.Millisecond
	// A rate is found in less than searchTime, unless a flood of Critical is in the way.
	searchTime = int64(time.Second)
	// policeLeast is what Critical may have in any case, in bytes per second: with less
	// there would be nothing worth a link. A rate that falls for want of reports, which
	// newsAge tells, does not count either: that is no word about the way there.
	policeLeast = 32e3
	newsAge     = int64(time.Second)
)

// Pipe is one path of one peer: what waits for it, and how fast it may leave. All
// methods are safe for concurrent use; see Scheduler for which of them belong to
// one goroutine all the same.
type Pipe struct {
	s         *Scheduler
	u         *Uplink
	perPacket int

	police struct {
		mu     sync.Mutex
		tokens float64
		at     int64
	}
	// policed is the rate that Critical gets its share of, as bits.
	policed atomic.Uint64
	// strictTo is until when Critical is policed.
	strictTo atomic.Int64

	// The rest is guarded by s.mu.

	st      congestion.Strategy // nil: not paced
	queues  [numClasses]list    // that of Bulk is not used
	fq      *flowQueues         // nil: no Bulk
	n       [numClasses]int
	bytes   [numClasses]int // of inner packets
	deficit [numClasses]int
	links   [numLinks]links
	waiting int  // classes, Critical apart, that have packets
	fresh   bool // in s.fresh
	blocked bool // it waits, and has no tokens

	bucket  bucket
	readyAt int64 // when a blocked one has tokens
	last    int64 // latest time that the strategy was told
	ticked  int64
	heardAt int64 // when a report last came; 0 never
	leaving bool  // what waits goes elsewhere: its pace is that of another pipe
	// waitFrom is since when something waits without a break; 0: nothing does.
	waitFrom int64
	startup  bool // the strategy does not know the rate yet
	train    int  // wire bytes of a train that are to leave; the pipe is in s.trains

	maxBytes int   // of Bulk, on the wire
	interval int64 // of CoDel
	served   int64 // when Bulk last left
	resumed  int64 // when it did so after a long pause
	wait     [packet.NumLanes]sojourn
}

// AddPipe returns a new pipe through u. st paces it and is not to be used otherwise
// from now on; nil: it is not paced. perPacket is what the wire bytes of a data
// packet are beyond its Buf.N.
func (u *Uplink) AddPipe(st congestion.Strategy, perPacket int) *Pipe {
	s := u.s
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &Pipe{s: s, u: u, st: st, perPacket: perPacket, interval: minInterval, maxBytes: math.MaxInt}
	now := s.now()
	if st != nil {
		p.startup = st.State(p.at(now)).Startup
	}
	p.bucket.at = now
	p.refill(now)
	p.bucket.tokens = max(onePacket, p.bucket.rate*burst)
	p.police.tokens, p.police.at = math.Inf(1), now
	return p
}

// Close ends the pacing of p. What waits is handed out in its order, and so is what
// is still given to Enqueue with p; the strategy hears no more of it.
func (p *Pipe) Close() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.closeLocked()
	p.s.signalLocked()
}

func (p *Pipe) closeLocked() {
	p.st = nil
	p.endTrain()
	p.refill(p.s.now())
	p.setReady(p.bucket.at)
}

// Leave hands out at once what waits below Critical, whatever the pace: the caller has
// another path for it. It ends when nothing waits any more.
func (p *Pipe) Leave() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.st == nil || !p.waits() {
		return
	}
	p.leaving = true
	p.endTrain()
	p.setReady(p.s.now())
	p.s.signalLocked()
}

func (p *Pipe) waits() bool { return p.waiting > 0 }

// wire is the wire bytes of class c that wait.
func (p *Pipe) wire(c int) int { return p.bytes[c] + p.n[c]*p.perPacket }

// at is the strategy's time, which does not go back.
func (p *Pipe) at(now int64) time.Duration {
	p.last = max(p.last, now)
	return time.Duration(p.last)
}

// tick asks the strategy for a train.
func (p *Pipe) tick(now int64) {
	p.ticked = now
	if p.st == nil {
		return
	}
	// What is demoted asks for no rate of its own: it would be one more sender among
	// those that it is to leave alone.
	waiting := p.wire(int(packet.Bulk))
	n := p.st.Tick(p.at(now), waiting)
	if n > 0 && waiting > 0 && p.train == 0 && !p.leaving && p.u.open() > int(packet.Bulk) {
		p.train = n
		p.s.trains = append(p.s.trains, p)
	}
}

func (p *Pipe) endTrain() {
	if p.train > 0 {
		p.train = 0
		p.s.trains = slices.DeleteFunc(p.s.trains, func(q *Pipe) bool { return q == p })
	}
}

// refill brings the tokens up to date.
func (p *Pipe) refill(now int64) {
	rate := math.Inf(1)
	if p.st != nil {
		rate = p.st.Rate(p.at(now))
	}
	was := p.bucket.ref
	p.bucket.refill(now, rate)
	if ref := p.bucket.ref; ref != was {
		if ref > was || p.heardAt == 0 || now-p.heardAt <= newsAge {
			p.policed.Store(math.Float64bits(ref))
		}
		p.maxBytes = math.MaxInt
		if !math.IsInf(ref, 1) {
			p.maxBytes = max(minBytes, int(ref*maxWait))
		}
	}
}

// setReady moves p to where its tokens say.
func (p *Pipe) setReady(now int64) {
	if p.waiting == 0 {
		return
	}
	if p.leaving || p.bucket.open() {
		if p.blocked {
			p.blocked = false
			for c := int(packet.Telemetry); c < numClasses; c++ {
				if p.n[c] > 0 {
					p.u.rings[c].link(p)
				}
			}
		}
		return
	}
	p.readyAt = p.bucket.readyAt(now)
	if !p.blocked {
		p.blocked = true
		for c := int(packet.Telemetry); c < numClasses; c++ {
			p.u.rings[c].unlink(p)
		}
	}
}

// update does all that the strategy and the bucket are owed at now.
func (p *Pipe) update(now int64) {
	p.tick(now)
	p.refill(now)
	p.setReady(now)
	if !p.waits() {
		return
	}
	if p.waitFrom == 0 {
		p.waitFrom = max(now, 1)
	}
	if p.n[packet.Telemetry]+p.n[packet.Bulk] > 0 && !math.IsInf(p.bucket.rate, 1) && (!p.startup || now-p.waitFrom > searchTime) {
		p.u.police(now)
	}
}

// due is when p has to be looked at again.
func (p *Pipe) due() int64 {
	switch {
	case math.IsInf(p.bucket.rate, 1):
		return math.MaxInt64
	case p.blocked:
		return min(p.readyAt, p.ticked+tickEvery)
	}
	return p.ticked + tickEvery
}

// Report gives the strategy what the receiver of the path saw.
func (p *Pipe) Report(r *congestion.Report) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.st == nil {
		return
	}
	now := s.now()
	p.heardAt = max(now, 1)
	if sh, ok := p.st.(congestion.Sharer); ok {
		sh.Beside(p.u.given(now))
	}
	p.st.Report(p.at(now), r)
	state := p.st.State(p.at(now))
	p.interval = max(minInterval, int64(state.RTT)*3/2)
	p.startup = state.Startup
	if !p.startup && state.Queue > badQueue {
		p.strict(now + strictQueue)
	}
	p.update(now)
	if p.waits() {
		p.u.expect(p, now)
		s.signalLocked()
	}
}

// Sent debits datagrams that were given to the system on this path, of whatever
// lane and kind, and tells the strategy.
func (p *Pipe) Sent(sent congestion.Sent) { p.SentAt(p.s.now(), sent) }

// SentAt is Sent with the time that was taken before they were given to the system.
func (p *Pipe) SentAt(at int64, sent congestion.Sent) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	p.u.take(at, sent.Bytes)
	if p.st == nil {
		return
	}
	p.refill(max(at, p.bucket.at))
	p.bucket.take(sent.Bytes)
	p.st.Sent(p.at(at), sent)
	if p.waits() {
		p.setReady(p.bucket.at)
		p.u.expect(p, p.bucket.at)
	}
}

// TrainSent tells which packets a train has become.
func (p *Pipe) TrainSent(t congestion.Train) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.st != nil {
		p.st.TrainSent(p.at(p.s.now()), t)
	}
}

func (p *Pipe) strict(to int64) {
	if to > p.strictTo.Load() { // written under s.mu
		p.strictTo.Store(to)
	}
}

// Police reports whether Critical of size bytes (Buf.N) may enter at now. While
// others wait for the uplink, or the path's queue is long, Critical has Config.CriticalShare
// of the rate, its own or what they are given together, and a burst of 50 ms of that or
// 4 KiB; else, and while no rate is known yet, all that there is.
func (p *Pipe) Police(now int64, size int) bool {
	beside := now < p.u.strictTo.Load()
	if !beside && now >= p.strictTo.Load() {
		return true
	}
	rate := math.Float64frombits(p.policed.Load())
	if math.IsInf(rate, 1) {
		return true
	}
	if beside { // our own rate may be one that nobody looked for, or that Critical made
		rate = math.Float64frombits(p.u.policed.Load())
	}
	rate = max(rate*p.s.cfg.CriticalShare, policeLeast)
	k := &p.police
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tokens = min(k.tokens+max(0, float64(now-k.at))/1e9*rate, max(policeBurst, rate*policeSpan))
	k.at = max(k.at, now)
	need := float64(size + p.perPacket)
	if k.tokens < need {
		return false
	}
	k.tokens -= need
	return true
}

// PipeLane is what waits in one lane of a pipe.
type PipeLane struct {
	Depth, Bytes int // of inner packets
	// Sojourn is smoothed over 16 packets, SojournMax the longest of the last second
	// or two.
	Sojourn, SojournMax time.Duration
}

// PipeState is a snapshot of a pipe.
type PipeState struct {
	congestion.State
	Lanes [packet.NumLanes]PipeLane
}

// State returns what the strategy thinks and what waits. A pipe that is not paced,
// or closed, has a zero congestion.State.
func (p *Pipe) State() (out PipeState) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	now := p.s.now()
	if p.st != nil {
		out.State = p.st.State(p.at(now))
	}
	for c := range numClasses {
		l := &out.Lanes[laneOf(c)]
		l.Depth += p.n[c]
		l.Bytes += p.bytes[c]
	}
	for l := range out.Lanes {
		out.Lanes[l].Sojourn = time.Duration(p.wait[l].mean)
		out.Lanes[l].SojournMax = time.Duration(p.wait[l].most(now))
	}
	return out
}

// Open reports whether p has tokens: whether a copy of what has left elsewhere may
// leave by it as well.
func (p *Pipe) Open() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	now := max(p.s.now(), p.bucket.at)
	p.refill(now)
	p.setReady(now)
	return p.bucket.open()
}

// Rate is what the path takes, in bytes per second on the wire, drains apart; +Inf
// without a limit. It does not lock.
func (p *Pipe) Rate() float64 { return math.Float64frombits(p.policed.Load()) }
