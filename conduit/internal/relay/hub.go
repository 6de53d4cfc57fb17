// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/relay/lanequeue"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

const (
	hubQueue = 32
	// hubInbox is larger: its packets have crossed the network already.
	hubInbox = 256
	// maxWait is how long a packet may wait for the stream: whoever sent it has sent
	// it again by then, or a newer one.
	maxWait = time.Second

	defaultIdle   = 30 * time.Second
	hubBackoff    = 200 * time.Millisecond
	hubBackoffMax = 10 * time.Second
	// hubSettled is the age of a stream after whose end the next one is opened at once.
	hubSettled = 5 * time.Second
)

var errIdle = errors.New("relay stream is not used")

// HubStream is the hub's relay stream, as conduit.PacketRelay describes it.
type HubStream interface {
	RelayPackets(ctx context.Context, in func(from identity.PeerID, packet []byte), gone func(identity.PeerID)) error
	SendPacket(to identity.PeerID, lane uint8, packet []byte) bool
}

// HubConfig is what a HubBind needs. Its functions are called from any goroutine
// and must not block.
type HubConfig struct {
	// Stream is required.
	Stream HubStream
	// PeerOf and AddrOf translate between a peer and its address on this bind.
	// Required.
	PeerOf func(netip.AddrPort) (identity.PeerID, bool)
	AddrOf func(identity.PeerID) (netip.AddrPort, bool)
	// State, which may be nil, is told when the stream stands and when it does not
	// any more, in order, and not after Close.
	State func(up bool)
	// Gone, which may be nil, is told that the hub could not reach a peer: it has no
	// relay stream open, or may not be talked to.
	Gone func(identity.PeerID)
	// Idle is how long the stream stays open without a packet or Want; zero means
	// 30 s.
	Idle time.Duration
	// Logger nil discards.
	Logger *slog.Logger
}

// HubBind carries packets over the hub's relay stream, which it opens when it is
// wanted and closes when it is not. Its methods are safe for concurrent use.
type HubBind struct {
	cfg HubConfig // set once in NewHub
	log *slog.Logger
	in  *inbox

	count  counters
	opened atomic.Uint64
	ready  atomic.Bool
	used   atomic.Bool  // since the idle watch looked last
	nHeld  atomic.Int32 // length of held, to be read without mu

	mu      sync.Mutex // guards the following
	held    *lanequeue.Queue[heldPacket]
	running bool
	closed  bool
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup
}

var (
	_ transport.Bind   = (*HubBind)(nil)
	_ transport.Waiter = (*HubBind)(nil)
)

// heldPacket waits for the stream.
type heldPacket struct {
	to   identity.PeerID
	data []byte
	at   time.Time
}

// NewHub checks cfg. The stream is not opened yet.
func NewHub(cfg HubConfig) (*HubBind, error) {
	if cfg.Stream == nil || cfg.PeerOf == nil || cfg.AddrOf == nil {
		return nil, errors.New("hub relay: Stream, PeerOf and AddrOf are required")
	}
	if cfg.State == nil {
		cfg.State = func(bool) {}
	}
	if cfg.Gone == nil {
		cfg.Gone = func(identity.PeerID) {}
	}
	if cfg.Idle <= 0 {
		cfg.Idle = defaultIdle
	}
	b := &HubBind{cfg: cfg, log: cfg.Logger, held: lanequeue.New[heldPacket](hubQueue)}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.in = newInbox(hubInbox, &b.count)
	return b, nil
}

// LocalAddr returns 0.0.0.0:1: the stream has no address of its own.
func (b *HubBind) LocalAddr() netip.AddrPort { return netip.AddrPortFrom(netip.IPv4Unspecified(), 1) }

// Sockets returns 1.
func (b *HubBind) Sockets() int { return 1 }

// BatchSize implements transport.Bind.
func (b *HubBind) BatchSize() int { return batchSize }

// RecvBufSize implements transport.Bind.
func (b *HubBind) RecvBufSize() int { return recvBufSize }

// Receive implements transport.Bind.
func (b *HubBind) Receive(_ int, msgs []transport.Message) (int, error) { return b.in.receive(msgs) }

// Ready tells whether the stream stands.
func (b *HubBind) Ready() bool { return b.ready.Load() }

// Counters returns what was carried and how often the stream was opened.
func (b *HubBind) Counters() (c Counters, opened uint64) { return b.count.get(), b.opened.Load() }

// Want opens the stream, where it is not open, and keeps it open for HubConfig.Idle
// from now. A peer can send to us only while it is open. It does not wait.
func (b *HubBind) Want() {
	b.touch()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.startLocked()
}

// SetSendWait implements transport.Waiter: Send never waits.
func (b *HubBind) SetSendWait(time.Duration) {}

// Send implements transport.Bind. While the stream is not open packets wait for it,
// a second at most. What is for an address of no peer is left out and counted.
func (b *HubBind) Send(lane int, msgs []transport.Message) (n int, err error) {
	b.touch()
	for i := range msgs {
		id, ok := b.cfg.PeerOf(msgs[i].Addr)
		if !ok {
			b.count.unknown.Add(1)
			continue
		}
		if b.nHeld.Load() > 0 || !b.pass(id, lane, msgs[i].Buf) {
			if !b.hold(id, lane, msgs[i].Buf) {
				return n, net.ErrClosed
			}
		}
		n++
	}
	return n, nil
}

