// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	idA = identity.PeerID{0x10}
	idB = identity.PeerID{0x11}

	idFar = identity.PeerID{0x20} // of whom only Lookup knows
)

// fake has two peers: b answers, c does not, and d waits for ever.
type fake struct{ connected, far bool }

func (f *fake) StatusJSON(context.Context) ([]byte, error) {
	path := `{"type":"none","reason":"no candidates"}`
	if f.connected {
		path = `{"type":"direct","remote":"192.0.2.1:7","rtt_ms":1.5}`
	}
	far := ""
	if f.far {
		far = fmt.Sprintf(`,{"id":%q,"name":"far","virtual_ip":"10.66.9.9","path":{"type":"direct","remote":"192.0.2.9:9"}}`, idFar)
	}
	return fmt.Appendf(nil, `{"node":{"id":%q,"name":"a"},"peers":[
		{"id":%q,"name":"b","virtual_ip":"10.66.0.2","virtual_ip6":"fd66::2","path":%s},
		{"id":%q,"name":"c","virtual_ip":"10.66.0.3","path":{"type":"none","reason":"no answer"}},
		{"id":%q,"name":"d","virtual_ip":"10.66.0.4","path":{"type":"none"}}%s]}`,
		idA, idB, path, identity.PeerID{0x12}, identity.PeerID{0x12, 1}, far), nil
}

func (f *fake) Lookup(_ context.Context, what string) (identity.PeerID, error) {
	switch what {
	case "far":
		f.far = true
		return idFar, nil
	case "broken":
		return identity.PeerID{}, errors.New("no link to the hub")
	}
	return identity.PeerID{}, fmt.Errorf("%w: the hub does not know it either", ErrNoPeer)
}

func (f *fake) Connect(ctx context.Context, id identity.PeerID, progress func(string)) error {
	progress("handshake")
	switch id {
	case idB, idFar:
		progress("checking")
		f.connected = true
		return nil
	case identity.PeerID{0x12}:
		return errors.New("no path")
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) Ping(ctx context.Context, _ identity.PeerID, o conduit.PingOptions) (conduit.PingResult, error) {
	switch {
	case o.Lane == "telemetry":
		<-ctx.Done()
		return conduit.PingResult{}, ctx.Err()
	case o.Size == 1000:
		return conduit.PingResult{}, fmt.Errorf("%w: 1000 bytes", conduit.ErrPingSize)
	case o.Size == 1001:
		return conduit.PingResult{}, conduit.ErrPingCaps
	case o.Size == 1002:
		return conduit.PingResult{}, conduit.ErrPingSession
	}
	return conduit.PingResult{
		Lane: o.Lane, Size: o.Size, RTT: 12 * time.Millisecond, Wait: time.Millisecond, Hold: 1500,
		Kind: "direct", Uplink: "wlan0", Remote: "192.0.2.1:7",
	}, nil
}

func (f *fake) Policy(context.Context) (*conduit.PolicyInForce, error) {
	p := &conduit.PolicyInForce{
		Version: 7, Document: []byte(`{"version":1}`), Self: conduit.PolicySubject{ID: idA.String(), Name: "a", Tags: []string{"x"}},
		Peers: []conduit.PolicySubject{{ID: idB.String(), Name: "b"}},
	}
	if f.far {
		p.Peers = append(p.Peers, conduit.PolicySubject{ID: idFar.String(), Name: "far"})
	}
	return p, nil
}

func (f *fake) CheckHub(context.Context) HubOffer {
	return HubOffer{Connected: true, RelayOpen: true, TurnServers: []string{"turn:192.0.2.1:3478"}, Error: "a", TurnError: "b"}
}

func TestCheckHub(t *testing.T) {
	path, _ := serve(t)
	c := NewClient(path)
	defer c.Close()
	got, err := c.CheckHub(t.Context())
	if want := (&fake{}).CheckHub(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("CheckHub = %+v, %v; want %+v", got, err, want)
	}
}

func serve(t *testing.T) (path string, s *Server) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	s, err := Serve(path, &fake{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return path, s
}

func states(t *testing.T, path, peer string) ([]string, *edgev1.ConnectResponse, error) {
	t.Helper()
	c := NewClient(path)
	defer c.Close()
	var out []string
	var last *edgev1.ConnectResponse
	err := c.Connect(t.Context(), peer, func(m *edgev1.ConnectResponse) {
		out, last = append(out, m.GetState()), m
	})
	return out, last, err
}

func TestConnect(t *testing.T) {
	path, _ := serve(t)
	for _, peer := range []string{"b", "b.mesh", "10.66.0.2", "fd66::2", idB.String(), strings.ToUpper(idB.String()), idB.String()[:3]} {
		got, last, err := states(t, path, peer)
		if err != nil || !slices.Equal(got, []string{"resolving", "handshake", "checking", "connected"}) {
			t.Errorf("connect %s: %v, %v", peer, got, err)
		}
		if last.GetPathType() != "direct" || last.GetRemote() != "192.0.2.1:7" {
			t.Errorf("connect %s: ended with %v", peer, last)
		}
	}
	got, last, err := states(t, path, "c")
	if err != nil || !slices.Equal(got, []string{"resolving", "handshake", "failed"}) || last.GetDetail() != "no path: no answer" {
		t.Errorf("connect c: %v, %v, %v", got, last, err)
	}
	for peer, want := range map[string]error{
		"nobody": ErrNoPeer, "a": ErrNoPeer, "": ErrNoPeer, identity.PeerID{0x12}.String()[:2]: ErrAmbiguous,
	} {
		if _, _, err := states(t, path, peer); !errors.Is(err, want) {
			t.Errorf("connect %q: %v, want %v", peer, err, want)
		}
	}
}

func TestLineCommand(t *testing.T) {
	path, _ := serve(t)
	for send, want := range map[string]string{
		"connect:b\n":                "ok direct 192.0.2.1:7\n",
		"connect:b":                  "ok direct 192.0.2.1:7\n", // ended by closing the sending half
		"connect:c\n":                "error: no path: no answer\n",
		"connect:x\n":                "error: no such peer: \"x\"\n",
		"connect:" + idB.String():    "ok direct 192.0.2.1:7\n",
		"connect:\n":                 "error: no such peer: \"\"\n",
		"connect: b \r\nconnect:c\n": "ok direct 192.0.2.1:7\n",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, send); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.UnixConn).CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v, want %q", send, got, err, want)
		}
		_ = c.Close()
	}
}

