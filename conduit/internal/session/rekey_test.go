// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// rekeyEnd is one end of a session and what an engine would keep of it.
type rekeyEnd struct {
	r    *session.Rekeyer
	idx  *indexes
	keys map[uint32]*session.Established // all that open packets
	send uint32                          // those that seal
	out  []session.RekeyOutput           // messages that wait in the air
	over bool
}

// rekeyPair is a session of p with both Rekeyers.
type rekeyPair struct {
	*pair
	a, b *rekeyEnd
}

func newRekeyPair(t testing.TB, change func(lo, hi *session.Config)) *rekeyPair {
	p := newPair(t, func(lo, hi *session.Config) {
		lo.Caps, hi.Caps = wire.CapRekey, wire.CapRekey
		if change != nil {
			change(lo, hi)
		}
	})
	p.lo.connect(p.now)
	p.run()
	p.agreed()
	r := &rekeyPair{pair: p}
	for e, to := range map[*end]**rekeyEnd{p.lo: &r.a, p.hi: &r.b} {
		est := e.est[0]
		*to = &rekeyEnd{
			r: session.NewRekeyer(est, e.idx, p.now), idx: e.idx, send: est.LocalIndex,
			keys: map[uint32]*session.Established{est.LocalIndex: est},
		}
	}
	return r
}

func (e *rekeyEnd) collect(t testing.TB) {
	for _, o := range e.r.Ready() {
		switch {
		case o.Send != nil:
			if e.keys[o.On] == nil {
				t.Fatalf("sends on keys %d, which it has not", o.On)
			}
			e.out = append(e.out, o)
		case o.Next != nil:
			if e.keys[o.Next.LocalIndex] != nil {
				t.Fatalf("keys %d twice", o.Next.LocalIndex)
			}
			e.keys[o.Next.LocalIndex] = o.Next
		case o.Switch != 0:
			if e.keys[o.Switch] == nil {
				t.Fatalf("switches to keys %d, which it has not", o.Switch)
			}
			e.send = o.Switch
		case o.Drop != 0:
			if e.keys[o.Drop] == nil || o.Drop == e.send && !e.over {
				t.Fatalf("drops keys %d, having %v, sending with %d", o.Drop, e.keys, e.send)
			}
			delete(e.keys, o.Drop)
			e.idx.Release(o.Drop)
		case o.Over:
			e.over = true
		default:
			t.Fatalf("output with nothing to do: %+v", o)
		}
	}
}

func (r *rekeyPair) other(e *rekeyEnd) *rekeyEnd {
	if e == r.a {
		return r.b
	}
	return r.a
}

// arrives reports under which keys of e's peer a packet that e seals with its keys
// on opens, or 0.
func (r *rekeyPair) arrives(e *rekeyEnd, on uint32) uint32 {
	est := e.keys[on]
	if est == nil {
		return 0
	}
	peer := r.other(e).keys[est.RemoteIndex]
	if peer == nil || peer.Secrets.Recv != est.Secrets.Send {
		return 0
	}
	return peer.LocalIndex
}

// deliver hands the oldest output of e to the other end.
func (r *rekeyPair) deliver(e *rekeyEnd) error {
	o := e.out[0]
	e.out = e.out[1:]
	return r.give(e, o)
}

func (r *rekeyPair) give(e *rekeyEnd, o session.RekeyOutput) (err error) {
	to := r.other(e)
	if at := r.arrives(e, o.On); at != 0 {
		for _, b := range o.Send {
			if err2 := to.r.Step(at, b, r.now); err2 != nil {
				err = err2
			}
			to.collect(r.t)
		}
	}
	return err
}

// data sends a packet from e, which must open, and returns under which keys.
func (r *rekeyPair) data(e *rekeyEnd) uint32 {
	r.t.Helper()
	at := r.arrives(e, e.send)
	if at == 0 {
		r.t.Fatalf("a packet does not open: sent with %d, the peer has %v", e.send, r.other(e).keys)
	}
	to := r.other(e)
	to.r.Confirmed(at, r.now)
	to.collect(r.t)
	return at
}

