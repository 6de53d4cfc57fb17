// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRoundTrips(t *testing.T) {
	e := StartEcho(listen(t))
	defer e.Close()
	l, err := RoundTrips(t.Context(), listen(t), e.Addr(), Requests{Count: 50, Interval: time.Millisecond, Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	if l.Sent != 50 || l.Got != 50 || l.Loss() != 0 || l.LongestGap != 0 {
		t.Errorf("latency = %+v, want 50 of 50", l)
	}
	if l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.Max {
		t.Errorf("latency = %+v, want 0 < p50 <= p99 <= max", l)
	}
}

func TestRoundTripsWithLoss(t *testing.T) {
	server := listen(t)
	go func() { // answers only even sequence numbers, and twice
		buf := make([]byte, 128)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if binary.LittleEndian.Uint64(buf[8:])%2 == 0 {
				_, _ = server.WriteToUDPAddrPort(buf[:n], from)
				_, _ = server.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	}()
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	l, err := RoundTrips(t.Context(), listen(t), to, Requests{Count: 20, Interval: time.Millisecond, Linger: 50 * time.Millisecond})
	if err != nil || l.Got != 10 || l.Loss() != 0.5 || l.LongestGap != 1 {
		t.Errorf("latency = %+v, %v, want half lost and a gap of 1", l, err)
	}
}

func TestRoundTripsBounds(t *testing.T) {
	for _, r := range []Requests{{Count: MaxRequests + 1}, {Count: -1}, {Size: 8}, {Size: 1 << 16}, {Interval: -1}} {
		if _, err := RoundTrips(t.Context(), nil, netip.AddrPort{}, r); err == nil {
			t.Errorf("RoundTrips accepted %+v", r)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	silent := listen(t).LocalAddr().(*net.UDPAddr).AddrPort()
	l, err := RoundTrips(ctx, listen(t), silent, Requests{Count: 1000})
	if !errors.Is(err, context.DeadlineExceeded) || l.Sent == 0 || l.Sent == 1000 {
		t.Errorf("RoundTrips past its context = %+v, %v", l, err)
	}
}

func TestWaitAnswer(t *testing.T) {
	server := listen(t)
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	started := make(chan *Echo, 1)
	time.AfterFunc(60*time.Millisecond, func() { started <- StartEcho(server) })
	d, err := WaitAnswer(t.Context(), listen(t), to, 5*time.Millisecond)
	if err != nil || d < 50*time.Millisecond {
		t.Errorf("WaitAnswer = %v, %v, want over 60ms", d, err)
	}
	(<-started).Close()

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	silent := listen(t).LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := WaitAnswer(ctx, listen(t), silent, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitAnswer of a silent peer = %v, want deadline exceeded", err)
	}
}

// pair is a TCP connection over loopback.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = new(net.Dialer).DialContext(t.Context(), "tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestTransfer(t *testing.T) {
	const size = 3<<20 + 17
	marker := []byte("a marker in the data")
	a, b := pair(t)
	type result struct {
		t   Transfer
		err error
	}
	received := make(chan result, 1)
	var got bytes.Buffer
	go func() {
		tr, err := Receive(t.Context(), b, &got, size)
		received <- result{tr, err}
	}()
	var last int64
	sent, err := Send(t.Context(), a, Pattern(1, marker), size, func(n int64) { last = n })
	if err != nil {
		t.Fatal(err)
	}
	r := <-received
	if r.err != nil || r.t.SHA256 != sent.SHA256 || sent.Bytes != size || last != size || sent.Mbit() <= 0 {
		t.Errorf("sent %+v (progress %d), received %+v", sent, last, r)
	}
	want := make([]byte, size)
	if _, err := io.ReadFull(Pattern(1, marker), want); err != nil || !bytes.Equal(want, got.Bytes()) {
		t.Errorf("received data differs from the pattern, %v", err)
	}
	if n := bytes.Count(want, marker); n != size/512 {
		t.Errorf("marker appears %d times", n)
	}
}

func TestTransferFailures(t *testing.T) {
	t.Run("too large", func(t *testing.T) {
		a, b := pair(t)
		go func() { _, _ = Send(t.Context(), a, Pattern(1, nil), 100, nil) }()
		if _, err := Receive(t.Context(), b, nil, 99); err == nil {
			t.Error("Receive took more than its limit")
		}
		b.Close()
	})
	t.Run("cut short", func(t *testing.T) {
		a, b := pair(t)
		go func() {
			_, _ = a.Write([]byte{0, 0, 0, 0, 0, 0, 0, 9, 1, 2})
			a.Close()
		}()
		if _, err := Receive(t.Context(), b, nil, 99); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Receive = %v, want unexpected EOF", err)
		}
	})
	t.Run("wrong checksum", func(t *testing.T) {
		a, b := pair(t)
		go func() {
			_, _ = io.CopyN(io.Discard, b, 8+10)
			_, _ = b.Write(make([]byte, 32))
		}()
		if _, err := Send(t.Context(), a, Pattern(1, nil), 10, nil); !errors.Is(err, ErrChecksum) {
			t.Errorf("Send = %v, want ErrChecksum", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		a, _ := pair(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := Send(ctx, a, Pattern(1, nil), 1<<30, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send = %v, want deadline exceeded", err)
		}
	})
}
