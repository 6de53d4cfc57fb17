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
	lc := net.ListenConfig{Control: cfg.control}
	pc, err := lc.ListenPacket(context.Background(), cfg.Network, net.JoinHostPort(host, fmt.Sprint(cfg.Port)))
	if err != nil {
		return nil, err
	}
	return newBind(pc.(*net.UDPConn), cfg)
}

func localAddr(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
