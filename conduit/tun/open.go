// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
)

// Config describes a kernel interface.
type Config struct {
	// Name is the interface's name; empty means DefaultName where the system lets
	// us choose.
	Name string
	// MTU zero means DefaultMTU. At least 1280, so that IPv6 works.
	MTU int
	// Addrs are the interface's own addresses.
	Addrs []netip.Prefix
	// Routes are the prefixes that lead to the interface.
	Routes []netip.Prefix
	// Queues is how many queues the kernel spreads packets over; zero means 1.
	// Linux only.
	Queues int
	// TxQueueLen is how many packets the kernel holds for each queue until Read takes
	// them; zero means DefaultTxQueueLen. Linux only.
	TxQueueLen int
	// Driver is "linux", "water", or empty for the best that the system has.
	Driver string
	// Logger hears of what Open has to leave out, such as IPv6 where it is off; nil
	// discards.
	Logger *slog.Logger
}

// Errors of Open that callers branch on. A missing privilege Is also
// fs.ErrPermission, a missing driver also errors.ErrUnsupported.
var (
	// ErrBusy means that another program has the interface.
	ErrBusy = errors.New("interface is in use by another program")
)

// Open creates an interface, gives it its addresses and routes, and brings it up.
// The interface is gone after Close.
func Open(cfg Config) (Device, error) {
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MTU < 1280 || cfg.MTU > maxMTU {
		return nil, fmt.Errorf("open tun %s: MTU %d: want 1280 to %d", cfg.Name, cfg.MTU, maxMTU)
	}
	if len(cfg.Name) > maxNameLen {
		return nil, fmt.Errorf("open tun %s: name is longer than %d characters", cfg.Name, maxNameLen)
	}
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	if cfg.TxQueueLen == 0 {
		cfg.TxQueueLen = DefaultTxQueueLen
	}
	switch cfg.Driver {
	case "":
		return openDefault(cfg)
	case "linux":
		if runtime.GOOS != "linux" {
			return nil, fmt.Errorf("open tun %s: driver linux: %w on %s", cfg.Name, errors.ErrUnsupported, runtime.GOOS)
		}
		return openDefault(cfg)
	case "water":
		return openWater(cfg)
	}
	return nil, fmt.Errorf("open tun %s: unknown driver %q: want linux or water", cfg.Name, cfg.Driver)
}

// maxMTU is what one packet buffer holds; maxNameLen is IFNAMSIZ less its zero.
const (
	maxMTU     = 2000
	maxNameLen = 15
)
