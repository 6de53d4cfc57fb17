// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
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

func TestOpen(t *testing.T) {
	for _, driver := range []string{"linux", "water"} {
		t.Run(driver, func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				dev, err := Open(Config{
					Name: "bxtest0", Driver: driver,
					Addrs:  []netip.Prefix{netip.MustParsePrefix("10.66.0.2/32"), netip.MustParsePrefix("fd66::2/128")},
					Routes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16"), netip.MustParsePrefix("fd66::/64")},
				})
				if err != nil {
					t.Error(err)
					return
				}
				defer dev.Close()
				if _, err := Open(Config{Name: "bxtest0"}); !errors.Is(err, ErrBusy) {
					t.Errorf("second open: %v, want ErrBusy", err)
				}
				link, err := netlink.LinkByName("bxtest0")
				if err != nil || link.Attrs().MTU != DefaultMTU || link.Attrs().Flags&net.FlagUp == 0 {
					t.Errorf("link = %+v, %v", link, err)
				}
				echo(t, dev)
				if err := dev.Close(); err != nil {
					t.Error(err)
				}
				if _, err := netlink.LinkByName("bxtest0"); err == nil {
					t.Error("interface is still there after Close")
				}
			})
		})
	}
}

// echo lets the kernel send a UDP datagram into the mesh, turns it around and
// wants the answer back on the socket.
func echo(t *testing.T, dev Device) {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 66, 0, 9), Port: 7})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if a := c.LocalAddr().String(); !strings.HasPrefix(a, "10.66.0.2:") {
		t.Errorf("packets to the mesh leave from %s", a)
	}
	if _, err := c.Write([]byte("marker")); err != nil {
		t.Error(err)
		return
	}
	bufs := make([][]byte, dev.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	sizes := make([]int, len(bufs))
	for {
		n, err := dev.Read(0, bufs, sizes, 16)
		if err != nil {
			t.Error(err)
			return
		}
		for i := range n {
			p := bufs[i][16 : 16+sizes[i]]
			if p[0]>>4 != 4 {
				t.Errorf("the kernel sent something by itself: %x", p)
				continue
			}
			// Swap addresses and ports; the checksums stay right.
			for k := range 4 {
				p[12+k], p[16+k] = p[16+k], p[12+k]
			}
			p[20], p[21], p[22], p[23] = p[22], p[23], p[20], p[21]
			if _, err := dev.Write(0, [][]byte{bufs[i][:16+sizes[i]]}, 16); err != nil {
				t.Error(err)
			}
			got := make([]byte, 100)
			k, err := c.Read(got)
			if err != nil || string(got[:k]) != "marker" {
				t.Errorf("echo = %q, %v", got[:k], err)
			}
			return
		}
	}
}

func TestQueuesAndClose(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		dev, err := Open(Config{Name: "bxtest1", Queues: 3})
		if err != nil {
			t.Error(err)
			return
		}
		errs := make(chan error, dev.Queues())
		for q := range dev.Queues() {
			go func() {
				_, err := dev.Read(q, [][]byte{make([]byte, 2048)}, make([]int, 1), 0)
				errs <- err
			}()
		}
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after close: %v, want net.ErrClosed", err)
			}
		}
		if _, err := dev.Write(0, [][]byte{{1}}, 0); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v, want net.ErrClosed", err)
		}
	})
}

func TestReadWriteAllocs(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		dev, err := Open(Config{
			Name: "bxtest2", Addrs: []netip.Prefix{netip.MustParsePrefix("10.66.0.2/32")},
			Routes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16")},
		})
		if err != nil {
			t.Error(err)
			return
		}
		defer dev.Close()
		c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 66, 0, 9), Port: 7})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		bufs := make([][]byte, dev.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		sizes := make([]int, len(bufs))
		msg := make([]byte, 1000)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := c.Write(msg); err != nil {
				t.Error(err)
			}
			n, err := dev.Read(0, bufs, sizes, 16)
			if err != nil {
				t.Error(err)
			}
			if _, err := dev.Write(0, bufs[:n], 16); err != nil && !errors.Is(err, unix.EINVAL) {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("read and write allocate %v times, want 0", n)
		}
	})
}
