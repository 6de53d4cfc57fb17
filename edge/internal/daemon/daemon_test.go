// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	"github.com/bauxite-mesh/bauxite/edge/internal/join"
	"github.com/bauxite-mesh/bauxite/edge/internal/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNode is a node that does nothing but tell what happened.
type fakeNode struct {
	cfg    conduit.Config
	events chan string
	fail   error
	status *conduit.Status // nil: a plain one
}

func (n *fakeNode) Start(context.Context) error { n.events <- "start"; return n.fail }
func (n *fakeNode) Connect(context.Context, identity.PeerID, func(string)) error {
	return nil
}

func (n *fakeNode) Lookup(context.Context, string) (conduit.Peer, error) {
	return conduit.Peer{}, conduit.ErrUnknownPeer
}

func (n *fakeNode) Policy(context.Context) (*conduit.PolicyInForce, error) {
	return &conduit.PolicyInForce{}, nil
}

func (n *fakeNode) Ping(context.Context, identity.PeerID, conduit.PingOptions) (conduit.PingResult, error) {
	return conduit.PingResult{}, conduit.ErrPingCaps
}

func (n *fakeNode) SetCertificate(*identity.Certificate) error { return nil }
func (n *fakeNode) SetPSK([]byte, uint8) error                 { return nil }

func (n *fakeNode) Status(context.Context) (*conduit.Status, error) {
	c := n.cfg.Certificate
	if n.status != nil {
		return n.status, nil
	}
	return &conduit.Status{Node: conduit.NodeStatus{ID: c.ID.String(), Name: c.Name, Virtual4: c.Virtual4.String()}, Peers: []conduit.PeerStatus{}}, nil
}
func (n *fakeNode) Close() error { n.events <- "close"; return nil }

type closer struct {
	*idle
	events chan string
}

func (c closer) Close() error { c.events <- "close device"; return c.idle.Close() }

