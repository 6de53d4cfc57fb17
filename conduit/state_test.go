// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// stateMesh is a mesh whose nodes keep their state in dir, in files named after
// their numbers.
func stateMesh(t *testing.T, n int) (m *conduittest.Mesh, dir string) {
	t.Helper()
	dir = t.TempDir()
	m = conduittest.NewMeshWith(t, n, func(i int, c *conduit.Config) { c.StateFile = stateFile(dir, i) })
	return m, dir
}

func stateFile(dir string, i int) string { return filepath.Join(dir, strconv.Itoa(i)) }

// meet has two nodes know a direct way to each other.
func meet(t *testing.T, m *conduittest.Mesh, i, j int) {
	t.Helper()
	exchange(t, m, i, j, "first")
	eventually(t, "a direct path at both ends", func() bool {
		return pathTo(t, m, i, j).Type == "direct" && pathTo(t, m, j, i).Type == "direct"
	})
}

// pathTo is node i's path to node j.
func pathTo(t *testing.T, m *conduittest.Mesh, i, j int) conduit.PathStatus {
	t.Helper()
	id := m.Certificate(j).ID.String()
	for _, p := range status(t, m.Node(i)).Peers {
		if p.ID == id {
			return p.Path
		}
	}
	return conduit.PathStatus{Type: "unknown peer"}
}

