// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/engine"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/relay"
	"github.com/bauxite-mesh/bauxite/conduit/internal/snapshot"
	"github.com/bauxite-mesh/bauxite/conduit/internal/uplink"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// budgetGap is the gap between looks at the budgets of interfaces.
const budgetGap = 2 * time.Second

// underlay is what a node sends with: sockets of interfaces, and relays. Its fields
// are set once in Node.assemble, but for what mu guards.
type underlay struct {
	uplinks *uplink.Manager
	hub     *relay.HubBind // nil: the connector carries no packets
	hubBind int
	turns   *relay.Turns // nil likewise

	hubUp   atomic.Bool
	rescans pace

	mu     sync.Mutex // guards the rest
	bounds []uplink.Bound
	spent  map[string]*used
}

// used is what went over an interface in a day.
type used struct {
	day   int64
	bytes uint64
	last  map[int]uint64 // what each socket had counted at the last look
}

// pace lets one through a second.
type pace struct {
	mu   sync.Mutex
	next time.Time
}

func (p *pace) allow(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.next) {
		return false
	}
	p.next = now.Add(time.Second)
	return true
}

// openUnderlay prepares sockets and relays. The engine does not yet exist.
func (n *Node) openUnderlay(exclude []netip.Prefix, port int) (err error) {
	u := &n.underlay
	u.spent = make(map[string]*used)
	if u.uplinks, err = n.newUplinks(exclude, port); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	u.hubBind = -1
	carrier, ok := n.cfg.Hub.(PacketRelay)
	if !ok {
		return nil
	}
	u.hub, err = relay.NewHub(relay.HubConfig{
		Stream: carrier, Logger: n.log,
		PeerOf: func(a netip.AddrPort) (identity.PeerID, bool) {
			if p := n.plane.PeerAt(a.Addr()); p != nil {
				return p.ID, true
			}
			return identity.PeerID{}, false
		},
		AddrOf: func(id identity.PeerID) (netip.AddrPort, bool) {
			p := n.registry.Get(id)
			if p == nil {
				return netip.AddrPort{}, false
			}
			return netip.AddrPortFrom(p.Virtual4, 1), true
		},
	})
	if err != nil {
		return err
	}
	u.hubBind = n.plane.AddBind(u.hub, 0)
	u.turns, err = relay.NewTurns(relay.TurnsConfig{
		Servers: func(ctx context.Context) ([]relay.TurnServer, error) {
			list, err := carrier.TurnServers(ctx)
			out := make([]relay.TurnServer, len(list))
			for i, s := range list {
				out[i] = relay.TurnServer(s)
			}
			return out, err
		},
		Add: func(b transport.Bind, relayed netip.AddrPort, number uint8) int {
			i := n.plane.AddBind(b, number)
			n.engine.AddTurn(i, relayed, number)
			return i
		},
		Remove: func(bind int) {
			n.engine.RemoveTurn(bind)
			n.plane.RemoveBind(bind)
		},
		Logger: n.log,
	})
	return err
}

func (n *Node) newUplinks(exclude []netip.Prefix, port int) (*uplink.Manager, error) {
	rules := make([]uplink.Rule, len(n.cfg.Uplinks))
	for i, r := range n.cfg.Uplinks {
		rules[i] = uplink.Rule(r)
	}
	return uplink.New(uplink.Config{
		Port: port, Rules: rules, IncludeLoopback: n.cfg.IncludeLoopback, Exclude: exclude, Logger: n.log,
		Socket: transport.Config{DSCP: !n.cfg.NoDSCP},
		Add:    n.addSocket, Remove: n.removeSocket, Changed: n.uplinksChanged,
	})
}

// listen opens the sockets. The port of a node before us may be taken by now.
func (n *Node) listen(ctx context.Context, exclude []netip.Prefix, port int) error {
	u := &n.underlay
	err := u.uplinks.Start(ctx)
	if err != nil && port != n.cfg.Port {
		n.log.Warn("the port of before cannot be had; taking another", "port", port, "err", err)
		if u.uplinks, err = n.newUplinks(exclude, n.cfg.Port); err == nil {
			err = u.uplinks.Start(ctx)
		}
	}
	n.port = u.uplinks.Port()
	if err != nil {
		return fmt.Errorf("listen on udp port %d: %w", n.cfg.Port, err)
	}
	return nil
}

// engineConfig adds what the engine is to know of the underlay.
func (n *Node) engineConfig(c *engine.Config) {
	u := &n.underlay
	c.HubRelay, c.Relay = u.hubBind, n.cfg.Relay
	if u.hub != nil {
		c.WantHubRelay, c.WantTurn = u.hub.Want, u.turns.Want
	}
	c.PeerBind = func(p *dataplane.Peer) int {
		return n.plane.AddBind(relay.NewPeer(netip.AddrPortFrom(p.Virtual4, 1), func(l int, to netip.AddrPort, b []byte) {
			// A relay inside another carries nothing: the far one would not take it.
			var h wire.Header
			if other := n.plane.PeerAt(to.Addr()); other != nil && h.Parse(b) && h.Type != wire.TypeRelay {
				n.plane.SendRelay(p, packet.Lane(l), other.ID, b)
			}
		}), 0)
	}
	c.DropBind = n.plane.RemoveBind
}

func (n *Node) addSocket(b transport.Bind, up uplink.Uplink) int {
	i := n.plane.AddBind(b, up.Number)
	if up.Number != 0 {
		n.plane.SetUplinkRate(up.Number, float64(up.Rule.Rate)/8)
	}
	if err := n.mux.SetSocket(i, stunSocket{n.plane, i, b.LocalAddr(), up.Name, up.Rule.Metered}); err != nil {
		n.log.Warn("socket for ICE", "interface", up.Name, "err", err)
	}
	return i
}

