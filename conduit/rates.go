// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/snapshot"
	"github.com/bauxite-mesh/bauxite/conduit/internal/uplink"
)

const (
	// rateAge is how long a rate is remembered.
	rateAge = 7 * 24 * time.Hour
	// noteEvery is the gap between two looks at the rate of a path. What is remembered
	// follows it within riseOver or fallOver: to begin with too little costs a train
	// more, 0.1 s, and with too much a queue.
	noteEvery = time.Second
	riseOver  = time.Minute
	fallOver  = 10 * time.Second
	// enoughRate is the most that is remembered, in bytes per second: from half of it
	// two trains find any rate.
	enoughRate = 100e6 / 8
	// usualStart is the default of congestion.DelayRateConfig.
	usualStart = 2e6 / 8
)

// rateKey is a path for which a rate is remembered. That of the peer's side is in it
// as well: it may be in our LAN today, and behind its own uplink tomorrow.
type rateKey struct {
	peer            identity.PeerID
	uplink          string
	network, remote netip.Prefix
}

type knownRate struct {
	rate  float64 // bytes per second
	at    time.Time
	saved float64 // what the state file was last told to hold
}

// rates remembers what paths carried in each network. Safe for concurrent use. It is
// used under the lanes' lock, so nothing of the packet path may be called under mu.
type rates struct {
	changed func()                          // the state file should be written; may be nil
	nets    atomic.Pointer[map[int]network] // by bind; not changed once it is here

	mu    sync.Mutex // guards known
	known map[rateKey]*knownRate
}

// network is where the socket of an uplink is.
type network struct {
	uplink   string
	rate     float64        // that was configured, bytes per second; 0: none
	prefixes []netip.Prefix // of our addresses, preferred ones first
}

// prefixOf is the part of an address that says in which network it is.
func prefixOf(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}

// setNetworks tells where the sockets are now.
func (m *rates) setNetworks(list []uplink.Bound) {
	nets := make(map[int]network, len(list))
	for _, b := range list {
		n := network{uplink: b.Uplink.Name, rate: float64(b.Uplink.Rule.Rate) / 8}
		for _, a := range b.Uplink.Addrs {
			n.prefixes = append(n.prefixes, prefixOf(a))
		}
		nets[b.Bind] = n
	}
	m.nets.Store(&nets)
}

// find returns the key of a path, which stays that of before while we still have an
// address in its network, and its uplink's rate. Relayed paths have none.
func (m *rates) find(peer identity.PeerID, path dataplane.Path, before rateKey) (k rateKey, limit float64, ok bool) {
	nets := m.nets.Load()
	if nets == nil {
		return rateKey{}, 0, false
	}
	n, ok := (*nets)[path.Bind]
	if !ok {
		return rateKey{}, 0, false
	}
	k = rateKey{peer: peer, uplink: n.uplink, remote: prefixOf(path.Remote.Addr())}
	for _, p := range n.prefixes {
		if p.Bits() == k.remote.Bits() && (!k.network.IsValid() || p == before.network) {
			k.network = p
		}
	}
	return k, n.rate, k.network.IsValid()
}

// start returns where the search for a path's rate begins; 0 is the usual rate.
func (m *rates) start(k rateKey, limit float64, now time.Time) float64 {
	r := 0.0
	m.mu.Lock()
	if e := m.known[k]; e != nil && now.Sub(e.at) <= rateAge {
		r = max(e.rate/2, min(e.rate, usualStart)) // half of less takes long to find more
	}
	m.mu.Unlock()
	if limit > 0 {
		if r == 0 {
			r = usualStart
		}
		r = min(r, limit)
	}
	return r
}

// note remembers a rate.
func (m *rates) note(k rateKey, rate float64, now time.Time) {
	m.mu.Lock()
	e := m.known[k]
	if e == nil {
		if len(m.known) >= snapshot.MaxRates && !m.agedLocked(now) {
			m.mu.Unlock()
			return // so many are in use: pushing one out for another would never end
		}
		e = new(knownRate)
		m.putLocked(k, e)
	}
	e.rate, e.at = rate, now.Round(0)
	news := rate > 2*e.saved || rate < e.saved/2
	if news {
		e.saved = rate
	}
	m.mu.Unlock()
	if news && m.changed != nil {
		m.changed()
	}
}

