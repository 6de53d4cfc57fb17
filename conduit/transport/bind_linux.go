// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// recvBatch is small because each slot holds a coalesced run of up to 64 KiB.
	recvBatch = 16
	sendBatch = 64
	// groBuf holds the largest run that the kernel coalesces.
	groBuf = 64 << 10
	// A run may have 64 segments before Linux 6.9, and must fit one IPv4 datagram.
	maxSegments = 64
	maxRun      = 65507
	// So many runs refused as invalid, without one taken in between, are not the
	// fault of single paths any more.
	maxInvalid = 16
	// UDP_SEGMENT's control message.
	ctlLen = 24
	// Room for those of UDP_GRO and SO_TIMESTAMPNS.
	recvCtlLen = 64
)

// mmsghdr is struct mmsghdr. The compiler pads it as C does, by the alignment of
// the pointers in hdr: on 32-bit systems not at all.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// linuxBind is one socket with batches in both directions. Buffers for the
// system calls are made once, so no packet allocates.
type linuxBind struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	addr netip.AddrPort
	dev  string // bound to; empty: none
	v6   bool
	gro  bool
	time bool // datagrams come with their time

	gso  atomic.Bool
	wait atomic.Int64 // how long a full buffer may make no room, in ns

	recv recvState // owned by the receiving goroutine

	mu   sync.Mutex // guards send
	send sendState

	outq backlog
}

type recvState struct {
	msgs  [recvBatch]mmsghdr
	iovs  [recvBatch]unix.Iovec
	names [recvBatch]unix.RawSockaddrInet6
	ctl   [recvBatch][recvCtlLen]byte
	n     int
	errno syscall.Errno
	max   int
	fn    func(fd uintptr) bool
}

func (cfg *Config) control(network, _ string, c syscall.RawConn) error {
	var err error
	e := c.Control(func(fd uintptr) {
		s := int(fd)
		if network == "udp6" {
			if err = unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
				return
			}
		}
		if cfg.Interface != "" {
			if err = unix.BindToDevice(s, cfg.Interface); err != nil {
				err = fmt.Errorf("bind to device %s: %w", cfg.Interface, err)
				return
			}
		}
		if cfg.Beside != nil {
			if err = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
				return
			}
		}
		setMTU(s, network == "udp6")
		for _, o := range []struct{ force, plain, size int }{
			{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, cfg.RecvBuffer},
			{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, cfg.SendBuffer},
		} {
			if unix.SetsockoptInt(s, unix.SOL_SOCKET, o.force, o.size) != nil {
				_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, o.plain, o.size) // less is fine
			}
		}
	})
	return errors.Join(e, err)
}

func newBind(conn *net.UDPConn, cfg Config) (Bind, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	b := &linuxBind{conn: conn, raw: raw, addr: localAddr(conn), dev: cfg.Interface, v6: cfg.Network == "udp6"}
	_ = raw.Control(func(fd uintptr) {
		if !cfg.NoGRO {
			b.gro = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
		}
		if !cfg.NoGSO {
			_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
			b.gso.Store(err == nil)
		}
		b.time = !cfg.NoTime && stamp(int(fd))
		b.send.lanes(int(fd), &cfg)
	})
	b.SetSendWait(0)
	b.outq.fn = b.outq.ioctl
	b.recv.fn = b.recvmmsg
	b.send.fn = b.sendmmsg
	b.send.oneFn = b.sendOne
	return b, nil
}

// setMTU sets DF on what leaves and keeps the kernel from believing ICMP about the
// size of paths: a datagram that is too large is lost on the way, or refused with
// EMSGSIZE if the interface itself is the narrow place, and never fragmented. So
// a probe that arrives proves its size (RFC 8899).
func setMTU(fd int, v6 bool) {
	if !v6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
	// Lasting addresses rather than temporary ones, whose end moves the path.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_ADDR_PREFERENCES, preferPublic)
}

// preferPublic is IPV6_PREFER_SRC_PUBLIC (RFC 5014).
const preferPublic = 0x0002

// reuse lets other sockets take the same port, or not.
func (b *linuxBind) reuse(on bool) error {
	v := 0
	if on {
		v = 1
	}
	var err error
	e := b.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, v)
	})
	return errors.Join(e, err)
}

// Interface returns the device that the port is bound to; empty means none.
func (b *linuxBind) Interface() string { return b.dev }

func (b *linuxBind) LocalAddr() netip.AddrPort { return b.addr }
func (b *linuxBind) Sockets() int              { return 1 }
func (b *linuxBind) BatchSize() int            { return sendBatch }
func (b *linuxBind) Close() error              { return closeOnce(b.conn.Close()) }

func (b *linuxBind) RecvBufSize() int {
	if b.gro {
		return groBuf
	}
	return 2048
}

// Receive implements Bind.
func (b *linuxBind) Receive(_ int, msgs []Message) (int, error) {
	r := &b.recv
	r.max = min(len(msgs), recvBatch)
	for i := range r.max {
		r.iovs[i].Base = unsafe.SliceData(msgs[i].Buf)
		r.iovs[i].SetLen(len(msgs[i].Buf))
		h := &r.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Namelen = unix.SizeofSockaddrInet6
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		if b.gro || b.time {
			h.Control = &r.ctl[i][0]
			h.SetControllen(len(r.ctl[i]))
		}
	}
	for {
		if err := b.raw.Read(r.fn); err != nil {
			return 0, err
		}
		switch r.errno {
		case 0:
			for i := range r.n {
				m := &msgs[i]
				m.N = int(r.msgs[i].n)
				m.Segment, m.Time = 0, 0
				m.Addr = addrPort(&r.names[i])
				if b.gro || b.time {
					m.Segment, m.Time = readControl(&r.msgs[i].hdr, r.ctl[i][:])
				}
			}
			return r.n, nil
		case unix.EINTR, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EMSGSIZE:
			// An ICMP error about some earlier send; the socket is fine.
		default:
			return 0, r.errno
		}
	}
}

func (b *linuxBind) recvmmsg(fd uintptr) bool {
	r := &b.recv
	n, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(r.max), unix.MSG_DONTWAIT, 0, 0)
	r.n, r.errno = int(n), e
	return e != unix.EAGAIN
}

// stamp has the kernel give each datagram the time of its arrival.
func stamp(fd int) bool {
	// The newer option has seconds of 64 bits everywhere.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1) == nil {
		return true
	}
	return bits.UintSize == 64 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) == nil
}

// readControl reads the control messages of UDP_GRO and SO_TIMESTAMPNS.
func readControl(h *unix.Msghdr, ctl []byte) (segment int, at int64) {
	n := int(h.Controllen)
	for off := 0; off+unix.SizeofCmsghdr <= n; {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[off]))
		l := int(c.Len)
		if l < unix.SizeofCmsghdr || off+l > n {
			break
		}
		data := off + unix.CmsgLen(0)
		switch {
		case c.Level == unix.IPPROTO_UDP && c.Type == unix.UDP_GRO && l >= unix.CmsgLen(4):
			segment = int(*(*int32)(unsafe.Pointer(&ctl[data])))
		case c.Level == unix.SOL_SOCKET && (c.Type == unix.SO_TIMESTAMPNS_NEW || c.Type == unix.SO_TIMESTAMPNS) && l >= unix.CmsgLen(16):
			ts := (*[2]int64)(unsafe.Pointer(&ctl[data]))
			at = ts[0]*1e9 + ts[1]
		}
		off += unix.CmsgSpace(l - unix.CmsgLen(0))
	}
	return segment, at
}

func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := sa.Port<<8 | sa.Port>>8
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}
