// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// fakeTurn is an allocation without a server.
type fakeTurn struct {
	*PeerBind

	cfg     TurnConfig
	relayed netip.AddrPort
}

func (f *fakeTurn) RelayedAddr() netip.AddrPort { return f.relayed }

// turnLab is what Turns deals with.
type turnLab struct {
	mu    sync.Mutex // guards the following
	fail  error
	dials int
	early bool              // the next allocation is lost before it is handed over
	binds map[int]*fakeTurn // by index
	n     int
	log   []string
}

func startTurns(t *testing.T, life time.Duration) (*Turns, *turnLab) {
	t.Helper()
	l := &turnLab{binds: make(map[int]*fakeTurn)}
	turns, err := NewTurns(TurnsConfig{
		Servers: func(context.Context) ([]TurnServer, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			s := TurnServer{URL: "turn:hub.example", Username: "u", Password: "p"}
			if life > 0 {
				s.Expires = time.Now().Add(life)
			}
			return []TurnServer{{URL: "turns:hub.example"}, s}, l.fail
		},
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}, nil
		},
		Add: func(b transport.Bind, relayed netip.AddrPort, uplink uint8) int {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.n++
			l.binds[l.n] = b.(*fakeTurn)
			l.log = append(l.log, fmt.Sprintf("add %d uplink %d %v", l.n, uplink, relayed))
			return l.n
		},
		Remove: func(bind int) {
			l.mu.Lock()
			defer l.mu.Unlock()
			_ = l.binds[bind].Close()
			delete(l.binds, bind)
			l.log = append(l.log, fmt.Sprintf("remove %d", bind))
		},
		dial: func(ctx context.Context, c TurnConfig) (turnBind, error) {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.dials++
			if l.fail != nil || c.Server != netip.MustParseAddrPort("192.0.2.1:3478") {
				return nil, errors.New("no server")
			}
			if l.early {
				l.early = false
				c.Lost(errTurnSilent)
			}
			return &fakeTurn{NewPeer(virtual(1), nil), c, netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(l.dials))}, nil //nolint:gosec // a port
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); turns.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.binds) > 0 || len(turns.Status()) > 0 {
			t.Errorf("%d binds are left", len(l.binds))
		}
	})
	return turns, l
}

// take returns what happened since, and how often it was dialled in all.
func (l *turnLab) take() (log []string, dials int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	log, l.log = l.log, nil
	return log, l.dials
}

func (l *turnLab) only(t *testing.T) *fakeTurn {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Collect(maps.Values(l.binds))
	if len(all) != 1 {
		t.Fatalf("%d binds, want 1", len(all))
	}
	return all[0]
}

func (l *turnLab) want(t *testing.T, what string, log ...string) {
	t.Helper()
	got, _ := l.take()
	if diff := cmp.Diff(log, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

var wlan = TurnUplink{Name: "wlan0", Number: 1}

func TestTurnsWhileWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, l := startTurns(t, 0)
		turns.SetUplinks([]TurnUplink{wlan, {Name: "wwan0", Number: 2}, {Name: "a"}, {Name: "b"}})
		time.Sleep(time.Minute)
		l.want(t, "unwanted")
		turns.Want(true)
		time.Sleep(time.Second)
		if log, dials := l.take(); len(log) != maxAllocations || dials != maxAllocations || len(turns.Status()) != maxAllocations {
			t.Errorf("wanted: %q, %d dials, status %v", log, dials, turns.Status())
		}
		turns.SetUplinks([]TurnUplink{wlan})
		time.Sleep(time.Second)
		if log, _ := l.take(); len(log) != 2 || l.only(t).cfg.Interface != "wlan0" {
			t.Errorf("one uplink: %q", log)
		}
		moved := wlan
		moved.Local = netip.MustParseAddr("10.0.0.1")
		turns.SetUplinks([]TurnUplink{moved})
		time.Sleep(time.Second)
		if log, _ := l.take(); len(log) != 2 || l.only(t).cfg.Local != moved.Local {
			t.Errorf("another address: %q", log)
		}
		turns.Want(false)
		time.Sleep(59 * time.Second)
		turns.Want(true)
		time.Sleep(time.Minute)
		turns.Want(false)
		time.Sleep(59 * time.Second)
		l.want(t, "before it is idle")
		time.Sleep(2 * time.Second)
		l.want(t, "idle", "remove 4")
	})
}

func TestTurnsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, l := startTurns(t, 0)
		l.fail = errors.New("no hub")
		turns.SetUplinks([]TurnUplink{wlan})
		turns.Want(true)
		time.Sleep(time.Minute)
		l.mu.Lock()
		l.fail = nil
		l.mu.Unlock()
		l.want(t, "no server")
		turns.Retry()
		time.Sleep(time.Second)
		l.want(t, "the hub is back", "add 1 uplink 1 198.51.100.1:1")
	})
}

func TestTurnsBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, l := startTurns(t, 0)
		turns.SetUplinks([]TurnUplink{wlan})
		turns.Want(true)
		for range 600 { // each allocation is lost at once
			time.Sleep(500 * time.Millisecond)
			l.mu.Lock()
			var all []*fakeTurn
			for _, b := range l.binds {
				all = append(all, b)
			}
			l.mu.Unlock()
			for _, b := range all {
				b.cfg.Lost(errTurnSilent)
			}
		}
		if _, dials := l.take(); dials < 7 || dials > 20 {
			t.Errorf("dialled %d times in five minutes", dials)
		}
	})
}

func TestTurnsLostAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, l := startTurns(t, 0)
		l.early = true
		turns.SetUplinks([]TurnUplink{wlan})
		turns.Want(true)
		time.Sleep(5 * time.Second)
		l.want(t, "the second", "add 1 uplink 1 198.51.100.1:2")
	})
}

func TestTurnsReplacesALost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, l := startTurns(t, 0)
		turns.SetUplinks([]TurnUplink{wlan})
		turns.Want(true)
		time.Sleep(time.Minute)
		first := l.only(t)
		l.take()
		first.cfg.Lost(errTurnSilent)
		time.Sleep(200 * time.Millisecond)
		l.want(t, "lost", "remove 1", "add 2 uplink 1 198.51.100.1:2")
		first.cfg.Lost(errTurnSilent) // of one that is gone
		time.Sleep(time.Second)
		l.want(t, "nothing")
		l.only(t).cfg.Lost(fmt.Errorf("wrapped: %w", errTurnFull))
		time.Sleep(9 * time.Second)
		l.want(t, "full", "add 3 uplink 1 198.51.100.1:3")
		time.Sleep(2 * time.Second)
		l.want(t, "what was full", "remove 2")
		l.only(t).cfg.Lost(errTurnFull)
		time.Sleep(time.Minute)
		l.want(t, "full again too soon")
	})
}

func TestTurnsRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, l := startTurns(t, 12*time.Hour)
		turns.SetUplinks([]TurnUplink{wlan})
		turns.Want(true)
		time.Sleep(11 * time.Hour)
		l.want(t, "first", "add 1 uplink 1 198.51.100.1:1")
		time.Sleep(51 * time.Minute)
		l.want(t, "before the credentials end, make before break", "add 2 uplink 1 198.51.100.1:2", "remove 1")
	})
}

func TestTurnsEndsInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, l := startTurns(t, 0)
		turns.SetUplinks([]TurnUplink{wlan})
		turns.Want(true)
		time.Sleep(50 * time.Millisecond)
		turns.SetUplinks(nil)
		time.Sleep(time.Second)
		l.want(t, "the uplink went while it was dialled")
		turns.SetUplinks([]TurnUplink{wlan})
		time.Sleep(50 * time.Millisecond)
	})
}
