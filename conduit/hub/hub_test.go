// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// recorder keeps what a Connector reported and lets tests wait for it.
type recorder struct {
	mu     sync.Mutex // guards the following
	wake   chan struct{}
	states []string // "up" or the reason
	peers  map[identity.PeerID]string
	policy []string
	denied []string
	got    []string
	failed []string
}

func newRecorder() *recorder {
	return &recorder{wake: make(chan struct{}), peers: make(map[identity.PeerID]string)}
}

func (r *recorder) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.wake)
	r.wake = make(chan struct{})
}

func (r *recorder) HubState(up bool, err error) {
	r.change(func() {
		s := "up"
		if !up {
			s = "down: " + err.Error()
		}
		r.states = append(r.states, s)
	})
}

func (r *recorder) PeersSynced(peers []conduit.Peer) {
	r.change(func() {
		clear(r.peers)
		for _, p := range peers {
			r.peers[p.ID] = p.Name
		}
	})
}

func (r *recorder) PeersChanged(up []conduit.Peer, del []identity.PeerID) {
	r.change(func() {
		for _, p := range up {
			r.peers[p.ID] = p.Name
		}
		for _, id := range del {
			delete(r.peers, id)
		}
	})
}

func (r *recorder) Denied(list []conduit.Denial, all bool) {
	r.change(func() {
		if all {
			r.denied = nil
		}
		for _, d := range list {
			r.denied = append(r.denied, fmt.Sprintf("%s %x %x", d.ID.Short(), []byte(d.Ed25519), d.Serial))
		}
	})
}

func (r *recorder) Presence(identity.PeerID, bool, uint64) {}

func (r *recorder) Policy(v uint64, doc []byte) {
	r.change(func() { r.policy = append(r.policy, fmt.Sprintf("%d %s", v, doc)) })
}

func (r *recorder) Signaled(from identity.PeerID, body []byte) {
	r.change(func() { r.got = append(r.got, from.Short()+" "+string(body)) })
}

func (r *recorder) Undeliverable(to identity.PeerID, reason string) {
	r.change(func() { r.failed = append(r.failed, to.Short()+" "+reason) })
}

// await waits until ok, which is called with the lock held.
func (r *recorder) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		done, wake := ok(), r.wake
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-wake:
		case <-timeout:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("no %s; states %q peers %v policy %q got %q failed %q", what, r.states, r.peers, r.policy, r.got, r.failed)
		}
	}
}

func (r *recorder) up() bool { return len(r.states) > 0 && r.states[len(r.states)-1] == "up" }

func start(t *testing.T, h *hubtest.Hub, cert *tls.Certificate, change func(*Connector)) (*Connector, *recorder) {
	t.Helper()
	c, err := New(Config{URL: h.URL, Roots: h.Roots(), Certificate: func() (*tls.Certificate, error) { return cert, nil }, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	c.timing.spread, c.timing.backoffMin, c.timing.backoffMax = 20*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	if change != nil {
		change(c)
	}
	r := newRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, r) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want context.Canceled", err)
		}
	})
	return c, r
}

func TestTopologyAndPolicy(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	kb, _ := h.Enroll("b")
	_, r := start(t, h, cert, nil)
	r.await(t, "snapshot", func() bool { return r.up() && len(r.peers) == 1 && r.peers[kb.ID()] == "b" })
	r.await(t, "policy", func() bool { return slices.Equal(r.policy, []string{"1 {}"}) })
	kc, _ := h.Enroll("c")
	r.await(t, "new peer", func() bool { return r.peers[kc.ID()] == "c" })
	h.Remove(kb.ID())
	r.await(t, "removal", func() bool { return len(r.peers) == 1 })
	h.SetPolicy([]byte(`{"n":2}`))
	r.await(t, "new policy", func() bool { return slices.Equal(r.policy, []string{"1 {}", `2 {"n":2}`}) })
}

