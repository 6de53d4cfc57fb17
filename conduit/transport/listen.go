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
	DefaultSendBuffer = 256 << 10
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
	// is used.
	RecvBuffer, SendBuffer int
	// Beside is a port of the same number and family, less narrowly bound, that
	// this one is opened next to: datagrams go to the one that fits best. Nobody
	// else can take the port before or after. Nil: none. (Linux)
	Beside Bind
	// NoGSO and NoGRO switch the kernel's UDP offloads off (Linux).
	NoGSO, NoGRO bool
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
