// SPDX-License-Identifier: Apache-2.0

// Package hubtest is a small hub in memory, for tests of what talks to a hub. It
// speaks the real protocol over real TLS on loopback, and has levers to fail.
package hubtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// Hub is a hub. Its fields are set once in New; its methods are safe for
// concurrent use.
type Hub struct {
	*CA
	URL string

	// What tests do not need, the hub refuses as not implemented.
	dispatchv1connect.UnimplementedProvisioningServiceHandler
	dispatchv1connect.UnimplementedTopologyServiceHandler
	dispatchv1connect.UnimplementedPolicyServiceHandler
	dispatchv1connect.UnimplementedMetricsServiceHandler
	dispatchv1connect.UnimplementedRelayServiceHandler

	tb     testing.TB
	server tls.Certificate

	mu     sync.Mutex // guards the following
	srv    *http.Server
	served chan struct{}
	epoch  uint64
	rv     uint64
	policy *dispatchv1.GetPolicyResponse
	// generation counts activations, fetches the answers to GetPolicy.
	generation uint64
	fetches    int
	lazy       bool
	resolved   []string
	online     map[string]bool
	psk        []byte
	pskEpoch   uint32
	reports    []*dispatchv1.ReportMetricsRequest
	lives      map[string]*life
	lose       int
	pending    bool
	nodes      map[string]*dispatchv1.Peer
	log        []*dispatchv1.WatchTopologyResponse // deltas, log[i] has rv i+1
	wake       chan struct{}                       // closed at each change
	streams    map[string]chan *dispatchv1.ExchangeCandidatesResponse
	tokens     map[string]*token
	tamper     func(*dispatchv1.ProvisionResponse)
	watches    []*dispatchv1.WatchTopologyRequest
	redeemed   int
	denials    []*dispatchv1.Denial
	silent     bool
	relays     map[identity.PeerID]*relayStream
	relayed    []int
	turn       *dispatchv1.GetTurnCredentialsResponse
}

type token struct {
	identity.Token
	uses    int
	expires time.Time
	nodes   map[string]*dispatchv1.ProvisionResponse
	waiting map[string]bool // for approval
}

// New starts a hub on loopback, which ends with the test.
func New(tb testing.TB) *Hub {
	tb.Helper()
	ca := NewCA(tb, "testmesh")
	h := &Hub{
		CA: ca, tb: tb, server: ca.Server(tb), epoch: 1,
		lives: make(map[string]*life), generation: 1, psk: make([]byte, 32), pskEpoch: 1, online: make(map[string]bool),
		policy:  &dispatchv1.GetPolicyResponse{Version: 1, Document: []byte(`{}`)},
		nodes:   make(map[string]*dispatchv1.Peer),
		wake:    make(chan struct{}),
		streams: make(map[string]chan *dispatchv1.ExchangeCandidatesResponse),
		tokens:  make(map[string]*token),
		relays:  make(map[identity.PeerID]*relayStream),
	}
	h.start("127.0.0.1:0")
	tb.Cleanup(h.Stop)
	return h
}

func (h *Hub) start(addr string) {
	h.tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		h.tb.Fatal(err)
	}
	h.URL = "https://" + l.Addr().String()
	mux := http.NewServeMux()
	opt := connect.WithCompression("gzip", nil, nil)
	mux.Handle(dispatchv1connect.NewProvisioningServiceHandler(h, opt))
	mux.Handle(dispatchv1connect.NewTopologyServiceHandler(h, opt))
	mux.Handle(dispatchv1connect.NewSignalingServiceHandler(h, opt))
	mux.Handle(dispatchv1connect.NewPolicyServiceHandler(h, opt))
	mux.Handle(dispatchv1connect.NewMetricsServiceHandler(h, opt))
	mux.Handle(dispatchv1connect.NewRelayServiceHandler(h, opt))
	srv := &http.Server{
		Handler: peerHeader(mux), ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{h.server},
			ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: h.Roots(), NextProtos: []string{"h2"},
		},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.ServeTLS(l, "", "")
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.srv, h.served = srv, served
}

// Stop closes the listener and all connections.
func (h *Hub) Stop() {
	h.mu.Lock()
	srv, served := h.srv, h.served
	h.srv = nil
	h.mu.Unlock()
	if srv != nil {
		_ = srv.Close()
		<-served
	}
}

// Restart stops the hub and starts it at the same address with the same state.
func (h *Hub) Restart() {
	h.tb.Helper()
	h.Stop()
	h.start(h.URL[len("https://"):])
}

// Silence makes the hub accept topology streams and say nothing on them.
func (h *Hub) Silence(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent = on
}

