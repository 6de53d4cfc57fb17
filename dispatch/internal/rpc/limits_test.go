// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// newUnfinished returns a body of which the rest never comes.
func newUnfinished(t *testing.T) io.Reader {
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	go func() { _, _ = w.Write([]byte("x")) }()
	return r
}

// TestRefusedUnread: who may not use a procedure at all is answered before the body
// is there, with either HTTP and on each listener.
func TestRefusedUnread(t *testing.T) {
	h := newGateHub(t)
	h.bodyTime = time.Hour
	viewer, _ := h.key("viewer", authz.Viewer, time.Hour)
	_, cert := h.enroll("robot", false)
	const createToken = dispatchv1connect.FleetServiceCreateTokenProcedure
	for _, tt := range []struct {
		name, path string
		client     gateClient
		want       int
	}{
		{"stranger", createToken, h.asNode(nil), http.StatusForbidden},
		{"stranger who should have a certificate", dispatchv1connect.ProvisioningServiceRenewProcedure, h.asNode(nil), http.StatusUnauthorized},
		{"stranger, unknown path", "/none", h.asNode(nil), http.StatusNotFound},
		{"node", createToken, h.asNode(cert), http.StatusForbidden},
		{"visitor", createToken, h.asKey(""), http.StatusUnauthorized},
		{"viewer", createToken, h.asKey(viewer), http.StatusForbidden},
		{"bad key", createToken, h.asKey("bxk1"), http.StatusUnauthorized},
		{"visitor, unknown path", "/none", h.asKey(""), http.StatusNotFound},
		{"socket", dispatchv1connect.ProvisioningServiceRenewProcedure, h.asSocket(), http.StatusForbidden},
		{"socket, unknown path", "/none", h.asSocket(), http.StatusNotFound},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "_"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, tt.client.base+tt.path, newUnfinished(t))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/proto")
			res, err := tt.client.http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != tt.want {
				t.Errorf("%s, want %d", res.Status, tt.want)
			}
		})
	}
	for _, path := range []string{createToken, "/none"} {
		c := h.plain(t)
		sendHead(t, c, path)
		want := map[string]int{createToken: http.StatusForbidden, "/none": http.StatusNotFound}[path]
		if got := answer(t, c); got != want {
			t.Errorf("%s over HTTP/1.1: %d, want %d", path, got, want)
		}
		gone(t, c)
	}
}

// plain is an HTTP/1.1 connection of a stranger to the node port.
func (h *gateHub) plain(t *testing.T) net.Conn {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}}
	c, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(h.nodes, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func sendHead(t *testing.T, c net.Conn, path string) {
	t.Helper()
	_, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: hub\r\nContent-Type: application/proto\r\nContent-Length: 1000\r\n\r\n", path)
	if err != nil {
		t.Fatal(err)
	}
}

func answer(t *testing.T, c net.Conn) (status int) {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode
}

// gone waits until the hub hangs up.
func gone(t *testing.T, c net.Conn) {
	t.Helper()
	var ne net.Error
	if _, err := io.Copy(io.Discard, c); errors.As(err, &ne) && ne.Timeout() {
		t.Error("the connection is held")
	}
}

// TestSlowBody: a message that does not arrive is not waited for.
func TestSlowBody(t *testing.T) {
	h := newGateHub(t)
	h.bodyTime = 50 * time.Millisecond
	path := dispatchv1connect.ProvisioningServiceProvisionProcedure
	c := h.plain(t)
	sendHead(t, c, path)
	gone(t, c)
	for _, tt := range []struct {
		path   string
		client gateClient
		mime   string
	}{
		{path, h.asNode(nil), "application/proto"},
		{dispatchv1connect.FleetServiceWatchFleetProcedure, h.asSocket(), "application/connect+proto"},
		{dispatchv1connect.AccessServiceClaimOwnerProcedure, h.asKey(""), "application/proto"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, tt.client.base+tt.path, newUnfinished(t))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", tt.mime)
		res, err := tt.client.http.Do(r)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		if ctx.Err() != nil {
			t.Errorf("%s waits for a body: %v", tt.path, err)
		}
	}
}

// TestStreamOutlivesBody: the deadline is that of the request, not of the stream.
func TestStreamOutlivesBody(t *testing.T) {
	h := newGateHub(t)
	h.bodyTime = 300 * time.Millisecond
	key, _ := h.key("owner", authz.Owner, time.Hour)
	two := h.asKey(key)
	one := h.transport(nil)
	one.ForceAttemptHTTP2, one.Protocols = false, new(http.Protocols)
	one.Protocols.SetHTTP1(true)
	for name, c := range map[string]gateClient{"HTTP2": two, "HTTP1": {&http.Client{Transport: bearerKey{one, key}}, h.admins}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			s, err := dispatchv1connect.NewAuditServiceClient(c.http, c.base).TailAuditEntries(ctx, &dispatchv1.TailAuditEntriesRequest{Last: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if !s.Receive() {
				t.Fatal(s.Err())
			}
			got := make(chan bool, 1)
			go func() { got <- s.Receive() }()
			select {
			case <-got:
				t.Fatalf("the stream ended or sent something: %v", s.Err())
			case <-time.After(3 * h.bodyTime):
			}
			if err := h.store.Note(ctx, "test", ""); err != nil {
				t.Fatal(err)
			}
			if !<-got {
				t.Error(s.Err())
			}
		})
	}
}

// TestStreamsPerSubject: a node and a user have so many streams and no more, and
// what one closes it may open again.
func TestStreamsPerSubject(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    *caller
		most int
	}{
		{"node", &caller{class: node, id: identity.PeerID{1}}, maxNodeStreams},
		{"user", &caller{class: user, user: "alice", key: "k", expires: time.Now().Add(time.Hour)}, maxUserStreams},
		{"socket", &caller{class: socket}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &gate{live: make(map[subject]map[*context.CancelCauseFunc]struct{})}
			var ends []func()
			for range 3 * maxUserStreams {
				_, done, err := g.watch(t.Context(), tt.c)
				if err != nil {
					if connect.CodeOf(err) != connect.CodeResourceExhausted {
						t.Error(err)
					}
					break
				}
				ends = append(ends, done)
			}
			if want := tt.most; want != 0 && len(ends) != want || want == 0 && len(ends) != 3*maxUserStreams {
				t.Errorf("%d streams, want %d", len(ends), want)
			}
			ends[0]()
			_, done, err := g.watch(t.Context(), tt.c)
			if err != nil {
				t.Fatalf("after one ended: %v", err)
			}
			ends[0] = done
			for _, end := range ends {
				end()
			}
			if len(g.live) != 0 {
				t.Error("streams are still known")
			}
		})
	}
}

