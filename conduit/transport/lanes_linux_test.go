// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rcvPriority is SO_RCVPRIORITY, of Linux 6.14.
const rcvPriority = 82

// marks receives n datagrams by a plain socket and returns the TOS or traffic
// class and, where the system tells it, the priority of each; else -1.
func marks(t *testing.T, c *net.UDPConn, n int) (out [][2]int) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf, oob := make([]byte, 2048), make([]byte, 128)
	for range n {
		_, k, _, _, err := c.ReadMsgUDP(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:k])
		if err != nil {
			t.Fatal(err)
		}
		got := [2]int{-1, -1}
		for _, m := range msgs {
			switch [2]int32{m.Header.Level, m.Header.Type} {
			case [2]int32{unix.IPPROTO_IP, unix.IP_TOS}, [2]int32{unix.IPPROTO_IPV6, unix.IPV6_TCLASS}:
				got[0] = int(m.Data[0])
			case [2]int32{unix.SOL_SOCKET, unix.SO_PRIORITY}:
				got[1] = int(m.Data[0])
			}
		}
		out = append(out, got)
	}
	return out
}

// Each lane has its mark on the wire, in single datagrams and in runs, in both
// families, whatever lane was before, and none where DSCP is off; so has each
// packet that this host queues.
func TestDSCP(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		ip, level, opt := netip.MustParseAddr("127.0.0.1"), unix.IPPROTO_IP, unix.IP_RECVTOS
		if network == "udp6" {
			ip, level, opt = netip.IPv6Loopback(), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
		}
		c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
		if err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("needs IPv6 on loopback: %v", err)
			}
			t.Skip("needs IPv6 on loopback")
		}
		defer func() { _ = c.Close() }()
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		tells := false
		if e := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), level, opt, 1)
			tells = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, rcvPriority, 1) == nil
		}); e != nil || err != nil {
			t.Fatal(e, err)
		}
		to := c.LocalAddr().(*net.UDPAddr).AddrPort()
		for _, on := range []bool{true, false} {
			for _, noGSO := range []bool{true, false} {
				b := open(t, Config{Network: network, Addr: ip, DSCP: on, NoGSO: noGSO})
				for _, lane := range []int{0, 2, 1, 2, 2, 0, 1} {
					out := make([]Message, 1+7*(lane/2)) // Bulk in runs
					for i := range out {
						out[i] = Message{Buf: make([]byte, 1200), Addr: to}
					}
					if n, err := b.Send(lane, out); n != len(out) || err != nil {
						t.Fatalf("send = %d, %v", n, err)
					}
					want := [][2]int{{0xc0, 6}, {0x68, 4}, {0x04, 2}}[lane]
					if !on {
						want = [2]int{}
					}
					if !tells {
						want[1] = -1
					}
					for i, got := range marks(t, c, len(out)) {
						if got != want {
							t.Errorf("%s noGSO=%v: datagram %d of lane %d has TOS and priority %#x, want %#x", network, noGSO, i, lane, got, want)
						}
					}
				}
			}
		}
	}
}

// The host's own queues know the lane too: SO_PRIORITY as the socket has it.
func TestPriority(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		ip := netip.MustParseAddr("127.0.0.1")
		if network == "udp6" {
			ip = netip.IPv6Loopback()
		}
		b, err := Listen(Config{Network: network, Addr: ip, DSCP: true})
		if err != nil {
			t.Skip("needs IPv6 on loopback")
		}
		defer func() { _ = b.Close() }()
		for lane, want := range []int{6, 4, 2} {
			if _, err := b.Send(lane, []Message{{Buf: []byte("x"), Addr: b.LocalAddr()}}); err != nil {
				t.Fatal(err)
			}
			if got := getOpt(t, b, unix.SO_PRIORITY); got != want {
				t.Errorf("%s: lane %d has priority %d, want %d", network, lane, got, want)
			}
		}
	}
}

func getOpt(t *testing.T, b Bind, opt int) (v int) {
	t.Helper()
	var err error
	if e := b.(*linuxBind).raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, opt) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return v
}

// Each datagram, and each run as a whole, has the time of its arrival.
func TestTime(t *testing.T) {
	for _, cfg := range []Config{{}, {NoGRO: true}, {NoGSO: true}, {NoTime: true}, {NoTime: true, NoGRO: true}} {
		a, b := open(t, Config{NoGSO: cfg.NoGSO}), open(t, cfg)
		msgs := room(b)
		var last int64
		for round := range 20 {
			before := time.Now().UnixNano()
			out := make([]Message, 8)
			for i := range out {
				out[i] = Message{Buf: make([]byte, 1000), Addr: b.LocalAddr()}
			}
			if n, err := a.Send(2, out); n != len(out) || err != nil {
				t.Fatalf("send = %d, %v", n, err)
			}
			after := time.Now().UnixNano()
			for got := 0; got < 8*1000; {
				for i := range msgs {
					msgs[i].Time = 1
				}
				n, err := b.Receive(0, msgs)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range msgs[:n] {
					got += m.N
					switch {
					case cfg.NoTime:
						if m.Time != 0 {
							t.Errorf("time %d, want none", m.Time)
						}
					case m.Time < before || m.Time > after || m.Time < last:
						t.Errorf("%+v, round %d: time is %d ns after the send began, which took %d ns", cfg, round, m.Time-before, after-before)
					}
					last = m.Time
				}
			}
		}
	}
}

