// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/fips140"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// read takes what comes from the server until the socket is closed.
func (b *TurnBind) read() {
	bind := b.conn.bind
	msgs := make([]transport.Message, bind.BatchSize())
	for i := range msgs {
		msgs[i].Buf = make([]byte, bind.RecvBufSize())
	}
	server := net.UDPAddrFromAddrPort(b.cfg.Server)
	for {
		n, err := bind.Receive(0, msgs)
		if errors.Is(err, net.ErrClosed) || err != nil && b.conn.closed.Load() {
			return
		}
		for i := range msgs[:n] { // none on an ICMP error, which changes nothing
			m := &msgs[i]
			if m.Addr != b.cfg.Server || m.Segment != 0 && m.Segment < m.N {
				b.count.rxDropped.Add(1)
				continue
			}
			b.incoming(m.Buf[:m.N], server)
		}
	}
}

// incoming handles one datagram of the server.
func (b *TurnBind) incoming(raw []byte, server net.Addr) {
	v, peer, data, code := b.conn.inspect(raw)
	if v == drop {
		b.count.rxDropped.Add(1)
		return
	}
	b.conn.heard.Store(time.Now().UnixNano())
	if v == deliver {
		lane, ok := laneOf(data)
		if !ok {
			b.count.rxDropped.Add(1)
			return
		}
		b.in.put(lane, peer, append([]byte(nil), data...))
		return
	}
	// It complains of what it does not expect, such as an answer that comes twice.
	_, _ = b.client.HandleInbound(raw, server)
	if v == fatal {
		b.lost(fmt.Errorf("TURN server refuses the allocation: error %d", code))
	}
}

// watch asks the server whether it is there when it is silent while packets leave:
// one that was restarted drops them without a word.
func (b *TurnBind) watch() {
	tick := time.NewTicker(turnSilence)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-b.done:
			return
		}
		if !b.conn.sent.Swap(false) || time.Since(time.Unix(0, b.conn.heard.Load())) < turnSilence {
			continue
		}
		if !b.ask() {
			b.lost(errTurnSilent)
			return
		}
	}
}

// ask makes a request that changes nothing and tells whether there was any answer.
// What an answer means is judged where it comes in.
func (b *TurnBind) ask() bool {
	b.mu.Lock()
	to := b.asked
	if b.closed || !to.IsValid() {
		b.mu.Unlock()
		return true
	}
	answered := make(chan struct{})
	begin := time.Now()
	b.wg.Go(func() {
		defer close(answered)
		fips140.WithoutEnforcement(func() { _ = b.client.CreatePermission(net.UDPAddrFromAddrPort(to)) })
	})
	b.mu.Unlock()
	timeout := time.NewTimer(turnAnswer)
	defer timeout.Stop()
	select {
	case <-answered:
	case <-timeout.C:
	case <-b.done:
		return true
	}
	return time.Unix(0, b.conn.heard.Load()).After(begin)
}

// Close gives the allocation back and waits, 3 s at most, for all goroutines.
func (b *TurnBind) Close() error {
	b.closeOnce.Do(func() {
		b.mu.Lock()
		b.closed = true
		close(b.done)
		b.mu.Unlock()
		b.in.close()
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			if b.alloc != nil {
				// Tells the server, and does not wait for its answer.
				fips140.WithoutEnforcement(func() { _ = b.alloc.Close() })
			}
			_ = b.conn.Close()
			b.client.Close() // ends what waits for an answer; nothing new can begin
			b.wg.Wait()
		}()
		timeout := time.NewTimer(turnClose)
		defer timeout.Stop()
		select {
		case <-finished:
		case <-timeout.C:
			b.log.Warn("TURN client does not end")
		}
	})
	return nil
}
