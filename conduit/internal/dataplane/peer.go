// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/seal"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// maxHeld bounds the packets that wait for a peer's session, the oldest goes
// first, and maxHeldAge how long one may: a command that is delivered late is
// worse than one that is lost.
const (
	maxHeld    = 64
	maxHeldAge = int64(time.Second)
)

// Peer is the packet path's view of another node.
type Peer struct {
	ID       identity.PeerID
	Rules    *policy.PeerRules
	Virtual4 netip.Addr
	Virtual6 netip.Addr

	active atomic.Pointer[Session]
	wanted stamp // when Want was last called

	txPackets, txBytes, txDropped atomic.Uint64
	rxPackets, rxBytes            atomic.Uint64
	lastTx, lastRx                stamp

	ways    atomic.Pointer[wayset] // nil: SetWays was never called
	tracked atomic.Pointer[tracked]
	mute    atomic.Bool // it sends no reports
	sources limiter     // EventSource
	misses  limiter     // Miss
	carried limiter     // Critical for others

	// urgent is where the peer's Critical waits, whatever its paths: they change, and
	// its order does not.
	urgent atomic.Pointer[lane.Pipe]

	out outbound // the sealing goroutine's

	mu   sync.Mutex // guards held, and the changes of active, ways and tracked
	held []*packet.Buf
}

// Active returns the session in use, or nil.
func (p *Peer) Active() *Session { return p.active.Load() }

// LastTx returns when the peer was last sent a packet of an application; 0 means
// never.
func (p *Peer) LastTx() int64 { return p.lastTx.Load() }

// LastRx returns when a packet for an application last came from the peer; 0 means
// never.
func (p *Peer) LastRx() int64 { return p.lastRx.Load() }

// Miss reports whether a packet that p relays, or wants relayed, for a pair that
// nothing is known of may be looked into. Safe for concurrent use.
func (p *Peer) Miss(now int64) bool { return p.misses.allow(now, missGap, missSlack) }

// PeerCounters counts inner packets and bytes.
type PeerCounters struct{ TxPackets, TxBytes, TxDropped, RxPackets, RxBytes uint64 }

// Counters returns the peer's counters.
func (p *Peer) Counters() PeerCounters {
	return PeerCounters{p.txPackets.Load(), p.txBytes.Load(), p.txDropped.Load(), p.rxPackets.Load(), p.rxBytes.Load()}
}

// hold keeps b until the peer has a session. It returns false when there is one
// by now.
func (p *Peer) hold(b *packet.Buf) (held bool, evicted *packet.Buf) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active.Load() != nil {
		return false, nil
	}
	if len(p.held) == maxHeld {
		evicted = p.held[0]
		p.held = append(p.held[:0], p.held[1:]...)
	}
	p.held = append(p.held, b)
	return true, evicted
}

// swap makes s the session in use and returns what waited for one: what is still
// fresh, and what has become stale.
func (p *Peer) swap(s *Session, now int64) (fresh, stale []*packet.Buf) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active.Store(s)
	if s == nil {
		return nil, nil
	}
	i := 0
	for i < len(p.held) && now-p.held[i].Enqueued > maxHeldAge {
		i++
	}
	stale, fresh = p.held[:i], p.held[i:]
	p.held = nil
	return fresh, stale
}

// Session is the keys in use with one peer, seen from the packet path.
type Session struct {
	Peer        *Peer
	LocalIndex  uint32
	RemoteIndex uint32
	Suite       wire.Suite

	send [packet.NumLanes]seal.Sender
	recv [packet.NumLanes]seal.Receiver

	overhead   int // what a packet grows by
	lastRecv   stamp
	expires    stamp
	reported   limiter
	probes     limiter
	challenges limiter
	controls   limiter
	echoes     limiter
	caps       uint32 // the peer's, wire.Cap…
}

