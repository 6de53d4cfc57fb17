// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

const (
	// maxAllocations bounds the uplinks that get one: the hub grants four, and each is
	// replaced before it ends.
	maxAllocations = 3
	// turnIdle is how long allocations stay when nobody wants them any more.
	turnIdle = 60 * time.Second
	// allocateTime bounds one try.
	allocateTime = 10 * time.Second
	// renewBefore is how long before its credentials end an allocation is replaced.
	renewBefore = 10 * time.Minute
	// overlap is how long the replaced one stays, for what is on the way to it.
	overlap = 10 * time.Second
	// fullEvery is how often an allocation may be replaced because it is full.
	fullEvery = 10 * time.Minute

	turnBackoff     = time.Second
	turnBackoffMost = time.Minute
	// turnSettled is the age of an allocation after whose loss the next try is made at
	// once.
	turnSettled = 10 * time.Second
)

// TurnUplink is an uplink that may have an allocation.
type TurnUplink struct {
	// Name is the interface's, to which the socket is bound; empty binds to none.
	Name string
	// Number is handed to TurnsConfig.Add.
	Number uint8
	// Local is the address to bind to; the zero value leaves it open. An uplink whose
	// address changes gets a new allocation.
	Local netip.Addr
}

// TurnsConfig is what Turns needs. The functions are called from Run's goroutine,
// one at a time, but Servers and Lookup.
type TurnsConfig struct {
	// Servers returns TURN servers with fresh credentials, best first. Required.
	Servers func(context.Context) ([]TurnServer, error)
	// Add hands a new allocation over, and Remove takes it back by the number that Add
	// returned. Whoever has it closes it in Remove. Required.
	Add    func(b transport.Bind, relayed netip.AddrPort, uplink uint8) int
	Remove func(bind int)
	// Lookup resolves the name of a server; nil means net.DefaultResolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Idle is how long allocations stay unwanted; zero means 60 s.
	Idle time.Duration
	// Logger nil discards.
	Logger *slog.Logger

	dial func(context.Context, TurnConfig) (turnBind, error) // nil: DialTurn
}

// turnBind is a TurnBind, or in tests something like it.
type turnBind interface {
	transport.Bind
	RelayedAddr() netip.AddrPort
}

// Turns keeps at most one allocation per uplink while they are wanted. Its methods
// are safe for concurrent use.
type Turns struct {
	cfg  TurnsConfig // set once in NewTurns
	log  *slog.Logger
	news chan struct{} // holds a token where there is something to do

	mu      sync.Mutex // guards the following
	wanted  bool
	retry   bool
	ended   bool
	uplinks []TurnUplink
	status  []TurnStatus
	todo    []func(time.Time) // for Run's goroutine

	// Owned by Run.
	ctx       context.Context // Run's
	slots     map[TurnUplink]*slot
	leaving   []leaving
	idleSince time.Time
	wg        sync.WaitGroup
}

// TurnStatus is one allocation.
type TurnStatus struct {
	Uplink  TurnUplink
	Bind    int
	Server  string
	Relayed netip.AddrPort
}

// slot is the allocation of an uplink.
type slot struct {
	got      *attempt  // nil: none
	index    int       // of Add
	since    time.Time // when got came
	renewAt  time.Time // zero: never
	fullAt   time.Time
	cancel   context.CancelFunc // of the try under way, else nil
	failures int
	retryAt  time.Time
	gone     bool
}

// leaving is a replaced allocation.
type leaving struct {
	index int
	at    time.Time
}

// NewTurns checks cfg.
func NewTurns(cfg TurnsConfig) (*Turns, error) {
	if cfg.Servers == nil || cfg.Add == nil || cfg.Remove == nil {
		return nil, errors.New("TURN: Servers, Add and Remove are required")
	}
	if cfg.Idle <= 0 {
		cfg.Idle = turnIdle
	}
	if cfg.Lookup == nil {
		cfg.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
		}
	}
	if cfg.dial == nil {
		cfg.dial = func(ctx context.Context, c TurnConfig) (turnBind, error) { return DialTurn(ctx, c) }
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Turns{
		cfg: cfg, log: log, news: make(chan struct{}, 1), slots: make(map[TurnUplink]*slot),
	}, nil
}