// A datagram that wants to be alone is in no run; its neighbours are.
func TestAlone(t *testing.T) {
	a, b := open(t, Config{}), open(t, Config{})
	if !a.(*linuxBind).gso.Load() || !b.(*linuxBind).gro {
		t.Skip("needs UDP_SEGMENT and UDP_GRO")
	}
	out := make([]Message, 12)
	for i := range out {
		out[i] = Message{Buf: make([]byte, 1000), Addr: b.LocalAddr(), Alone: i >= 4 && i < 8}
	}
	if n, err := a.Send(2, out); n != len(out) || err != nil {
		t.Fatalf("send = %d, %v", n, err)
	}
	var sizes []int
	msgs := room(b)
	for got := 0; got < len(out)*1000; {
		n, err := b.Receive(0, msgs)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs[:n] {
			got += m.N
			sizes = append(sizes, m.N)
		}
	}
	if want := []int{4000, 1000, 1000, 1000, 1000, 4000}; !slices.Equal(sizes, want) {
		t.Errorf("arrived as %v, want %v", sizes, want)
	}
}

// shape puts a token bucket of bits a second on the device.
func shape(name string, rate uint64) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	const burst = 3028
	return netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate / 8, Limit: 4 << 20, Buffer: netlink.Xmittime(rate/8, burst),
	})
}

// Behind a thin own interface Bulk fills the socket, and says so; Critical still
// leaves; what waits is told, and less as it drains.
func TestBacklog(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		veth(t, "eth0", "192.0.2.2/24", "192.0.2.1", 1500)
		const rate = 4e6
		if err := shape("eth0", rate); err != nil {
			t.Error(err)
			return
		}
		to := netip.MustParseAddrPort("198.51.100.1:9")
		for _, noGSO := range []bool{false, true} {
			b := open(t, Config{Addr: netip.IPv4Unspecified(), NoGSO: noGSO, DSCP: true})
			b.(Waiter).SetSendWait(-1)
			q := b.(Backlog)
			if n := q.Queued(); n != 0 {
				t.Errorf("%d bytes wait before the first send", n)
			}
			send := func(lane int) (int, error) {
				out := make([]Message, 32)
				for i := range out {
					out[i] = Message{Buf: make([]byte, 1382), Addr: to}
				}
				return b.Send(lane, out)
			}
			total, last := 0, 0
			for {
				n, err := send(2)
				total += n
				if errors.Is(err, ErrFull) {
					break
				}
				now := q.Queued()
				if err != nil || now <= last || total > 1000 {
					t.Errorf("%d datagrams, %v: %d bytes wait, before %d", total, err, now, last)
					return
				}
				last = now
			}
			full := q.Queued()
			if full < 64<<10 || full < total*1382/2 {
				t.Errorf("noGSO=%v: %d bytes wait of %d datagrams", noGSO, full, total)
			}
			for _, lane := range []int{2, 1} {
				if n, err := send(lane); n > 8 || !errors.Is(err, ErrFull) {
					t.Errorf("noGSO=%v: lane %d: send = %d, %v; want ErrFull", noGSO, lane, n, err)
				}
			}
			if n, err := b.Send(0, []Message{{Buf: make([]byte, 200), Addr: to}}); n != 1 || err != nil {
				t.Errorf("noGSO=%v: Critical behind a full buffer: %d, %v", noGSO, n, err)
			}
			if n, err := send(2); n > 8 || !errors.Is(err, ErrFull) {
				t.Errorf("noGSO=%v: Bulk into the room of Critical: %d, %v", noGSO, n, err)
			}
			// It drains at the rate, and is empty then.
			b.(Waiter).SetSendWait(time.Second)
			begin := time.Now()
			if n, err := b.Send(2, []Message{{Buf: make([]byte, 1382), Addr: to}}); n != 1 || err != nil {
				t.Errorf("noGSO=%v: send = %d, %v; want room in time", noGSO, n, err)
			}
			took := time.Since(begin)
			if now := q.Queued(); now >= full || took < 5*time.Millisecond {
				t.Errorf("noGSO=%v: %d bytes wait after %v, before %d", noGSO, now, took, full)
			}
			t.Logf("noGSO=%v: %d datagrams fill it, %d bytes of memory, half empty after %v", noGSO, total, full, took)
			for end := time.Now().Add(5 * time.Second); q.Queued() > 0; {
				if time.Now().After(end) {
					t.Errorf("noGSO=%v: %d bytes wait for ever", noGSO, q.Queued())
					return
				}
			}
			_ = b.Close()
			if n := q.Queued(); n != 0 {
				t.Errorf("%d bytes wait in a closed port", n)
			}
		}
	})
}

func TestQueuedAllocs(t *testing.T) {
	b := open(t, Config{})
	if n := testing.AllocsPerRun(100, func() { b.(Backlog).Queued() }); n != 0 {
		t.Errorf("Queued allocates %v times, want 0", n)
	}
}
