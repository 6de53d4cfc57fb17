// SPDX-License-Identifier: Apache-2.0

package netcheck

import "syscall"

// bindTo makes a socket use one interface. Where the system does not let us, the
// routing table decides, which mostly comes to the same.
func bindTo(device string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			if device != "" {
				_ = syscall.SetsockoptString(int(fd), syscall.SOL_SOCKET, syscall.SO_BINDTODEVICE, device)
			}
		})
	}
}
