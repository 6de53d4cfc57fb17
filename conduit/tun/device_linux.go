// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// batch is how many packets one Read takes before it returns.
const batch = 64

// linuxDevice is a TUN interface with one descriptor per queue, driven by the
// runtime's poller so that Close ends a pending Read.
type linuxDevice struct {
	name   string
	mtu    int
	queues []*queue
	index  int
	closed atomic.Bool

	mu    sync.Mutex      // guards stats
	stats *netlink.Handle // of the network namespace in which the interface is
	once  sync.Once
	err   error
}

type queue struct {
	file *os.File
	raw  syscall.RawConn

	// The reader's state, kept here so that a Read allocates nothing.
	bufs   [][]byte
	sizes  []int
	offset int
	n      int
	errno  syscall.Errno
	readFn func(fd uintptr) bool

	mu      sync.Mutex // guards the writer's state
	out     []byte
	outErr  syscall.Errno
	writeFn func(fd uintptr) bool
}

func openDefault(cfg Config) (Device, error) {
	d := &linuxDevice{name: cfg.Name, mtu: cfg.MTU}
	for i := range cfg.Queues {
		var flags uint16
		if cfg.Queues > 1 {
			flags |= unix.IFF_MULTI_QUEUE
			if i == 0 {
				// Else we would become one more queue of another program's interface.
				flags |= unix.IFF_TUN_EXCL
			}
		}
		q, err := openQueue(cfg.Name, flags)
		if err != nil {
			_ = d.Close()
			return nil, err
		}
		d.queues = append(d.queues, q)
	}
	if err := setUp(cfg); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("open tun %s: %w", cfg.Name, err)
	}
	if err := d.count(); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("open tun %s: %w", cfg.Name, err)
	}
	return d, nil
}

// count prepares Dropped, which may be called from any thread.
func (d *linuxDevice) count() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	link, err := h.LinkByName(d.name)
	if err != nil {
		h.Close()
		return fmt.Errorf("find interface: %w", err)
	}
	d.stats, d.index = h, link.Attrs().Index
	return nil
}

// Dropped implements DropCounter.
func (d *linuxDevice) Dropped() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stats == nil || d.closed.Load() {
		return 0, net.ErrClosed
	}
	link, err := d.stats.LinkByIndex(d.index)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read statistics of tun %s: %w", d.name, err)
	case link.Attrs().Statistics == nil:
		return 0, fmt.Errorf("read statistics of tun %s: %w", d.name, errors.ErrUnsupported)
	}
	return link.Attrs().Statistics.TxDropped, nil
}

func openQueue(name string, flags uint16) (*queue, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
			return nil, fmt.Errorf("open tun %s: /dev/net/tun: %w: %w", name, err, errors.ErrUnsupported)
		}
		return nil, fmt.Errorf("open tun %s: /dev/net/tun: %w", name, err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open tun %s: %w", name, err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("open tun %s: %w: choose another name or stop that program", name, ErrBusy)
		}
		return nil, fmt.Errorf("open tun %s: %w", name, err)
	}
	q := &queue{file: os.NewFile(uintptr(fd), name)}
	if q.raw, err = q.file.SyscallConn(); err != nil {
		_ = q.file.Close()
		return nil, fmt.Errorf("open tun %s: %w", name, err)
	}
	q.readFn, q.writeFn = q.drain, q.put
	return q, nil
}

func (d *linuxDevice) Name() string   { return d.name }
func (d *linuxDevice) MTU() int       { return d.mtu }
func (d *linuxDevice) Queues() int    { return len(d.queues) }
func (d *linuxDevice) BatchSize() int { return batch }

// Read implements Device.
func (d *linuxDevice) Read(queue int, bufs [][]byte, sizes []int, offset int) (int, error) {
	q := d.queues[queue]
	q.bufs, q.sizes, q.offset, q.n, q.errno = bufs, sizes, offset, 0, 0
	err := q.raw.Read(q.readFn)
	switch {
	case err != nil:
		return q.n, d.closedError(err)
	case q.errno == unix.EBADFD, q.errno == unix.EBADF:
		return q.n, net.ErrClosed // the interface was deleted
	case q.errno != 0 && q.n == 0:
		return 0, fmt.Errorf("read tun %s: %w", d.name, q.errno)
	}
	return q.n, nil
}

// drain reads until the queue is empty or the batch full.
func (q *queue) drain(fd uintptr) bool {
	for q.n < len(q.bufs) {
		b := q.bufs[q.n][q.offset:]
		n, _, e := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch e {
		case 0:
			q.sizes[q.n] = int(n)
			q.n++
		case unix.EINTR:
		case unix.EAGAIN:
			return q.n > 0
		default:
			q.errno = e
			return true
		}
	}
	return true
}

// Write implements Device.
func (d *linuxDevice) Write(queue int, bufs [][]byte, offset int) (n int, err error) {
	q := d.queues[queue]
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range bufs {
		q.out = b[offset:]
		if e := q.raw.Write(q.writeFn); e != nil {
			q.out = nil
			return n, d.closedError(e)
		}
		if q.outErr != 0 {
			err = q.outErr
			continue
		}
		n++
	}
	q.out = nil
	if err != nil {
		err = fmt.Errorf("write tun %s: %w", d.name, err)
	}
	return n, err
}

func (q *queue) put(fd uintptr) bool {
	for {
		_, _, e := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(q.out))), uintptr(len(q.out)))
		if e == unix.EINTR {
			continue
		}
		if e == unix.EAGAIN {
			return false
		}
		q.outErr = e
		return true
	}
}

// Close implements Device.
func (d *linuxDevice) Close() error {
	d.once.Do(func() {
		d.closed.Store(true)
		for _, q := range d.queues {
			d.err = errors.Join(d.err, q.file.Close())
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.stats != nil {
			d.stats.Close()
			d.stats = nil
		}
	})
	return d.err
}

// closedError gives the one name to what the poller says after Close.
func (d *linuxDevice) closedError(err error) error {
	if d.closed.Load() {
		return net.ErrClosed
	}
	return err
}
