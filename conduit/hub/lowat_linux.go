// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// notSent is how many bytes may wait unsent in the socket.
const notSent = 16 << 10

// shortQueue keeps the kernel's queue of unsent bytes short. What stands in it
// cannot be overtaken: without a bound, a slow uplink has up to megabytes of Bulk in
// front of each Critical packet, and of signalling.
func shortQueue(c net.Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return
	}
	// Where the kernel refuses, the queue is longer and all else works.
	_ = rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent)
	})
}
