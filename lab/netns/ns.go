// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namePrefix marks the namespaces of all labs on this machine.
const namePrefix = "bxl-"

// nameDir is where named namespaces are mounted, for us and for iproute2.
const nameDir = "/run/netns"

// processPrefix is the name prefix of all namespaces of one process. The
// start time tells the process from a later one with the same id.
func processPrefix(pid int) (string, error) {
	start, err := startTime(pid)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s%d-%s-", namePrefix, pid, strconv.FormatUint(start, 36)), nil
}

// startTime reads field 22 of /proc/PID/stat: clock ticks since boot.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	// The command name in field 2 may hold anything, also parentheses.
	rest := string(b[strings.LastIndexByte(string(b), ')')+1:])
	f := strings.Fields(rest)
	if len(f) < 20 {
		return 0, fmt.Errorf("read start time of process %d: short stat line", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// remains lists the namespaces and log directories of labs by prefix.
func remains(prefix string) []string {
	names, _ := filepath.Glob(filepath.Join(nameDir, prefix+"*"))
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	return append(names, dirs...)
}

func removeRemains(path string) error {
	if filepath.Dir(path) == nameDir {
		return deleteNamed(filepath.Base(path))
	}
	return os.RemoveAll(path)
}

// sweep removes what labs left whose process is gone.
func sweep() error {
	var errs []error
	for _, path := range remains(namePrefix) {
		name := filepath.Base(path)
		part := strings.SplitN(strings.TrimPrefix(name, namePrefix), "-", 3)
		pid, err := strconv.Atoi(part[0])
		if err != nil || len(part) < 3 {
			continue // not in our format, so not ours
		}
		if start, err := startTime(pid); err == nil && strconv.FormatUint(start, 36) == part[1] {
			continue
		}
		errs = append(errs, removeRemains(path))
	}
	return errors.Join(errs...)
}

// sweepPrefix removes what labs with this prefix left.
func sweepPrefix(prefix string) error {
	var errs []error
	for _, path := range remains(prefix) {
		errs = append(errs, removeRemains(path))
	}
	return errors.Join(errs...)
}

// deleteNamed unmounts and removes a name; a name that is gone is no error.
func deleteNamed(name string) error {
	path := filepath.Join(nameDir, name)
	// A name whose mount failed or is gone is a plain file: EINVAL.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}

// onThread runs f on an operating system thread of its own that afterwards
// returns to the namespace it came from. If it cannot (in a user namespace the
// machine's own network namespace is out of reach), the thread ends with its
// goroutine and never serves another. A panic in f reaches the caller.
func onThread(f func() error) (err error) {
	var panicked any
	ended := make(chan struct{})
	err = errors.New("function left its goroutine")
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		home, homeErr := netns.Get()
		defer func() {
			if homeErr != nil {
				return
			}
			if netns.Set(home) == nil {
				runtime.UnlockOSThread()
			}
			_ = home.Close()
		}()
		defer func() { panicked = recover() }()
		err = f()
	}()
	<-ended
	if panicked != nil {
		panic(panicked)
	}
	return err
}

// createNamed makes a named namespace with its loopback up and returns a
// descriptor of it.
func createNamed(name string) (netns.NsHandle, error) {
	ns := netns.None()
	err := onThread(func() error {
		var err error
		if ns, err = netns.NewNamed(name); err != nil {
			return err
		}
		for key, v := range hostSysctls {
			if err := sysctl(key, v); err != nil {
				return err
			}
		}
		return linkUp("lo")
	})
	if err != nil {
		if ns.IsOpen() {
			_ = ns.Close()
		}
		return netns.None(), errors.Join(fmt.Errorf("create namespace %s: %w", name, err), deleteNamed(name))
	}
	return ns, nil
}

// hostSysctls make a namespace quiet and quick: no address checks that take
// a second, no router solicitations, and replies may use any interface.
var hostSysctls = map[string]string{
	"net/ipv6/conf/all/accept_dad":               "0",
	"net/ipv6/conf/default/accept_dad":           "0",
	"net/ipv6/conf/all/accept_ra":                "0",
	"net/ipv6/conf/default/accept_ra":            "0",
	"net/ipv6/conf/default/router_solicitations": "0",
	"net/ipv6/conf/all/keep_addr_on_down":        "1",
	"net/ipv6/conf/default/keep_addr_on_down":    "1",
	"net/ipv4/conf/all/rp_filter":                "0",
	"net/ipv4/conf/default/rp_filter":            "0",
}

// routerSysctls turn a namespace into a router.
var routerSysctls = map[string]string{
	"net/ipv4/ip_forward":          "1",
	"net/ipv6/conf/all/forwarding": "1",
}

// sysctl writes a setting of the calling thread's network namespace.
func sysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	return nil
}

// linkUp brings up an interface of the calling thread's namespace.
func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}
