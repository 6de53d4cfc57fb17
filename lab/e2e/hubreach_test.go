// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
)

// withoutIPv4 takes every IPv4 address from a host, and the routes with them.
func withoutIPv4(t *testing.T, h *netns.Host) *netns.Host {
	t.Helper()
	if err := h.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Attrs().Name == "lo" {
				continue
			}
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if err := netlink.AddrDel(l, &a); err != nil {
					return fmt.Errorf("delete %v: %w", a.IPNet, err)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestIPv6Only lets a mesh live where no machine has an IPv4 address outside of
// it, with a hub that guesses its own URL.
func TestIPv6Only(t *testing.T) {
	lab := netns.New(t)
	bin := build.ForTest(t)
	wan := lab.WAN("wan")
	hub := withoutIPv4(t, wan.Host("hub", netns.Link{}))
	data := filepath.Join(lab.LogDir(), "hub")
	ctx := within(t, startTime)
	proc, err := hub.Command(context.WithoutCancel(ctx), netns.ProcConfig{}, bin.Dispatch, "serve", "--data", data)
	if err != nil {
		t.Fatal(err)
	}
	m, err := proc.WaitStdout(ctx, regexp.MustCompile(`https://\S+`))
	if err != nil {
		t.Fatal(err)
	}
	url := m[0]
	if want := netip.AddrPortFrom(hub.Addr6(), fleet.NodePort).String(); url != "https://"+want {
		t.Fatalf("node URL is %s, want https://%s", url, want)
	}
	var nodes []*fleet.Node
	for _, name := range []string{"a", "b"} {
		r, err := hub.Run(ctx, bin.Dispatch, "token", "create", "--data", data, "--json")
		if err != nil {
			t.Fatal(err)
		}
		var v struct{ Token string }
		if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
			t.Fatalf("%v in %q", err, r.Stdout)
		}
		n := fleet.NewNode(withoutIPv4(t, wan.Host(name, netns.Link{PerPacket: true})), bin, lab.LogDir(), name)
		if _, err := n.Join(ctx, v.Token, url); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	a, b := nodes[0], nodes[1]
	_, sb := start(t, a, b)
	ping(t, a, sb.Node.VirtualIP)
	ping(t, a, sb.Node.VirtualIP6)
	if p := direct(t, a, "b"); !strings.HasPrefix(p.Path.Remote, "["+b.Host.Addr6().String()+"]") {
		t.Errorf("path leads to %s, want %s", p.Path.Remote, b.Host.Addr6())
	}
}

// connectProxy is an HTTP proxy on a host that knows nothing but CONNECT.
type connectProxy struct {
	url     string
	tunnels atomic.Int32
	refused atomic.Int32
}

// startProxy starts a proxy on h that is open on its second interface and leads to
// what its first one reaches, at allowed only.
func startProxy(t *testing.T, h *netns.Host, inside netip.Addr, allowed string) *connectProxy {
	t.Helper()
	ln, err := h.ListenTCP(netip.AddrPortFrom(inside, 3128).String())
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{url: "http://" + ln.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				p.serve(ctx, h, c, allowed)
			})
		}
	})
	return p
}

func (p *connectProxy) serve(ctx context.Context, h *netns.Host, c net.Conn, allowed string) {
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	if req.Method != http.MethodConnect || req.Host != allowed {
		p.refused.Add(1)
		_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\n\r\n")
		return
	}
	to, err := netip.ParseAddrPort(req.Host)
	if err != nil {
		return
	}
	out, err := h.DialTCP(ctx, to)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer out.Close()
	defer context.AfterFunc(ctx, func() { _ = out.Close() })()
	p.tunnels.Add(1)
	_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, br)
		_ = out.Close()
	}()
	_, _ = io.Copy(c, out)
	_ = c.Close()
	<-done
}

// TestProxyOnly puts two robots on a LAN that leads nowhere: no route, no UDP, no
// DNS, only a proxy that opens the hub's node port and nothing else.
func TestProxyOnly(t *testing.T) {
	w := newWorld(t)
	lan := w.lab.Switch("plant")
	gate := w.wan.Host("gate", netns.Link{})
	inside := gate.Attach(lan, netns.Link{})
	// The plant is no part of the router's internet and the gate forwards nothing.
	proxy := startProxy(t, gate, inside.Addr4.Addr(), w.hub.NodeAddr().String())

	var nodes []*fleet.Node
	for _, name := range []string{"a", "b"} {
		n := fleet.NewNode(lan.Host(name, netns.Link{PerPacket: true}), w.bin, w.lab.LogDir(), name)
		ctx := within(t, startTime)
		token, err := w.hub.Token(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := n.Join(ctx, token, w.hub.URL); err == nil || r.Code != 17 {
			t.Fatalf("joined without a proxy, or failed otherwise: %v", err)
		}
		if _, err := n.Join(ctx, token, w.hub.URL, "--proxy", proxy.url); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	a, b := nodes[0], nodes[1]
	_, sb := start(t, a, b) // topology
	// The handshake goes by signalling, so through the proxy; the path is the LAN.
	ping(t, a, sb.Node.VirtualIP)
	p := direct(t, a, "b")
	if r, err := netip.ParseAddrPort(p.Path.Remote); err != nil || r.Addr() != b.Host.Addr4() && r.Addr() != b.Host.Addr6() {
		t.Errorf("path leads to %s, want an address of b on the LAN", p.Path.Remote)
	}
	if n, r := proxy.tunnels.Load(), proxy.refused.Load(); n < 4 || r != 0 {
		t.Errorf("%d tunnels and %d refused, want at least one for each join and each node", n, r)
	}
}

// TestProxyFromEnvironment joins by HTTPS_PROXY, which is not written down.
func TestProxyFromEnvironment(t *testing.T) {
	w := newWorld(t)
	lan := w.lab.Switch("plant")
	gate := w.wan.Host("gate", netns.Link{})
	inside := gate.Attach(lan, netns.Link{})
	proxy := startProxy(t, gate, inside.Addr4.Addr(), w.hub.NodeAddr().String())
	n := fleet.NewNode(lan.Host("a", netns.Link{}), w.bin, w.lab.LogDir(), "a")
	ctx := within(t, startTime)
	token, err := w.hub.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	env, err := exec.LookPath("env")
	if err != nil {
		t.Fatal(err)
	}
	join := []string{w.bin.Bauxite, "join", "--home", n.Home, token, w.hub.URL}
	if r, err := n.Host.Run(ctx, env, append([]string{"HTTPS_PROXY=" + proxy.url, "NO_PROXY=" + w.hub.Host.Addr4().String()}, join...)...); err == nil || r.Code != 17 {
		t.Fatalf("NO_PROXY was not heeded: %v", err)
	}
	if _, err := n.Host.Run(ctx, env, append([]string{"HTTPS_PROXY=" + proxy.url}, join...)...); err != nil {
		t.Fatal(err)
	}
	if n := proxy.tunnels.Load(); n != 1 {
		t.Errorf("%d tunnels, want 1", n)
	}
}