func TestOpeners(t *testing.T) {
	o, now, a := newOpeners(), time.Now(), identity.PeerID{1}
	take := func() (n int) {
		for o.allow(a, now) == 0 {
			n++
		}
		return n
	}
	if n := take(); n != openBurst {
		t.Errorf("%d at once, want %d", n, openBurst)
	}
	if w := o.allow(a, now); w != openEvery {
		t.Errorf("wait = %v, want %v", w, openEvery)
	}
	if o.allow(identity.PeerID{2}, now) != 0 {
		t.Error("another node waits for the first")
	}
	now = now.Add(3 * openEvery)
	if n := take(); n != 3 {
		t.Errorf("%d after 3 s, want 3", n)
	}
	for i := range 2 * maxOpeners {
		o.allow(identity.PeerID{3, byte(i), byte(i >> 8), byte(i >> 16)}, now)
	}
	if n := len(o.free); n > maxOpeners {
		t.Errorf("%d nodes are remembered", n)
	}
	o.swept, now = time.Time{}, now.Add(time.Hour)
	o.allow(identity.PeerID{4}, now)
	if n := len(o.free); n != 1 {
		t.Errorf("%d nodes are remembered after an hour", n)
	}
}

// fakeConn is a stream that knows its procedure.
type fakeConn struct {
	connect.StreamingHandlerConn
	procedure string
}

func (c fakeConn) Spec() connect.Spec { return connect.Spec{Procedure: c.procedure} }

// TestGateOpenRate: the gate asks, and says how long to wait.
func TestGateOpenRate(t *testing.T) {
	h := newGateHub(t)
	h.gate.entered = func() error { return errEntered }
	n, _ := h.enroll("robot", false)
	run := h.gate.WrapStreamingHandler(func(context.Context, connect.StreamingHandlerConn) error { return nil })
	ctx := withCaller(t.Context(), &caller{class: node, id: n.ID})
	h.gate.openers.free[n.ID] = time.Now().Add((openBurst + 5) * openEvery)
	err := run(ctx, fakeConn{procedure: dispatchv1connect.SignalingServiceExchangeCandidatesProcedure})
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Code() != connect.CodeResourceExhausted || len(ce.Details()) != 1 {
		t.Fatalf("error = %v", err)
	}
	v, err := ce.Details()[0].Value()
	if info, ok := v.(*dispatchv1.ErrorInfo); err != nil || !ok || info.GetRetryAfterMs() == 0 || !info.GetRetryable() {
		t.Errorf("detail = %v, %v", v, err)
	}
}

// TestStuckStreamIsCut: a handler that stands in Send when its stream has to end is
// cut a moment later, whatever it serves, and never after it has returned.
func TestStuckStreamIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{openers: newOpeners(), live: make(map[subject]map[*context.CancelCauseFunc]struct{}), entered: func() error { return nil }}
		var cuts int
		stuck := make(chan struct{})
		c := &caller{class: user, user: "alice", key: "k", role: authz.Owner, expires: time.Now().Add(time.Hour), cut: func() {
			cuts++
			close(stuck)
		}}
		g.recheck = func(context.Context, *caller) error { return nil }
		ctx := withCaller(t.Context(), c)
		conn := fakeConn{procedure: dispatchv1connect.AuditServiceTailAuditEntriesProcedure}
		begin := time.Now()
		err := g.WrapStreamingHandler(func(context.Context, connect.StreamingHandlerConn) error {
			g.cutUser("alice")
			<-stuck // without an end of its own
			return nil
		})(ctx, conn)
		if d := time.Since(begin); cuts != 1 || d != cutAfter || reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_KEY_INVALID {
			t.Errorf("%d cuts after %v, error %v", cuts, d, err)
		}
		_ = g.WrapStreamingHandler(func(ctx context.Context, _ connect.StreamingHandlerConn) error {
			g.cutUser("alice")
			<-ctx.Done()
			return nil
		})(ctx, conn)
		time.Sleep(2 * cutAfter)
		synctest.Wait()
		if cuts != 1 {
			t.Error("a stream that has ended is cut")
		}
	})
}

// TestCutIsSet: every listener gives the gate a way to cut.
func TestCutIsSet(t *testing.T) {
	a := &API{kinds: kinds(apiFiles...), bodyTime: time.Hour}
	for _, p := range []string{dispatchv1connect.AuditServiceTailAuditEntriesProcedure, dispatchv1connect.FleetServiceListNodesProcedure} {
		for _, cl := range []*caller{{class: socket}, {class: user, role: authz.Owner}} {
			seen := false
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, p, nil)
			a.receive(httptest.NewRecorder(), r, cl, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				c := callerOf(r.Context())
				seen = c.cut != nil && c.whole != nil
			}))
			if !seen {
				t.Errorf("%s: no cut", p)
			}
		}
	}
}
