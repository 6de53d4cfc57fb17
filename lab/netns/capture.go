// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// captureLimit bounds the frames kept in memory, in bytes.
	captureLimit = 256 << 20
	// captureBuffer is what the kernel may queue for us.
	captureBuffer = 32 << 20

	// vnetHdrLen is the length of struct virtio_net_hdr, which the kernel
	// puts before each frame and which tells of segmentation offload.
	vnetHdrLen = 10
)

// Frame is one captured Ethernet frame.
type Frame struct {
	Time     time.Time
	Outgoing bool // sent by the host, not received
	// Segment is the payload of each wire packet when the kernel handed over
	// several UDP or TCP packets as one, 0 otherwise.
	Segment int
	Data    []byte
}

// Capture records all frames of one interface, in memory and in a pcap file.
type Capture struct {
	iface *Iface
	path  string
	fd    int
	stopR *os.File // readable once Stop was called
	stopW *os.File
	done  chan struct{}
	once  sync.Once

	mu     sync.Mutex
	frames []Frame
	bytes  int
	missed int   // frames that the kernel or the limit dropped
	err    error // why the capture ended, if not by Stop
}

// Capture starts to record what the interface sends and receives, until Stop
// or the end of the lab.
func (i *Iface) Capture() (*Capture, error) { return i.capture(false) }

// CaptureIncoming is Capture of what the interface receives only, for hosts that
// send more than can be recorded.
func (i *Iface) CaptureIncoming() (*Capture, error) { return i.capture(true) }

func (i *Iface) capture(incoming bool) (*Capture, error) {
	c := &Capture{
		iface: i, done: make(chan struct{}),
		path: filepath.Join(i.Host.lab.logs, fmt.Sprintf("%s-%s-%d.pcap", i.Host.name, i.Name, time.Now().UnixNano())),
	}
	if err := i.Host.Do(func() (err error) { c.fd, err = openPacketSocket(i.Name, incoming); return err }); err != nil {
		return nil, fmt.Errorf("capture on %s: %w", i, err)
	}
	f, err := os.Create(c.path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("capture on %s: %w", i, err), unix.Close(c.fd))
	}
	if c.stopR, c.stopW, err = os.Pipe(); err != nil {
		return nil, errors.Join(fmt.Errorf("capture on %s: %w", i, err), unix.Close(c.fd), f.Close())
	}
	go func() {
		defer close(c.done)
		err := c.run(f)
		c.mu.Lock()
		c.err = errors.Join(err, f.Close(), unix.Close(c.fd), c.stopR.Close())
		c.mu.Unlock()
	}()
	if !i.Host.lab.onClose(c.Stop) {
		return nil, errors.Join(fmt.Errorf("capture on %s: lab is closed", i), c.Stop())
	}
	return c, nil
}

// openPacketSocket opens a raw socket on an interface of the thread's
// namespace, deaf until it is bound.
func openPacketSocket(name string, incoming bool) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer) // needs real root
	ifi, err := net.InterfaceByName(name)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	}
	if err == nil && incoming {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// Stop ends the capture, after what the kernel still holds has been read. It
// may be called more than once and returns the error that hit the capture.
func (c *Capture) Stop() error {
	c.once.Do(func() { _ = c.stopW.Close() })
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Path is the pcap file, complete after Stop.
func (c *Capture) Path() string { return c.path }

// Frames returns what was captured so far. The frames must not be changed.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clip(c.frames) // appending makes a new array
}

// Missed is the number of frames that passed but were not recorded; a search
// that finds nothing proves nothing unless it is 0.
func (c *Capture) Missed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missed
}

// Find returns the frames that contain marker anywhere.
func (c *Capture) Find(marker []byte) []Frame {
	var found []Frame
	for _, f := range c.Frames() {
		if bytes.Contains(f.Data, marker) {
			found = append(found, f)
		}
	}
	return found
}

// run records until the stop pipe is closed and the socket is empty.
func (c *Capture) run(file io.Writer) error {
	w := bufio.NewWriterSize(file, 1<<20)
	if err := writePcapHeader(w); err != nil {
		return err
	}
	buf := make([]byte, vnetHdrLen+1<<18)
	stopping := false
	for {
		n, from, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case err == nil && n >= vnetHdrLen:
			if err := c.add(w, buf[:n], from); err != nil {
				return err
			}
			continue
		case err == nil || err == unix.EINTR:
			continue
		case err == unix.ENETDOWN: // the interface went down; it may come back
			continue
		case err != unix.EAGAIN:
			return errors.Join(fmt.Errorf("receive frame: %w", err), w.Flush())
		}
		if stopping {
			break
		}
		// Blocks a thread: packet sockets of other namespaces cannot join
		// Go's poller without a file of their own.
		fds := []unix.PollFd{
			{Fd: int32(c.fd), Events: unix.POLLIN},
			{Fd: int32(c.stopR.Fd()), Events: unix.POLLIN},
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return errors.Join(fmt.Errorf("poll: %w", err), w.Flush())
		}
		stopping = fds[1].Revents != 0
	}
	if st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		c.mu.Lock()
		c.missed += int(st.Drops)
		c.mu.Unlock()
	}
	return w.Flush()
}

// add records one frame with the header that the kernel put before it.
func (c *Capture) add(w io.Writer, b []byte, from unix.Sockaddr) error {
	f := Frame{Time: time.Now(), Data: bytes.Clone(b[vnetHdrLen:])}
	if b[1] != unix.VIRTIO_NET_HDR_GSO_NONE {
		f.Segment = int(binary.NativeEndian.Uint16(b[4:6]))
	}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		f.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
	}
	c.mu.Lock()
	if c.bytes+len(f.Data) > captureLimit {
		c.missed++
	} else {
		c.frames = append(c.frames, f)
		c.bytes += len(f.Data)
	}
	c.mu.Unlock()
	return writePcapFrame(w, f)
}

// writePcapHeader writes the header of a pcap file of Ethernet frames with
// times in nanoseconds.
func writePcapHeader(w io.Writer) error {
	h := make([]byte, 0, 24)
	h = binary.LittleEndian.AppendUint32(h, 0xa1b23c4d)
	h = binary.LittleEndian.AppendUint16(h, 2) // version 2.4
	h = binary.LittleEndian.AppendUint16(h, 4)
	h = append(h, make([]byte, 8)...)
	h = binary.LittleEndian.AppendUint32(h, 1<<18) // longest frame
	h = binary.LittleEndian.AppendUint32(h, 1)     // LINKTYPE_ETHERNET
	if _, err := w.Write(h); err != nil {
		return fmt.Errorf("write pcap: %w", err)
	}
	return nil
}

func writePcapFrame(w io.Writer, f Frame) error {
	h := make([]byte, 0, 16)
	h = binary.LittleEndian.AppendUint32(h, uint32(f.Time.Unix()))
	h = binary.LittleEndian.AppendUint32(h, uint32(f.Time.Nanosecond()))
	h = binary.LittleEndian.AppendUint32(h, uint32(len(f.Data)))
	h = binary.LittleEndian.AppendUint32(h, uint32(len(f.Data)))
	if _, err := w.Write(append(h, f.Data...)); err != nil {
		return fmt.Errorf("write pcap: %w", err)
	}
	return nil
}
