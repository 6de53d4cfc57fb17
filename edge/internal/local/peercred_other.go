// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package local

import "net"

// authorize relies on the modes of the socket and of the home directory.
func authorize(*net.UnixConn) error { return nil }