func (n *Node) removeSocket(bind int) {
	n.underlay.mu.Lock()
	tx, rx := n.plane.BindCounters(bind)
	for _, u := range n.underlay.spent {
		if last, ok := u.last[bind]; ok && tx+rx > last {
			u.bytes += tx + rx - last // what it carried counts
		}
		delete(u.last, bind)
	}
	n.underlay.mu.Unlock()
	n.mux.RemoveSocket(bind)
	n.plane.RemoveBind(bind)
}

// uplinksChanged tells engine, TURN and hub link of the sockets there are.
func (n *Node) uplinksChanged(list []uplink.Bound) {
	n.underlay.mu.Lock()
	before := n.underlay.bounds
	n.underlay.bounds = slices.Clone(list)
	spent := n.spentLocked(time.Now())
	n.underlay.mu.Unlock()
	n.rates.setNetworks(list)
	socks := make([]engine.Socket, 0, len(list))
	var turns []relay.TurnUplink
	for _, b := range list {
		s := engine.Socket{Name: b.Uplink.Name, Moved: b.Moved}
		s.Local = path.Local{
			Bind: b.Bind, Kind: path.Direct, Uplink: b.Uplink.Number, V4: b.V4, V6: b.V6, Fallback: b.Fallback,
			Metered: b.Uplink.Rule.Metered, Spent: spent[b.Uplink.Name],
		}
		socks = append(socks, s)
		if b.Moved {
			n.mux.FlushSocket(b.Bind)
		}
		if b.V4 && !b.Fallback {
			turns = append(turns, relay.TurnUplink{Name: b.Uplink.Name, Number: b.Uplink.Number})
		}
	}
	n.engine.SetUplinks(socks)
	if n.underlay.turns != nil {
		n.underlay.turns.SetUplinks(turns)
	}
	n.redial(before, list)
}

// redialer is implemented by a HubConnector whose link can be made anew.
type redialer interface {
	Redial()
	LocalAddr() netip.Addr
}

// redial makes the hub link anew where the address that it left from is gone: it
// would notice by itself, but late.
func (n *Node) redial(before, now []uplink.Bound) {
	r, ok := n.cfg.Hub.(redialer)
	if !ok || len(before) == 0 {
		return
	}
	local := r.LocalAddr()
	has := func(list []uplink.Bound) bool {
		return slices.ContainsFunc(list, func(b uplink.Bound) bool { return slices.Contains(b.Uplink.Addrs, local) })
	}
	gone := has(before) && !has(now)
	moved := slices.ContainsFunc(now, func(b uplink.Bound) bool {
		return b.Moved && !b.Fallback && slices.Contains(b.Uplink.Addrs, local)
	})
	if gone || moved || len(before) < len(now) && !n.underlay.hubUp.Load() {
		r.Redial()
	}
}

// refused passes on that the system does not send to a peer.
func (n *Node) refused(to dataplane.Path, why transport.Refusal) {
	n.engine.Refused(to, why.TooBig())
	if why.Unreachable() && n.underlay.rescans.allow(time.Now()) {
		n.underlay.uplinks.Rescan()
	}
}

// spentLocked says which interfaces have spent the day's budget.
func (n *Node) spentLocked(now time.Time) map[string]bool {
	out := make(map[string]bool)
	for name, bytes := range n.usedLocked(now) {
		for _, b := range n.underlay.bounds {
			if r := b.Uplink.Rule; b.Uplink.Name == name && r.Budget > 0 && bytes >= r.Budget {
				out[name] = true
			}
		}
	}
	return out
}

// usedLocked returns what went over each interface today. Sockets come and go, and a
// new one counts from 0.
func (n *Node) usedLocked(now time.Time) map[string]uint64 {
	day := snapshot.Day(now)
	for _, b := range n.underlay.bounds {
		if b.Uplink.Name == "" {
			continue
		}
		u := n.underlay.spent[b.Uplink.Name]
		if u == nil {
			u = &used{day: day}
			n.underlay.spent[b.Uplink.Name] = u
		}
		if u.day != day {
			u.day, u.bytes = day, 0
		}
		if u.last == nil {
			u.last = make(map[int]uint64)
		}
		tx, rx := n.plane.BindCounters(b.Bind)
		if sum := tx + rx; sum >= u.last[b.Bind] {
			u.bytes += sum - u.last[b.Bind]
			u.last[b.Bind] = sum
		}
	}
	total := make(map[string]uint64, len(n.underlay.spent))
	for name, u := range n.underlay.spent {
		if u.day == day {
			total[name] = u.bytes
		}
	}
	return total
}

// watchBudgets tells the engine when an interface has spent its budget.
func (n *Node) watchBudgets(ctx context.Context) {
	if !slices.ContainsFunc(n.cfg.Uplinks, func(r UplinkRule) bool { return r.Budget > 0 }) {
		return
	}
	t := time.NewTicker(budgetGap)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			n.underlay.mu.Lock()
			spent := n.spentLocked(now)
			numbers := make(map[uint8]bool)
			for _, b := range n.underlay.bounds {
				if b.Uplink.Number != 0 {
					numbers[b.Uplink.Number] = spent[b.Uplink.Name]
				}
			}
			n.underlay.mu.Unlock()
			for number, is := range numbers {
				n.engine.SetSpent(number, is)
			}
		}
	}
}
