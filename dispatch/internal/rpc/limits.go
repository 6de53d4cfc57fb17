// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// bodyTime is how long the one message of a request may take to arrive.
	bodyTime = 15 * time.Second
	// A node or a user may have so many streams open at once.
	maxNodeStreams = 32
	maxUserStreams = 64
	// A node may open openBurst streams at once and then one in openEvery.
	openBurst = 10
	openEvery = time.Second
	// maxOpeners bounds how many nodes that opened streams lately are remembered.
	maxOpeners = 32 << 10
	// cutAfter is how long a stream that has to end may take to say why.
	cutAfter = time.Second
)

// kind is which side of a procedure streams.
type kind struct{ client, server bool }

func kinds(files ...protoreflect.FileDescriptor) map[string]kind {
	out := make(map[string]kind)
	for _, f := range files {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				out[fmt.Sprintf("/%s/%s", s.FullName(), m.Name())] = kind{m.IsStreamingClient(), m.IsStreamingServer()}
			}
		}
	}
	return out
}

// receive hands a request of c to next, unless no such caller may use the
// procedure: that is answered before anything of the body is read, as connect reads
// and keeps a whole message before it asks the gate.
func (a *API) receive(w http.ResponseWriter, r *http.Request, c *caller, next http.Handler) {
	w.Header().Set("Cache-Control", "no-store")
	k, known := a.kinds[r.URL.Path]
	if !known {
		unread(w, r)
		http.NotFound(w, r)
		return
	}
	// The gate asks again, with what the hub knows of a node by then.
	if err := authorize(c, r.URL.Path); err != nil {
		a.count(r.Context(), r.URL.Path, k, err)
		refuse(w, r, err)
		return
	}
	ctl := http.NewResponseController(w)
	c.cut = func() { _ = ctl.SetWriteDeadline(time.Unix(1, 0)) }
	if k.client {
		c.unblock = func() { _ = ctl.SetReadDeadline(time.Unix(1, 0)) }
	} else {
		_ = ctl.SetReadDeadline(time.Now().Add(a.bodyTime))
		c.whole = func() { _ = ctl.SetReadDeadline(time.Time{}) }
	}
	next.ServeHTTP(w, r.WithContext(withCaller(r.Context(), c)))
}

// unread makes the server not wait for the body of a request that is answered
// without it: HTTP/1 would read on to use the connection again.
func unread(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor < 2 && r.Body != http.NoBody {
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	}
}

// refuse answers a request without reading its body.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	unread(w, r)
	w.Header().Set("Cache-Control", "no-store")
	if errs := connect.NewErrorWriter(); errs.IsSupported(r) {
		_ = errs.Write(w, r, err)
		return
	}
	status := map[connect.Code]int{
		connect.CodeUnauthenticated: http.StatusUnauthorized, connect.CodeResourceExhausted: http.StatusTooManyRequests,
	}[connect.CodeOf(err)]
	if status == 0 {
		status = http.StatusForbidden
	}
	http.Error(w, err.Error(), status)
}

// refusedRequest stands in the meters for a call that connect never saw.
type refusedRequest struct {
	connect.AnyRequest
	spec connect.Spec
}

func (r refusedRequest) Spec() connect.Spec { return r.spec }

// refusedConn is the same of a stream.
type refusedConn struct {
	connect.StreamingHandlerConn
	spec connect.Spec
}

func (c refusedConn) Spec() connect.Spec { return c.spec }

// count tells the meters of a refusal.
func (a *API) count(ctx context.Context, procedure string, k kind, err error) {
	m, spec := a.cfg.Meters.Interceptor(), connect.Spec{Procedure: procedure}
	if k.client || k.server {
		_ = m.WrapStreamingHandler(func(context.Context, connect.StreamingHandlerConn) error { return err })(ctx, refusedConn{spec: spec})
		return
	}
	_, _ = m.WrapUnary(func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) { return nil, err })(ctx, refusedRequest{spec: spec})
}

// wholeConn is a stream of one request message. It ends the time for that.
type wholeConn struct {
	connect.StreamingHandlerConn
	whole func()
}

// Receive implements connect.StreamingHandlerConn.
func (c wholeConn) Receive(m any) error {
	err := c.StreamingHandlerConn.Receive(m)
	if errors.Is(err, io.EOF) {
		c.whole()
	}
	return err
}

// cutter cuts a stream that has to end and does not: a peer that does not read
// keeps the handler in Send.
type cutter struct {
	cut func()

	mu    sync.Mutex // guards the rest; held while cut is called
	over  bool
	timer *time.Timer
}

// start begins the time that the handler has.
func (c *cutter) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.timer = time.AfterFunc(cutAfter, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.over {
			c.cut()
		}
	})
}

// end tells that the handler returns. cut is not called any more.
func (c *cutter) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

// openers bounds how often nodes open streams. Each signalling stream that comes or
// goes is told to the whole site.
type openers struct {
	mu sync.Mutex // guards the rest
	// free is when a node has its whole burst again.
	free  map[identity.PeerID]time.Time
	swept time.Time
}

func newOpeners() *openers { return &openers{free: make(map[identity.PeerID]time.Time)} }

// allow counts a stream of id and returns 0, or how long id has to wait.
func (o *openers) allow(id identity.PeerID, now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	t, known := o.free[id]
	if t.Before(now) {
		t = now
	}
	t = t.Add(openEvery)
	if wait := t.Sub(now) - openBurst*openEvery; wait > 0 {
		return wait
	}
	if !known && len(o.free) >= maxOpeners {
		o.makeRoom(now)
	}
	o.free[id] = t
	return 0
}

// makeRoom forgets those that have their whole burst again, or else anyone.
func (o *openers) makeRoom(now time.Time) {
	if now.Sub(o.swept) >= openEvery {
		o.swept = now
		for k, t := range o.free {
			if !t.After(now) {
				delete(o.free, k)
			}
		}
	}
	for k := range o.free {
		if len(o.free) < maxOpeners {
			return
		}
		delete(o.free, k)
	}
}

// tooOften asks a node to wait before it opens a stream.
func tooOften(wait time.Duration) error {
	err := connect.NewError(connect.CodeResourceExhausted, errors.New("this node opens streams too often"))
	d, derr := connect.NewErrorDetail(&dispatchv1.ErrorInfo{
		Reason: dispatchv1.ErrorReason_ERROR_REASON_OVERLOADED, Retryable: true, Hint: "wait a little",
		RetryAfterMs: uint32(wait.Milliseconds()) + 1,
	})
	if derr == nil {
		err.AddDetail(d)
	}
	return err
}

func tooManyStreams(most int) error {
	return fail(connect.CodeResourceExhausted, dispatchv1.ErrorReason_ERROR_REASON_OVERLOADED,
		fmt.Sprintf("more than %d streams are open", most), "close some")
}
