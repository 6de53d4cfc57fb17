// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(tb testing.TB, cfg Config) Bind {
	tb.Helper()
	if cfg.Network == "" {
		cfg.Network = "udp4"
	}
	if !cfg.Addr.IsValid() {
		cfg.Addr = netip.MustParseAddr("127.0.0.1")
	}
	b, err := Listen(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = b.Close() })
	return b
}

func room(b Bind) []Message {
	msgs := make([]Message, b.BatchSize())
	for i := range msgs {
		msgs[i].Buf = make([]byte, b.RecvBufSize())
	}
	return msgs
}

// collect receives want datagrams and returns them split.
func collect(tb testing.TB, b Bind, want int) [][]byte {
	tb.Helper()
	var out [][]byte
	msgs := room(b)
	for len(out) < want {
		n, err := b.Receive(0, msgs)
		if err != nil {
			tb.Fatal(err)
		}
		for _, m := range msgs[:n] {
			seg := m.Segment
			if seg == 0 {
				seg = m.N
			}
			for rest := m.Buf[:m.N]; len(rest) > 0; {
				k := min(seg, len(rest))
				out = append(out, bytes.Clone(rest[:k]))
				rest = rest[k:]
			}
		}
	}
	return out
}

// What is sent in any mix of sizes arrives as the same datagrams, whatever the
// kernel coalesces on the way.
func TestSendReceive(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for _, cfg := range []Config{
		{},
		{NoGSO: true},
		{NoGRO: true},
		{NoGSO: true, NoGRO: true},
		{Network: "udp6", Addr: netip.IPv6Loopback()},
	} {
		t.Run(fmt.Sprintf("%s gso=%v gro=%v", cfg.Network, !cfg.NoGSO, !cfg.NoGRO), func(t *testing.T) {
			if cfg.Network == "udp6" {
				c, err := net.ListenPacket("udp6", "[::1]:0")
				if err != nil {
					if os.Getenv("CI") == "true" {
						t.Fatalf("needs IPv6 on loopback: %v", err)
					}
					t.Skip("needs IPv6 on loopback")
				}
				_ = c.Close()
			}
			a, b := open(t, cfg), open(t, cfg)
			for round := range 30 {
				var out []Message
				var want [][]byte
				for len(out) < 1+rng.IntN(70) {
					size := []int{1350, 1350, 1350, 1350, 60, 20, 1}[rng.IntN(7)]
					p := make([]byte, size)
					for i := range p {
						p[i] = byte(len(out))
					}
					if size >= 4 {
						binary.BigEndian.PutUint32(p, uint32(round<<16|len(out)))
					}
					out = append(out, Message{Buf: p, Addr: b.LocalAddr()})
					want = append(want, p)
				}
				n, err := a.Send(2, out)
				if err != nil || n != len(out) {
					t.Fatalf("send = %d of %d, %v", n, len(out), err)
				}
				got := collect(t, b, len(want))
				for i := range want {
					if !bytes.Equal(got[i], want[i]) {
						t.Fatalf("round %d: datagram %d of %d differs: %d bytes, want %d", round, i, len(want), len(got[i]), len(want[i]))
					}
				}
			}
		})
	}
}

func TestSenderAddress(t *testing.T) {
	a, b := open(t, Config{}), open(t, Config{})
	if _, err := a.Send(0, []Message{{Buf: []byte("x"), Addr: b.LocalAddr()}}); err != nil {
		t.Fatal(err)
	}
	msgs := room(b)
	n, err := b.Receive(0, msgs)
	if err != nil || n != 1 || msgs[0].Addr != a.LocalAddr() {
		t.Errorf("receive = %d from %v, %v; want 1 from %v", n, msgs[0].Addr, err, a.LocalAddr())
	}
}

// A refused message is skipped; the rest is sent and later sends still work.
func TestRefused(t *testing.T) {
	a, b := open(t, Config{}), open(t, Config{})
	out := []Message{
		{Buf: []byte("one"), Addr: b.LocalAddr()},
		{Buf: []byte("no"), Addr: netip.MustParseAddrPort("[2001:db8::1]:9")}, // wrong family
		{Buf: make([]byte, 70000), Addr: b.LocalAddr()},                       // too large
		{Buf: []byte("two"), Addr: b.LocalAddr()},
	}
	n, err := a.Send(0, out)
	if n != 2 || err == nil {
		t.Errorf("send = %d, %v; want 2 and an error", n, err)
	}
	if got := collect(t, b, 2); string(got[0]) != "one" || string(got[1]) != "two" {
		t.Errorf("got %q", got)
	}
}

