// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func smallReceiveBuffer(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) })
}

// slowPipe passes TCP on to addr, rate bytes per second in that direction.
func slowPipe(t *testing.T, addr string, rate int) string {
	t.Helper()
	lc := net.ListenConfig{Control: smallReceiveBuffer}
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err != nil {
				_ = in.Close()
				continue
			}
			closeBoth := func() { _ = in.Close(); _ = out.Close() }
			stop := context.AfterFunc(ctx, closeBoth)
			wg.Go(func() { defer stop(); defer closeBoth(); _, _ = io.Copy(in, out) })
			wg.Go(func() {
				defer closeBoth()
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				buf := make([]byte, rate/100)
				for {
					select {
					case <-tick.C:
					case <-ctx.Done():
						return
					}
					n, err := in.Read(buf)
					if err != nil {
						return
					}
					if _, err := out.Write(buf[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	return l.Addr().String()
}

// TestRelayCriticalOvertakesBulk sends much more Bulk than an uplink of 1 Mbit/s
// carries, and Critical packets that must not wait behind it.
func TestRelayCriticalOvertakesBulk(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	h := hubtest.New(t)
	_, certA := h.Enroll("a")
	kb, certB := h.Enroll("b")
	u, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	slow := slowPipe(t, u.Host, 125_000)
	ca, _ := start(t, h, certA, func(c *Connector) { c.url.Host = slow })
	cb, _ := start(t, h, certB, nil)
	a := openRelay(t, ca)
	next(t, "stream of a", a.ready)
	ready := make(chan struct{})
	delays := make(chan time.Duration, 1000)
	begin := time.Now()
	bulk := 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cb.RelayPackets(ctx, func(from identity.PeerID, b []byte) {
			switch {
			case from.IsZero():
				close(ready)
			case b[1] == 2:
				bulk++
			default:
				delays <- time.Since(begin) - time.Duration(binary.BigEndian.Uint64(b[minRelayed:])) //nolint:gosec // a time
			}
		}, func(identity.PeerID) {})
	}()
	next(t, "stream of b", ready)

	const critical = 60
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	big, small := packet(2, 1400, ""), packet(0, 100, "")
	for i := range critical * 25 {
		<-tick.C
		ca.SendPacket(kb.ID(), 2, big) // 5.6 Mbit/s
		if i%25 == 0 {
			binary.BigEndian.PutUint64(small[minRelayed:], uint64(time.Since(begin))) //nolint:gosec // a time
			ca.SendPacket(kb.ID(), 0, small)
		}
	}
	var got []time.Duration
	for range critical {
		got = append(got, next(t, "critical packet", delays))
	}
	cancel()
	<-done
	slices.Sort(got)
	dropped := ca.RelayDropped()
	t.Logf("critical delay: median %v, largest %v; %d bulk came, dropped %v", got[critical/2], got[critical-1], bulk, dropped)
	if dropped[0] != 0 || dropped[2] == 0 {
		t.Errorf("dropped %v: want Bulk only", dropped)
	}
	// 16 KiB unsent, a message of 4 KiB and what the pipe's own socket holds, at 125
	// kB/s.
	if got[critical-1] > 700*time.Millisecond {
		t.Errorf("a critical packet took %v", got[critical-1])
	}
}
