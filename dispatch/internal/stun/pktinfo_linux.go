// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"net"
	"net/netip"
	"syscall"
)

// oobSize holds one IP_PKTINFO or IPV6_PKTINFO.
const oobSize = 40

// enablePktinfo makes the kernel say to which address a packet came. An answer
// must leave from there: a machine with several addresses would otherwise pick
// one that the asker's NAT does not let in.
func enablePktinfo(c *net.UDPConn) {
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	a, _ := netip.AddrFromSlice(c.LocalAddr().(*net.UDPAddr).IP)
	_ = rc.Control(func(fd uintptr) {
		if a.Is4() {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1)
		} else {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO, 1)
		}
	})
}

// replySource turns what came with a packet into what makes the answer leave from
// the address that it came to. It works in place. The interface is left to the
// routing table, except for link-local addresses.
func replySource(oob []byte) []byte {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil
	}
	d := msgs[0].Data
	switch h := msgs[0].Header; {
	case h.Level == syscall.IPPROTO_IP && h.Type == syscall.IP_PKTINFO && len(d) >= 12:
		clear(d[:4]) // struct in_pktinfo: interface, local address, destination
	case h.Level == syscall.IPPROTO_IPV6 && h.Type == syscall.IPV6_PKTINFO && len(d) >= 20:
		if a, _ := netip.AddrFromSlice(d[:16]); !a.IsLinkLocalUnicast() {
			clear(d[16:20]) // struct in6_pktinfo: address, interface
		}
	default:
		return nil
	}
	return oob
}
