// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package netcheck

import "syscall"

func bindTo(string) func(network, address string, c syscall.RawConn) error { return nil }
