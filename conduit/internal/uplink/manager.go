// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

const (
	// settle is how long what is new waits for more of its kind: a link that comes
	// up brings addresses and routes in the same burst.
	settle = 30 * time.Millisecond
	// spacing bounds the rate of scans in a storm of events.
	spacing = 5 * time.Millisecond
	// retry is the pause after an error: of the system's events, or of a socket.
	retry = time.Second
)

// Config configures a Manager. Add and Changed are required.
type Config struct {
	// Port is the port of all sockets; 0 chooses one that is free on all.
	Port int
	// Rules tell which interfaces to use, and how.
	Rules []Rule
	// IncludeLoopback makes the loopback interface an uplink. For tests.
	IncludeLoopback bool
	// Exclude are the overlay's own prefixes.
	Exclude []netip.Prefix
	// Wait lets Start succeed without a socket; Run tries on.
	Wait bool
	// Socket is the template of all sockets: buffers and offloads. Network, Addr,
	// Port and Interface are filled in.
	Socket transport.Config
	// Logger may be nil: nothing is logged.
	Logger *slog.Logger

	// Add takes a socket over, with all that it is bound to, and returns its
	// number; negative means that it is not wanted (it is then closed here).
	Add func(b transport.Bind, u Uplink) int
	// Remove closes a socket that Add took. The manager does not do it by itself,
	// nor at its end.
	Remove func(bind int)
	// Changed gets all sockets that can be used now, best first, whenever the list
	// or something in it changed. One that is missing cannot send at the moment; it
	// may come back with the same number, when its interface has an address again.
	Changed func([]Bound)

	// listen replaces transport.Listen in tests.
	listen func(transport.Config) (transport.Bind, error)
	// system replaces the operating system in tests.
	system system
}

// system is what the manager asks of the operating system.
type system interface {
	// scan lists the interfaces and, as one with no name, what the routing table
	// chooses for a socket that is bound to nothing.
	scan() ([]link, error)
	// subscribe begins to collect events.
	subscribe() (events, error)
	// binding tells what sockets can be bound to.
	binding() binding
}

// events are changes of interfaces, addresses and routes.
type events interface {
	// wait blocks until something changed; an error means that events were lost.
	wait() error
	// close ends wait.
	close()
}

// binding is what the sockets of uplinks are bound to.
type binding uint8

const (
	byDevice binding = iota
	byAddress
	byNothing // only the fallback is used
)

// key names a socket.
type key struct {
	index int // of the interface, which a rename does not change; 0 is the fallback
	v6    bool
	addr  netip.Addr // bound to, where devices cannot be
}

// sock is an open socket.
type sock struct {
	bind  int // -1: not yet given to Add
	bound transport.Bind
}

// origin is where datagrams of an uplink and family come from.
type origin struct{ src, gw netip.Addr }

type originKey struct {
	name string
	v6   bool
}

// Manager keeps the sockets. Start is called before Run; both call the functions
// of Config from the caller's goroutine, one at a time. The other methods are safe
// for concurrent use.
type Manager struct {
	cfg  Config
	log  *slog.Logger
	poke chan struct{} // capacity 1: scan again

	// Owned by Start, then by Run.
	port     int
	mode     binding
	socks    map[key]sock
	failed   map[key]bool // could not be opened and said so
	numbers  map[string]uint8
	origins  map[originKey]origin // as Changed was told last
	reported []Bound

	mu     sync.Mutex // guards the rest
	bounds []Bound
	portMu int
}

// New validates cfg. It does no I/O.
func New(cfg Config) (*Manager, error) {
	if err := Rules(cfg.Rules).Check(); err != nil {
		return nil, err
	}
	switch {
	case cfg.Add == nil, cfg.Changed == nil, cfg.Remove == nil:
		return nil, errors.New("new uplink manager: Add, Remove and Changed are required")
	case cfg.Port < 0 || cfg.Port > 65535:
		return nil, fmt.Errorf("new uplink manager: port %d", cfg.Port)
	}
	cfg.Rules, cfg.Exclude = slices.Clone(cfg.Rules), slices.Clone(cfg.Exclude)
	for i, p := range cfg.Exclude {
		if !p.IsValid() {
			return nil, errors.New("new uplink manager: invalid prefix in Exclude")
		}
		cfg.Exclude[i] = p.Masked()
	}
	if cfg.listen == nil {
		cfg.listen = transport.Listen
	}
	if cfg.system == nil {
		cfg.system = newSystem()
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Manager{
		cfg: cfg, log: log, poke: make(chan struct{}, 1), port: cfg.Port, mode: cfg.system.binding(),
		socks: make(map[key]sock), failed: make(map[key]bool),
		numbers: make(map[string]uint8), origins: make(map[originKey]origin),
	}, nil
}

// Start opens the sockets that can be had now and calls Changed. It fails where
// not a single one can be opened, unless Wait is set.
func (m *Manager) Start(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.openFallback(); err != nil && !m.cfg.Wait {
		return err
	}
	m.reconcile(true)
	return nil
}

// Run follows the system until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	for ctx.Err() == nil {
		ev, err := m.cfg.system.subscribe()
		if err != nil {
			m.log.Warn("follow network changes", "err", err)
			m.reconcile(true)
			pause(ctx, retry)
			continue
		}
		lost := make(chan error, 1)
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if err := ev.wait(); err != nil {
					lost <- err
					return
				}
				m.Rescan()
			}
		})
		err = m.follow(ctx, lost)
		ev.close()
		wg.Wait()
		if err != nil {
			m.log.Debug("network events were lost; reading all anew", "err", err)
			pause(ctx, spacing)
		}
	}
}

// follow scans at each event, until ctx ends (nil) or events were lost. What is
// gone is acted upon at once, what is new after it settled.
func (m *Manager) follow(ctx context.Context, lost <-chan error) error {
	timer := time.NewTimer(0) // scan now: what changed before the subscription counts
	defer timer.Stop()
	due, armed := time.Now(), true
	for {
		gain := false
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return err
		case <-m.poke:
		case <-timer.C:
			gain, armed = true, false
		}
		again := m.reconcile(gain)
		if !gain && again == 0 {
			// Always once more: IPv4 routes that go with a link are not reported, and
			// may still be there now.
			again = settle
		}
		if again > 0 {
			if at := time.Now().Add(again); !armed || at.Before(due) {
				due, armed = at, true
				timer.Reset(again)
			}
		}
		if !gain {
			pause(ctx, spacing)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Rescan makes Run look at the system now: call it when a send failed with
// ENETDOWN or the like. It does not block.
func (m *Manager) Rescan() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// Bounds returns what Changed got last.
func (m *Manager) Bounds() []Bound {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.bounds)
}

// Port returns the port of all sockets; 0 before Start.
func (m *Manager) Port() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.portMu
}
