// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// fakeSystem is a system whose links the test sets.
type fakeSystem struct {
	mode binding

	mu      sync.Mutex // guards the rest
	links   []link
	scanErr error
	subs    int
	scans   int
	sub     *fakeEvents
}

type fakeEvents struct {
	c    chan error
	done chan struct{}
}

func (e *fakeEvents) wait() error {
	select {
	case err := <-e.c:
		return err
	case <-e.done:
		return net.ErrClosed
	}
}

func (e *fakeEvents) close() { close(e.done) }

func (s *fakeSystem) binding() binding { return s.mode }

func (s *fakeSystem) scan() ([]link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scans++
	return slices.Clone(s.links), s.scanErr
}

func (s *fakeSystem) subscribe() (events, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs++
	s.sub = &fakeEvents{make(chan error, 16), make(chan struct{})}
	return s.sub, nil
}

// set changes the links and says so, with an error if events were lost.
func (s *fakeSystem) set(err error, links ...link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = links
	if s.sub != nil {
		s.sub.c <- err
	}
}

// fakeBind is a port that nothing passes.
type fakeBind struct {
	transport.Bind
	cfg    transport.Config
	closed bool
}

func (b *fakeBind) LocalAddr() netip.AddrPort {
	a := netip.IPv4Unspecified()
	if b.cfg.Network == "udp6" {
		a = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(a, uint16(b.cfg.Port))
}

func (b *fakeBind) Close() error { b.closed = true; return nil }

// rig is a manager on a fake system.
type rig struct {
	*Manager
	sys   *fakeSystem
	fail  func(transport.Config) error // of listen
	binds []*fakeBind
	log   []string // calls, in order
	lists [][]Bound
	at    []time.Time
}

func newRig(t *testing.T, sys *fakeSystem, cfg Config) *rig {
	t.Helper()
	r := &rig{sys: sys}
	cfg.system = sys
	cfg.listen = func(c transport.Config) (transport.Bind, error) {
		if r.fail != nil {
			if err := r.fail(c); err != nil {
				return nil, err
			}
		}
		if c.Port == 0 {
			c.Port = 4444
		}
		return &fakeBind{cfg: c}, nil
	}
	cfg.Add = func(b transport.Bind, u Uplink) int {
		f := b.(*fakeBind)
		r.binds = append(r.binds, f)
		r.log = append(r.log, fmt.Sprintf("add %s%s %s", u.Name, f.cfg.Addr, f.cfg.Network))
		return len(r.binds) - 1
	}
	cfg.Remove = func(i int) { r.log = append(r.log, fmt.Sprintf("remove %d", i)) }
	cfg.Changed = func(l []Bound) {
		r.log = append(r.log, "changed "+names(l))
		r.lists, r.at = append(r.lists, l), append(r.at, time.Now())
	}
	var err error
	if r.Manager, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return r
}

// names lists what is in use: "wlan0", "eth0 6", "-" for the fallback, "!" moved.
func names(l []Bound) string {
	var out []string
	for _, b := range l {
		s := b.Uplink.Name
		if b.Fallback {
			s = "-"
		}
		if b.V6 {
			s += "6"
		}
		if b.Moved {
			s += "!"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func (r *rig) wantLog(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(r.log, want) {
		t.Errorf("calls:\n%q\nwant:\n%q", r.log, want)
	}
	r.log = nil
}

func testLink(name string, index int, addrs ...string) link {
	l := link{name: name, index: index, up: true}
	for _, s := range addrs {
		a := netip.MustParseAddr(s)
		l.addrs = append(l.addrs, a)
		if a.Is4() && !l.src4.IsValid() {
			l.src4 = a
		}
	}
	return l
}

var (
	eth  = testLink("eth0", 2, "192.0.2.2")
	wlan = testLink("wlan0", 3, "198.51.100.2", "2001:db8::2", "fe80::1")
)

// run starts the manager and returns when it is idle; stop ends it.
func (r *rig) run(t *testing.T) (stop func()) {
	t.Helper()
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	sleep(time.Second)
	return func() {
		cancel()
		wg.Wait()
	}
}

// sleep lets fake time pass until all is quiet.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestLossAtOnceGainSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := &fakeSystem{links: []link{{}, eth, wlan}}
		r := newRig(t, sys, Config{})
		stop := r.run(t)
		defer stop()
		r.wantLog(t, "add eth0invalid IP udp4", "add wlan0invalid IP udp4", "add wlan0invalid IP udp6", "add invalid IP udp4", "add invalid IP udp6",
			"changed eth0 wlan0 wlan06 - -6")
		if r.Port() != 4444 || r.binds[0].cfg.Interface != "eth0" || r.binds[3].cfg.Interface != "" || r.binds[0].cfg.Beside == nil {
			t.Errorf("sockets %+v", r.binds)
		}

		// A loss and a gain in one: the loss comes at once, without the gain.
		begin := time.Now()
		usb := testLink("usb0", 9, "203.0.113.2")
		down := eth
		down.up = false
		sys.set(nil, link{}, down, wlan, usb)
		sleep(time.Second)
		r.wantLog(t, "changed wlan0 wlan06 - -6", "add usb0invalid IP udp4", "changed wlan0 wlan06 usb0 - -6")
		if d := r.at[1].Sub(begin); d != 0 {
			t.Errorf("the loss was told after %v", d)
		}
		if d := r.at[2].Sub(begin); d < settle || d > 50*time.Millisecond {
			t.Errorf("the gain was told after %v", d)
		}

		// A link that is gone, and one that comes: the new one first.
		sys.set(nil, link{}, eth, usb)
		sleep(time.Second)
		r.wantLog(t, "changed usb0 - -6", "remove 1", "remove 2", "changed eth0 usb0 - -6")
		if r.lists[len(r.lists)-1][0].Bind != 0 {
			t.Error("eth0 has another socket than before")
		}

		// A burst is one change.
		n := len(r.lists)
		for i := range 10 {
			l := testLink("usb0", 9, "203.0.113.2")
			for k := range i {
				l.addrs = append(l.addrs, netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + k)}))
			}
			sys.set(nil, link{}, eth, l)
			time.Sleep(2 * time.Millisecond)
		}
		sleep(time.Second)
		if got := len(r.lists) - n; got != 1 {
			t.Errorf("a burst made %d changes", got)
		}
		if !slices.EqualFunc(r.Bounds(), r.lists[len(r.lists)-1], same) {
			t.Error("Bounds differs from what Changed got")
		}
	})
}

