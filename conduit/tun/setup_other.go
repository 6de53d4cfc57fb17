// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tun

import (
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
)

// setUp runs the system's own commands; neither macOS nor Windows offers a
// stable interface below them.
func setUp(cfg Config) error {
	for _, c := range setUpCommands(runtime.GOOS, cfg) {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func setUpCommands(goos string, cfg Config) (cmds [][]string) {
	mtu := strconv.Itoa(cfg.MTU)
	if goos == "windows" {
		for _, a := range cfg.Addrs {
			if a.Addr().Is4() {
				cmds = append(cmds, []string{"netsh", "interface", "ipv4", "set", "address", "name=" + cfg.Name, "static", a.Addr().String(), mask4(a)})
			} else {
				cmds = append(cmds, []string{"netsh", "interface", "ipv6", "add", "address", "interface=" + cfg.Name, "address=" + a.String()})
			}
		}
		cmds = append(cmds, []string{"netsh", "interface", "ipv4", "set", "subinterface", cfg.Name, "mtu=" + mtu, "store=active"})
		for _, r := range cfg.Routes {
			cmds = append(cmds, []string{"netsh", "interface", family(r), "add", "route", "prefix=" + r.String(), "interface=" + cfg.Name, "store=active"})
		}
		return cmds
	}
	for _, a := range cfg.Addrs {
		if a.Addr().Is4() {
			cmds = append(cmds, []string{"ifconfig", cfg.Name, "inet", a.Addr().String(), a.Addr().String(), "mtu", mtu, "up"})
		} else {
			cmds = append(cmds, []string{"ifconfig", cfg.Name, "inet6", a.String(), "up"})
		}
	}
	for _, r := range cfg.Routes {
		fam := "-inet"
		if r.Addr().Is6() {
			fam = "-inet6"
		}
		cmds = append(cmds, []string{"route", "-q", "-n", "add", fam, r.String(), "-interface", cfg.Name})
	}
	return cmds
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "ipv4"
	}
	return "ipv6"
}

func mask4(p netip.Prefix) string {
	m := ^uint32(0) << (32 - p.Bits())
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}).String()
}