func (b *HubBind) touch() {
	if !b.used.Load() { // mostly it is, and a write would move the cache line
		b.used.Store(true)
	}
}

// pass hands a packet to the stream.
func (b *HubBind) pass(to identity.PeerID, lane int, data []byte) bool {
	if lane < 0 || lane >= lanequeue.Lanes {
		lane = lanequeue.Lanes - 1
	}
	if !b.cfg.Stream.SendPacket(to, uint8(lane), data) { //nolint:gosec // 0 to 2
		return false
	}
	b.count.txPackets.Add(1)
	b.count.txBytes.Add(uint64(len(data)))
	return true
}

// hold keeps a copy of a packet until the stream stands.
func (b *HubBind) hold(to identity.PeerID, lane int, data []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	if _, dropped := b.held.Push(lane, heldPacket{to, append([]byte(nil), data...), time.Now()}); dropped >= 0 {
		b.count.dropped[dropped].Add(1)
	}
	b.flushLocked()
	b.startLocked()
	return true
}

// flushLocked passes on what was held, as far as the stream takes it.
func (b *HubBind) flushLocked() {
	for {
		p, lane, ok := b.held.Peek()
		if !ok {
			break
		}
		if time.Since(p.at) > maxWait {
			b.count.stale.Add(1)
		} else if !b.pass(p.to, lane, p.data) {
			break
		}
		_, _, _ = b.held.Pop()
	}
	b.nHeld.Store(int32(b.held.Len())) //nolint:gosec // at most hubQueue
}

func (b *HubBind) startLocked() {
	if b.running || b.closed {
		return
	}
	b.running = true
	ctx, cancel := context.WithCancelCause(context.Background())
	b.cancel = cancel
	b.wg.Go(func() { b.run(ctx, cancel) })
}

// run keeps the stream open until it is not used any more or ctx ends.
func (b *HubBind) run(ctx context.Context, cancel context.CancelCauseFunc) {
	defer cancel(nil)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() { b.watchIdle(ctx, cancel) })
	for failures := 0; ; {
		var since atomic.Int64 // Unix ns
		var first sync.Once
		err := b.cfg.Stream.RelayPackets(ctx, func(from identity.PeerID, packet []byte) {
			first.Do(func() {
				since.Store(time.Now().UnixNano())
				b.up()
			})
			b.arrived(from, packet)
		}, b.cfg.Gone)
		lived := time.Duration(0)
		if at := since.Load(); at != 0 {
			lived = time.Since(time.Unix(0, at))
			b.down()
		}
		if ctx.Err() != nil {
			b.ended(context.Cause(ctx))
			return
		}
		if lived >= hubSettled {
			failures = 0
		}
		b.log.Debug("hub relay stream ended", "err", err, "after", lived)
		wait := time.Duration(0)
		if failures > 0 {
			bound := min(hubBackoff<<min(failures, 16), hubBackoffMax)
			wait = bound/2 + rand.N(bound/2)
		}
		failures++
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// ended lets the next Want or Send start anew; one that came while the stream was
// being closed does so here.
func (b *HubBind) ended(why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running = false
	if errors.Is(why, errIdle) && b.used.Load() {
		b.startLocked()
	}
}

func (b *HubBind) watchIdle(ctx context.Context, cancel context.CancelCauseFunc) {
	const parts = 4
	t := time.NewTicker(b.cfg.Idle / parts)
	defer t.Stop()
	for quiet := 0; ; {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if b.used.Swap(false) {
			quiet = 0
			continue
		}
		if quiet++; quiet >= parts {
			cancel(errIdle)
			return
		}
	}
}

func (b *HubBind) up() {
	b.opened.Add(1)
	b.ready.Store(true)
	b.mu.Lock()
	closed := b.closed
	b.flushLocked()
	b.mu.Unlock()
	if !closed {
		b.cfg.State(true)
	}
}

func (b *HubBind) down() {
	b.ready.Store(false)
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if !closed {
		b.cfg.State(false)
	}
}

// arrived takes what the stream brings; the zero PeerID says that it stands.
func (b *HubBind) arrived(from identity.PeerID, packet []byte) {
	if from.IsZero() {
		return
	}
	lane, ok := laneOf(packet)
	if !ok {
		b.count.rxDropped.Add(1)
		return
	}
	addr, ok := b.cfg.AddrOf(from)
	if !ok {
		b.count.unknown.Add(1)
		return
	}
	b.touch()
	b.in.put(lane, addr, packet)
}

// Close implements transport.Bind. It ends the stream and waits for it.
func (b *HubBind) Close() error {
	b.mu.Lock()
	b.closed = true
	if b.cancel != nil {
		b.cancel(net.ErrClosed)
	}
	b.mu.Unlock()
	b.in.close()
	b.wg.Wait()
	return nil
}
