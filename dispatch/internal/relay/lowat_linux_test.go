// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// TestShortQueue counts what a socket takes while its peer reads nothing.
func TestShortQueue(t *testing.T) {
	takes := func(short bool) (n int) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10) })
		}}
		c, err := d.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if short {
			ShortQueue(s)
		}
		if err := s.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := s.Write(make([]byte, 2048))
			if n += m; err != nil {
				return n
			}
		}
	}
	short, long := takes(true), takes(false)
	t.Logf("a socket takes %d bytes, else %d", short, long)
	if short > 256<<10 || short >= long {
		t.Errorf("a socket takes %d bytes, else %d", short, long)
	}
}