// NewSession prepares a session from a finished handshake.
func NewSession(p *Peer, e *session.Established) (*Session, error) {
	s := &Session{
		Peer: p, LocalIndex: e.LocalIndex, RemoteIndex: e.RemoteIndex, Suite: e.Secrets.Suite,
		caps: e.PeerCaps, overhead: overhead(e.Secrets.Suite),
	}
	for l := range packet.NumLanes {
		if err := s.send[l].Init(e.Secrets.Suite, &e.Secrets.Send[l]); err != nil {
			return nil, err
		}
		if err := s.recv[l].Init(e.Secrets.Suite, &e.Secrets.Recv[l]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// overhead returns what a packet grows by on the wire: with a random nonce in it,
// 12 bytes more.
func overhead(suite wire.Suite) int {
	if suite == wire.SuiteFIPS {
		return wire.Overhead + 12
	}
	return wire.Overhead
}

// Expire ends the session at a time on the clock of Now: nothing is sealed or
// opened from then on.
func (s *Session) Expire(at int64) { s.expires.Store(max(at, 1)) }

func (s *Session) expired(now int64) bool {
	at := s.expires.Load()
	return at != 0 && now >= at
}

// Overhead is what a packet of the session grows by on the wire, in bytes.
func (s *Session) Overhead() int { return s.overhead }

// Sealed returns how many packets were sealed under that of the lanes' keys which
// was used most.
func (s *Session) Sealed() (n uint64) {
	for l := range s.send {
		n = max(n, s.send[l].Count())
	}
	return n
}

// LastRecv returns when the last authenticated packet came; 0 means never.
func (s *Session) LastRecv() int64 { return s.lastRecv.Load() }

// sessionTable finds a session by receiver index: the upper half of the index is
// the slot, the lower half is random, so a lookup needs no hash and a stale
// index does not match.
type sessionTable struct {
	pages [256]atomic.Pointer[[256]atomic.Pointer[Session]]

	mu       sync.Mutex        // guards reserved
	reserved map[uint16]uint32 // slot to index
}

func (t *sessionTable) lookup(index uint32) *Session {
	page := t.pages[index>>24].Load()
	if page == nil {
		return nil
	}
	s := page[index>>16&255].Load()
	if s == nil || s.LocalIndex != index {
		return nil
	}
	return s
}

// Reserve implements session.Indexes.
func (d *Dataplane) Reserve() uint32 {
	t := &d.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reserved == nil {
		t.reserved = make(map[uint16]uint32)
	}
	if len(t.reserved) >= 1<<16-1 {
		return 0 // which no peer accepts
	}
	var b [4]byte
	for {
		_, _ = rand.Read(b[:])
		index := binary.BigEndian.Uint32(b[:])
		slot := uint16(index >> 16)
		if _, taken := t.reserved[slot]; taken || index == 0 || index == wire.ReservedIndex {
			continue
		}
		t.reserved[slot] = index
		if page := &t.pages[slot>>8]; page.Load() == nil {
			page.Store(new([256]atomic.Pointer[Session]))
		}
		return index
	}
}

// Release implements session.Indexes.
func (d *Dataplane) Release(index uint32) {
	t := &d.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	slot := uint16(index >> 16)
	if index == 0 || t.reserved[slot] != index {
		return // released before, and the slot may serve another by now
	}
	page := t.pages[slot>>8].Load()
	page[slot&255].Store(nil)
	delete(t.reserved, slot)
}

// Add lets packets for s in. Its index must be reserved.
func (d *Dataplane) Add(s *Session) {
	d.sessions.pages[s.LocalIndex>>24].Load()[s.LocalIndex>>16&255].Store(s)
}

// Remove stops packets for s and releases its index.
func (d *Dataplane) Remove(s *Session) { d.Release(s.LocalIndex) }

// Activate makes s, which may be nil, the session that p's packets use and sends
// what waited for it.
func (d *Dataplane) Activate(p *Peer, s *Session) {
	if s != nil {
		p.mute.Store(s.caps&wire.CapReport == 0)
	}
	fresh, stale := p.swap(s, d.Now())
	d.discard(p, stale, TxStale)
	if len(fresh) > 0 {
		d.queue(fresh, nil)
	}
}

// discard releases packets that were held.
func (d *Dataplane) discard(p *Peer, held []*packet.Buf, why TxReason) {
	for _, b := range held {
		d.classify.Left(b.FlowHash, b.Lane)
		b.Release()
	}
	p.txDropped.Add(uint64(len(held)))
	d.stats.tx[why].Add(uint64(len(held)))
}

// Abandon drops the packets that wait for a session with p, since none can be
// had.
func (d *Dataplane) Abandon(p *Peer, why TxReason) {
	p.mu.Lock()
	held := p.held
	p.held = nil
	p.mu.Unlock()
	d.discard(p, held, why)
}
