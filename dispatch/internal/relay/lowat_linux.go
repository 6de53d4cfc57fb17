// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"net"
	"syscall"
)

const (
	tcpNotsentLowat = 25 // TCP_NOTSENT_LOWAT, which package syscall lacks
	// notSent is how many bytes may wait unsent in a socket.
	notSent = 16 << 10
)

// ShortQueue keeps the kernel's queue of unsent bytes short on a connection that
// was accepted; it does not pass from the listener to its connections. What stands
// in that queue cannot be overtaken: without a bound a slow receiver has up to
// megabytes of Bulk before each Critical packet.
func ShortQueue(c net.Conn) {
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
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, notSent)
	})
}