func (r *rekeyPair) advance(d time.Duration) {
	r.now = r.now.Add(d)
	for _, e := range []*rekeyEnd{r.a, r.b} {
		e.r.Tick(r.now)
		e.collect(r.t)
	}
}

// settle delivers all until it is quiet.
func (r *rekeyPair) settle() {
	r.t.Helper()
	for len(r.a.out)+len(r.b.out) > 0 {
		for _, e := range []*rekeyEnd{r.a, r.b} {
			if len(e.out) > 0 {
				if err := r.deliver(e); err != nil {
					r.t.Error(err)
				}
			}
		}
	}
}

// same checks that both ends seal with the two halves of the same keys, n-th of
// their session.
func (r *rekeyPair) same() {
	r.t.Helper()
	a, b := r.a.keys[r.a.send], r.b.keys[r.b.send]
	if a == nil || b == nil || a.SID != b.SID || !a.Initiator || b.Initiator || a.LocalIndex != b.RemoteIndex || a.RemoteIndex != b.LocalIndex ||
		a.Secrets.Send != b.Secrets.Recv || a.Secrets.Recv != b.Secrets.Send || a.Secrets.Rekey != b.Secrets.Rekey || a.Secrets.Exporter != b.Secrets.Exporter {
		r.t.Fatalf("halves differ:\n%+v\n%+v", a, b)
	}
	if a.Certificate == nil || a.PeerCaps != wire.CapRekey {
		r.t.Errorf("the peer was forgotten: %+v", a)
	}
}

func TestRekey(t *testing.T) {
	r := newRekeyPair(t, nil)
	seen := map[[32]byte]bool{}
	for round := range 5 {
		old := r.a.send
		r.advance(session.RekeyAfter - time.Millisecond)
		if len(r.a.out)+len(r.b.out) != 0 {
			t.Fatal("a rekey before its time")
		}
		r.advance(time.Millisecond)
		if len(r.a.out) != 1 || len(r.b.out) != 0 {
			t.Fatalf("%d and %d messages at the time of A's rekey", len(r.a.out), len(r.b.out))
		}
		if err := r.deliver(r.a); err != nil {
			t.Fatal(err)
		}
		if len(r.b.keys) != 2 || r.b.send != r.a.keys[old].RemoteIndex {
			t.Errorf("B has %d keys, or has switched before A", len(r.b.keys))
		}
		r.data(r.b)
		if err := r.deliver(r.b); err != nil {
			t.Fatal(err)
		}
		if r.a.send == old {
			t.Error("A did not switch")
		}
		if round%2 == 0 { // R3 and data confirm alike
			if err := r.deliver(r.a); err != nil {
				t.Fatal(err)
			}
		} else {
			r.data(r.a)
		}
		r.data(r.b)
		r.settle()
		r.same()
		k := r.a.keys[r.a.send].Secrets
		for _, x := range [][32]byte{k.Rekey, k.Exporter, k.Send[0].Key, k.Recv[0].Key, k.Send[2].Key} {
			if seen[x] {
				t.Error("a key serves twice")
			}
			seen[x] = true
		}
		r.advance(session.OldKeysLive - time.Millisecond)
		if len(r.a.keys) != 2 || len(r.b.keys) != 2 {
			t.Errorf("%d and %d keys: the old ones are gone too early", len(r.a.keys), len(r.b.keys))
		}
		r.advance(time.Millisecond)
		if len(r.a.keys) != 1 || len(r.b.keys) != 1 || len(r.a.idx.live) != 1 || len(r.b.idx.live) != 1 {
			t.Errorf("%d and %d keys after the old ones' end", len(r.a.keys), len(r.b.keys))
		}
		r.now = r.now.Add(-session.OldKeysLive) // the next round counts from the new keys
	}
}

func TestRekeyNotTaken(t *testing.T) {
	p := newPair(t, func(lo, hi *session.Config) { lo.Caps, hi.Caps = wire.CapRekey, wire.CapPaths })
	p.lo.connect(p.now)
	p.run()
	for _, e := range []*end{p.lo, p.hi} {
		if e.est[0].Rekeys() || session.NewRekeyer(e.est[0], e.idx, p.now) != nil {
			t.Error("a rekey with a peer that takes no part")
		}
	}
}