// A storm of events costs a scan each few milliseconds, not each event.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := &fakeSystem{links: []link{{}, eth}}
		r := newRig(t, sys, Config{})
		stop := r.run(t)
		defer stop()
		sys.mu.Lock()
		sys.scans = 0
		sys.mu.Unlock()
		for range 1000 {
			sys.set(nil, link{}, eth)
			time.Sleep(100 * time.Microsecond)
		}
		sleep(time.Second)
		sys.mu.Lock()
		defer sys.mu.Unlock()
		if most := int(100*time.Millisecond/spacing + 100*time.Millisecond/settle + 3); sys.scans > most {
			t.Errorf("%d scans for 1000 events in 100ms, want at most %d", sys.scans, most)
		}
	})
}

func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := func(l link, gw string) link { l.gw4 = netip.MustParseAddr(gw); return l }
		all := func(src string) link { return link{src4: netip.MustParseAddr(src)} }
		sys := &fakeSystem{links: []link{all("192.0.2.2"), gw(eth, "192.0.2.1")}}
		r := newRig(t, sys, Config{})
		stop := r.run(t)
		defer stop()
		for _, tt := range []struct {
			name  string
			links []link
			want  string
		}{
			{"the gateway goes", []link{all("192.0.2.2"), eth}, ""},
			{"it comes back", []link{all("192.0.2.2"), gw(eth, "192.0.2.1")}, ""},
			{"another gateway", []link{all("192.0.2.2"), gw(eth, "192.0.2.9")}, "eth0! - -6"},
			{"one more address", []link{all("192.0.2.2"), gw(testLink("eth0", 2, "192.0.2.2", "192.0.2.3"), "192.0.2.9")}, "eth0 - -6"},
			{"another source", []link{all("192.0.2.3"), gw(testLink("eth0", 2, "192.0.2.3"), "192.0.2.9")}, "eth0! -! -6"},
			{"gone", []link{{}}, "- -6"},
			{"back elsewhere", []link{all("192.0.2.7"), gw(testLink("eth0", 5, "192.0.2.7"), "192.0.2.9")}, "eth0! -! -6"},
			{"nothing", []link{all("192.0.2.7"), gw(testLink("eth0", 5, "192.0.2.7"), "192.0.2.9")}, ""},
		} {
			before := len(r.lists)
			sys.set(nil, tt.links...)
			sleep(time.Second)
			got := ""
			if len(r.lists) > before {
				got = names(r.lists[len(r.lists)-1])
			}
			if got != tt.want {
				t.Errorf("%s: changed %q, want %q", tt.name, got, tt.want)
			}
		}
	})
}

