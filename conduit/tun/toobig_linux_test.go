// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// The kernel believes the ICMP that packet.TooBig makes: it must be from where the
// packet went to.
func TestKernelTakesTooBig(t *testing.T) {
	for _, driver := range []string{"linux", "water"} {
		for _, family := range []string{"udp4", "udp6"} {
			t.Run(driver+" "+family, func(t *testing.T) {
				inNamespace(t, func(t *testing.T) { tooBig(t, driver, family) })
			})
		}
	}
}

func tooBig(t *testing.T, driver, family string) {
	dev, err := Open(Config{
		Name: "bxtest0", Driver: driver,
		Addrs:  []netip.Prefix{netip.MustParsePrefix("10.66.0.2/32"), netip.MustParsePrefix("fd66::2/128")},
		Routes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16"), netip.MustParsePrefix("fd66::/64")},
	})
	if err != nil {
		t.Error(err)
		return
	}
	defer dev.Close()
	if family == "udp6" && !hasIPv6("bxtest0") {
		t.Log("IPv6 is off here")
		return
	}
	to, mtu := net.ParseIP("10.66.0.9"), 1200
	level, discover, do, get := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU
	if family == "udp6" {
		to, mtu = net.ParseIP("fd66::9"), 1290
		level, discover, do, get = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU
	}
	c, err := net.DialUDP(family, nil, &net.UDPAddr{IP: to, Port: 7})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, discover, do) })
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := c.Write(make([]byte, 1300)); err != nil {
		t.Error(err)
		return
	}
	bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
	var info packet.Info
	for {
		n, err := dev.Read(0, bufs, sizes, 0)
		if err != nil {
			t.Error(err)
			return
		}
		if n == 1 && packet.Parse(bufs[0][:sizes[0]], &info) && info.DstPort == 7 {
			break
		}
	}
	msg := make([]byte, 1280)
	msg = msg[:packet.TooBig(msg, bufs[0][:sizes[0]], &info, mtu)]
	// A fresh IPv6 address is not taken packets for at once, even without DAD.
	err = os.ErrDeadlineExceeded
	for try := 0; try < 50 && errors.Is(err, os.ErrDeadlineExceeded); try++ {
		if n, err := dev.Write(0, [][]byte{msg}, 0); n != 1 || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("the socket was told %v, want EMSGSIZE", err)
	}
	got := 0
	_ = raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), level, get) })
	if err != nil || got != mtu {
		t.Errorf("the kernel's path MTU is %d (%v), want %d", got, err, mtu)
	}
	if _, err := c.Write(make([]byte, 1300)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a second large packet: %v, want EMSGSIZE", err)
	}
}

// Write may be called by several goroutines at a time, while one reads.
func TestConcurrentWrite(t *testing.T) {
	for _, driver := range []string{"linux", "water"} {
		t.Run(driver, func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				dev, err := Open(Config{
					Name: "bxtest0", Driver: driver,
					Addrs: []netip.Prefix{netip.MustParsePrefix("10.66.0.2/32")}, Routes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16")},
				})
				if err != nil {
					t.Error(err)
					return
				}
				defer dev.Close()
				c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 66, 0, 2), Port: 4000})
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_ = c.SetReadBuffer(4 << 20)
				const writers, each = 4, 100
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() {
						for range each {
							b := udpTo4000(byte(w))
							if n, err := dev.Write(0, [][]byte{b}, 0); n != 1 || err != nil {
								t.Errorf("wrote %d, %v", n, err)
								return
							}
						}
					})
				}
				wg.Wait()
				var counts [writers]int
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				buf := make([]byte, 2048)
				for range writers * each {
					n, _, err := c.ReadFromUDP(buf)
					if errors.Is(err, os.ErrDeadlineExceeded) {
						break
					}
					if err != nil || n != 1000 || int(buf[0]) >= writers {
						t.Errorf("got %d bytes, %v", n, err)
						return
					}
					for _, x := range buf[:n] {
						if x != buf[0] {
							t.Error("packets were mixed")
							return
						}
					}
					counts[buf[0]]++
				}
				if counts != [writers]int{each, each, each, each} {
					t.Errorf("arrived: %v of %d each", counts, each)
				}
			})
		})
	}
}

// udpTo4000 is a UDP packet without a checksum whose payload is all x.
func udpTo4000(x byte) []byte {
	b := make([]byte, 1028)
	b[0], b[2], b[3], b[8], b[9] = 0x45, 1028>>8, 1028&255, 64, 17
	copy(b[12:], []byte{10, 66, 0, 9, 10, 66, 0, 2})
	b[22], b[23], b[24], b[25] = 4000>>8, 4000&255, 1008>>8, 1008&255
	acc := uint32(0)
	for i := 0; i < 20; i += 2 {
		acc += uint32(b[i])<<8 | uint32(b[i+1])
	}
	acc = acc>>16 + acc&0xffff
	sum := ^uint16(acc)
	b[10], b[11] = byte(sum>>8), byte(sum)
	for i := range b[28:] {
		b[28+i] = x
	}
	return b
}
