// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// TestFlowsAreCut revokes a peer, removes it or forbids its flow while packets go
// both ways every few milliseconds: within a second none arrives any more.
func TestFlowsAreCut(t *testing.T) {
	for name, cut := range map[string]func(m *conduittest.Mesh){
		"revoked": func(m *conduittest.Mesh) { m.Hub.Deny(conduit.Denial{ID: m.Certificate(1).ID}) },
		"serial":  func(m *conduittest.Mesh) { m.Hub.Deny(conduit.Denial{Serial: m.Certificate(1).Serial.Bytes()}) },
		"removed": func(m *conduittest.Mesh) { m.Hub.Remove(m.Certificate(1).ID) },
		"policy":  func(m *conduittest.Mesh) { m.Hub.SetPolicy(&policy.Document{Version: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			m := conduittest.NewMesh(t, 2)
			exchange(t, m, 0, 1, "before")
			exchange(t, m, 1, 0, "before")
			ctx, cancel := context.WithCancel(within(t))
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			var mu sync.Mutex
			var last [2]time.Time // when a packet last arrived
			for i := range 2 {
				wg.Go(func() {
					tick := time.NewTicker(3 * time.Millisecond)
					defer tick.Stop()
					for m.Send(ctx, i, 1-i, []byte("again")) == nil {
						select {
						case <-tick.C:
						case <-ctx.Done():
							return
						}
					}
				})
				wg.Go(func() {
					for {
						if _, err := m.Recv(ctx, i); err != nil {
							return
						}
						mu.Lock()
						last[i] = time.Now()
						mu.Unlock()
					}
				})
			}
			arrived := func() [2]time.Time {
				mu.Lock()
				defer mu.Unlock()
				return last
			}
			eventually(t, "packets both ways", func() bool { l := arrived(); return !l[0].IsZero() && !l[1].IsZero() })
			start := time.Now()
			cut(m)
			select {
			case <-time.After(1500 * time.Millisecond):
			case <-ctx.Done():
			}
			for i, at := range arrived() {
				if d := at.Sub(start); d > time.Second {
					t.Errorf("node%d got packets until %v after, want 1 s at most", i, d)
				}
			}
		})
	}
}

// TestErrorOfAllowedFlow: the far end's "port unreachable" comes back although no
// rule names icmp and none lets the far end begin anything.
func TestErrorOfAllowedFlow(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	m.Hub.SetPolicy(&policy.Document{Version: 1, Allow: []policy.Rule{{
		Src: []string{"name:node0"}, Dst: []string{"name:node1"}, Proto: "udp", Ports: []string{"7400"},
	}}})
	exchange(t, m, 0, 1, "hello")
	eventually(t, "policy 2 at both", func() bool {
		return status(t, m.Node(0)).Policy.Version == 2 && status(t, m.Node(1)).Policy.Version == 2
	})
	exchange(t, m, 0, 1, "still") // so that both know the flow under it
	unreachable := func(dport uint16) []byte {
		quote := conduittest.UDP(conduittest.Addr(0), conduittest.Addr(1), 7400, dport, []byte("x"))
		// The header of a UDP packet, made that of an ICMP error.
		b := conduittest.UDP(conduittest.Addr(1), conduittest.Addr(0), 0, 0, quote)
		b[9] = 1
		copy(b[20:28], []byte{3, 3, 0, 0, 0, 0, 0, 0})
		binary.BigEndian.PutUint16(b[10:], 0)
		return b
	}
	ctx := within(t)
	for _, port := range []uint16{7401, 7400} { // of a flow that never was, then of ours
		if err := m.App(1).Send(ctx, unreachable(port)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 2048)
	n, err := m.App(0).Recv(ctx, buf)
	if err != nil || n < 52 || buf[9] != 1 || binary.BigEndian.Uint16(buf[50:]) != 7400 {
		t.Errorf("got %x, %v; want the error about port 7400", buf[:n], err)
	}
	if denied := status(t, m.Node(1)).Policy.Denied[policy.NoRule]; denied == 0 {
		t.Error("an error about no flow was not denied by its sender")
	}
}

// TestPolicyInForce: a node tells by what it judges.
func TestPolicyInForce(t *testing.T) {
	m := conduittest.NewMesh(t, 3)
	exchange(t, m, 0, 1, "hello")
	p := conduittest.PeerOf(m.Certificate(2))
	p.Tags = []string{"arm"}
	m.Hub.Enrol(p)
	var got *conduit.PolicyInForce
	eventually(t, "the tag", func() bool {
		var err error
		if got, err = m.Node(0).Policy(within(t)); err != nil {
			t.Fatal(err)
		}
		return len(got.Peers) == 2 && len(got.Peers[1].Tags) == 1
	})
	if got.Version != 1 || got.Self.Name != "node0" || got.Peers[0].Name != "node1" || got.Peers[1].Tags[0] != "arm" {
		t.Errorf("policy = %+v", got)
	}
	if d, err := policy.Parse(got.Document); err != nil || len(d.Allow) != 1 {
		t.Errorf("document: %v", err)
	}
	if b, err := json.Marshal(got); err != nil || len(b) == 0 {
		t.Error(err)
	}
}
