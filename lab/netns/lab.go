// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// TB is what a Lab needs of its test. *testing.T and *testing.B have it.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// Lab owns namespaces, cables, processes and captures, and removes them all
// in Close. Its topology methods belong to one goroutine.
type Lab struct {
	tb     TB
	prefix string // of all its namespaces' names
	logs   string // directory of process logs and captures
	keep   bool   // logs outlive the lab

	mu      sync.Mutex
	closed  bool
	hosts   []*Host
	closers []func() error // run in reverse order
	procs   []*Proc
	starter *starter

	// Next free numbers, owned by the topology goroutine.
	wanNet, lanNet int
}

var (
	labCount atomic.Int64

	liveMu sync.Mutex
	live   = map[*Lab]bool{}
)

// New makes an empty lab that ends with the test. Where namespaces cannot be
// had it skips the test with the reason, or fails it when CI=true.
func New(tb TB) *Lab {
	tb.Helper()
	if err := Usable(); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatalf("network namespaces are required when CI=true: %v", err)
		}
		tb.Skipf("no network namespaces: %v", err)
	}
	l, err := newLab(tb)
	if err != nil {
		tb.Fatalf("make lab: %v", err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("%s", l.Tails(30))
		}
		if err := l.Close(); err != nil {
			tb.Logf("close lab: %v", err)
		}
	})
	return l
}

func newLab(tb TB) (*Lab, error) {
	if err := sweep(); err != nil {
		return nil, err
	}
	prefix, err := processPrefix(os.Getpid())
	if err != nil {
		return nil, err
	}
	l := &Lab{tb: tb, prefix: fmt.Sprintf("%s%d-", prefix, labCount.Add(1))}
	if dir := os.Getenv("BAUXITE_LAB_LOGS"); dir != "" {
		l.keep = true
		l.logs = filepath.Join(dir, l.prefix)
		err = os.MkdirAll(l.logs, 0o755)
	} else {
		l.logs, err = os.MkdirTemp("", l.prefix)
	}
	if err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	l.starter = newStarter()
	liveMu.Lock()
	live[l] = true
	liveMu.Unlock()
	return l, nil
}

// Run makes a lab for a program that is not a test, calls f on a goroutine of
// its own and closes the lab. A topology method that fails ends f, with
// deferred calls run, and Run returns its error; otherwise it returns f's. When
// ctx ends, the lab is closed under f, whose calls then fail.
func Run(ctx context.Context, name string, f func(*Lab) error) error {
	if err := Usable(); err != nil {
		return fmt.Errorf("make lab %s: %w", name, err)
	}
	tb := &programTB{name: name}
	l, err := newLab(tb)
	if err != nil {
		return fmt.Errorf("make lab %s: %w", name, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() {
			if p := recover(); p != nil {
				_ = l.Close()
				panic(p)
			}
		}()
		if err := f(l); err != nil {
			tb.err = err
		}
	}()
	select {
	case <-ended:
		return errors.Join(tb.err, l.Close())
	case <-ctx.Done():
	}
	err = l.Close()
	<-ended
	return errors.Join(context.Cause(ctx), err)
}

// programTB stands in for a test in Run.
type programTB struct {
	name string
	err  error
}

func (p *programTB) Helper()             {}
func (p *programTB) Name() string        { return p.name }
func (p *programTB) Logf(string, ...any) {}
func (p *programTB) Failed() bool        { return p.err != nil }
func (p *programTB) Cleanup(func())      {}
func (p *programTB) Fatalf(format string, args ...any) {
	p.err = fmt.Errorf(format, args...)
	runtime.Goexit()
}
func (p *programTB) Skipf(format string, args ...any) { p.Fatalf(format, args...) }

// LogDir is the directory of process logs and captures. It goes with the lab
// unless BAUXITE_LAB_LOGS names a place to keep them.
func (l *Lab) LogDir() string { return l.logs }

// Close kills the lab's processes, removes its cables and namespaces and
// waits for its goroutines. It may be called more than once.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	procs, closers, hosts := l.procs, l.closers, l.hosts
	l.mu.Unlock()

	var errs []error
	for _, p := range procs { // first: they hold sockets in the namespaces
		p.Kill()
	}
	for _, f := range slices.Backward(closers) {
		errs = append(errs, f())
	}
	l.starter.close() // after the processes, which die with its thread
	for _, h := range hosts {
		errs = append(errs, h.ns.Close(), deleteNamed(h.nsName))
	}
	if !l.keep {
		errs = append(errs, os.RemoveAll(l.logs))
	}
	liveMu.Lock()
	delete(live, l)
	liveMu.Unlock()
	return errors.Join(errs...)
}

