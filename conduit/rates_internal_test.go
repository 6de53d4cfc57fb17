// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"math"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/snapshot"
	"github.com/bauxite-mesh/bauxite/conduit/internal/uplink"
)

var (
	ratePeer = identity.PeerID{7}
	ratePath = dataplane.Path{Bind: 3, Remote: netip.MustParseAddrPort("198.51.100.7:4000")}
	rateWant = rateKey{ratePeer, "wlan0", netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24")}
)

// boundTo is the socket of ratePath, of an interface with some addresses.
func boundTo(rate uint64, addrs ...string) []uplink.Bound {
	b := uplink.Bound{Bind: ratePath.Bind, V4: true, Uplink: uplink.Uplink{Name: "wlan0", Number: 1, Rule: uplink.Rule{Rate: rate}}}
	for _, a := range addrs {
		b.Uplink.Addrs = append(b.Uplink.Addrs, netip.MustParseAddr(a))
	}
	return []uplink.Bound{b}
}

// fakePace is a strategy that says what the test wants.
type fakePace struct {
	congestion.Strategy
	st      congestion.State
	initial float64
	heard   int
	beside  float64
}

func (f *fakePace) Report(time.Duration, *congestion.Report) { f.heard++ }
func (f *fakePace) State(time.Duration) congestion.State     { return f.st }
func (f *fakePace) Beside(total float64)                     { f.beside = total }
func (f *fakePace) Tick(time.Duration, int) int              { return 0 }

func steady(rate float64) congestion.State { return congestion.State{Rate: rate} }

func (m *rates) knows(k rateKey) (rate float64, there bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.known[k]; e != nil {
		return e.rate, true
	}
	return 0, false
}

// paced is ratePath with a strategy of m; made are its fakes, the newest last.
func paced(m *rates) (s congestion.Strategy, made *[]*fakePace) {
	made = new([]*fakePace)
	return m.remember(ratePeer, ratePath, func(initial float64) congestion.Strategy {
		f := &fakePace{initial: initial, st: congestion.State{Rate: 250e3, Startup: true}}
		*made = append(*made, f)
		return f
	}), made
}

func TestRateKey(t *testing.T) {
	v6 := dataplane.Path{Bind: 3, Remote: netip.MustParseAddrPort("[2001:db8:1:2:3::7]:4000")}
	both := boundTo(8e6, "2001:db8:9:9::1", "192.0.2.77", "203.0.113.1")
	for name, tc := range map[string]struct {
		list   []uplink.Bound
		path   dataplane.Path
		before string
		want   rateKey
		limit  float64
		ok     bool
	}{
		"v4":       {both, ratePath, "", rateWant, 1e6, true},
		"v6":       {both, v6, "", rateKey{ratePeer, "wlan0", netip.MustParsePrefix("2001:db8:9:9::/64"), netip.MustParsePrefix("2001:db8:1:2::/64")}, 1e6, true},
		"Kept":     {both, ratePath, "203.0.113.0/24", rateKey{ratePeer, "wlan0", netip.MustParsePrefix("203.0.113.0/24"), rateWant.remote}, 1e6, true},
		"Gone":     {both, ratePath, "203.0.114.0/24", rateWant, 1e6, true},
		"NoFamily": {boundTo(0, "2001:db8:9:9::1"), ratePath, "", rateKey{}, 0, false},
		"NoAddr":   {boundTo(0), ratePath, "", rateKey{}, 0, false},
		"Relay":    {both, dataplane.Path{Bind: 4, Remote: ratePath.Remote}, "", rateKey{}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			var m rates
			if _, _, ok := m.find(ratePeer, tc.path, rateKey{}); ok {
				t.Error("a key before anything is known of sockets")
			}
			m.setNetworks(tc.list)
			var before rateKey
			if tc.before != "" {
				before.network = netip.MustParsePrefix(tc.before)
			}
			k, limit, ok := m.find(ratePeer, tc.path, before)
			if ok != tc.ok || ok && (k != tc.want || limit != tc.limit) {
				t.Errorf("find = %v, %v, %v; want %v, %v, %v", k, limit, ok, tc.want, tc.limit, tc.ok)
			}
		})
	}
}

func TestRateStart(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		known, limit float64
		age          time.Duration
		want         float64
	}{
		"Nothing":       {0, 0, 0, 0},
		"Half":          {4e6, 0, time.Hour, 2e6},
		"Week":          {4e6, 0, rateAge, 2e6},
		"Old":           {4e6, 0, rateAge + 1, 0},
		"ClockWasAhead": {4e6, 0, -time.Hour, 2e6},
		"NotSlower":     {400e3, 0, 0, usualStart},
		"Slow":          {100e3, 0, 0, 100e3},
		"Limit":         {4e6, 1e6, 0, 1e6},
		"LimitAbove":    {4e6, 9e6, 0, 2e6},
		"LimitAlone":    {0, 100e3, 0, 100e3},
		"LimitNoMatter": {0, 9e6, 0, usualStart},
	} {
		t.Run(name, func(t *testing.T) {
			var m rates
			if tc.known > 0 {
				m.note(rateWant, tc.known, now.Add(-tc.age))
			}
			if got := m.start(rateWant, tc.limit, now); got != tc.want {
				t.Errorf("start = %v, want %v", got, tc.want)
			}
		})
	}
}

