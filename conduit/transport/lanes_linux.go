// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	numLanes = 3
	// headroom is what Critical may fill beyond the buffer that the other lanes
	// leave full, so that they never stand in its way.
	headroom = 64 << 10
)

// The marks of the lanes: DSCP in the upper six bits, and SO_PRIORITY, of which
// more than 6 needs a privilege.
var (
	laneTOS      = [numLanes]int32{48 << 2, 26 << 2, 1 << 2}
	lanePriority = [numLanes]int32{6, 4, 2}
)

// marked is what a socket does for the lane that sends. An option that follows the
// lane costs half a microsecond when the lane changes and nothing while it does
// not; a control message costs 0.09 µs with each datagram or run. The options also
// give SO_PRIORITY, whose control message is new in Linux 6.14 while that of IP_TOS
// resets the priority, and leave the headers of a send as they were.
type marked struct {
	now  int // the lane, from 1, whose marks the socket has
	opts [numLanes][2]sockopt
	n    int // options in each of opts
	// The size of the buffer, which has Critical's headroom while raised.
	size, more sockopt
	raised     bool
}

type sockopt struct{ level, name, value int32 }

func (o *sockopt) set(fd uintptr) {
	// What the system refuses is not worth a packet.
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, uintptr(o.level), uintptr(o.name), uintptr(unsafe.Pointer(&o.value)), unsafe.Sizeof(o.value), 0)
}

// lanes prepares the options of each lane.
func (m *marked) lanes(fd int, cfg *Config) {
	m.size = sockopt{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, int32(cfg.SendBuffer)}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, cfg.SendBuffer) != nil {
		m.size.name = unix.SO_SNDBUF // without the privilege
	}
	m.more = m.size
	m.more.value += headroom
	if !cfg.DSCP {
		return
	}
	m.n = 2
	for l := range numLanes {
		tos := sockopt{unix.IPPROTO_IP, unix.IP_TOS, laneTOS[l]}
		if cfg.Network == "udp6" {
			tos.level, tos.name = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
		}
		// In this order: the TOS changes the priority.
		m.opts[l] = [2]sockopt{tos, {unix.SOL_SOCKET, unix.SO_PRIORITY, lanePriority[l]}}
	}
}

// mark gives the socket the options of a lane.
func (m *marked) mark(fd uintptr, lane int) {
	if m.now == lane+1 {
		return
	}
	m.now = lane + 1
	for i := range m.n {
		m.opts[lane][i].set(fd)
	}
	if m.raised && lane > 0 {
		m.raised = false
		m.size.set(fd)
	}
}

// raise makes room for Critical in a buffer that is full and reports whether it
// is worth to try again.
func (m *marked) raise(fd uintptr) bool {
	if m.now != 1 || m.raised {
		return false
	}
	m.raised = true
	m.more.set(fd)
	return true
}

// backlog asks the kernel how much of a socket waits; its fn is made once.
type backlog struct {
	mu    sync.Mutex
	fn    func(fd uintptr)
	bytes int32
	errno syscall.Errno
}

func (q *backlog) ioctl(fd uintptr) {
	_, _, q.errno = unix.RawSyscall(unix.SYS_IOCTL, fd, unix.SIOCOUTQ, uintptr(unsafe.Pointer(&q.bytes)))
}

// Queued implements Backlog.
func (b *linuxBind) Queued() int {
	q := &b.outq
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes, q.errno = 0, unix.EBADF
	if b.raw.Control(q.fn) != nil || q.errno != 0 {
		return 0
	}
	return int(q.bytes)
}