func TestResume(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	_, r := start(t, h, cert, nil)
	r.await(t, "link and policy", func() bool { return r.up() && len(r.policy) == 1 })
	h.Stop()
	r.await(t, "loss", func() bool { return !r.up() })
	kb, _ := h.Enroll("b")
	h.Restart()
	r.await(t, "missed peer", func() bool { return r.up() && r.peers[kb.ID()] == "b" })
	if w := h.Watches(); w[0] != [2]uint64{0, 0} || w[len(w)-1] != [2]uint64{1, 1} {
		t.Errorf("watches began at %v, want (0,0) first and (1,1) last", w)
	}
	h.Forget()
	h.Remove(kb.ID())
	h.Restart()
	r.await(t, "new epoch", func() bool { return r.up() && len(r.peers) == 0 })
	r.await(t, "policy anew", func() bool { return len(r.policy) == 2 })
}

func TestStateIsReportedOnce(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	h.Stop()
	dials := make(chan struct{}, 1000)
	_, r := start(t, h, cert, func(c *Connector) {
		c.cfg.Certificate = func() (*tls.Certificate, error) { dials <- struct{}{}; return cert, nil }
	})
	for range 5 {
		<-dials
	}
	h.Restart()
	r.await(t, "link", r.up)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.states) != 2 {
		t.Errorf("states = %q, want one loss and one gain", r.states)
	}
}

