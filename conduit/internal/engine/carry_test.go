// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// TestCarriers: which ways a handshake message goes.
func TestCarriers(t *testing.T) {
	none := carrier{}
	for _, tc := range []struct {
		name      string
		reply     carrier
		connected bool
		remotes   bool // it is known where the peer was
		hub       bool
		before    int // messages of this Connect
		want      []string
		used      bool
	}{
		{"first ever", none, false, false, true, 0, []string{"hub"}, false},
		{"again, nothing known", none, false, false, true, 1, []string{"hub"}, false},
		{"known, hub up", none, false, true, true, 0, []string{"hub"}, false},
		{"known, hub up, again", none, false, true, true, 1, []string{"hub", "udp"}, true},
		{"known, hub away", none, false, true, false, 0, []string{"udp"}, true},
		{"nothing known, hub away", none, false, false, false, 0, []string{"hub"}, false},
		{"connected", none, true, true, true, 0, []string{"inside"}, true},
		{"connected, again", none, true, true, true, 1, []string{"hub", "inside", "udp"}, true},
		{"connected, hub away, again", none, true, true, false, 1, []string{"inside", "udp"}, true},
		{"connected by relays alone, again", none, true, false, true, 1, []string{"hub", "inside"}, true},
		{"answer inside", carrier{kind: bySession}, true, true, true, 0, []string{"inside"}, false},
		{"answer inside, session gone", carrier{kind: bySession}, false, false, true, 0, []string{"hub"}, false},
		{"answer by the hub", carrier{kind: byHub}, true, true, true, 3, []string{"hub"}, false},
		{"answer over UDP", carrier{kind: byUDP}, true, false, true, 3, []string{"udp"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				a, b := w.nodes[0], w.nodes[1]
				w.connect(a, b)
				pass(15 * time.Second) // nobody talks
				var mu sync.Mutex
				var ways []string
				note := func(way string) {
					mu.Lock()
					defer mu.Unlock()
					if !slices.Contains(ways, way) {
						ways = append(ways, way)
					}
				}
				from := a.addrs[0]
				w.setUDP(func(x, _ netip.AddrPort, d []byte) bool {
					var h wire.Header
					if x != from || !h.Parse(d) {
						return true
					}
					switch h.Type {
					case wire.TypeHandshake:
						note("udp")
					case wire.TypeSignal:
						note("inside")
					default:
					}
					return true
				})
				a.do(b, func(p *peer, now time.Time) {
					e, usable := p.e, p.usable
					signal, up, remotes := e.cfg.Signal, e.net.hubUp, p.remotes
					e.cfg.Signal = func(identity.PeerID, []byte) error {
						note("hub")
						if !tc.hub {
							return errors.New("down")
						}
						return nil
					}
					e.net.hubUp, p.usable = tc.hub, tc.connected
					if !tc.connected {
						e.cfg.Dataplane.Activate(p.dp, nil)
					}
					if !tc.remotes {
						p.remotes = nil
					}
					reply := tc.reply
					if reply.kind == byUDP {
						reply.addr = session.Addr{Bind: e.net.uplinks[0].Bind, Remote: b.addrs[0]}
					}
					p.carriers = carriers{reply: reply, tries: tc.before}
					p.send([]byte("a message that b drops"), now)
					if p.carriers.used != tc.used {
						t.Errorf("used = %v, want %v", p.carriers.used, tc.used)
					}
					e.cfg.Signal, e.net.hubUp, p.remotes, p.usable = signal, up, remotes, usable
					p.carriers = carriers{}
					p.choose(now)
				})
				pass(20 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				slices.Sort(ways)
				if !slices.Equal(ways, tc.want) {
					t.Errorf("went %v, want %v", ways, tc.want)
				}
			})
		})
	}
}

// TestUndeliverable: the hub's word that a peer is away ends a Connect only where
// nothing else may have reached it.
func TestUndeliverable(t *testing.T) {
	for _, tc := range []struct {
		name    string
		c       carriers
		remotes bool
		reason  string
		ends    bool
	}{
		{"by the hub alone", carriers{tries: 1}, false, "offline", true},
		{"it may have arrived otherwise", carriers{tries: 2, used: true}, true, "offline", false},
		{"the next try goes elsewhere", carriers{tries: 1}, true, "offline", false},
		{"the hub is busy", carriers{tries: 1}, false, "busy", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				a, b := w.nodes[0], w.nodes[1]
				w.mu.Lock()
				w.signal = func(_, _ identity.PeerID, _ []byte) bool { return false }
				w.mu.Unlock()
				a.do(b, func(p *peer, now time.Time) {
					if tc.remotes {
						p.remotes = []netip.AddrPort{b.addrs[0]}
					}
					p.connect(now)
					p.carriers = tc.c
					p.undeliverable(tc.reason, now)
					if p.machine.Connecting() == tc.ends {
						t.Errorf("still connecting: %v", !tc.ends)
					}
				})
			})
		})
	}
}
