// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Defaults of Config.
const (
	DefaultRecvBuffer = 1 << 20
	// DefaultSendBuffer is small, so that a thin interface of this host is felt as
	// ErrFull, and what waits waits in lanes. The kernel allows twice as much memory,
	// of which a full datagram takes 1.6 times its size: 60 of them, or 90 in runs.
	// Measured behind a token bucket of 20 Mbit/s, ErrFull came after 36 to 54 ms; with
	// 128 KiB after 72, with 256 KiB after 144. Behind 1 and 4 Gbit/s and on an
	// unshaped veth (12 Gbit/s) sizes from 32 KiB on made no difference beyond noise.
	// 32 KiB would halve the wait, but be less than one aggregate of a fast Wi-Fi.
	DefaultSendBuffer = 64 << 10
)

// Config describes one UDP port.
type Config struct {
	// Network is "udp4" or "udp6". An IPv6 port takes no IPv4.
	Network string
	// Addr is the local address; zero means all.
	Addr netip.Addr
	// Port 0 lets the system choose.
	Port int
	// Interface binds the port to a device (Linux, SO_BINDTODEVICE); empty means
	// that the routing table decides.
	Interface string
	// RecvBuffer and SendBuffer are the kernel's buffers in bytes; zero means
	// DefaultRecvBuffer and DefaultSendBuffer. Where the system grants less, less
	// is used. On Linux lane 0 has 64 KiB more to send, which the other lanes do not
	// use: it leaves where they are told ErrFull.
	RecvBuffer, SendBuffer int
	// Beside is a port of the same number and family, less narrowly bound, that
	// this one is opened next to: datagrams go to the one that fits best. Nobody
	// else can take the port before or after. Nil: none. (Linux)
	Beside Bind
	// NoGSO and NoGRO switch the kernel's UDP offloads off, NoTime the time of
	// arrival in Message (Linux).
	NoGSO, NoGRO, NoTime bool
	// DSCP marks what leaves by its lane, in the IP header and with the priority
	// that this host's queues know (Linux):
	//
	//	lane       DSCP       priority  Wi-Fi (WMM)
	//	Critical   CS6 (48)   6         AC_VO
	//	Telemetry  AF31 (26)  4         AC_VI, in older kernels AC_BE
	//	Bulk       LE (1)     2         AC_BE
	//
	// A Wi-Fi interface so sends Critical before all else that waits there, without
	// any configuration. Linux takes the user priority, and with it the access
	// category, from the map that the access point gave; without one by RFC 8325 (CS6
	// is 7, AF31 is 4, EF is 6), or in older kernels from the three upper bits of the
	// DSCP (6, 3, and 5 for EF, which is no more than AC_VI: hence CS6 and not EF). LE
	// is AC_BK only where the access point's map says so. What the access point
	// sends follows its own rules.
	//
	// On wires, pfifo_fast has priorities 6, 4 and 2 in its three bands, the rest of
	// the host in the middle one; CAKE reads the DSCP; fq_codel reads neither.
	// Routers of others may follow the DSCP, ignore or clear it. The receiving end
	// does not look at it. The ECN field stays 0.
	DSCP bool
}

// Listen opens the port that cfg describes.
func Listen(cfg Config) (Bind, error) {
	if cfg.Network != "udp4" && cfg.Network != "udp6" {
		return nil, fmt.Errorf("listen: network %q: want udp4 or udp6", cfg.Network)
	}
	if cfg.RecvBuffer == 0 {
		cfg.RecvBuffer = DefaultRecvBuffer
	}
	if cfg.SendBuffer == 0 {
		cfg.SendBuffer = DefaultSendBuffer
	}
	host := ""
	if cfg.Addr.IsValid() {
		host = cfg.Addr.String()
	}
	// Both sockets must allow the reuse of their port at the moment of bind; before
	// and after neither does.
	beside, _ := cfg.Beside.(reuser)
	if cfg.Beside != nil && beside == nil {
		return nil, fmt.Errorf("listen: cannot share the port of a %T", cfg.Beside)
	}
	if beside != nil {
		if err := beside.reuse(true); err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		defer func() { _ = beside.reuse(false) }()
	}
	lc := net.ListenConfig{Control: cfg.control}
	pc, err := lc.ListenPacket(context.Background(), cfg.Network, net.JoinHostPort(host, fmt.Sprint(cfg.Port)))
	if err != nil {
		return nil, err
	}
	b, err := newBind(pc.(*net.UDPConn), cfg)
	if r, ok := b.(reuser); ok && beside != nil {
		err = r.reuse(false)
		if err != nil {
			_ = b.Close()
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
	return b, err
}

// reuser is a Bind that can let others have its port too.
type reuser interface{ reuse(on bool) error }

func localAddr(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
