// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startPatience bounds a start that does not come to an end.
const startPatience = 30 * time.Second

var errEnded = errors.New("hub ended")

// hub is the process under test. Its methods must not run concurrently.
type hub struct {
	bin, dir, log string
	addr          string

	cmd   *exec.Cmd
	ready chan struct{} // closed when it serves
	done  chan struct{} // closed when it has ended
}

// newHub chooses a port below those that the kernel hands out: a client that
// dials a port of its own range while nobody listens can connect to itself.
func newHub(ctx context.Context, bin, dir string, rng *rand.Rand) (*hub, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	h := &hub{bin: bin, dir: dir, log: dir + ".log"}
	for range 50 {
		h.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+rng.IntN(15000)))
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", h.addr)
		if err == nil {
			return h, ln.Close()
		}
	}
	return nil, errors.New("find a free port: none in 50 attempts")
}

func (h *hub) socket() string { return filepath.Join(h.dir, "dispatch.sock") }

// start runs the program and does not wait.
func (h *hub) start(ctx context.Context) error {
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start hub: %w", err)
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), h.bin, "serve", "--data", h.dir, "--listen", h.addr,
		"--admin-listen", "off", "--stun-listen", "off", "--public-url", "https://"+h.addr,
		"--mesh-cidr", "10.64.0.0/10", "--log-format", "json", "--log-level", "warn")
	cmd.Stderr = log
	// The hub must not outlive a harness that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("start hub: %w", err)
	}
	h.cmd, h.ready, h.done = cmd, make(chan struct{}), make(chan struct{})
	ready, done := h.ready, h.done
	go func() {
		defer close(done)
		lines := bufio.NewScanner(out)
		for seen := false; lines.Scan(); {
			if !seen && strings.Contains(lines.Text(), "https://") {
				seen = true
				close(ready)
			}
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}()
	return nil
}

// waitReady waits until the hub serves.
func (h *hub) waitReady(ctx context.Context) error {
	t := time.NewTimer(startPatience)
	defer t.Stop()
	select {
	case <-h.ready:
		return nil
	case <-h.done:
		return fmt.Errorf("start hub: %w (%v):\n%s", errEnded, h.cmd.ProcessState, h.tail())
	case <-t.C:
		return fmt.Errorf("start hub: not ready within %v:\n%s", startPatience, h.tail())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// kill ends the hub with SIGKILL and waits; without one it does nothing.
func (h *hub) kill() {
	if h == nil || h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Kill()
	<-h.done
	h.cmd = nil
}

func (h *hub) tail() []byte {
	b, _ := os.ReadFile(h.log)
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-8):], []byte("\n"))
}

// copyFiles copies the regular files of a data directory, the secrets among them,
// so the copy is as private.
func copyFiles(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// removeAll removes what a hub has left.
func removeAll(h *hub) error {
	return errors.Join(os.RemoveAll(h.dir), os.RemoveAll(h.log))
}