// Want says whether allocations are needed. They are made at once, and given back
// when they were not wanted for TurnsConfig.Idle. It does not wait.
func (t *Turns) Want(on bool) {
	t.mu.Lock()
	news := t.wanted != on
	t.wanted = on
	t.mu.Unlock()
	if news {
		t.rouse()
	}
}

// SetUplinks replaces the uplinks. The first three get allocations. It does not wait.
func (t *Turns) SetUplinks(u []TurnUplink) {
	t.mu.Lock()
	news := !slices.Equal(t.uplinks, u)
	t.uplinks = slices.Clone(u)
	t.mu.Unlock()
	if news {
		t.rouse()
	}
}

// Retry tries again at once where it waits after a failure, because the hub is back.
func (t *Turns) Retry() {
	t.mu.Lock()
	t.retry = true
	t.mu.Unlock()
	t.rouse()
}

// Status returns the allocations there are.
func (t *Turns) Status() []TurnStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.status)
}

func (t *Turns) rouse() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// later runs f in Run's goroutine, unless Run has ended.
func (t *Turns) later(f func(time.Time)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	t.todo = append(t.todo, f)
	t.rouse()
	return true
}

// doNow does what was put off, and forgets failures where that was asked for.
func (t *Turns) doNow() {
	t.mu.Lock()
	todo, retry := t.todo, t.retry
	t.todo, t.retry = nil, false
	t.mu.Unlock()
	for _, f := range todo {
		f(time.Now())
	}
	for _, s := range t.slots {
		if retry {
			s.retryAt = time.Time{}
		}
	}
}

// Run does the work until ctx ends, then removes all allocations and returns. It
// runs once.
func (t *Turns) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	t.ctx = ctx
	defer func() {
		cancel()
		for _, s := range t.slots {
			t.drop(s)
		}
		for _, l := range t.leaving {
			t.cfg.Remove(l.index)
		}
		clear(t.slots)
		t.leaving = nil
		t.mu.Lock()
		t.ended = true
		t.mu.Unlock()
		t.doNow() // ends what came too late
		t.publish()
		t.wg.Wait()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.news:
		case <-timer.C:
		}
		t.doNow()
		if next := t.step(time.Now()); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

// step brings what is there to what should be, and returns when to look again.
func (t *Turns) step(now time.Time) (next time.Time) {
	soonest := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	t.mu.Lock()
	wanted, uplinks := t.wanted, t.uplinks[:min(len(t.uplinks), maxAllocations)]
	t.mu.Unlock()
	for u, s := range t.slots {
		if !slices.Contains(uplinks, u) {
			t.drop(s)
			delete(t.slots, u)
		}
	}
	switch {
	case wanted:
		t.idleSince = time.Time{}
	case t.idleSince.IsZero():
		t.idleSince = now
	}
	if end := t.idleSince.Add(t.cfg.Idle); !wanted {
		if now.Before(end) {
			if len(t.slots) > 0 {
				soonest(end)
			}
		} else {
			for u, s := range t.slots {
				t.drop(s)
				delete(t.slots, u)
			}
		}
	}
	if wanted {
		for _, u := range uplinks {
			s := t.slots[u]
			if s == nil {
				s = &slot{}
				t.slots[u] = s
			}
			due := s.retryAt
			if s.got != nil && s.renewAt.After(due) {
				due = s.renewAt
			}
			switch {
			case s.cancel != nil, s.got != nil && s.renewAt.IsZero():
			case now.Before(due):
				soonest(due)
			default:
				t.allocate(u, s)
			}
		}
	}
	t.leaving = slices.DeleteFunc(t.leaving, func(l leaving) bool {
		if now.Before(l.at) {
			soonest(l.at)
			return false
		}
		t.cfg.Remove(l.index)
		return true
	})
	t.publish()
	return next
}

