// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
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
	// maxSendWait is how long a full socket buffer may make no room.
	maxSendWait = 100 * time.Millisecond
	// So many runs refused as invalid, without one taken in between, are not the
	// fault of single paths any more.
	maxInvalid = 16
	// UDP_SEGMENT's control message, and room for UDP_GRO's.
	ctlLen = 24
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
	v6   bool
	gro  bool

	gso atomic.Bool

	recv recvState // owned by the receiving goroutine

	mu   sync.Mutex // guards send
	send sendState
}

type recvState struct {
	msgs  [recvBatch]mmsghdr
	iovs  [recvBatch]unix.Iovec
	names [recvBatch]unix.RawSockaddrInet6
	ctl   [recvBatch][64]byte
	n     int
	errno syscall.Errno
	max   int
	fn    func(fd uintptr) bool
}

type sendState struct {
	msgs  [sendBatch]mmsghdr
	iovs  [sendBatch]unix.Iovec
	names [sendBatch]unix.RawSockaddrInet6
	ctl   [sendBatch][ctlLen]byte
	// first and count say which messages of the call a header carries.
	first [sendBatch]int
	count [sendBatch]int
	used  int
	done  int
	errno syscall.Errno
	wait  bool // fn may park until the socket is writable
	// invalid counts refused runs since the last one that was taken.
	invalid int
	fn      func(fd uintptr) bool
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
				return
			}
		}
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
	b := &linuxBind{conn: conn, raw: raw, addr: localAddr(conn), v6: cfg.Network == "udp6"}
	_ = raw.Control(func(fd uintptr) {
		if !cfg.NoGRO {
			b.gro = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
		}
		if !cfg.NoGSO {
			_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
			b.gso.Store(err == nil)
		}
	})
	b.recv.fn = b.recvmmsg
	b.send.fn = b.sendmmsg
	return b, nil
}

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
		if b.gro {
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
				m.Segment = 0
				m.Addr = addrPort(&r.names[i])
				if b.gro {
					m.Segment = segmentSize(&r.msgs[i].hdr, r.ctl[i][:])
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

// segmentSize reads UDP_GRO's control message.
func segmentSize(h *unix.Msghdr, ctl []byte) int {
	n := int(h.Controllen)
	for off := 0; off+unix.SizeofCmsghdr <= n; {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[off]))
		l := int(c.Len)
		if l < unix.SizeofCmsghdr || off+l > n {
			return 0
		}
		if c.Level == unix.IPPROTO_UDP && c.Type == unix.UDP_GRO && l >= unix.CmsgLen(4) {
			return int(*(*int32)(unsafe.Pointer(&ctl[off+unix.CmsgLen(0)])))
		}
		off += unix.CmsgSpace(l - unix.CmsgLen(0))
	}
	return 0
}

// Send implements Bind.
func (b *linuxBind) Send(_ int, msgs []Message) (sent int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for off := 0; off < len(msgs); {
		n := b.plan(msgs[off:])
		k, e := b.flush(msgs[off : off+n])
		sent += k
		if e != nil {
			if errors.Is(e, net.ErrClosed) {
				return sent, e
			}
			err = e
		}
		off += n
	}
	return sent, err
}

// plan fills headers for as many messages as one system call takes and returns
// how many that is. Equal-sized neighbours to one address share a header.
func (b *linuxBind) plan(msgs []Message) (n int) {
	s := &b.send
	s.used, s.done = 0, 0
	gso := b.gso.Load()
	iov := 0
	for n < len(msgs) && iov < sendBatch {
		first, size := n, len(msgs[n].Buf)
		total := 0
		for {
			s.iovs[iov].Base = unsafe.SliceData(msgs[n].Buf)
			s.iovs[iov].SetLen(len(msgs[n].Buf))
			total += len(msgs[n].Buf)
			last := len(msgs[n].Buf) < size
			iov++
			n++
			if !gso || last || n == len(msgs) || iov == sendBatch || n-first == maxSegments ||
				msgs[n].Addr != msgs[first].Addr || len(msgs[n].Buf) > size || len(msgs[n].Buf) == 0 || total+len(msgs[n].Buf) > maxRun {
				break
			}
		}
		i := s.used
		s.first[i], s.count[i] = first, n-first
		h := &s.msgs[i].hdr
		h.Iov = &s.iovs[iov-(n-first)]
		h.SetIovlen(n - first)
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
		h.Namelen = b.sockaddr(&s.names[i], msgs[first].Addr)
		h.Control = nil
		h.SetControllen(0)
		if n-first > 1 { // some drivers break on the option with a single segment
			c := (*unix.Cmsghdr)(unsafe.Pointer(&s.ctl[i][0]))
			c.Level, c.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
			c.SetLen(unix.CmsgLen(2))
			*(*uint16)(unsafe.Pointer(&s.ctl[i][unix.CmsgLen(0)])) = uint16(size)
			h.Control = &s.ctl[i][0]
			h.SetControllen(unix.CmsgSpace(2))
		}
		s.used++
	}
	return n
}

