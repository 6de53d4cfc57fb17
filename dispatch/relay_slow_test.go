// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// slowly puts a link of rate bytes per second and next to no buffer in front of the
// machine.
func (m *machine) slowly(rate int) {
	m.tb.Helper()
	lc := net.ListenConfig{}
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		m.tb.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	m.tb.Cleanup(func() {
		_ = ln.Close()
		cancel() // connections that are still idle would live for minutes
		wg.Wait()
	})
	to := m.hub.NodeAddr().String()
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				return
			}
			context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
			// Less would stall: on loopback a segment is as large.
			_ = out.(*net.TCPConn).SetReadBuffer(64 << 10)
			wg.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
			wg.Go(func() {
				defer in.Close()
				paced(in, out, rate)
			})
		}
	})
	tr := m.http.Transport.(*http.Transport).Clone()
	tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, ln.Addr().String())
	}
	// As the node's connector has it.
	tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 256 << 10}
	m.tb.Cleanup(tr.CloseIdleConnections)
	m.http = &http.Client{Transport: tr}
}

// paced copies rate bytes per second, a little at a time.
func paced(to io.Writer, from io.Reader, rate int) {
	buf := make([]byte, 2<<10)
	free := time.Now() // when the link is
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if now := time.Now(); free.Before(now) {
			free = now
		}
		free = free.Add(time.Duration(n) * time.Second / time.Duration(rate))
		<-time.After(time.Until(free))
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestRelaySlowReceiver floods a slow receiver with Bulk and looks how long
// Critical takes.
func TestRelaySlowReceiver(t *testing.T) {
	h := dispatchtest.Start(t, func(c *dispatch.Config) { c.RelayRate = 1 << 30 })
	a, b := join(t, h, "a"), join(t, h, "b")
	const rate = 1_000_000 // 8 Mbit/s
	b.slowly(rate)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	sa, sb := a.relay(ctx), b.relay(ctx)
	const rounds = 5
	var received atomic.Int64
	begin := time.Now()
	arrived := make(chan uint32, rounds)
	go func() {
		defer close(arrived)
		for n := 0; n < rounds; {
			res, err := sb.Receive()
			if err != nil {
				return
			}
			for _, f := range res.GetFrames() {
				received.Add(int64(len(f.GetPacket())))
				if f.GetPacket()[1]&3 == 0 {
					arrived <- sealedNumber(f)
					n++
				}
			}
		}
	}()
	flood := func(d time.Duration) {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
			var bulk []*dispatchv1.RelayFrame
			for range 30 { // 4 MB/s
				bulk = append(bulk, frame(b.id, sealed(2, 1400, 0)))
			}
			sendFrames(t, sa, bulk...)
		}
	}
	flood(time.Second)
	var worst, sum time.Duration
	for i := range uint32(rounds) {
		start := time.Now()
		sendFrames(t, sa, frame(b.id, sealed(0, 100, i)))
		done := make(chan struct{})
		go func() { <-arrived; close(done) }()
		for wait := true; wait; {
			flood(10 * time.Millisecond)
			select {
			case <-done:
				wait = false
			default:
			}
		}
		d := time.Since(start)
		worst = max(worst, d)
		sum += d
	}
	// Most of it is the link's own buffer here. In the hub stand a batch and what a
	// socket takes, some 40 KB; without that bound it is the window of the stream.
	if mean := sum / rounds; mean > 2*time.Second {
		t.Errorf("Critical takes %v on average", mean)
	}
	t.Logf("Critical beside a flood, %.0f bytes/s received: mean %v, worst %v", float64(received.Load())/time.Since(begin).Seconds(), sum/rounds, worst)
}