// An ICMP error for an earlier send does not end the receiver.
func TestICMPError(t *testing.T) {
	a, b := open(t, Config{}), open(t, Config{})
	gone := open(t, Config{})
	dead := gone.LocalAddr()
	_ = gone.Close()
	for range 3 {
		_, _ = a.Send(0, []Message{{Buf: []byte("x"), Addr: dead}})
	}
	if _, err := b.Send(0, []Message{{Buf: []byte("alive"), Addr: a.LocalAddr()}}); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, a, 1); string(got[0]) != "alive" {
		t.Errorf("got %q", got[0])
	}
}

func TestCloseWakesReceive(t *testing.T) {
	b := open(t, Config{})
	err := make(chan error)
	started := make(chan struct{})
	go func() {
		close(started)
		_, e := b.Receive(0, room(b))
		err <- e
	}()
	<-started
	if e := b.Close(); e != nil {
		t.Fatal(e)
	}
	if e := <-err; !errors.Is(e, net.ErrClosed) {
		t.Errorf("receive after close: %v, want net.ErrClosed", e)
	}
	if _, e := b.Send(0, []Message{{Buf: []byte("x"), Addr: b.LocalAddr()}}); !errors.Is(e, net.ErrClosed) {
		t.Errorf("send after close: %v, want net.ErrClosed", e)
	}
	if e := b.Close(); e != nil {
		t.Errorf("second close: %v", e)
	}
}

func TestAllocs(t *testing.T) {
	a, b := open(t, Config{}), open(t, Config{})
	if a.BatchSize() == 1 {
		t.Skip("needs the batched Linux bind")
	}
	out := make([]Message, 32)
	for i := range out {
		out[i] = Message{Buf: make([]byte, 1350), Addr: b.LocalAddr()}
	}
	msgs := room(b)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := a.Send(0, out); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(out)*1350; {
			n, err := b.Receive(0, msgs)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range msgs[:n] {
				got += m.N
			}
		}
	}); n != 0 {
		t.Errorf("32 datagrams allocate %v times, want 0", n)
	}
}

func TestListenErrors(t *testing.T) {
	if _, err := Listen(Config{Network: "udp"}); err == nil {
		t.Error("network udp was accepted")
	}
	b := open(t, Config{})
	if _, err := Listen(Config{Network: "udp4", Addr: b.LocalAddr().Addr(), Port: int(b.LocalAddr().Port())}); err == nil {
		t.Error("a port in use was opened twice")
	}
}

func FuzzDemux(f *testing.F) {
	f.Add([]byte{0x80, 15: 0})
	f.Add([]byte{0, 1, 19: 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		k := Demux(b)
		if k == KindMesh && b[0] != 0x80 || k == KindSTUN && b[0] > 3 || len(b) == 0 && k != KindUnknown {
			t.Errorf("%x is %d", b, k)
		}
	})
}

func BenchmarkSendReceive(b *testing.B) {
	for _, c := range []struct {
		name string
		cfg  Config
	}{{"offload", Config{}}, {"plain", Config{NoGSO: true, NoGRO: true}}} {
		b.Run(c.name, func(b *testing.B) {
			tx, rx := open(b, c.cfg), open(b, c.cfg)
			out := make([]Message, 32)
			for i := range out {
				out[i] = Message{Buf: make([]byte, 1382), Addr: rx.LocalAddr()}
			}
			msgs := room(rx)
			b.SetBytes(32 * 1382)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tx.Send(2, out); err != nil {
					b.Fatal(err)
				}
				for got := 0; got < 32*1382; {
					n, err := rx.Receive(0, msgs)
					if err != nil {
						b.Fatal(err)
					}
					for _, m := range msgs[:n] {
						got += m.N
					}
				}
			}
		})
	}
}