func TestStatus(t *testing.T) {
	path, _ := serve(t)
	c := NewClient(path)
	defer c.Close()
	raw, err := c.StatusJSON(t.Context())
	if err != nil || !strings.Contains(string(raw), `"name":"b"`) {
		t.Errorf("StatusJSON = %s, %v", raw, err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v, want mode 0660", fi.Mode(), err)
	}
}

func TestNotRunning(t *testing.T) {
	path, s := serve(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c := NewClient(path)
	defer c.Close()
	if _, err := c.StatusJSON(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("StatusJSON = %v, want ErrNotRunning", err)
	}
}

// Close ends what hangs: a caller who says nothing, and an attempt that goes on.
func TestCloseEndsConversations(t *testing.T) {
	path, s := serve(t)
	silent, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		c := NewClient(path)
		defer c.Close()
		done <- c.Connect(context.Background(), "d", func(m *edgev1.ConnectResponse) {
			if m.GetState() == StateHandshake {
				close(begun)
			}
		})
	}()
	<-begun
	start := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("Connect ended without an error")
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
}

func TestStaleSocket(t *testing.T) {
	path, _ := serve(t)
	if _, err := Serve(path, &fake{}, nil); err == nil {
		t.Error("replaced a socket that is alive")
	}
	dead := filepath.Join(filepath.Dir(path), "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	s, err := Serve(dead, &fake{}, nil)
	if err != nil {
		t.Fatalf("a dead socket is in the way: %v", err)
	}
	_ = s.Close()
	file := filepath.Join(filepath.Dir(path), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(file, &fake{}, nil); err == nil {
		t.Error("replaced a file")
	}
	if _, err := Serve("/"+strings.Repeat("x", 200), &fake{}, nil); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("long path: %v", err)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("b")
	f.Add("10.66.0.2")
	st := Status{Peers: []Peer{{ID: idB.String(), Name: "b", VirtualIP: "10.66.0.2"}}}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := st.Resolve(s); (p == nil) == (err == nil) {
			t.Errorf("Resolve(%q) = %v, %v", s, p, err)
		}
	})
}

// TestLookup reaches a peer that the node was not told of.
func TestLookup(t *testing.T) {
	path, _ := serve(t)
	if _, last, err := states(t, path, "far"); err != nil || last.GetState() != StateConnected || last.GetRemote() != "192.0.2.9:9" {
		t.Errorf("far: %v, %v", last, err)
	}
	if _, _, err := states(t, path, "nobody"); !errors.Is(err, ErrNoPeer) || strings.Contains(err.Error(), "hub") {
		t.Errorf("nobody: %v, want ErrNoPeer", err)
	}
	if _, _, err := states(t, path, "broken"); !errors.Is(err, ErrNoPeer) || !strings.Contains(err.Error(), "no link to the hub") {
		t.Errorf("broken: %v, want ErrNoPeer and why", err)
	}
}