// TestRatesBounded: the oldest goes.
func TestRatesBounded(t *testing.T) {
	now := time.Now()
	var m rates
	key := func(i int) rateKey {
		k := rateWant
		k.peer[1], k.peer[2] = byte(i>>8), byte(i)
		return k
	}
	for i := range snapshot.MaxRates {
		m.note(key(i), 1e6, now.Add(time.Duration(i)*time.Second))
	}
	m.note(key(0), 1e6, now.Add(time.Hour)) // no longer the oldest
	m.note(key(9999), 1e6, now.Add(time.Hour))
	list := m.take(now.Add(time.Hour))
	if _, there := m.knows(key(1)); there || len(list) != snapshot.MaxRates {
		t.Errorf("%d rates, the oldest is there: %v", len(list), there)
	}
	for _, i := range []int{0, 2, 9999} {
		if _, there := m.knows(key(i)); !there {
			t.Errorf("rate %d is gone", i)
		}
	}
	if list := m.take(now.Add(rateAge + 100*time.Second)); len(list) != snapshot.MaxRates-98 {
		t.Errorf("%d rates a week later", len(list)) // those of the first 100 seconds but two are too old
	}
}

// TestRatesKept: what take says, restore knows.
func TestRatesKept(t *testing.T) {
	now := time.Now()
	var a, b rates
	a.note(rateWant, 4e6, now)
	list := a.take(now)
	want := []snapshot.Rate{{Peer: ratePeer, Uplink: "wlan0", Network: rateWant.network, Remote: rateWant.remote, Rate: 4e6, At: now.Round(0)}}
	if d := cmp.Diff(want, list, cmpopts.EquateComparable(netip.Prefix{}, time.Time{})); d != "" {
		t.Errorf("take (-want +got):\n%s", d)
	}
	b.restore(append(list, snapshot.Rate{Uplink: "huge", Rate: math.MaxUint64, At: now}))
	if got := b.start(rateWant, 0, now); got != 2e6 {
		t.Errorf("starts at %v", got)
	}
	if got := b.start(rateKey{uplink: "huge"}, 0, now); got != enoughRate/2 {
		t.Errorf("starts at %v after a rate that no path has", got)
	}
}

// TestRateNoted: only a rate that is steady is remembered, no more often than it
// changes, and as a mean that falls faster than it rises.
func TestRateNoted(t *testing.T) {
	told := 0
	m := &rates{changed: func() { told++ }}
	m.setNetworks(boundTo(0, "192.0.2.7"))
	s, made := paced(m)
	f := (*made)[0]
	at := time.Duration(0)
	report := func(after time.Duration, st congestion.State) {
		at += after
		f.st = st
		s.Report(at, new(congestion.Report))
	}
	for _, st := range []congestion.State{
		{Rate: 9e6, Startup: true}, {Rate: 9e6, Draining: true}, {Rate: 9e6, Competing: true},
	} {
		report(time.Second, st)
	}
	if got, there := m.knows(rateWant); there {
		t.Fatalf("%v is remembered", got)
	}
	report(0, steady(4e6))
	report(noteEvery/2, steady(8e6)) // too soon
	if got, _ := m.knows(rateWant); got != 4e6 || told != 1 || f.heard != 5 {
		t.Fatalf("%v is remembered after %d reports, the file was asked for %d times", got, f.heard, told)
	}
	report(noteEvery/2, steady(10e6)) // 1 s of a minute
	if got, _ := m.knows(rateWant); got != 4.1e6 || told != 1 {
		t.Errorf("%v is remembered, the file was asked for %d times", got, told)
	}
	report(noteEvery, steady(3.1e6)) // 1 s of ten
	if got, _ := m.knows(rateWant); got != 4e6 || told != 1 {
		t.Errorf("%v is remembered, the file was asked for %d times", got, told)
	}
	report(fallOver, steady(1e6))
	if got, _ := m.knows(rateWant); got != 1e6 || told != 2 {
		t.Errorf("%v is remembered, the file was asked for %d times", got, told)
	}
	report(riseOver, steady(congestion.MaxRate)) // no limit was found
	if got, _ := m.knows(rateWant); got != enoughRate {
		t.Errorf("%v is remembered", got)
	}
}

