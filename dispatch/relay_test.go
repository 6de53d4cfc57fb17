// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	pturn "github.com/pion/turn/v4"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type relayBidi = connect.BidiStreamForClientSimple[dispatchv1.RelayRequest, dispatchv1.RelayResponse]

// relay opens m's relay stream and waits until it is ready.
func (m *machine) relay(ctx context.Context) *relayBidi {
	m.tb.Helper()
	st, err := dispatchv1connect.NewRelayServiceClient(m.http, m.hub.URL()).Relay(ctx)
	if err == nil {
		err = st.Send(nil)
	}
	if err != nil {
		m.tb.Fatal(err)
	}
	res, err := st.Receive()
	if err != nil || !res.GetReady() {
		m.tb.Fatalf("first message = %v, %v; want ready", res, err)
	}
	m.tb.Cleanup(func() { _ = st.CloseRequest(); _ = st.CloseResponse() })
	return st
}

// sealed returns what looks like a DATA packet of a lane, with a number.
func sealed(lane, size int, n uint32) []byte {
	b := make([]byte, size)
	b[0], b[1] = 0x80, byte(1<<6|1<<2|lane)
	binary.BigEndian.PutUint32(b[size-4:], n)
	return b
}

func sealedNumber(f *dispatchv1.RelayFrame) uint32 {
	p := f.GetPacket()
	return binary.BigEndian.Uint32(p[len(p)-4:])
}

func frame(to identity.PeerID, packet []byte) *dispatchv1.RelayFrame {
	return &dispatchv1.RelayFrame{Peer: to[:], Packet: packet}
}

func sendFrames(t *testing.T, st *relayBidi, frames ...*dispatchv1.RelayFrame) {
	t.Helper()
	if err := st.Send(&dispatchv1.RelayRequest{Frames: frames}); err != nil {
		t.Fatal(err)
	}
}

func TestRelay(t *testing.T) {
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	sa, sb := a.relay(ctx), b.relay(ctx)
	// In one message: Critical arrives first.
	sendFrames(t, sa, frame(b.id, sealed(2, 1500, 1)), frame(b.id, sealed(0, 32, 2)), frame(b.id, sealed(1, 100, 3)))
	got := map[uint32]bool{}
	for len(got) < 3 {
		res, err := sb.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range res.GetFrames() {
			if string(f.GetPeer()) != string(a.id[:]) {
				t.Errorf("sender = %x", f.GetPeer())
			}
			got[sealedNumber(f)] = true
		}
	}
	// What is no packet is dropped, and the stream goes on.
	sendFrames(t, sa, frame(b.id, []byte("x")), frame(b.id, make([]byte, 100)), frame(b.id, sealed(0, 1501, 0)),
		&dispatchv1.RelayFrame{Peer: []byte("short"), Packet: sealed(0, 32, 0)}, frame(b.id, sealed(0, 32, 4)))
	res, err := sb.Receive()
	if err != nil || len(res.GetFrames()) != 1 || sealedNumber(res.GetFrames()[0]) != 4 {
		t.Fatalf("got %v, %v", res, err)
	}
	// The unknown peer "short" stands for was told once; so is who never came.
	gone, err := sa.Receive()
	if err != nil || len(gone.GetGone()) == 0 {
		t.Fatalf("notice = %v, %v", gone, err)
	}
	stranger := identity.PeerID{7}
	sendFrames(t, sa, frame(stranger, sealed(0, 32, 0)), frame(stranger, sealed(0, 32, 0)))
	if gone, err = sa.Receive(); err != nil || len(gone.GetGone()) != 1 || string(gone.GetGone()[0]) != string(stranger[:]) {
		t.Errorf("notice = %v, %v", gone, err)
	}
	// Too much at once ends the stream.
	var many []*dispatchv1.RelayFrame
	for range 65 {
		many = append(many, frame(b.id, sealed(0, 32, 0)))
	}
	sendFrames(t, sa, many...)
	for err = nil; err == nil; {
		_, err = sa.Receive()
	}
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("65 frames: %v", err)
	}
}