// agedLocked reports whether some entry is of before the last minute.
func (m *rates) agedLocked(now time.Time) bool {
	for _, e := range m.known {
		if now.Sub(e.at) > time.Minute {
			return true
		}
	}
	return false
}

// putLocked adds an entry; where there are too many the oldest goes.
func (m *rates) putLocked(k rateKey, e *knownRate) {
	if m.known == nil {
		m.known = make(map[rateKey]*knownRate)
	}
	if _, ok := m.known[k]; !ok && len(m.known) >= snapshot.MaxRates {
		var oldest rateKey
		for other, o := range m.known {
			if was := m.known[oldest]; was == nil || o.at.Before(was.at) {
				oldest = other
			}
		}
		delete(m.known, oldest)
	}
	m.known[k] = e
}

// restore takes what the state file says.
func (m *rates) restore(list []snapshot.Rate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range list {
		rate := min(float64(r.Rate), enoughRate)
		m.putLocked(rateKey{r.Peer, r.Uplink, r.Network, r.Remote}, &knownRate{rate, r.At, rate})
	}
}

// take returns what the state file should say, without what is too old.
func (m *rates) take(now time.Time) []snapshot.Rate {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]snapshot.Rate, 0, len(m.known))
	for k, e := range m.known {
		if now.Sub(e.at) > rateAge {
			delete(m.known, k)
			continue
		}
		e.saved = e.rate
		out = append(out, snapshot.Rate{
			Peer: k.peer, Uplink: k.uplink, Network: k.network, Remote: k.remote, Rate: uint64(max(e.rate, 1)), At: e.at,
		})
	}
	return out
}

// remembering is a strategy whose path's rate is remembered: it begins with what is
// known of the network, and anew where the uplink comes to another one.
type remembering struct {
	congestion.Strategy // made by fresh

	m     *rates
	fresh func(initial float64) congestion.Strategy
	peer  identity.PeerID
	path  dataplane.Path

	nets  *map[int]network // that were looked at
	key   rateKey
	known bool // key is

	began   bool // noted and average are
	noted   time.Duration
	average float64
}

var _ congestion.Sharer = (*remembering)(nil)

// remember returns the strategy of a path, made by fresh.
func (m *rates) remember(peer identity.PeerID, path dataplane.Path, fresh func(initial float64) congestion.Strategy) congestion.Strategy {
	r := &remembering{m: m, fresh: fresh, peer: peer, path: path}
	r.look()
	if r.Strategy == nil {
		r.Strategy = fresh(0)
	}
	return r
}

// look finds out in which network the uplink is.
func (r *remembering) look() {
	nets := r.m.nets.Load()
	if nets == r.nets {
		return
	}
	r.nets = nets
	k, limit, ok := r.m.find(r.peer, r.path, r.key)
	if !ok || r.known && k == r.key {
		return
	}
	moved := r.known || r.Strategy == nil
	r.key, r.known = k, true
	if moved {
		r.Strategy, r.began = r.fresh(r.m.start(k, limit, time.Now())), false
	}
}

// Learns implements congestion.Learner.
func (r *remembering) Learns() {}

// Beside implements congestion.Sharer.
func (r *remembering) Beside(total float64) {
	if s, ok := r.Strategy.(congestion.Sharer); ok {
		s.Beside(total)
	}
}

// Tick implements congestion.Strategy.
func (r *remembering) Tick(now time.Duration, waiting int) int {
	r.look()
	return r.Strategy.Tick(now, waiting)
}

// Report implements congestion.Strategy.
func (r *remembering) Report(now time.Duration, rep *congestion.Report) {
	r.look()
	r.Strategy.Report(now, rep)
	if !r.known || r.began && now-r.noted < noteEvery {
		return
	}
	st := r.State(now)
	if st.Startup || st.Draining || st.Competing {
		return
	}
	rate := min(st.Rate, enoughRate)
	if !r.began {
		r.began, r.average = true, rate
	} else {
		over := riseOver
		if rate < r.average {
			over = fallOver
		}
		r.average += (rate - r.average) * min(1, (now-r.noted).Seconds()/over.Seconds())
	}
	r.noted = now
	r.m.note(r.key, r.average, time.Now())
}