// The source counts, not the first address; only where it cannot be ours does the
// first one. The fallback tells the routing table's.
func TestSource(t *testing.T) {
	two := testLink("eth0", 2, "192.0.2.2", "192.0.2.3")
	sys := &fakeSystem{links: []link{{src4: two.addrs[1]}, two}}
	r := newRig(t, sys, Config{Exclude: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := r.Bounds()[1].Uplink.Addrs; len(a) != 1 || a[0] != two.addrs[1] {
		t.Errorf("fallback sends from %v", a)
	}
	if a := r.Bounds()[2].Uplink.Addrs; len(a) != 0 {
		t.Errorf("fallback of IPv6 sends from %v", a)
	}
	for _, tt := range []struct {
		src   string
		moved bool
	}{{"192.0.2.3", true}, {"192.0.2.3", false}, {"192.0.2.2", true}, {"100.64.0.1", false}} {
		sys.links[1].src4 = netip.MustParseAddr(tt.src)
		n := len(r.lists)
		r.reconcile(true)
		if got := len(r.lists) > n && r.lists[n][0].Moved; got != tt.moved {
			t.Errorf("source %s: moved = %v, want %v", tt.src, got, tt.moved)
		}
	}
}

// Where devices cannot be bound, addresses are; a new address is a new socket,
// opened before the old one goes.
func TestByAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := &fakeSystem{links: []link{{}, eth}}
		r := newRig(t, sys, Config{Port: 7})
		r.fail = func(c transport.Config) error {
			if c.Interface != "" {
				return &net.OpError{Op: "listen", Err: syscall.EPERM}
			}
			return nil
		}
		stop := r.run(t)
		defer stop()
		r.wantLog(t, "add eth0192.0.2.2 udp4", "add invalid IP udp4", "add invalid IP udp6", "changed eth0 - -6")
		sys.set(nil, link{}, testLink("eth0", 2, "192.0.2.3"))
		sleep(time.Second)
		r.wantLog(t, "changed - -6", "remove 0", "add eth0192.0.2.3 udp4", "changed eth0! - -6")
	})
}

func TestFallbackOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := &fakeSystem{mode: byNothing, links: []link{{}, eth}}
		r := newRig(t, sys, Config{})
		stop := r.run(t)
		defer stop()
		r.wantLog(t, "add invalid IP udp4", "add invalid IP udp6", "changed - -6")
	})
}