// TestRateOfRelay: nothing is remembered of a path without a network.
func TestRateOfRelay(t *testing.T) {
	var m rates
	s, made := paced(&m)
	(*made)[0].st = steady(4e6)
	s.Report(1, new(congestion.Report))
	if len(m.take(time.Now())) != 0 || (*made)[0].initial != 0 {
		t.Error("a rate is remembered")
	}
	m.setNetworks(boundTo(0, "192.0.2.7")) // which the path was on all the while
	s.Report(2, new(congestion.Report))
	if got, _ := m.knows(rateWant); got != 4e6 || len(*made) != 1 {
		t.Errorf("%v is remembered, %d strategies", got, len(*made))
	}
}

// TestRateRoams: an uplink that comes to another network begins anew there, and with
// half of what it measured where it was before. Without a change of network a
// strategy stays.
func TestRateRoams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m rates
		m.setNetworks(boundTo(0, "192.0.2.7"))
		s, made := paced(&m)
		(*made)[0].st = steady(4e6)
		s.Report(time.Second, new(congestion.Report))
		for _, addrs := range [][]string{{"192.0.2.99"}, {}, {"203.0.113.1", "192.0.2.99"}} {
			m.setNetworks(boundTo(0, addrs...))
			s.Tick(2*time.Second, 0)
			if len(*made) != 1 {
				t.Fatalf("a new strategy at %v", addrs)
			}
		}
		m.setNetworks(boundTo(0, "203.0.113.1"))
		s.Tick(3*time.Second, 0)
		if len(*made) != 2 || (*made)[1].initial != 0 {
			t.Fatalf("%d strategies; begins with %v in a new network", len(*made), (*made)[len(*made)-1].initial)
		}
		(*made)[1].st = steady(1e6)
		s.Report(4*time.Second, new(congestion.Report))
		second := rateWant
		second.network = netip.MustParsePrefix("203.0.113.0/24")
		if got, _ := m.knows(second); got != 1e6 {
			t.Errorf("%v is remembered of the second network", got)
		}
		time.Sleep(time.Hour)
		m.setNetworks(boundTo(0, "192.0.2.7"))
		s.Report(time.Hour, new(congestion.Report))
		if len(*made) != 3 || (*made)[2].initial != 2e6 || (*made)[2].heard != 1 {
			t.Fatalf("%d strategies; begins with %v in the network of before", len(*made), (*made)[len(*made)-1].initial)
		}
		if got, _ := m.knows(rateWant); got != 4e6 {
			t.Errorf("%v is remembered of the first network", got)
		}
		time.Sleep(rateAge)
		m.setNetworks(boundTo(0, "203.0.113.1"))
		s.Tick(2*time.Hour, 0)
		if got := (*made)[3].initial; got != 0 {
			t.Errorf("begins with %v after more than a week", got)
		}
	})
}

// TestRateHelps: DelayRate begins with what is remembered, still looking for the rate.
func TestRateHelps(t *testing.T) {
	n := &Node{cfg: &Config{}}
	n.rates.setNetworks(boundTo(0, "192.0.2.7"))
	to := &dataplane.Peer{ID: ratePeer}
	if st := n.strategy(to, ratePath).State(0); st.Rate != usualStart || !st.Startup {
		t.Errorf("begins with %+v", st)
	}
	n.rates.note(rateWant, 8e6, time.Now())
	if st := n.strategy(to, ratePath).State(0); st.Rate != 4e6 || !st.Startup || st.Name != "delay-rate" {
		t.Errorf("begins with %+v", st)
	}
	n.cfg.Pacing = Pacing{Strategy: StrategyFixed, Rate: 8e6}
	if st := n.strategy(to, ratePath).State(0); st.Rate != 1e6 {
		t.Errorf("fixed begins with %+v", st)
	}
}

// TestRateHidesNothing: what the lanes can ask DelayRate for they can ask its wrapper.
func TestRateHidesNothing(t *testing.T) {
	outer := reflect.TypeFor[*remembering]()
	for m := range reflect.TypeFor[*congestion.DelayRate]().Methods() {
		if _, ok := outer.MethodByName(m.Name); !ok {
			t.Errorf("%s is hidden", m.Name)
		}
	}
	var r rates
	s, made := paced(&r)
	s.(congestion.Sharer).Beside(5)
	if (*made)[0].beside != 5 {
		t.Error("Beside is not passed on")
	}
}

// TestReportAllocs: what is remembered costs the packet path no memory.
func TestReportAllocs(t *testing.T) {
	var m rates
	m.setNetworks(boundTo(0, "192.0.2.7"))
	s, made := paced(&m)
	(*made)[0].st = steady(4e6)
	at, rep := time.Duration(0), new(congestion.Report)
	s.Report(at, rep)
	if n := testing.AllocsPerRun(100, func() { at += noteEvery; s.Report(at, rep); s.Tick(at, 0) }); n != 0 {
		t.Errorf("%v allocations a report", n)
	}
}
