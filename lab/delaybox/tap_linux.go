// SPDX-License-Identifier: Apache-2.0

package delaybox

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// OpenTAP makes the TAP device name in the calling thread's network
// namespace. Each Read and Write of the file moves one Ethernet frame; the
// device vanishes when the file is closed. It needs CAP_NET_ADMIN there.
func OpenTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make tap %s: %w", name, err)
	}
	// The file joins the poller only now: a tun file that is not attached
	// reports an error there.
	return os.NewFile(uintptr(fd), name), nil
}

// SetCarrier tells the kernel whether the cable of the TAP behind f is
// plugged in.
func SetCarrier(f *os.File, on bool) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("set carrier of %s: %w", f.Name(), err)
	}
	v := 0
	if on {
		v = 1
	}
	var ioErr error
	if err := raw.Control(func(fd uintptr) { ioErr = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, v) }); err != nil {
		return fmt.Errorf("set carrier of %s: %w", f.Name(), err)
	}
	if ioErr != nil {
		return fmt.Errorf("set carrier of %s: %w", f.Name(), ioErr)
	}
	return nil
}

// nap blocks the thread for d, more exactly than a Go timer.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil) // early return on a signal is harmless
}
