// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread of its own in a fresh network namespace; the
// thread ends with it, and with the thread the namespace.
func inNamespace(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root to make a network namespace")
		}
		t.Skip("needs root to make a network namespace")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread must not serve others
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		f(t)
	}()
	<-done
}

// One system call takes many datagrams on every architecture: the kernel steps
// through the headers by the size that it gives them.
func TestBatch(t *testing.T) {
	cfg := Config{NoGSO: true, NoGRO: true}
	a, b := open(t, cfg), open(t, cfg)
	out := make([]Message, recvBatch)
	for i := range out {
		out[i] = Message{Buf: []byte{byte(i)}, Addr: b.LocalAddr()}
	}
	if n, err := a.Send(0, out); n != len(out) || err != nil {
		t.Fatalf("send = %d, %v", n, err)
	}
	msgs := room(b)
	n, err := b.Receive(0, msgs)
	if err != nil || n != len(out) {
		t.Fatalf("receive = %d, %v; want %d at once", n, err, len(out))
	}
	for i := range n {
		if msgs[i].N != 1 || msgs[i].Buf[0] != byte(i) || msgs[i].Addr != a.LocalAddr() {
			t.Errorf("datagram %d = %x from %v", i, msgs[i].Buf[:msgs[i].N], msgs[i].Addr)
		}
	}
}

// What the kernel believes of a path's MTU is not believed: probes find the size.
// Runs leave whole, and the other peers keep theirs.
func TestRouteMTUIgnored(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Error(err)
			return
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			t.Error(err)
			return
		}
		narrow := netip.MustParseAddr("127.0.0.9")
		r := &netlink.Route{
			LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL,
			Dst: netlink.NewIPNet(narrow.AsSlice()), MTU: 1300, MTULock: true,
		}
		if err := netlink.RouteAdd(r); err != nil {
			t.Error(err)
			return
		}
		a, b := open(t, Config{Addr: netip.IPv4Unspecified()}), open(t, Config{Addr: narrow})
		for round := range 3 {
			var out []Message
			for i := range 8 {
				out = append(out, Message{Buf: bytes.Repeat([]byte{byte(i)}, 1382), Addr: b.LocalAddr()})
			}
			n, err := a.Send(2, out)
			if err != nil || n != len(out) {
				t.Errorf("round %d: send = %d of %d, %v", round, n, len(out), err)
				return
			}
			for i, got := range collect(t, b, len(out)) {
				if !bytes.Equal(got, out[i].Buf) {
					t.Errorf("round %d: datagram %d differs", round, i)
				}
			}
		}
		if !a.(*linuxBind).gso.Load() {
			t.Error("one narrow path switched runs off for all peers")
		}
	})
}

// Only what concerns every peer switches runs off.
func TestRunRefused(t *testing.T) {
	for _, tt := range []struct {
		errno         unix.Errno
		times         int
		singly, after bool
	}{
		{unix.EIO, 1, true, false},
		{unix.EMSGSIZE, 10 * maxInvalid, true, true},
		{unix.EINVAL, maxInvalid - 1, true, true},
		{unix.EINVAL, maxInvalid, true, false},
		{unix.EPERM, 1, false, true},
	} {
		var b linuxBind
		b.gso.Store(true)
		for range tt.times {
			if got := b.runRefused(tt.errno); got != tt.singly {
				t.Errorf("%v: send singly = %v, want %v", tt.errno, got, tt.singly)
			}
		}
		if got := b.gso.Load(); got != tt.after {
			t.Errorf("%v, %d times: runs afterwards = %v, want %v", tt.errno, tt.times, got, tt.after)
		}
	}
}
