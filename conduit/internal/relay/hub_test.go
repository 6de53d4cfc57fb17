// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

var errLost = errors.New("link is lost")

// fakeStream is a HubStream whose link the test switches.
type fakeStream struct {
	mu     sync.Mutex // guards the following
	open   bool
	opened int
	sent   []string
	in     func(identity.PeerID, []byte)
	gone   func(identity.PeerID)
	lose   chan struct{} // of the present call
	refuse bool          // calls end at once
}

func (f *fakeStream) RelayPackets(ctx context.Context, in func(identity.PeerID, []byte), gone func(identity.PeerID)) error {
	f.mu.Lock()
	f.opened++
	if f.refuse {
		f.mu.Unlock()
		return errLost
	}
	lose := make(chan struct{})
	f.lose, f.in, f.gone = lose, in, gone
	f.mu.Unlock()
	select {
	case <-time.After(50 * time.Millisecond): // to open
	case <-ctx.Done():
		return ctx.Err()
	}
	f.mu.Lock()
	f.open = true
	f.mu.Unlock()
	in(identity.PeerID{}, nil)
	var err error
	select {
	case <-lose:
		err = errLost
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	f.mu.Lock()
	f.open = false
	f.mu.Unlock()
	return err
}

func (f *fakeStream) SendPacket(to identity.PeerID, lane uint8, packet []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open {
		f.sent = append(f.sent, fmt.Sprintf("%d:%d %s", to[0], lane, packet[minPacket:]))
	}
	return f.open
}

// bring delivers a packet, or the news that from is gone where there is none.
func (f *fakeStream) bring(from byte, packet []byte) {
	f.mu.Lock()
	in, gone := f.in, f.gone
	f.mu.Unlock()
	if packet == nil {
		gone(identity.PeerID{from})
		return
	}
	in(identity.PeerID{from}, packet)
}

func (f *fakeStream) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.lose)
}

func (f *fakeStream) take() (sent []string, opened int, open bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent, f.sent = f.sent, nil
	return sent, f.opened, f.open
}

func virtual(n byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 66, 0, n}), 1)
}

// newHubBind makes a bind that knows the peers 1 to 9.
func newHubBind(t *testing.T, f *fakeStream, change func(*HubConfig)) *HubBind {
	t.Helper()
	cfg := HubConfig{
		Stream: f,
		PeerOf: func(a netip.AddrPort) (identity.PeerID, bool) {
			n := a.Addr().As4()[3]
			return identity.PeerID{n}, a == virtual(n) && n > 0 && n < 10
		},
		AddrOf: func(id identity.PeerID) (netip.AddrPort, bool) { return virtual(id[0]), id[0] < 10 },
	}
	if change != nil {
		change(&cfg)
	}
	b, err := NewHub(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHubOpensAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStream{}
		var states []bool
		var mu sync.Mutex
		b := newHubBind(t, f, func(c *HubConfig) {
			c.State = func(up bool) { mu.Lock(); defer mu.Unlock(); states = append(states, up) }
		})
		defer b.Close()
		time.Sleep(time.Minute)
		if _, opened, _ := f.take(); opened != 0 || b.Ready() {
			t.Fatalf("opened %d times before anything was sent", opened)
		}
		sendText(t, b, 2, virtual(1), "bulk")
		sendText(t, b, 0, virtual(1), "stop")
		sendText(t, b, 1, virtual(2), "pose")
		time.Sleep(100 * time.Millisecond)
		sent, opened, open := f.take()
		if diff := cmp.Diff([]string{"1:0 stop", "2:1 pose", "1:2 bulk"}, sent); diff != "" || opened != 1 || !open || !b.Ready() {
			t.Errorf("opened %d times, sent (-want +got):\n%s", opened, diff)
		}
		sendText(t, b, 2, virtual(1), "direct")
		if sent, _, _ := f.take(); len(sent) != 1 {
			t.Errorf("sent %q, want one packet", sent)
		}
		for range 4 { // Want and what comes keep it open
			time.Sleep(20 * time.Second)
			b.Want()
		}
		time.Sleep(20 * time.Second)
		f.bring(3, meshPacket(0, "hello"))
		time.Sleep(20 * time.Second)
		if _, _, open := f.take(); !open {
			t.Error("it was closed while it was used")
		}
		time.Sleep(20 * time.Second)
		if _, opened, open := f.take(); open || opened != 1 || b.Ready() {
			t.Errorf("open %v after 40 s without use, opened %d times", open, opened)
		}
		b.Want()
		time.Sleep(100 * time.Millisecond)
		if _, opened, open := f.take(); !open || opened != 2 {
			t.Errorf("open %v, opened %d times", open, opened)
		}
		mu.Lock()
		defer mu.Unlock()
		if diff := cmp.Diff([]bool{true, false, true}, states); diff != "" {
			t.Errorf("states (-want +got):\n%s", diff)
		}
	})
}

func TestHubComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStream{}
		b := newHubBind(t, f, nil)
		defer b.Close()
		b.Want()
		time.Sleep(time.Second)
		f.drop()
		synctest.Wait()
		sendText(t, b, 2, virtual(1), "old")
		time.Sleep(60 * time.Millisecond) // at once, and 50 ms to open
		if sent, opened, open := f.take(); !open || opened != 2 || len(sent) != 1 {
			t.Errorf("open %v, opened %d times, sent %q", open, opened, sent)
		}
		f.mu.Lock()
		f.refuse = true
		f.mu.Unlock()
		f.drop()
		synctest.Wait()
		sendText(t, b, 2, virtual(1), "too old by then")
		for range 20 {
			time.Sleep(3 * time.Second)
			b.Want()
		}
		if _, opened, _ := f.take(); opened < 8 || opened > 20 {
			t.Errorf("opened %d times in a minute of refusals", opened)
		}
		f.mu.Lock()
		f.refuse = false
		f.mu.Unlock()
		time.Sleep(11 * time.Second)
		if sent, _, open := f.take(); !open || len(sent) != 0 {
			t.Errorf("open %v, sent %q", open, sent)
		}
		if c, _ := b.Counters(); c.Stale != 1 {
			t.Errorf("%d packets were stale, want 1", c.Stale)
		}
	})
}

func TestHubHoldsFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStream{}
		b := newHubBind(t, f, nil)
		defer b.Close()
		for i := range 40 {
			sendText(t, b, 2, virtual(1), fmt.Sprint(i))
		}
		sendText(t, b, 0, virtual(1), "stop")
		time.Sleep(100 * time.Millisecond)
		sent, _, _ := f.take()
		if len(sent) != hubQueue || sent[0] != "1:0 stop" || sent[1] != "1:2 9" {
			t.Errorf("sent %d packets, %q", len(sent), sent)
		}
		if c, _ := b.Counters(); c.Dropped[2] != 9 || c.TxPackets != hubQueue {
			t.Errorf("counters %+v", c)
		}
	})
}

// TestHubKeepsTheOrder sends when the stream stands and nobody has said so yet.
func TestHubKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStream{}
		b := newHubBind(t, f, nil)
		defer b.Close()
		sendText(t, b, 2, virtual(1), "first")
		f.mu.Lock()
		f.open = true
		f.mu.Unlock()
		sendText(t, b, 2, virtual(1), "second")
		if sent, _, _ := f.take(); !slices.Equal(sent, []string{"1:2 first", "1:2 second"}) {
			t.Errorf("sent %q", sent)
		}
	})
}

func TestHubReceives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStream{}
		var gone []byte
		b := newHubBind(t, f, func(c *HubConfig) { c.Gone = func(id identity.PeerID) { gone = append(gone, id[0]) } })
		got := receiver(t, b)
		b.Want()
		time.Sleep(100 * time.Millisecond)
		f.bring(3, meshPacket(0, "hello"))
		f.bring(77, meshPacket(0, "from a stranger"))
		f.bring(3, []byte("none of the mesh"))
		f.bring(3, meshPacket(3, "of no lane"))
		f.bring(4, nil)
		synctest.Wait()
		if g := <-got; g != virtual(3).String()+" hello" || len(got) != 0 {
			t.Errorf("got %q and %d more", g, len(got))
		}
		c, opened := b.Counters()
		if c.RxPackets != 1 || c.Unknown != 1 || c.RxDropped != 2 || opened != 1 || string(gone) != "\x04" {
			t.Errorf("counters %+v, gone %v", c, gone)
		}
		if n, err := b.Send(0, []transport.Message{{Buf: meshPacket(0, "x"), Addr: netip.MustParseAddrPort("192.0.2.1:1")}}); n != 0 || err != nil {
			t.Errorf("Send to nobody = %d, %v", n, err)
		}
		_ = b.Close()
		synctest.Wait()
		if _, err := b.Send(0, []transport.Message{{Buf: meshPacket(0, "x"), Addr: virtual(1)}}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send after Close = %v", err)
		}
		b.Want() // does nothing
	})
}

func TestInboxIsBounded(t *testing.T) {
	var c counters
	x := newInbox(4, &c)
	for i := range 6 {
		x.put(2, virtual(1), meshPacket(2, fmt.Sprint(i)))
	}
	x.put(0, virtual(1), meshPacket(0, "stop"))
	msgs := []transport.Message{{Buf: make([]byte, 64)}, {Buf: make([]byte, 4)}, {Buf: make([]byte, 64)}, {Buf: make([]byte, 64)}}
	n, err := x.receive(msgs)
	if err != nil || n != 1 || string(msgs[0].Buf[minPacket:msgs[0].N]) != "stop" {
		t.Errorf("received %d, %v", n, err)
	}
	x.close()
	if _, err := x.receive(msgs); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive after close = %v", err)
	}
	if c.rxDropped.Load() != 3+3 {
		t.Errorf("%d dropped", c.rxDropped.Load())
	}
}

func TestPeerBind(t *testing.T) {
	var got []string
	b := NewPeer(virtual(5), func(lane int, to netip.AddrPort, p []byte) {
		got = append(got, fmt.Sprintf("%d %v %s", lane, to, p[minPacket:]))
	})
	sendText(t, b, 1, virtual(2), "x")
	if len(got) != 1 || got[0] != "1 10.66.0.2:1 x" || b.Sockets() != 0 || b.LocalAddr() != virtual(5) {
		t.Errorf("got %q, %d sockets at %v", got, b.Sockets(), b.LocalAddr())
	}
	done := make(chan error)
	go func() { _, err := b.Receive(0, nil); done <- err }()
	_ = b.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive = %v", err)
	}
	if _, err := b.Send(0, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send after Close = %v", err)
	}
}
