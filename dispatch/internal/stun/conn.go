// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
)

// Local is the address of this machine to which a packet came, in the form in
// which the kernel wants it for the answer. Two of one socket are equal where the
// addresses are. The zero value lets the kernel choose.
type Local struct {
	n   uint8
	oob [oobSize]byte
}

// Conn is a UDP socket that tells to which address of the machine a packet came
// and answers from there: a NAT lets in no other.
type Conn struct {
	c   *net.UDPConn
	oob [oobSize]byte // owned by the reader
}

// Open opens addr, on IPv4 and IPv6 where it names no host. A machine without
// IPv6 gets one socket.
func Open(ctx context.Context, addr string, log *slog.Logger) ([]*Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen for STUN: %w", err)
	}
	networks := []string{"udp"}
	if host == "" {
		networks = []string{"udp4", "udp6"}
	}
	var conns []*Conn
	var lc net.ListenConfig
	for _, n := range networks {
		pc, err := lc.ListenPacket(ctx, n, net.JoinHostPort(host, port))
		if err != nil {
			if n == "udp6" {
				log.InfoContext(ctx, "STUN is served over IPv4 only", "err", err)
				continue
			}
			err = fmt.Errorf("listen for STUN: %w", err)
			for _, c := range conns {
				err = errors.Join(err, c.Close())
			}
			return nil, err
		}
		c := &Conn{c: pc.(*net.UDPConn)}
		conns = append(conns, c)
		port = strconv.Itoa(int(c.Addr().Port()))
		enablePktinfo(c.c)
	}
	return conns, nil
}

// Addr returns the address that the socket is bound to.
func (c *Conn) Addr() netip.AddrPort { return c.c.LocalAddr().(*net.UDPAddr).AddrPort() }

// Read waits for a packet and cuts it to len(b). It is for one goroutine. After
// Close its error is net.ErrClosed; others pass.
func (c *Conn) Read(b []byte) (n int, from netip.AddrPort, to Local, err error) {
	n, on, _, from, err := c.c.ReadMsgUDPAddrPort(b, c.oob[:])
	if err == nil {
		to.n = uint8(copy(to.oob[:], replySource(c.oob[:on])))
	}
	return n, from, to, err
}

// Write sends one packet. It is safe for concurrent use.
func (c *Conn) Write(b []byte, to netip.AddrPort, from Local) error {
	_, _, err := c.c.WriteMsgUDPAddrPort(b, from.oob[:from.n], to)
	return err
}

// Close closes the socket.
func (c *Conn) Close() error { return c.c.Close() }
