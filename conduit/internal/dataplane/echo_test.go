// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// newEchoRig has a path and a session with a peer that answers echoes.
func newEchoRig(t testing.TB) *rig {
	r := newRig(t)
	r.sess.caps = wire.CapReport
	r.d.SetWays(r.peer, ways(Path{Remote: outerB}))
	r.d.Activate(r.peer, r.sess)
	return r
}

func (r *rig) sent(t *testing.T) (wire.Header, []byte) {
	t.Helper()
	select {
	case m := <-r.bind.out:
		return r.open(t, m)
	case <-time.After(5 * time.Second):
		t.Fatal("nothing was sent")
		return wire.Header{}, nil
	}
}

func TestEcho(t *testing.T) {
	r := newEchoRig(t)
	for lane := range packet.Lane(packet.NumLanes) {
		done := make(chan EchoReply, 2)
		cancel, err := r.d.Echo(r.peer, lane, 100, func(e EchoReply) { done <- e })
		if err != nil {
			t.Fatal(err)
		}
		h, body := r.sent(t)
		if h.Type != wire.TypeEcho || h.Lane != lane || len(body) != 100 {
			t.Fatalf("sent %+v with %d bytes", h, len(body))
		}
		// What does not answer this very echo is none.
		for _, wrong := range []func([]byte) (packet.Lane, []byte){
			func(b []byte) (packet.Lane, []byte) { return lane, b[:99] },
			func(b []byte) (packet.Lane, []byte) { return (lane + 1) % packet.NumLanes, b },
			func(b []byte) (packet.Lane, []byte) { b[0]++; return lane, b },
		} {
			l, b := wrong(bytes.Clone(body))
			r.receive(r.from(wire.TypeEchoReply, l, b))
		}
		until(t, "three strange answers", func() bool { return r.rx(RxEcho) == 3*uint64(lane)+3 })
		reply := bytes.Clone(body)
		binary.BigEndian.PutUint32(reply[echoWait:], 0)
		binary.BigEndian.PutUint32(reply[echoHold:], 1)
		r.receive(r.from(wire.TypeEchoReply, lane, reply))
		select {
		case e := <-done:
			if e.RTT <= 0 || e.Wait != 0 || e.Hold != min(time.Microsecond, e.RTT) || e.Path.Remote != outerB {
				t.Errorf("reply = %+v", e)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the answer was not passed on")
		}
		cancel()
	}
	if n := len(r.d.echoes.waiting); n != 0 {
		t.Errorf("%d echoes are still waited for", n)
	}
}

// TestEchoAnswered: an echo comes back in its lane and with its length, once.
func TestEchoAnswered(t *testing.T) {
	r := newEchoRig(t)
	ask := make([]byte, 200)
	for i := range ask {
		ask[i] = byte(i)
	}
	sealed := r.from(wire.TypeEcho, packet.Telemetry, ask)
	r.receive(bytes.Clone(sealed))
	r.receive(bytes.Clone(sealed)) // a copy on another path
	h, body := r.sent(t)
	if h.Type != wire.TypeEchoReply || h.Lane != packet.Telemetry || len(body) != len(ask) {
		t.Fatalf("answered %+v with %d bytes", h, len(body))
	}
	if !bytes.Equal(body[:echoHold], ask[:echoHold]) || !bytes.Equal(body[MinEcho:], make([]byte, len(ask)-MinEcho)) {
		t.Errorf("answered %x to %x", body, ask)
	}
	r.receive(r.from(wire.TypeEcho, packet.Bulk, ask[:MinEcho-1]))
	until(t, "short echo", func() bool { return r.rx(RxMalformed) == 1 })
	select {
	case m := <-r.bind.out:
		h, _ := r.open(t, m)
		t.Errorf("a second answer: %+v", h)
	default:
	}
}

// TestEchoFirst: the answer to what a session begins with waits until the session is
// in use.
func TestEchoFirst(t *testing.T) {
	r := newEchoRig(t)
	r.d.Activate(r.peer, nil)
	r.receive(r.from(wire.TypeEcho, packet.Bulk, make([]byte, MinEcho)))
	until(t, "the answer waits", func() bool {
		r.peer.mu.Lock()
		defer r.peer.mu.Unlock()
		return len(r.peer.held) == 1
	})
	r.d.Activate(r.peer, r.sess)
	if h, body := r.sent(t); h.Type != wire.TypeEchoReply || binary.BigEndian.Uint32(body[echoHold:]) == 0 {
		t.Errorf("answered %+v, %x", h, body)
	}
}

func TestEchoRate(t *testing.T) {
	r := newEchoRig(t)
	const n = 400
	go func() {
		for range n {
			r.receive(r.from(wire.TypeEcho, packet.Bulk, make([]byte, MinEcho)))
		}
	}()
	until(t, "most echoes are refused", func() bool { return r.rx(RxEchoRate) > n/2 })
	until(t, "all are handled", func() bool { return len(r.bind.in) == 0 })
}

// TestEchoNeedsCaps: a peer that sends no reports is neither asked nor answered.
func TestEchoNeedsCaps(t *testing.T) {
	r := newEchoRig(t)
	r.sess.caps = wire.CapPaths
	if _, err := r.d.Echo(r.peer, packet.Critical, MinEcho, nil); !errors.Is(err, ErrEchoCaps) {
		t.Errorf("Echo = %v, want ErrEchoCaps", err)
	}
	r.receive(r.from(wire.TypeEcho, packet.Critical, make([]byte, MinEcho)))
	until(t, "refused", func() bool { return r.rx(RxType) == 1 })
}

func TestEchoRefuses(t *testing.T) {
	r := newEchoRig(t)
	room := func(mtu int) {
		w := ways(Path{Remote: outerB})
		w.MTU = mtu
		r.d.SetWays(r.peer, w)
	}
	room(1200)
	limit := r.d.EchoRoom(r.peer)
	if want := 1200 - r.sess.Overhead(); limit != want {
		t.Errorf("EchoRoom = %d, want %d", limit, want)
	}
	for _, size := range []int{-1, 0, MinEcho - 1, limit + 1} {
		if _, err := r.d.Echo(r.peer, packet.Bulk, size, nil); !errors.Is(err, ErrEchoSize) {
			t.Errorf("Echo of %d bytes = %v, want ErrEchoSize", size, err)
		}
	}
	room(0)
	if limit := r.d.EchoRoom(r.peer); limit != packet.MaxInner {
		t.Errorf("EchoRoom = %d, want %d", limit, packet.MaxInner)
	}
	for range maxEchoes {
		if _, ok := r.d.echoes.add(&echo{}); !ok {
			t.Fatal("full too early")
		}
	}
	if _, err := r.d.Echo(r.peer, packet.Bulk, MinEcho, nil); !errors.Is(err, ErrEchoBusy) {
		t.Errorf("Echo = %v, want ErrEchoBusy", err)
	}
	r.d.Activate(r.peer, nil)
	if _, err := r.d.Echo(r.peer, packet.Bulk, MinEcho, nil); !errors.Is(err, ErrEchoSession) {
		t.Errorf("Echo = %v, want ErrEchoSession", err)
	}
}

// TestEchoTellsWaits: both ends write how long their lanes took.
func TestEchoTellsWaits(t *testing.T) {
	b := packet.Get()
	defer b.Release()
	b.N, b.Enqueued = MinEcho, 1000
	for typ, at := range map[wire.Type]int{wire.TypeEcho: echoWait, wire.TypeEchoReply: echoHold} {
		clear(b.Bytes())
		b.Type = uint8(typ)
		stampEcho(b, 1000+7e6)
		for i := range MinEcho / 4 {
			want := uint32(0)
			if 4*i == at {
				want = 7000
			}
			if got := binary.BigEndian.Uint32(b.Bytes()[4*i:]); got != want {
				t.Errorf("type %d: offset %d is %d, want %d", typ, 4*i, got, want)
			}
		}
	}
	b.Type = uint8(wire.TypeRelay)
	before := bytes.Clone(b.Bytes())
	if stampEcho(b, 9e9); !bytes.Equal(b.Bytes(), before) {
		t.Error("another packet was written to")
	}
}

// FuzzEcho: no body of an echo or of an answer is too strange, and no answer is
// longer than what it answers.
func FuzzEcho(f *testing.F) {
	r := newEchoRig(f)
	f.Add(uint8(0), make([]byte, MinEcho))
	f.Add(uint8(1), make([]byte, MinEcho))
	f.Add(uint8(2), []byte("short"))
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		if len(body) > 1500 {
			return
		}
		rd := &reader{d: r.d, now: r.d.Now()}
		rd.hdr.Lane, rd.hdr.Type = packet.Lane(kind/2)%packet.NumLanes, wire.TypeEcho+wire.Type(kind&1)
		r.sess.echoes = limiter{}
		rd.echo(r.sess, bytes.Clone(body), Path{Remote: outerB})
		if rd.hdr.Type != wire.TypeEcho || len(body) < MinEcho {
			return
		}
		var m transport.Message
		select {
		case m = <-r.bind.out:
		case <-time.After(5 * time.Second):
			t.Fatal("no answer")
		}
		if len(m.Buf) > len(body)+r.sess.Overhead() {
			t.Errorf("answered %d bytes to %d", len(m.Buf), len(body))
		}
	})
}