// joined returns a short home with an identity in it.
func joined(t *testing.T, h *hubtest.Hub) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := join.Run(t.Context(), join.Config{Token: h.Token(1, time.Hour).String(), HubURL: h.URL, Home: dir, Name: "n1"}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// appendConfig adds a table to config.toml.
func appendConfig(t *testing.T, dir, text string) {
	t.Helper()
	name := filepath.Join(dir, home.ConfigFile)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, append(b, text...), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestStartWithoutHub: a node whose hub is away comes up and says what it goes by.
func TestStartWithoutHub(t *testing.T) {
	h := hubtest.New(t)
	dir := joined(t, h)
	h.Stop()
	events := make(chan string, 16)
	deps := Deps{NewNode: func(c conduit.Config) (Node, error) {
		return &fakeNode{cfg: c, events: events, status: &conduit.Status{
			Hub:    conduit.HubStatus{FromSnapshot: true},
			Policy: conduit.PolicyStatus{Version: 4}, Peers: make([]conduit.PeerStatus, 3),
		}}, nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	var log syncBuffer
	log.seen = make(chan struct{}, 1)
	log.want = `"message":"node is up"`
	go func() {
		done <- Run(ctx, Config{Home: dir, Tun: "none", Port: -1, LogFormat: "json", Log: &log}, deps)
	}()
	select {
	case <-log.seen:
	case <-time.After(20 * time.Second):
		t.Errorf("not up without the hub; log:\n%s", log.String())
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	if s := log.String(); !strings.Contains(s, `"peers":3,"policy":4,`) || !strings.Contains(s, "from the state file until the hub answers") {
		t.Errorf("log:\n%s", s)
	}
}

type syncBuffer struct {
	// seen gets a word when want is written; both may be empty.
	want string
	seen chan struct{}

	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.want != "" && bytes.Contains(p, []byte(s.want)) {
		select {
		case s.seen <- struct{}{}:
		default:
		}
	}
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestRun(t *testing.T) {
	h := hubtest.New(t)
	dir := joined(t, h)
	appendConfig(t, dir, "[[uplink]]\nname = 'wwan*'\nmetered = true\nbudget = '1GB'\n"+
		"[[lane]]\nlane = 'critical'\ndscp = 'ef'\n")
	notifyPath := filepath.Join(dir, "n")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifyPath, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	t.Setenv("NOTIFY_SOCKET", notifyPath)
	t.Setenv("WATCHDOG_USEC", "20000")

	events := make(chan string, 16)
	var node *fakeNode
	var opened tun.Config
	deps := Deps{
		OpenTun: func(c tun.Config) (tun.Device, error) { opened = c; return closer{newIdle(c.MTU), events}, nil },
		NewNode: func(c conduit.Config) (Node, error) { node = &fakeNode{cfg: c, events: events}; return node, nil },
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	var log syncBuffer
	go func() {
		done <- Run(ctx, Config{Home: dir, Tun: "bx7", Port: 4242, Version: "v9", LogFormat: "json", Log: &log}, deps)
	}()
	for _, want := range []string{"READY=1", "WATCHDOG=1"} {
		buf := make([]byte, 64)
		_ = ready.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := ready.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("notified %q, %v, want %s; log:\n%s", buf[:n], err, want, log.String())
		}
	}
	if opened.Name != "bx7" || opened.MTU != 1350 || len(opened.Addrs) != 2 || opened.Addrs[0].Bits() != 32 || len(opened.Routes) != 2 {
		t.Errorf("interface: %+v", opened)
	}
	if u := node.cfg.Uplinks; len(u) != 1 || u[0] != (conduit.UplinkRule{Name: "wwan*", Metered: true, Budget: 1e9}) {
		t.Errorf("uplinks: %+v", u)
	}
	if l := node.cfg.Lanes; len(l) != 1 || l[0].Lane != "critical" || node.cfg.NoDSCP || node.cfg.Pacing != (conduit.Pacing{}) {
		t.Errorf("lanes: %+v, pacing %+v", l, node.cfg.Pacing)
	}
	if want := filepath.Join(dir, "state.cbor"); node.cfg.StateFile != want || node.cfg.Relay {
		t.Errorf("state in %s, relay %v", node.cfg.StateFile, node.cfg.Relay)
	}
	if node.cfg.Port != 4242 || len(node.cfg.PSK) != 32 || len(node.cfg.STUNServers) != 2 || node.cfg.Hub == nil {
		t.Errorf("node: %+v", node.cfg)
	}
	c := local.NewClient(filepath.Join(dir, home.SocketFile))
	defer c.Close()
	raw, err := c.StatusJSON(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var st local.Status
	if err := json.Unmarshal(raw, &st); err != nil || st.Node.Name != "n1" || st.Node.MeshID != "testmesh" || st.Node.Version != "v9" || st.Hub.URL != h.URL {
		t.Errorf("status %s, %v", raw, err)
	}
	if err := Run(ctx, Config{Home: dir, Log: &log}, deps); !errors.Is(err, home.ErrInUse) {
		t.Errorf("second Run = %v, want ErrInUse", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	for _, want := range []string{"start", "close", "close device"} {
		if got := <-events; got != want {
			t.Errorf("event %q, want %q", got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, home.SocketFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket is still there: %v", err)
	}
	if s := log.String(); !strings.Contains(s, `"message":"node is up"`) || strings.Contains(s, "PRIVATE") {
		t.Errorf("log:\n%s", s)
	}
}

func TestFailures(t *testing.T) {
	h := hubtest.New(t)
	boom := errors.New("boom")
	events := make(chan string, 64)
	ok := func(c conduit.Config) (Node, error) { return &fakeNode{cfg: c, events: events}, nil }
	tunOK := func(tun.Config) (tun.Device, error) { return newIdle(1350), nil }
	for _, tc := range []struct {
		name string
		cfg  Config
		deps Deps
		want error
	}{
		{"Tun", Config{}, Deps{OpenTun: func(tun.Config) (tun.Device, error) { return nil, fs.ErrPermission }, NewNode: ok}, ErrTun},
		{"New", Config{}, Deps{OpenTun: tunOK, NewNode: func(conduit.Config) (Node, error) { return nil, boom }}, boom},
		{"Start", Config{Tun: "none"}, Deps{NewNode: func(c conduit.Config) (Node, error) {
			return &fakeNode{cfg: c, events: events, fail: boom}, nil
		}}, boom},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Home, tc.cfg.Port, tc.cfg.Log = joined(t, h), -1, t.Output()
			if err := Run(t.Context(), tc.cfg, tc.deps); !errors.Is(err, tc.want) {
				t.Errorf("Run = %v, want %v", err, tc.want)
			}
			l, err := home.TakeLock(tc.cfg.Home)
			if err != nil {
				t.Fatalf("home stays locked: %v", err)
			}
			_ = l.Close()
		})
	}
	if err := Run(t.Context(), Config{Home: t.TempDir() + "/none"}, Deps{}); !errors.Is(err, home.ErrNotJoined) {
		t.Errorf("Run without identity = %v, want ErrNotJoined", err)
	}
}

func TestIdleDevice(t *testing.T) {
	d := newIdle(1350)
	done := make(chan error, 1)
	go func() {
		_, err := d.Read(0, nil, nil, 0)
		done <- err
	}()
	if n, err := d.Write(0, make([][]byte, 3), 0); n != 3 || err != nil {
		t.Errorf("Write = %d, %v", n, err)
	}
	_ = d.Close()
	_ = d.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close = %v", err)
	}
}