// Forget gives the hub a new epoch, as a restored backup has.
func (h *Hub) Forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epoch++
	h.rv, h.log = 0, nil
}

// Tamper calls f on each answer to a join before it is sent.
func (h *Hub) Tamper(f func(*dispatchv1.ProvisionResponse)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tamper = f
}

// Redeemed returns how often a token was used.
func (h *Hub) Redeemed() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.redeemed
}

// Watches returns the (epoch, rv) with which each topology stream began.
func (h *Hub) Watches() [][2]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out [][2]uint64
	for _, w := range h.watches {
		out = append(out, [2]uint64{w.GetEpoch(), w.GetRv()})
	}
	return out
}

// Token makes a join token.
func (h *Hub) Token(uses int, ttl time.Duration) identity.Token {
	h.tb.Helper()
	t, err := identity.NewToken(h.Pin(), h.MeshID)
	if err != nil {
		h.tb.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tokens[t.ID] = &token{Token: t, uses: uses, expires: time.Now().Add(ttl), nodes: make(map[string]*dispatchv1.ProvisionResponse), waiting: make(map[string]bool)}
	return t
}

// Enroll adds a node with fresh keys and returns them with its certificate.
func (h *Hub) Enroll(name string) (*identity.Keys, *tls.Certificate) {
	h.tb.Helper()
	keys, err := identity.GenerateKeys()
	if err != nil {
		h.tb.Fatal(err)
	}
	ed, x := Public(keys)
	h.mu.Lock()
	defer h.mu.Unlock()
	_, chain := h.enrollLocked(identity.Certificate{Name: name, Ed25519: ed, X25519: x})
	return keys, &tls.Certificate{Certificate: chain, PrivateKey: keys.Ed25519}
}

func (h *Hub) enrollLocked(c identity.Certificate) (*dispatchv1.Peer, [][]byte) {
	id := identity.NewPeerID(c.Ed25519, c.X25519.Bytes()).String()
	p := h.nodes[id]
	if p == nil {
		n := byte(len(h.nodes) + 1)
		p = &dispatchv1.Peer{
			NodeId: id, Name: c.Name,
			VirtualIp:        netip.AddrFrom4([4]byte{10, 66, 0, n}).String(),
			VirtualIp6:       fmt.Sprintf("fd66::%x", n),
			Ed25519PublicKey: c.Ed25519, X25519PublicKey: c.X25519.Bytes(),
		}
		h.nodes[id] = p
		h.changeLocked(&dispatchv1.Delta{Upserts: []*dispatchv1.Peer{p}})
	}
	c.Virtual4, c.Virtual6 = netip.MustParseAddr(p.GetVirtualIp()), netip.MustParseAddr(p.GetVirtualIp6())
	return p, h.Node(h.tb, c)
}

// Remove deletes a node.
func (h *Hub) Remove(id identity.PeerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.nodes, id.String())
	h.changeLocked(&dispatchv1.Delta{Deletes: []string{id.String()}})
}

// Deny shuts somebody out.
func (h *Hub) Deny(d *dispatchv1.Denial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.denials = append(h.denials, d)
	h.changeLocked(&dispatchv1.Delta{Denials: []*dispatchv1.Denial{d}})
}

// SetPolicy makes a new policy version.
func (h *Hub) SetPolicy(document []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.policy = &dispatchv1.GetPolicyResponse{Version: h.policy.GetVersion() + 1, Document: document}
	h.generation++
	h.changeLocked(&dispatchv1.Delta{})
}

func (h *Hub) changeLocked(d *dispatchv1.Delta) {
	h.rv++
	d.Rv, d.PolicyVersion = h.rv, h.generation
	h.log = append(h.log, &dispatchv1.WatchTopologyResponse{Event: &dispatchv1.WatchTopologyResponse_Delta{Delta: d}})
	close(h.wake)
	h.wake = make(chan struct{})
}

func callerID(ctx context.Context) (string, error) {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok {
		return "", errors.New("no call info")
	}
	id := info.RequestHeader().Get("X-Peer")
	if id == "" {
		return "", connect.NewError(connect.CodeUnauthenticated, errors.New("no certificate"))
	}
	return id, nil
}

// peerHeader moves the TLS identity to where handlers can read it.
func peerHeader(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("X-Peer")
		if len(r.TLS.VerifiedChains) > 0 {
			if c, err := identity.FromX509(r.TLS.PeerCertificates[0]); err == nil {
				r.Header.Set("X-Peer", c.ID.String())
			}
		}
		next.ServeHTTP(w, r)
	})
}
