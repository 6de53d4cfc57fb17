// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"bytes"
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// TestRevokedStuckSignal: a node that does not read loses its signalling stream when
// it is revoked all the same, and what it sends afterwards reaches nobody.
func TestRevokedStuckSignal(t *testing.T) {
	h := dispatchtest.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	a, b, c := join(t, h, "a"), join(t, h, "b"), join(t, h, "c")
	b.http.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 128 << 10}
	sa, sb, sc := a.signal(ctx), b.signal(ctx), c.signal(ctx)
	w := a.watch(ctx, nil)
	w.until("b online", func() bool { return w.online[b.id.String()] })
	full := bytes.Repeat([]byte("x"), 16<<10)
	for range 40 { // more than b's windows take
		if err := sc.Send(&dispatchv1.ExchangeCandidatesRequest{To: b.id.String(), Body: full}); err != nil {
			t.Fatal(err)
		}
	}
	// c's stream is in order: once this is answered, all of that is in b's queue.
	if err := sc.Send(&dispatchv1.ExchangeCandidatesRequest{To: c.id.String(), Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if res, err := sc.Receive(); err != nil || res.GetUndeliverable() == nil {
		t.Fatal(res, err)
	}
	if err := h.Revoke(ctx, b.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		_ = sb.Send(&dispatchv1.ExchangeCandidatesRequest{To: a.id.String(), Body: []byte("after")}) // may be cut already
	}
	w.until("b offline", func() bool { return !w.online[b.id.String()] })
	if err := sc.Send(&dispatchv1.ExchangeCandidatesRequest{To: a.id.String(), Body: []byte("last")}); err != nil {
		t.Fatal(err)
	}
	res, err := sa.Receive()
	if d := res.GetDelivery(); err != nil || d.GetFrom() != c.id.String() {
		t.Errorf("a received %q of %s, %v", d.GetBody(), d.GetFrom(), err)
	}
}
