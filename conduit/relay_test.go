// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
)

// syncBuffer takes a log.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.b.Bytes())
}

func (s *syncBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(s, nil)) }

// relayMesh is a mesh whose hub carries packets.
func relayMesh(t *testing.T, n int, change func(i int, c *conduit.Config)) *conduittest.Mesh {
	t.Helper()
	m := conduittest.NewMeshWith(t, n, change)
	m.Hub.SetRelay(true)
	for i := range n {
		m.Restart(t, i, nil)
	}
	return m
}

// TestHubRelay: nodes without UDP talk over the hub's stream, each packet once and
// in order, and lose that way with the hub.
func TestHubRelay(t *testing.T) {
	m := relayMesh(t, 2, func(_ int, c *conduit.Config) { conduittest.NoUDP(c) })
	exchange(t, m, 0, 1, "first")
	eventually(t, "the relay at both ends", func() bool {
		return pathTo(t, m, 0, 1).Type == "hub-relay" && pathTo(t, m, 1, 0).Type == "hub-relay"
	})
	ctx := within(t)
	for i := range uint32(200) {
		if err := m.Send(ctx, 0, 1, binary.BigEndian.AppendUint32(nil, i)); err != nil {
			t.Fatal(err)
		}
		b, err := m.Recv(ctx, 1)
		for err == nil && string(b) == "first" {
			b, err = m.Recv(ctx, 1)
		}
		if err != nil || binary.BigEndian.Uint32(b) != i {
			t.Fatalf("datagram %d: %v, %v", i, b, err)
		}
	}
	if n := m.Hub.RelayStreams(); n != 2 {
		t.Errorf("%d streams are open", n)
	}
	p := status(t, m.Node(0)).Peers[0]
	if len(p.Paths) != 1 || p.Paths[0].Kind != "hub-relay" || p.Paths[0].Remote != "" || p.Paths[0].TxPackets < 200 || p.Path.Remote != "" {
		t.Errorf("paths = %+v", p.Paths)
	}
	m.Hub.SetDown(true)
	eventually(t, "no way without the hub", func() bool { return pathTo(t, m, 0, 1).Type == "none" })
	m.Hub.SetDown(false)
	exchange(t, m, 0, 1, "again")
	exchange(t, m, 1, 0, "again")
}

// TestRelayFirst: where both ways exist, packets go direct in the end, whoever
// began.
func TestRelayFirst(t *testing.T) {
	m := relayMesh(t, 2, nil)
	meet(t, m, 0, 1)
	exchange(t, m, 1, 0, "back")
	m.Hub.SetDown(true)
	exchange(t, m, 0, 1, "without the hub")
	if p := pathTo(t, m, 0, 1); p.Type != "direct" {
		t.Errorf("path %+v", p)
	}
}

// TestCloseUnderWay ends a mesh in the middle of all that can be under way; that no
// goroutine is left is for TestMain to tell.
func TestCloseUnderWay(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		m := conduittest.NewMeshWith(nil, 4, func(i int, c *conduit.Config) {
			c.StateFile, c.Relay, c.Rehandshake = stateFile(dir, i), i == 3, 200*time.Millisecond
			if i == 0 {
				conduittest.NoUDP(c)
			}
		})
		m.Hub.SetRelay(true)
		for i := range 3 {
			m.Restart(t, i, nil)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		for i := range 4 {
			for j := range 4 {
				if i == j {
					continue
				}
				busy.Go(func() {
					tick := time.NewTicker(time.Millisecond)
					defer tick.Stop()
					for ctx.Err() == nil {
						if m.Send(ctx, i, j, []byte("x")) != nil {
							return
						}
						<-tick.C
					}
				})
				busy.Go(func() { _ = m.Node(i).Connect(ctx, m.Certificate(j).ID, nil) })
			}
			busy.Go(func() {
				for ctx.Err() == nil {
					if _, err := m.Node(i).Status(ctx); err != nil {
						return
					}
				}
			})
		}
		busy.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for down := false; ctx.Err() == nil; down = !down {
				m.Hub.SetDown(down)
				<-tick.C
			}
		})
		soon := time.After(time.Duration(50+300*round) * time.Millisecond)
		<-soon
		done := make(chan error, 1)
		go func() { done <- m.Close() }()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-within(t).Done():
			t.Fatal("Close hangs")
		}
		cancel()
		busy.Wait()
	}
}
