// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// socketName is the administrator's socket in the data directory.
const socketName = "dispatch.sock"

// maxSocketPath is what sockaddr_un holds on every system, with a reserve for the
// temporary folder.
const maxSocketPath = 90

// maxHosts bounds the names in the node port's certificate.
const maxHosts = 40

// SocketPath returns the path of the administrator's socket.
func SocketPath(dataDir string) string { return filepath.Join(dataDir, socketName) }

// listenSocket opens the administrator's socket with mode 0600. It is made in a
// private folder and then moved into place, so it is never open to others, not
// even for a moment, and one that a crash left behind is replaced.
func listenSocket(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("open socket %s: the path is longer than %d bytes, choose a shorter data directory", path, maxSocketPath)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open socket %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	err = os.Chmod(name, 0o600)
	if runtime.GOOS == "windows" {
		err = nil
	}
	if err == nil {
		err = os.Rename(name, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open socket %s: %w", path, err), ln.Close())
	}
	return &socket{UnixListener: ln, path: path}, nil
}

type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if rerr := os.Remove(s.path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) && err == nil {
		err = rerr
	}
	return err
}

// randomULA returns a unique local /64 with a random global id (RFC 4193).
func randomULA() (netip.Prefix, error) {
	a := [16]byte{0: 0xfd}
	if _, err := rand.Read(a[1:6]); err != nil {
		return netip.Prefix{}, fmt.Errorf("generate IPv6 prefix: %w", err)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64), nil
}

type public struct {
	url     string
	hosts   []string // what the node port's certificate is good for
	warning string
}

// publicURL returns the configured node URL, or a guess.
func publicURL(ctx context.Context, cfg Config, ln *net.TCPAddr) public {
	local := localAddrs()
	p := public{url: cfg.PublicURL}
	var host string
	if p.url != "" {
		u, _ := url.Parse(p.url) // New has checked it
		host = u.Hostname()
	} else {
		a, warning := guess(ctx, ln.AddrPort().Addr().Unmap(), local)
		host, p.warning = a.String(), warning
		p.url = "https://" + net.JoinHostPort(host, strconv.Itoa(ln.Port))
	}
	p.hosts = []string{host, "localhost", "127.0.0.1", "::1"}
	for _, a := range local {
		p.hosts = append(p.hosts, a.String())
	}
	if h, err := os.Hostname(); err == nil && validHost(h) {
		p.hosts = append(p.hosts, strings.ToLower(h))
	}
	slices.Sort(p.hosts[1:])
	p.hosts = slices.Compact(p.hosts)
	p.hosts = p.hosts[:min(len(p.hosts), maxHosts)]
	return p
}

func validHost(h string) bool {
	return h != "" && len(h) < 254 && strings.Trim(h, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") == ""
}

// guess picks the address under which nodes reach this machine: the one that it
// listens on, else that of the default route.
func guess(ctx context.Context, listen netip.Addr, local []netip.Addr) (a netip.Addr, warning string) {
	if !listen.IsUnspecified() {
		return listen, ""
	}
	const set = "set --public-url"
	// Nothing is sent: connecting a UDP socket only asks the routing table.
	var d net.Dialer
	for _, to := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		c, err := d.DialContext(ctx, "udp", to)
		if err != nil {
			continue
		}
		a = c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		_ = c.Close()
		if others := len(slices.DeleteFunc(slices.Clone(local), func(b netip.Addr) bool { return !b.Is4() || b == a })); others > 0 && a.Is4() {
			return a, "this machine has several addresses and the node URL is a guess: " + set
		}
		return a, ""
	}
	if len(local) > 0 {
		return local[0], "this machine has no default route and the node URL is a guess: " + set
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1}), "this machine has no address that others reach: " + set
}

// localAddrs returns the machine's own addresses, IPv4 first, without loopback
// and link-local ones.
func localAddrs() []netip.Addr {
	ifs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, i := range ifs {
		n, ok := i.(*net.IPNet)
		if !ok {
			continue
		}
		if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap().IsGlobalUnicast() {
			out = append(out, a.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
