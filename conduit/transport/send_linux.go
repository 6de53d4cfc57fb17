// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

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
	park  bool // fn may wait until the socket is writable
	stop  int  // after ErrFull: the first message of the call that was not tried
	lane  int  // of the call
	marked
	// invalid counts refused runs since the last one that was taken.
	invalid int
	fn      func(fd uintptr) bool

	// one is the header of a datagram of a refused run.
	one      unix.Msghdr
	oneIov   unix.Iovec
	oneName  unix.RawSockaddrInet6
	oneErrno syscall.Errno
	oneFn    func(fd uintptr) bool

	// refused is nil until something is.
	refused *SendError
}

// SetSendWait implements Waiter.
func (b *linuxBind) SetSendWait(d time.Duration) {
	if d == 0 {
		d = DefaultSendWait
	}
	b.wait.Store(int64(d))
}

// Send implements Bind.
func (b *linuxBind) Send(lane int, msgs []Message) (sent int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.send.lane = min(max(lane, 0), numLanes-1)
	b.send.refused = nil
	for off := 0; off < len(msgs); {
		n := b.plan(msgs[off:])
		k, err := b.flush(msgs[off:off+n], off)
		sent += k
		if err == ErrFull { //nolint:errorlint // it is never wrapped
			b.refusal().Left = len(msgs) - b.send.stop
			break
		}
		if err != nil {
			return sent, err
		}
		off += n
	}
	if b.send.refused != nil { // not as a nil pointer in an interface
		return sent, b.send.refused
	}
	return sent, nil
}

// refusal returns the error of the call, made when first needed.
func (b *linuxBind) refusal() *SendError {
	if b.send.refused == nil {
		b.send.refused = new(SendError)
	}
	return b.send.refused
}

func (b *linuxBind) refuse(index int, errno syscall.Errno) {
	e := b.refusal()
	e.Refused = append(e.Refused, Refusal{index, errno})
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
				msgs[first].Alone || msgs[n].Alone || msgs[n].Addr != msgs[first].Addr || len(msgs[n].Buf) > size || len(msgs[n].Buf) == 0 || total+len(msgs[n].Buf) > maxRun {
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

// flush sends what plan prepared of msgs, which begin at off in those of the call.
// Its errors end the call: ErrFull, with stop at the first message that was not
// tried, and those of a closed socket.
func (b *linuxBind) flush(msgs []Message, off int) (sent int, err error) {
	s := &b.send
	for s.done < s.used {
		before := s.done
		err := b.write(s.fn, &s.errno)
		for i := before; i < s.done; i++ {
			sent += s.count[i]
			if s.count[i] > 1 {
				s.invalid = 0
			}
		}
		switch {
		case err != nil && s.done == s.used:
			return sent, nil
		case err != nil:
			s.stop = off + s.first[s.done]
			return sent, err
		case s.errno == 0:
			continue
		}
		// The header at s.done was refused.
		i := s.done
		s.done++
		if s.count[i] > 1 && b.runRefused(s.errno) {
			k, err := b.singly(msgs[s.first[i]:s.first[i]+s.count[i]], off+s.first[i])
			sent += k
			if err != nil {
				return sent, err
			}
			continue
		}
		for j := range s.count[i] {
			b.refuse(off+s.first[i]+j, s.errno)
		}
	}
	return sent, nil
}

// write calls fn until it made all progress that it can and waits for room in
// between as long as SetSendWait says. fn leaves what stopped it in errno, which is
// not EAGAIN if write returns nil.
func (b *linuxBind) write(fn func(uintptr) bool, errno *syscall.Errno) error {
	if err := b.raw.Write(fn); err != nil || *errno != unix.EAGAIN {
		return err
	}
	wait := time.Duration(b.wait.Load())
	if wait < 0 {
		return ErrFull
	}
	// The buffer is full. An uplink that moves at all makes room soon; one that is
	// stuck must not hold up the other sockets for ever.
	_ = b.conn.SetWriteDeadline(time.Now().Add(wait))
	b.send.park = true
	err := b.raw.Write(fn)
	b.send.park = false
	_ = b.conn.SetWriteDeadline(time.Time{})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrFull
	}
	return err
}

// runRefused reports whether a run that got errno has to be sent singly, and gives
// up on runs where the socket's way cannot take any.
func (b *linuxBind) runRefused(errno syscall.Errno) bool {
	switch errno {
	case unix.EIO: // no checksum offload, or a transform on the route
		b.gso.Store(false)
	case unix.EMSGSIZE: // a segment is over the interface's MTU; shorter ones may pass
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

// singly resends the messages of a refused run one by one; off is the first one's
// place in the call.
func (b *linuxBind) singly(msgs []Message, off int) (sent int, err error) {
	s := &b.send
	for i := range msgs {
		s.oneIov.Base = unsafe.SliceData(msgs[i].Buf)
		s.oneIov.SetLen(len(msgs[i].Buf))
		s.one = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.oneName)), Namelen: b.sockaddr(&s.oneName, msgs[i].Addr), Iov: &s.oneIov}
		s.one.SetIovlen(1)
		if err := b.write(s.oneFn, &s.oneErrno); err != nil {
			s.stop = off + i
			return sent, err
		}
		if s.oneErrno != 0 {
			b.refuse(off+i, s.oneErrno)
			continue
		}
		sent++
	}
	return sent, nil
}

func (b *linuxBind) sendOne(fd uintptr) bool {
	s := &b.send
	for {
		_, _, s.oneErrno = unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&s.one)), unix.MSG_DONTWAIT)
		switch s.oneErrno {
		case unix.EINTR, unix.ECONNREFUSED:
		case unix.EAGAIN:
			if s.raise(fd) {
				continue
			}
			return !s.park
		default:
			return true
		}
	}
}

func (b *linuxBind) sendmmsg(fd uintptr) bool {
	s := &b.send
	s.mark(fd, s.lane)
	s.errno = 0
	for s.done < s.used {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[s.done])), uintptr(s.used-s.done), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			s.done += int(n)
		case unix.EINTR, unix.ECONNREFUSED: // the latter is about an earlier send
		case unix.EAGAIN:
			if s.raise(fd) {
				continue
			}
			s.errno = e
			return !s.park
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