func TestRelayNewestWinsAndRevoke(t *testing.T) {
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	old := b.relay(ctx)
	newer := b.relay(ctx)
	if _, err := old.Receive(); reason(err) != dispatchv1.ErrorReason_ERROR_REASON_REPLACED {
		t.Errorf("old stream ends with %v, want replaced", err)
	}
	sa := a.relay(ctx)
	sendFrames(t, sa, frame(b.id, sealed(0, 32, 1)))
	if res, err := newer.Receive(); err != nil || len(res.GetFrames()) != 1 {
		t.Errorf("new stream got %v, %v", res, err)
	}
	start := time.Now()
	if err := h.Revoke(ctx, b.id, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := newer.Receive(); reason(err) != dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED {
		t.Errorf("a revoked node's stream ends with %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("the revocation took %v", d)
	}
	sendFrames(t, sa, frame(b.id, sealed(0, 32, 1)))
	if res, err := sa.Receive(); err != nil || len(res.GetGone()) != 1 {
		t.Errorf("to a revoked node: %v, %v; want gone", res, err)
	}
}

// TestRelayBlockedReceiver lets one of two receivers stand still under load.
func TestRelayBlockedReceiver(t *testing.T) {
	h := dispatchtest.Start(t, func(c *dispatch.Config) { c.RelayRate = 1 << 30 })
	a, b, c := join(t, h, "a"), join(t, h, "b"), join(t, h, "c")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	sa, sb, sc := a.relay(ctx), b.relay(ctx), c.relay(ctx)
	// More than every buffer between the hub and c holds: c reads nothing.
	const rounds, each = 400, 32
	var worst time.Duration
	for i := range uint32(rounds) {
		var frames []*dispatchv1.RelayFrame
		for range each {
			frames = append(frames, frame(c.id, sealed(2, 1500, i)))
		}
		frames = append(frames, frame(b.id, sealed(0, 32, i)))
		start := time.Now()
		sendFrames(t, sa, frames...)
		res, err := sb.Receive()
		if err != nil || len(res.GetFrames()) != 1 || sealedNumber(res.GetFrames()[0]) != i {
			t.Fatalf("round %d: %v, %v", i, res, err)
		}
		worst = max(worst, time.Since(start))
	}
	t.Logf("slowest delivery beside a blocked receiver: %v", worst)
	if worst > 2*time.Second {
		t.Errorf("a blocked receiver delayed another by %v", worst)
	}
	// c wakes up: its Critical packet comes, and most of the Bulk is gone.
	sendFrames(t, sa, frame(c.id, sealed(0, 32, 7)))
	bulk := 0
	for critical := false; !critical; {
		res, err := sc.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range res.GetFrames() {
			if f.GetPacket()[1]&3 == 0 {
				critical = true
			} else {
				bulk++
			}
		}
	}
	t.Logf("%d of %d Bulk packets came", bulk, rounds*each)
	if bulk == rounds*each {
		t.Error("nothing was dropped for a receiver that stood still")
	}
	// A blocked receiver can be revoked all the same, and its place is free.
	for i := range uint32(rounds) {
		var frames []*dispatchv1.RelayFrame
		for range each {
			frames = append(frames, frame(c.id, sealed(2, 1500, i)))
		}
		sendFrames(t, sa, frames...)
	}
	if err := h.Revoke(ctx, c.id, "test"); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); err == nil; {
		_, err = sc.Receive()
	}
}

// throughProxy makes m reach the hub through an HTTP proxy only, and returns the
// number of tunnels that it opened.
func (m *machine) throughProxy() *atomic.Int32 {
	m.tb.Helper()
	tunnels := &atomic.Int32{}
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := net.Dial("tcp", r.Host)
		if r.Method != http.MethodConnect || err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Close()
		in, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer in.Close()
		tunnels.Add(1)
		_, _ = io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		done := make(chan struct{})
		go func(br *bufio.Reader) {
			defer close(done)
			_, _ = io.Copy(out, br)
			_ = out.Close()
		}(rw.Reader)
		_, _ = io.Copy(in, out)
		_ = in.Close()
		<-done
	}))
	m.tb.Cleanup(p.Close)
	u, err := url.Parse(p.URL)
	if err != nil {
		m.tb.Fatal(err)
	}
	tr := m.http.Transport.(*http.Transport).Clone()
	tr.Proxy = http.ProxyURL(u)
	m.tb.Cleanup(tr.CloseIdleConnections)
	m.http = &http.Client{Transport: tr}
	return tunnels
}

func TestRelayThroughProxy(t *testing.T) {
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	tunnels := a.throughProxy()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	sa, sb := a.relay(ctx), b.relay(ctx)
	for i := range uint32(20) {
		sendFrames(t, sa, frame(b.id, sealed(0, 1400, i)))
		if res, err := sb.Receive(); err != nil || sealedNumber(res.GetFrames()[0]) != i {
			t.Fatalf("to b: %v, %v", res, err)
		}
		sendFrames(t, sb, frame(a.id, sealed(2, 1400, i)))
		if res, err := sa.Receive(); err != nil || sealedNumber(res.GetFrames()[0]) != i {
			t.Fatalf("to a: %v, %v", res, err)
		}
	}
	if tunnels.Load() == 0 {
		t.Error("the proxy was not used")
	}
}

