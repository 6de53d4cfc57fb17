// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	crpc "connectrpc.com/connect"
	_ "modernc.org/sqlite" // to damage databases with

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/chaos"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// bareHub is a hub on loopback without a namespace of its own.
type bareHub struct {
	t    *testing.T
	bin  string
	dir  string
	addr string
	// shell, where set, prepares mounts in a mount namespace of the hub's own; $D is
	// the data directory.
	shell string
	extra []string
	env   []string

	cmd    *exec.Cmd
	stderr *syncBuffer
	done   chan struct{}
}

// syncBuffer may be read while a process writes.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newBareHub prepares a hub on a new data directory and a free port.
func newBareHub(t *testing.T) *bareHub {
	t.Helper()
	dir, err := os.MkdirTemp("", "bxf") //nolint:usetesting // that one's path can be too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &bareHub{t: t, bin: build.ForTest(t).Dispatch, dir: filepath.Join(dir, "hub"), addr: freePort(t)}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (h *bareHub) command() *exec.Cmd {
	args := append([]string{
		h.bin, "serve", "--data", h.dir, "--listen", h.addr, "--admin-listen", "off", "--metrics-listen", "off",
		"--stun-listen", "off", "--public-url", "https://" + h.addr, "--log-level", "warn",
	}, h.extra...)
	h.stderr = &syncBuffer{}
	var cmd *exec.Cmd
	if h.shell == "" {
		cmd = exec.CommandContext(context.Background(), args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	} else {
		script := "set -e; mount --make-rprivate /; " + h.shell + `; exec "$@"`
		cmd = exec.CommandContext(context.Background(), "sh", append([]string{"-c", script, "sh"}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNS}
	}
	cmd.Env = append(append(os.Environ(), "D="+h.dir), h.env...)
	cmd.Stderr = h.stderr
	return cmd
}

// start runs the hub until it serves.
func (h *bareHub) start() {
	h.t.Helper()
	cmd := h.command()
	r, w := io.Pipe()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	done := make(chan struct{})
	h.cmd, h.done = cmd, done
	go func() {
		defer close(done)
		_ = cmd.Wait()
		_ = w.Close()
	}()
	h.t.Cleanup(h.kill)
	ready := make(chan bool, 1)
	go func() {
		var b [4096]byte
		n, _ := r.Read(b[:])
		ready <- bytes.Contains(b[:n], []byte("https://"))
		_, _ = io.Copy(io.Discard, r)
	}()
	select {
	case ok := <-ready:
		if !ok {
			<-done
			h.t.Fatalf("hub ended: %v\n%s", cmd.ProcessState, h.stderr)
		}
	case <-time.After(startTime):
		h.t.Fatal("hub does not serve")
	}
}

// inside is a path as the hub's mount namespace has it.
func (h *bareHub) inside(name ...string) string {
	return filepath.Join(append([]string{fmt.Sprintf("/proc/%d/root", h.cmd.Process.Pid), h.dir}, name...)...)
}

func (h *bareHub) call() *chaos.Caller {
	h.t.Helper()
	c, err := chaos.NewCaller(within(h.t, startTime), h.inside(), h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *bareHub) end(sig syscall.Signal) {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Signal(sig)
	<-h.done
	h.cmd = nil
}

func (h *bareHub) kill() { h.end(syscall.SIGKILL) }
func (h *bareHub) stop() { h.end(syscall.SIGTERM) }

// refuses demands that the hub does not start: it ends with code, and its message
// is one line that has all of texts, followed by a hint at most.
func (h *bareHub) refuses(code int, texts ...string) {
	h.t.Helper()
	cmd := h.command()
	ctx := within(h.t, startTime)
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	err := cmd.Run()
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) {
		h.t.Fatalf("hub ended with %v, want exit code %d", err, code)
	}
	said := h.stderr.String()
	if exit.ExitCode() != code {
		h.t.Errorf("exit code %d, want %d; it said:\n%s", exit.ExitCode(), code, said)
	}
	message, hint, _ := strings.Cut(strings.TrimSpace(said), "\n")
	for _, text := range texts {
		if !strings.Contains(said, text) {
			h.t.Errorf("message lacks %q:\n%s", text, said)
		}
	}
	if !strings.HasPrefix(message, "bauxite-dispatch: ") {
		h.t.Errorf("first line is %q", message)
	}
	if !strings.HasPrefix(hint, "bauxite-dispatch: hint: ") || strings.Contains(hint, "\n") {
		h.t.Errorf("no single hint what to do next, but %q", hint)
	}
}

// mounts skips, or fails in CI, where a mount namespace cannot be made.
func mounts(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mount needs root: %v\n%s", err, out)
		}
		t.Skipf("mount needs root: %v", err)
	}
}

// lived makes a data directory in which a hub has worked, with n nodes.
func lived(t *testing.T, n int) (*bareHub, []*chaos.Machine) {
	t.Helper()
	h := newBareHub(t)
	h.start()
	c := h.call()
	ctx := within(t, startTime)
	token, err := c.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var ms []*chaos.Machine
	for range n {
		m, err := c.Join(ctx, token)
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	h.stop()
	return h, ms
}

// keeps demands that the nodes are as they were acknowledged, and may come in.
func keeps(t *testing.T, c *chaos.Caller, ms []*chaos.Machine) {
	t.Helper()
	keepsRows(t, c, ms)
	if len(ms) > 0 {
		if err := c.Use(within(t, startTime), ms[len(ms)-1]); err != nil {
			t.Errorf("use the certificate of an acknowledged node: %v", err)
		}
	}
}

// keepsRows demands that the nodes are as they were acknowledged.
func keepsRows(t *testing.T, c *chaos.Caller, ms []*chaos.Machine) {
	t.Helper()
	have, err := c.Nodes(within(t, startTime))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		n := have[m.ID]
		if n == nil || n.GetName() != m.Name || n.GetVirtualIp() != m.IP {
			t.Errorf("node (%s, %s, %s) was acknowledged, hub has %v", m.ID, m.Name, m.IP, n)
		}
	}
}

func reasonOf(err error) dispatchv1.ErrorReason {
	ce := new(crpc.Error)
	if errors.As(err, &ce) {
		for _, d := range ce.Details() {
			if m, derr := d.Value(); derr == nil {
				if i, ok := m.(*dispatchv1.ErrorInfo); ok {
					return i.GetReason()
				}
			}
		}
	}
	return dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED
}

// copyDir copies what a hub keeps; its socket stays.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		switch name := filepath.Join(to, rel); {
		case d.IsDir():
			return os.MkdirAll(name, 0o700)
		case d.Type().IsRegular() && d.Name() != "ballast":
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(name, b, 0o600)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill makes a file of whatever space there is, but leaves some.
func fill(t *testing.T, name string, leave int64) {
	t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(name), &s); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	left := int64(s.Bavail)*s.Bsize - leave
	chunk := make([]byte, 4096)
	for ; left > 0; left -= 4096 {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func size(t *testing.T, p string) int64 {
	t.Helper()
	fi, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

func scribble(t *testing.T, p string, at int64, text string) {
	t.Helper()
	f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), at); err != nil {
		t.Fatal(err)
	}
}

func execSQL(t *testing.T, p, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+p)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}