// Lost events, a failing scan and a failing socket heal by themselves.
func TestErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := &fakeSystem{links: []link{{}, eth}}
		r := newRig(t, sys, Config{})
		bad := true
		r.fail = func(c transport.Config) error {
			if bad && c.Interface == "wlan0" {
				return syscall.ENODEV
			}
			return nil
		}
		stop := r.run(t)
		defer stop()
		sys.set(syscall.ENOBUFS, link{}, eth, wlan)
		sleep(time.Second)
		if sys.subs != 2 {
			t.Errorf("%d subscriptions, want a second one", sys.subs)
		}
		if names(r.Bounds()) != "eth0 - -6" {
			t.Errorf("in use: %s", names(r.Bounds()))
		}
		if len(r.failed) != 2 {
			t.Errorf("failures remembered: %v", r.failed)
		}
		sys.set(nil, link{}, eth)
		sleep(time.Second)
		if len(r.failed) != 0 {
			t.Errorf("failures of a gone interface remembered: %v", r.failed)
		}
		sys.set(nil, link{}, eth, wlan)
		sys.mu.Lock()
		sys.scanErr = errors.New("scan")
		bad = false
		sys.mu.Unlock()
		sleep(2 * time.Second)
		sys.mu.Lock()
		sys.scanErr = nil
		sys.mu.Unlock()
		sleep(2 * time.Second)
		if names(r.Bounds()) != "eth0 wlan0 wlan06 - -6" {
			t.Errorf("in use: %s", names(r.Bounds()))
		}
	})
}

func TestPortInUse(t *testing.T) {
	inUse := func(network string) func(transport.Config) error {
		return func(c transport.Config) error {
			if c.Network == network {
				return syscall.EADDRINUSE
			}
			return nil
		}
	}
	for _, network := range []string{"udp4", "udp6"} {
		r := newRig(t, &fakeSystem{}, Config{Port: 7})
		r.fail = inUse(network)
		if err := r.Start(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s in use: %v", network, err)
		}
		r.wantLog(t)
		r = newRig(t, &fakeSystem{}, Config{Port: 7, Wait: true})
		r.fail = inUse(network)
		if err := r.Start(t.Context()); err != nil {
			t.Errorf("Wait: %v", err)
		}
		r.fail = nil
		r.reconcile(true)
	}
	r := newRig(t, &fakeSystem{links: []link{{}, wlan}}, Config{Port: 7})
	r.fail = func(c transport.Config) error {
		if c.Network == "udp6" {
			return syscall.EAFNOSUPPORT
		}
		return nil
	}
	if err := r.Start(t.Context()); err != nil {
		t.Errorf("no IPv6: %v", err)
	}
	if got := names(r.Bounds()); got != "wlan0 -" {
		t.Errorf("without IPv6 in use: %q", got)
	}
}

func TestNumbers(t *testing.T) {
	sys := &fakeSystem{links: []link{{}}}
	r := newRig(t, sys, Config{})
	_ = r.Start(t.Context())
	for i := range 300 {
		name := fmt.Sprintf("ppp%d", i)
		sys.links = []link{{}, testLink(name, 10+i, "192.0.2.2")}
		r.reconcile(true)
		want := uint8(0)
		if i < 255 {
			want = uint8(i + 1)
		}
		if got := r.Bounds()[0].Uplink.Number; got != want {
			t.Fatalf("%s has number %d, want %d", name, got, want)
		}
	}
	sys.links = []link{{}, testLink("ppp7", 999, "192.0.2.2")}
	r.reconcile(true)
	if got := r.Bounds()[0].Uplink.Number; got != 8 {
		t.Errorf("ppp7 came back with number %d, want 8", got)
	}
}

func TestNew(t *testing.T) {
	add, remove, changed := func(transport.Bind, Uplink) int { return 0 }, func(int) {}, func([]Bound) {}
	for name, cfg := range map[string]Config{
		"no functions": {},
		"port":         {Add: add, Remove: remove, Changed: changed, Port: 70000},
		"prefix":       {Add: add, Remove: remove, Changed: changed, Exclude: []netip.Prefix{{}}},
		"pattern":      {Add: add, Remove: remove, Changed: changed, Rules: []Rule{{Name: "[a"}}},
		"empty name":   {Add: add, Remove: remove, Changed: changed, Rules: []Rule{{}}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
