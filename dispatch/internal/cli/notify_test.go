// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// manager waits for states in systemd's stead.
func manager(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: strings.Replace(name, "@", "\x00", 1), Net: "unixgram"})
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no datagram sockets: %v", err)
		}
		t.Skipf("no datagram sockets here: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return c
}

func state(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("read state: %v", err)
	}
	return string(b[:n])
}

func TestServeNotifiesManager(t *testing.T) {
	c := manager(t, filepath.Join(t.TempDir(), "notify"))
	line, _, stop := serveHub(t, t.TempDir())
	url := strings.TrimSpace(strings.TrimPrefix(line, "bauxite-dispatch: node URL "))
	if got, want := state(t, c), "READY=1\nSTATUS=node URL "+url; got != want {
		t.Errorf("first state %q, want %q", got, want)
	}
	if code := stop(); code != 0 {
		t.Errorf("serve: exit code %d", code)
	}
	if got := state(t, c); got != "STOPPING=1" {
		t.Errorf("last state %q, want STOPPING=1", got)
	}
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	notify("READY=1") // nobody waits
	c := manager(t, fmt.Sprintf("@bauxite-dispatch-test-%d", os.Getpid()))
	notify("READY=1")
	if got := state(t, c); got != "READY=1" {
		t.Errorf("state %q", got)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	notify("READY=1") // a manager that went away is no error
}

func TestServeReadsEnvironment(t *testing.T) {
	for _, f := range serveCommand().Flags {
		d, ok := f.(cli.DocGenerationFlag)
		want := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Names()[0], "-", "_"))
		if !ok || strings.Join(d.GetEnvVars(), " ") != want {
			t.Errorf("--%s: not set by %s", f.Names()[0], want)
		}
	}
	dir := t.TempDir()
	t.Setenv("BAUXITE_DISPATCH_PUBLIC_URL", "https://hub.example.org:8440")
	line, _, stop := serveHub(t, dir)
	if stop(); line != "bauxite-dispatch: node URL https://hub.example.org:8440\n" {
		t.Errorf("serve printed %q", line)
	}
	line, _, stop = serveHub(t, dir, "--public-url", "https://other.example.org")
	if stop(); line != "bauxite-dispatch: node URL https://other.example.org\n" {
		t.Errorf("serve with a flag printed %q", line)
	}
	t.Setenv("BAUXITE_DISPATCH_CERT_TTL", "soon")
	if code, _, e := run("serve", "--data", dir); code != 2 || !strings.Contains(e, "BAUXITE_DISPATCH_CERT_TTL") {
		t.Errorf("a variable that does not parse: exit code %d, %s", code, e)
	}
}

func TestMan(t *testing.T) {
	code, out, _ := run("man")
	if code != 0 || !strings.Contains(out, ".TH") || !strings.Contains(out, "serve") {
		t.Errorf("man: exit code %d, %s", code, out)
	}
	if _, help, _ := run(); strings.Contains(help, "   man") {
		t.Error("help shows the command that only packagers use")
	}
}