func closeNodes(t *testing.T, m *conduittest.Mesh, which ...int) {
	t.Helper()
	for _, i := range which {
		if err := m.Node(i).Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRestartWithoutHub: nodes with a state file find each other while the hub is
// away, on their ports of before, under the policy of before.
func TestRestartWithoutHub(t *testing.T) {
	for name, which := range map[string][]int{"one": {0}, "other": {1}, "both": {0, 1}} {
		t.Run(name, func(t *testing.T) {
			m, _ := stateMesh(t, 2)
			meet(t, m, 0, 1)
			m.Hub.SetPolicy(&policy.Document{Version: 1, Allow: []policy.Rule{{Src: []string{"*"}, Dst: []string{"*"}, Proto: "udp", Ports: []string{"7400"}}}})
			eventually(t, "policy 2 at both", func() bool {
				return status(t, m.Node(0)).Policy.Version == 2 && status(t, m.Node(1)).Policy.Version == 2
			})
			ports := []int{status(t, m.Node(0)).Node.Port, status(t, m.Node(1)).Node.Port}
			m.Hub.SetDown(true)
			closeNodes(t, m, which...)
			for _, i := range which {
				m.Restart(t, i, nil)
				st := status(t, m.Node(i))
				if st.Node.Port != ports[i] || st.Policy.Version != 2 || !st.Hub.FromSnapshot || st.Hub.Connected || len(st.Peers) != 1 {
					t.Errorf("node%d starts with port %d, policy %d, hub %+v, %d peers", i, st.Node.Port, st.Policy.Version, st.Hub, len(st.Peers))
				}
			}
			start := time.Now()
			exchange(t, m, 0, 1, "without hub")
			exchange(t, m, 1, 0, "without hub")
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("connected after %v, want 3 s at most", d)
			}
			// What the policy does not allow stays denied.
			i := which[0]
			if err := m.App(i).Send(within(t), conduittest.UDP(conduittest.Addr(i), conduittest.Addr(1-i), 7400, 7401, nil)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "denied", func() bool { return status(t, m.Node(i)).Counters.TxDroppedBy["policy"] == 1 })
			m.Hub.SetDown(false)
			eventually(t, "the hub's word counts again", func() bool {
				st := status(t, m.Node(i))
				return st.Hub.Connected && !st.Hub.FromSnapshot
			})
			exchange(t, m, 0, 1, "with hub")
		})
	}
}

// TestDenialKept: who is shut out stays so over a restart without the hub.
func TestDenialKept(t *testing.T) {
	m, _ := stateMesh(t, 3)
	meet(t, m, 0, 1)
	meet(t, m, 0, 2)
	m.Hub.Deny(conduit.Denial{ID: m.Certificate(1).ID})
	eventually(t, "end of the session", func() bool { return pathTo(t, m, 0, 1).Type == "none" })
	m.Hub.SetDown(true)
	m.Restart(t, 0, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := m.Node(0).Connect(ctx, m.Certificate(1).ID, nil); !errors.Is(err, conduit.ErrDenied) {
		t.Errorf("Connect = %v, want ErrDenied", err)
	}
	exchange(t, m, 0, 2, "others go on")
	if p := pathTo(t, m, 0, 1); p.Type != "none" {
		t.Errorf("path %+v", p)
	}
}

// TestSavedBeforeClose: what a node learns is in the file soon, not only when it
// ends in good order.
func TestSavedBeforeClose(t *testing.T) {
	m, dir := stateMesh(t, 2)
	meet(t, m, 0, 1)
	var crashed []byte
	remote := []byte(conduittest.Addr(1).String())
	eventually(t, "a saved state with the peer and the policy", func() bool {
		crashed, _ = os.ReadFile(stateFile(dir, 0))
		return len(crashed) > 0 && (bytes.Contains(crashed, remote) || bytes.Contains(crashed, []byte("node1")))
	})
	m.Hub.SetDown(true)
	closeNodes(t, m, 0)
	if err := os.WriteFile(stateFile(dir, 0), crashed, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Restart(t, 0, nil)
	if st := status(t, m.Node(0)); len(st.Peers) != 1 || st.Policy.Version != 1 || !st.Hub.FromSnapshot {
		t.Errorf("status %+v", st)
	}
}

// TestPortTaken: a node whose port of before is another program's takes a new one,
// and still finds its peers without the hub.
func TestPortTaken(t *testing.T) {
	m, _ := stateMesh(t, 2)
	meet(t, m, 0, 1)
	m.Hub.SetDown(true)
	port := status(t, m.Node(0)).Node.Port
	closeNodes(t, m, 0)
	for _, network := range []string{"udp4", "udp6"} {
		c, err := net.ListenUDP(network, &net.UDPAddr{Port: port})
		if err != nil {
			t.Logf("%s port %d: %v", network, port, err)
			continue
		}
		defer c.Close()
	}
	m.Restart(t, 0, nil)
	if got := status(t, m.Node(0)).Node.Port; got == port || got == 0 {
		t.Errorf("port %d, another program has %d", got, port)
	}
	exchange(t, m, 0, 1, "from the new port")
	exchange(t, m, 1, 0, "to the new port")
}

// TestUselessState: a state file that is damaged or another's does no harm: the
// node waits for its hub.
func TestUselessState(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"damaged": func(t *testing.T, dir string) {
			t.Helper()
			b, err := os.ReadFile(stateFile(dir, 0))
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 0x40
			if err := os.WriteFile(stateFile(dir, 0), b[:len(b)-1], 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"empty": func(t *testing.T, dir string) {
			t.Helper()
			if err := os.WriteFile(stateFile(dir, 0), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"foreign": func(t *testing.T, dir string) {
			t.Helper()
			b, err := os.ReadFile(stateFile(dir, 1))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(stateFile(dir, 0), b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"exposed": func(t *testing.T, dir string) {
			t.Helper()
			if err := os.Chmod(stateFile(dir, 0), 0o666); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, dir := stateMesh(t, 2)
			meet(t, m, 0, 1)
			closeNodes(t, m, 0, 1)
			spoil(t, dir)
			m.Hub.SetDown(true)
			var log syncBuffer
			m.Restart(t, 0, func(c *conduit.Config) { c.Logger = log.logger() })
			if st := status(t, m.Node(0)); len(st.Peers) != 0 || st.Policy.Version != 0 || st.Hub.FromSnapshot {
				t.Errorf("a node that knows nothing says %d peers, policy %d, hub %+v", len(st.Peers), st.Policy.Version, st.Hub)
			}
			if !bytes.Contains(log.bytes(), []byte("state of before is not used")) {
				t.Errorf("nothing in the log: %s", log.bytes())
			}
			m.Hub.SetDown(false)
			m.Restart(t, 1, nil)
			exchange(t, m, 0, 1, "with hub")
			m.Hub.SetDown(true)
			m.Restart(t, 0, nil)
			if st := status(t, m.Node(0)); len(st.Peers) != 1 || !st.Hub.FromSnapshot {
				t.Errorf("the next state is not used: %d peers, hub %+v", len(st.Peers), st.Hub)
			}
			if _, err := os.Stat(stateFile(dir, 0) + ".damaged"); (err == nil) != (name == "damaged" || name == "empty") {
				t.Errorf("the damaged file is kept: %v", err)
			}
		})
	}
}
