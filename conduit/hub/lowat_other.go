// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package hub

import "net"

// shortQueue bounds the kernel's queue of unsent bytes where that is possible, on
// Linux.
func shortQueue(net.Conn) {}