func TestTurnCredentials(t *testing.T) {
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	allocate := func(m *machine) (net.PacketConn, error) {
		t.Helper()
		cred, err := dispatchv1connect.NewRelayServiceClient(m.http, h.URL()).GetTurnCredentials(ctx, &dispatchv1.GetTurnCredentialsRequest{})
		if err != nil {
			return nil, err
		}
		want := "turn:" + h.STUNAddr().String() + "?transport=udp"
		if len(cred.GetUrls()) != 1 || cred.GetUrls()[0] != want || !strings.HasSuffix(cred.GetUsername(), m.id.String()) || time.Until(cred.GetExpires().AsTime()) < 11*time.Hour {
			t.Errorf("credentials = %v; want %s", cred, want)
		}
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = pc.Close() })
		c, err := pturn.NewClient(&pturn.ClientConfig{
			TURNServerAddr: h.STUNAddr().String(), Conn: pc, Username: cred.GetUsername(), Password: cred.GetPassword(), RTO: 100 * time.Millisecond,
		})
		if err != nil {
			return nil, err
		}
		t.Cleanup(c.Close)
		if err := c.Listen(); err != nil {
			return nil, err
		}
		return c.Allocate()
	}
	if pc, err := allocate(a); err != nil {
		t.Fatal(err)
	} else {
		defer pc.Close()
	}
	if pc, err := allocate(b); err != nil {
		t.Fatal(err)
	} else {
		defer pc.Close()
	}
	if strings.Contains(h.Logs(), "password") {
		t.Error("the log speaks of passwords")
	}
	if err := h.Revoke(ctx, b.id, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := allocate(b); reason(err) != dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED {
		t.Errorf("a revoked node asks for credentials: %v", err)
	}
	off := dispatchtest.Start(t, func(c *dispatch.Config) { c.TURN.Off, c.RelayRate = true, -1 })
	m := join(t, off, "m")
	cl := dispatchv1connect.NewRelayServiceClient(m.http, off.URL())
	if cred, err := cl.GetTurnCredentials(ctx, &dispatchv1.GetTurnCredentialsRequest{}); err != nil || len(cred.GetUrls()) != 0 {
		t.Errorf("without TURN: %v, %v", cred, err)
	}
	st, err := cl.Relay(ctx)
	if err == nil {
		err = st.Send(nil)
	}
	if err == nil {
		_, err = st.Receive()
	}
	if connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("without a relay: %v", err)
	}
}

// TestRelayPolicy lets a policy close the relay between nodes that may not talk.
func TestRelayPolicy(t *testing.T) {
	h := dispatchtest.Start(t)
	a, b, c := join(t, h, "a"), join(t, h, "b"), join(t, h, "c")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	sa, sb, sc := a.relay(ctx), b.relay(ctx), c.relay(ctx)
	sendFrames(t, sa, frame(c.id, sealed(0, 32, 1)))
	if res, err := sc.Receive(); err != nil || len(res.GetFrames()) != 1 {
		t.Fatalf("under the first policy: %v, %v", res, err)
	}
	p := policiesOf(h)
	only := `{"version": 1, "allow": [{"src": ["name:b"], "dst": ["name:a"], "proto": "tcp", "ports": ["22"]}]}`
	if _, err := p.ProposePolicy(ctx, &dispatchv1.ProposePolicyRequest{Source: only, BaseVersion: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ActivatePolicy(ctx, &dispatchv1.ActivatePolicyRequest{Version: 2}); err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() {
		for {
			res, err := sa.Receive()
			if err != nil || len(res.GetGone()) == 1 && string(res.GetGone()[0]) == string(c.id[:]) {
				told <- err
				return
			}
		}
	}()
	// The hub asks the policy once a second.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for waiting := true; waiting; {
		sendFrames(t, sa, frame(c.id, sealed(0, 32, 1)))
		select {
		case err := <-told:
			if err != nil {
				t.Fatal(err)
			}
			waiting = false
		case <-tick.C:
		}
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the policy took %v", d)
	}
	// One direction is enough, since answers travel in the other.
	sendFrames(t, sa, frame(b.id, sealed(0, 32, 9)))
	if res, err := sb.Receive(); err != nil || len(res.GetFrames()) != 1 || sealedNumber(res.GetFrames()[0]) != 9 {
		t.Errorf("to who may talk to a: %v, %v", res, err)
	}
}

func TestTURNConfig(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for name, tt := range map[string]struct {
		cfg dispatch.TURN
		ok  bool
	}{
		"zero":        {dispatch.TURN{}, true},
		"both":        {dispatch.TURN{Addrs: []netip.Addr{v4, v6}, MinPort: 1, MaxPort: 2}, true},
		"two_of_one":  {dispatch.TURN{Addrs: []netip.Addr{v4, netip.MustParseAddr("192.0.2.2")}}, false},
		"unspecified": {dispatch.TURN{Addrs: []netip.Addr{netip.IPv6Unspecified()}}, false},
		"one_port":    {dispatch.TURN{MinPort: 5}, false},
		"backwards":   {dispatch.TURN{MinPort: 5, MaxPort: 4}, false},
		"rate":        {dispatch.TURN{Rate: -1}, false},
		"no_prefix":   {dispatch.TURN{AllowPeers: []netip.Prefix{{}}}, false},
	} {
		if _, err := dispatch.New(dispatch.Config{DataDir: "d", TURN: tt.cfg}); (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok %v", name, err, tt.ok)
		}
	}
}
