// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package stun

import "net"

const oobSize = 0

func enablePktinfo(*net.UDPConn) {}

func replySource([]byte) []byte { return nil }