// CloseAll closes every lab of this process, for signal handlers.
func CloseAll() {
	liveMu.Lock()
	var all []*Lab
	for l := range live {
		all = append(all, l)
	}
	liveMu.Unlock()
	for _, l := range all {
		_ = l.Close()
	}
}

// onClose registers f for Close. It reports false, without keeping f, when
// the lab is closed already.
func (l *Lab) onClose(f func() error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.closers = append(l.closers, f)
	return true
}

// check ends the test when err is not nil.
func (l *Lab) check(err error, format string, args ...any) {
	l.tb.Helper()
	if err != nil {
		l.tb.Fatalf("lab: %s: %v", fmt.Sprintf(format, args...), err)
	}
}

// tailProcs is how many processes Tails shows: the latest ones.
const tailProcs = 8

// Tails returns the last n lines of the latest processes' logs, with headings.
// It leaves out what ended well.
func (l *Lab) Tails(n int) string {
	l.mu.Lock()
	procs := slices.Clone(l.procs)
	l.mu.Unlock()
	procs = slices.DeleteFunc(procs, (*Proc).succeeded)
	// Those that still run matter most: they are the daemons.
	slices.SortStableFunc(procs, func(a, b *Proc) int { return a.rank() - b.rank() })
	var b strings.Builder
	for _, p := range procs[max(0, len(procs)-tailProcs):] {
		fmt.Fprintf(&b, "--- %s in %s, last lines:\n%s\n", strings.Join(p.Args[:min(2, len(p.Args))], " "), p.Host.Name(), p.Tail(n))
	}
	return b.String()
}

// host creates a namespace.
func (l *Lab) host(name, note string) *Host {
	l.tb.Helper()
	l.mu.Lock()
	for _, h := range l.hosts {
		if h.name == name {
			l.mu.Unlock()
			l.tb.Fatalf("lab: two hosts named %s", name)
		}
	}
	l.mu.Unlock()
	h := &Host{lab: l, name: name, note: note, nsName: l.prefix + name}
	var err error
	h.ns, err = createNamed(h.nsName)
	l.check(err, "host %s", name)
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.hosts = append(l.hosts, h)
	}
	l.mu.Unlock()
	if closed {
		_ = h.ns.Close()
		_ = deleteNamed(h.nsName)
		l.tb.Fatalf("lab: host %s: lab is closed", name)
	}
	return h
}

// nextWAN hands out a public subnet: 198.18.N.0/24 and 2001:db8:N::/64.
func (l *Lab) nextWAN() subnet {
	l.wanNet++
	n := byte(l.wanNet)
	return subnet{
		v4: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, n, 0}), 24),
		v6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, n}), 64),
	}
}

// nextLAN hands out a private subnet: 192.168.N.0/24 and fdb0:N::/64.
func (l *Lab) nextLAN() subnet {
	l.lanNet++
	n := byte(l.lanNet)
	return subnet{
		v4: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, n, 0}), 24),
		v6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0xb0, 0, n}), 64),
	}
}

// subnet is the addresses of one network.
type subnet struct{ v4, v6 netip.Prefix }

// addr returns the n-th address of both families with the subnet's length.
func (s subnet) addr(n int) (v4, v6 netip.Prefix) {
	a4 := s.v4.Addr().As4()
	a4[3] += byte(n)
	v4 = netip.PrefixFrom(netip.AddrFrom4(a4), s.v4.Bits())
	if s.v6.IsValid() {
		a6 := s.v6.Addr().As16()
		a6[15] += byte(n)
		v6 = netip.PrefixFrom(netip.AddrFrom16(a6), s.v6.Bits())
	}
	return v4, v6
}