// flush sends what plan prepared.
func (b *linuxBind) flush(msgs []Message) (sent int, err error) {
	s := &b.send
	for s.done < s.used {
		before := s.done
		e := b.raw.Write(s.fn)
		if e == nil && s.errno == unix.EAGAIN && s.done == before {
			// The buffer is full. An uplink that moves at all makes room soon; one that
			// is stuck must not hold up the other sockets for ever.
			_ = b.conn.SetWriteDeadline(time.Now().Add(maxSendWait))
			s.wait = true
			e = b.raw.Write(s.fn)
			s.wait = false
			_ = b.conn.SetWriteDeadline(time.Time{})
			if errors.Is(e, os.ErrDeadlineExceeded) {
				return sent, e
			}
		}
		if e != nil {
			return sent, e
		}
		for i := before; i < s.done; i++ {
			sent += s.count[i]
			if s.count[i] > 1 {
				s.invalid = 0
			}
		}
		if s.errno == 0 || s.errno == unix.EAGAIN {
			continue
		}
		// The header at s.done was refused.
		i := s.done
		s.done++
		if s.count[i] > 1 && b.runRefused(s.errno) {
			k, e := b.singly(msgs[s.first[i] : s.first[i]+s.count[i]])
			sent += k
			if e != nil {
				err = e
			}
			continue
		}
		err = s.errno
	}
	return sent, err
}

// runRefused reports whether a run that got errno has to be sent singly, and gives
// up on runs where the socket's way cannot take any.
func (b *linuxBind) runRefused(errno syscall.Errno) bool {
	switch errno {
	case unix.EIO: // no checksum offload, or a transform on the route
		b.gso.Store(false)
	case unix.EMSGSIZE: // one segment is over this path's MTU; singly it is fragmented
	case unix.EINVAL: // the same on older kernels, among much else
		b.send.invalid++
		if b.send.invalid >= maxInvalid {
			b.gso.Store(false)
		}
	default:
		return false
	}
	return true
}

// singly resends the messages of a refused run one by one.
func (b *linuxBind) singly(msgs []Message) (sent int, err error) {
	_ = b.conn.SetWriteDeadline(time.Now().Add(maxSendWait))
	defer func() { _ = b.conn.SetWriteDeadline(time.Time{}) }()
	for i := range msgs {
		if _, e := b.conn.WriteToUDPAddrPort(msgs[i].Buf, msgs[i].Addr); e != nil {
			err = e
			continue
		}
		sent++
	}
	return sent, err
}

func (b *linuxBind) sendmmsg(fd uintptr) bool {
	s := &b.send
	s.errno = 0
	for s.done < s.used {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[s.done])), uintptr(s.used-s.done), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			s.done += int(n)
		case unix.EINTR, unix.ECONNREFUSED: // the latter is about an earlier send
		case unix.EAGAIN:
			s.errno = e
			return !s.wait
		default:
			s.errno = e
			return true
		}
	}
	return true
}

// sockaddr writes a into sa in the socket's family and returns its length; 0,
// which the kernel refuses, where the family does not fit.
func (b *linuxBind) sockaddr(sa *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	port := a.Port()<<8 | a.Port()>>8
	if !b.v6 {
		if !a.Addr().Is4() {
			return 0
		}
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: a.Addr().As4()}
		return unix.SizeofSockaddrInet4
	}
	if !a.Addr().Is6() {
		return 0
	}
	*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: a.Addr().As16()}
	if z := a.Addr().Zone(); z != "" {
		if ifi, err := net.InterfaceByName(z); err == nil {
			sa.Scope_id = uint32(ifi.Index)
		}
	}
	return unix.SizeofSockaddrInet6
}

func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := sa.Port<<8 | sa.Port>>8
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}