func TestSignal(t *testing.T) {
	h := hubtest.New(t)
	ka, certA := h.Enroll("a")
	kb, certB := h.Enroll("b")
	kc, _ := h.Enroll("c")
	stranger, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	a, ra := start(t, h, certA, nil)
	_, rb := start(t, h, certB, nil)
	ra.await(t, "link", ra.up)
	rb.await(t, "link", rb.up)
	for _, s := range []struct {
		to   identity.PeerID
		body string
	}{{kb.ID(), "one"}, {kb.ID(), "two"}, {kc.ID(), "x"}, {stranger.ID(), "y"}} {
		if err := a.Signal(s.to, []byte(s.body)); err != nil {
			t.Fatal(err)
		}
	}
	from := ka.ID().Short()
	rb.await(t, "signals in order", func() bool { return slices.Equal(rb.got, []string{from + " one", from + " two"}) })
	want := []string{kc.ID().Short() + " offline", stranger.ID().Short() + " unknown"}
	ra.await(t, "refusals", func() bool { return slices.Equal(ra.failed, want) })
	if err := a.Signal(kb.ID(), make([]byte, conduit.MaxSignal+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Signal of a large body = %v, want ErrTooLarge", err)
	}
	h.Stop()
	ra.await(t, "loss", func() bool { return !ra.up() })
	if err := a.Signal(kb.ID(), []byte("z")); !errors.Is(err, ErrDown) {
		t.Errorf("Signal without link = %v, want ErrDown", err)
	}
}

func TestSignalQueueIsBounded(t *testing.T) {
	c := &Connector{}
	c.setQueue(make(chan outgoing, QueueLen))
	body := []byte("x")
	for range QueueLen {
		if err := c.Signal(identity.PeerID{1}, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Signal(identity.PeerID{1}, body); !errors.Is(err, ErrQueueFull) {
		t.Errorf("Signal to a full queue = %v, want ErrQueueFull", err)
	}
	body[0] = 'y'
	if m := <-c.queue; !bytes.Equal(m.body, []byte("x")) {
		t.Error("Signal kept a reference to body")
	}
}

func TestSilentHub(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	h.Silence(true)
	_, r := start(t, h, cert, func(c *Connector) { c.timing.silence = 50 * time.Millisecond })
	r.await(t, "watchdog", func() bool { return slices.Contains(r.states, "down: "+errSilent.Error()) })
	h.Silence(false)
	r.await(t, "link", r.up)
}

func TestTrust(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	other := hubtest.NewCA(t, "other")

	_, r := start(t, h, cert, func(c *Connector) { c.cfg.Roots = other.Roots() })
	r.await(t, "refusal of a foreign hub", func() bool { return len(r.states) > 0 })
	if !bytes.Contains([]byte(r.states[0]), []byte(ErrNotHub.Error())) {
		t.Errorf("state = %q, want ErrNotHub", r.states[0])
	}

	keys, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	node := identity.Certificate{Name: "old", Virtual4: parseAddr(t, "10.66.0.9"), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	node.Ed25519, node.X25519 = hubtest.Public(keys)
	_, r = start(t, h, &tls.Certificate{Certificate: h.Node(t, node), PrivateKey: keys.Ed25519}, nil)
	r.await(t, "expiry", func() bool { return len(r.states) > 0 })
	if !bytes.Contains([]byte(r.states[0]), []byte("node certificate expired on ")) {
		t.Errorf("state = %q, want the expiry named", r.states[0])
	}
}

// A node's certificate must not pass for the hub's, though the same root signed it.
func TestNodeIsNoHub(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	leaf, err := identity.ParseCertificate(cert.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	cs := tls.ConnectionState{PeerCertificates: parseAll(t, leaf.Chain)}
	if _, err := VerifyServer(cs, h.Roots(), time.Now()); !errors.Is(err, ErrNotHub) {
		t.Errorf("VerifyServer(node certificate) = %v, want ErrNotHub", err)
	}
	cs.PeerCertificates = parseAll(t, h.Server(t).Certificate)
	if id, err := VerifyServer(cs, h.Roots(), time.Now()); err != nil || id != h.MeshID {
		t.Errorf("VerifyServer(hub certificate) = %q, %v", id, err)
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://hub.example":          "https://hub.example",
		"https://hub.example:8440/":    "https://hub.example:8440",
		"hub.example":                  "https://hub.example:8440",
		"10.0.0.1":                     "https://10.0.0.1:8440",
		"10.0.0.1:99":                  "https://10.0.0.1:99",
		"[fd00::1]":                    "https://[fd00::1]:8440",
		"http://hub.example":           "",
		"https://":                     "",
		"":                             "",
		"https://user@hub.example":     "",
		"https://hub.example/path":     "",
		"https://hub.example?x=1":      "",
		"https://hub.example:8440 bad": "",
	} {
		u, err := ParseURL(in)
		if want == "" {
			if !errors.Is(err, ErrURL) {
				t.Errorf("ParseURL(%q) = %v, %v, want ErrURL", in, u, err)
			}
			continue
		}
		if err != nil || u.String() != want {
			t.Errorf("ParseURL(%q) = %v, %v, want %s", in, u, err, want)
		}
	}
}

func FuzzPeer(f *testing.F) {
	id := identity.PeerID{7}
	f.Add(id.String(), "a", "10.0.0.1", "fd00::1", make([]byte, 32), make([]byte, 32))
	f.Add("", "", "", "", []byte(nil), []byte(nil))
	f.Fuzz(func(t *testing.T, id, name, v4, v6 string, ed, x []byte) {
		p, err := peerFrom(&dispatchv1.Peer{NodeId: id, Name: name, VirtualIp: v4, VirtualIp6: v6, Ed25519PublicKey: ed, X25519PublicKey: x})
		if err == nil && (p.ID != identity.NewPeerID(p.Ed25519, p.X25519.Bytes()) || !p.Virtual4.Is4() || !identity.ValidName(p.Name)) {
			t.Errorf("accepted %+v", p)
		}
	})
}

func TestDenials(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	kb, _ := h.Enroll("b")
	id := kb.ID()
	h.Deny(&dispatchv1.Denial{Subject: &dispatchv1.Denial_NodeId{NodeId: id.String()}})
	_, r := start(t, h, cert, nil)
	want := []string{id.Short() + "  "}
	r.await(t, "denial in the snapshot", func() bool { return r.up() && slices.Equal(r.denied, want) })
	h.Deny(&dispatchv1.Denial{}) // of a kind yet to come
	h.Deny(&dispatchv1.Denial{Subject: &dispatchv1.Denial_Serial{Serial: []byte{0, 0xa7}}})
	want = append(want, (identity.PeerID{}).Short()+"  00a7")
	r.await(t, "denial in a change", func() bool { return slices.Equal(r.denied, want) })
}

func TestMalformedDenials(t *testing.T) {
	for _, d := range []*dispatchv1.Denial{
		{},
		{Subject: &dispatchv1.Denial_NodeId{NodeId: "nobody"}},
		{Subject: &dispatchv1.Denial_NodeId{NodeId: (identity.PeerID{}).String()}},
		{Subject: &dispatchv1.Denial_Ed25519PublicKey{Ed25519PublicKey: make([]byte, 31)}},
		{Subject: &dispatchv1.Denial_Serial{}},
		{Subject: &dispatchv1.Denial_Serial{Serial: make([]byte, 33)}},
	} {
		if got, err := denialFrom(d); !errors.Is(err, errDenial) {
			t.Errorf("denialFrom(%v) = %v, %v", d, got, err)
		}
	}
}