func (t *Turns) publish() {
	var out []TurnStatus
	for u, s := range t.slots {
		if s.got != nil {
			out = append(out, TurnStatus{u, s.index, s.got.server.URL, s.got.bind.RelayedAddr()})
		}
	}
	slices.SortFunc(out, func(a, b TurnStatus) int { return a.Bind - b.Bind })
	t.mu.Lock()
	t.status = out
	t.mu.Unlock()
}

// drop ends a slot.
func (t *Turns) drop(s *slot) {
	s.gone = true
	if s.cancel != nil {
		s.cancel()
	}
	if s.got != nil {
		s.got = nil
		t.cfg.Remove(s.index)
	}
}

// attempt is a try and what came of it.
type attempt struct {
	bind   turnBind
	server TurnServer
	err    error
	lost   bool // owned by Run
}

// allocate starts a try.
func (t *Turns) allocate(u TurnUplink, s *slot) {
	ctx, cancel := context.WithTimeout(t.ctx, allocateTime)
	s.cancel = cancel
	t.wg.Go(func() {
		defer cancel()
		a := &attempt{}
		a.bind, a.server, a.err = t.try(ctx, u, func(err error) {
			t.later(func(now time.Time) { t.lost(s, a, err, now) })
		})
		taken := t.later(func(now time.Time) { t.tried(u, s, a, now) })
		if !taken && a.bind != nil {
			_ = a.bind.Close()
		}
	})
}

// tried takes the outcome of a try over.
func (t *Turns) tried(u TurnUplink, s *slot, a *attempt, now time.Time) {
	s.cancel = nil
	if s.gone || a.err == nil && a.lost {
		if a.bind != nil {
			t.wg.Go(func() { _ = a.bind.Close() })
		}
		s.failed(now)
		return
	}
	if a.err != nil {
		if s.failed(now); s.failures == 1 {
			t.log.Info("no TURN allocation", "interface", u.Name, "err", a.err)
		}
		return
	}
	if s.got != nil {
		t.leaving = append(t.leaving, leaving{s.index, now.Add(overlap)})
	}
	s.got, s.since, s.renewAt = a, now, renewal(a.server, now)
	s.index = t.cfg.Add(a.bind, a.bind.RelayedAddr(), u.Number)
	t.log.Info("TURN allocation", "interface", u.Name, "server", a.server.URL, "relayed", a.bind.RelayedAddr())
}

// renewal is when an allocation must be replaced: it cannot outlive its credentials.
func renewal(server TurnServer, now time.Time) time.Time {
	if server.Expires.IsZero() {
		return time.Time{}
	}
	left := server.Expires.Sub(now)
	return now.Add(max(left-renewBefore, left/2, time.Second))
}

// lost handles an allocation that is of no use any more.
func (t *Turns) lost(s *slot, a *attempt, err error, now time.Time) {
	full := errors.Is(err, errTurnFull)
	a.lost = !full
	if s.gone || s.got != a {
		return
	}
	if full {
		// It serves the peers that it has until the next one is there.
		if now.Sub(s.fullAt) >= fullEvery {
			s.fullAt, s.renewAt = now, now
		}
		return
	}
	s.got = nil
	t.cfg.Remove(s.index)
	if now.Sub(s.since) >= turnSettled {
		s.failures, s.retryAt = 0, time.Time{}
	} else {
		s.failed(now)
	}
}

// failed puts the next try off.
func (s *slot) failed(now time.Time) {
	bound := min(turnBackoff<<min(s.failures, 16), turnBackoffMost)
	s.failures++
	s.retryAt = now.Add(bound/2 + rand.N(bound/2))
}
