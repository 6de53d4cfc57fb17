// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
)

const (
	stopPatience = 10 * time.Second
	startTimeout = 60 * time.Second
	// clockTick is the kernel's unit of CPU time in /proc, USER_HZ.
	clockTick = 10 * time.Millisecond
)

// Hub is a hub in a process of its own, on loopback.
type Hub struct {
	bin, dir      string
	env           []string
	addr, metrics string

	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when the process has ended
	http *http.Client
}

// newHub chooses the ports. Nothing runs yet.
func newHub(ctx context.Context, bin, dir string, env []string) (*Hub, error) {
	h := &Hub{bin: bin, dir: dir, env: env}
	for _, a := range []*string{&h.addr, &h.metrics} {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("choose port: %w", err)
		}
		defer ln.Close()
		*a = ln.Addr().String()
	}
	sock := filepath.Join(dir, "dispatch.sock")
	h.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", sock)
		},
		DisableCompression: true, DisableKeepAlives: true,
	}}
	return h, nil
}

// Start starts the hub and returns once it serves.
func (h *Hub) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(h.dir, "hub.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start hub: %w", err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), h.bin, "serve", "--data", h.dir, "--listen", h.addr,
		"--admin-listen", "off", "--metrics-listen", h.metrics, "--stun-listen", "off", "--public-url", "https://"+h.addr, "--log-format", "json")
	cmd.Env = append(os.Environ(), h.env...)
	cmd.Stderr = log
	// The hub must not outlive a generator that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		_ = log.Close()
		return fmt.Errorf("start hub: %w", err)
	}
	h.cmd, h.log, h.done = cmd, log, make(chan struct{})
	ready := make(chan bool, 1)
	go func() {
		defer close(h.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "https://") {
				select {
				case ready <- true:
				default:
				}
			}
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}()
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case <-ready:
		return nil
	case <-h.done:
		err = fmt.Errorf("start hub: it ended (%v); see %s:\n%s", cmd.ProcessState, log.Name(), tail(log.Name()))
	case <-timeout.C:
		err = fmt.Errorf("start hub: not ready within %v; see %s", startTimeout, log.Name())
	case <-ctx.Done():
		err = ctx.Err()
	}
	h.Kill()
	return err
}

// tail returns the last lines of a log.
func tail(name string) string {
	b, _ := os.ReadFile(name)
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-5):], []byte("\n")))
}

// Stop ends the hub with SIGTERM and waits; without a running hub it does
// nothing.
func (h *Hub) Stop() { h.end(syscall.SIGTERM) }

// Kill ends the hub with SIGKILL and waits.
func (h *Hub) Kill() { h.end(syscall.SIGKILL) }

func (h *Hub) end(sig syscall.Signal) {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Signal(sig)
	t := time.AfterFunc(stopPatience, func() { _ = h.cmd.Process.Kill() })
	<-h.done
	t.Stop()
	_ = h.log.Close()
	h.cmd = nil
	h.http.CloseIdleConnections()
}

// Alive tells whether the process runs.
func (h *Hub) Alive() bool {
	if h.cmd == nil {
		return false
	}
	select {
	case <-h.done:
		return false
	default:
		return true
	}
}

// Addr is the address of the node port.
func (h *Hub) Addr() string { return h.addr }

// Call makes a unary call over the hub's unix socket, as an administrator does.
func (h *Hub) Call(ctx context.Context, procedure string, req, res proto.Message) error {
	fail := func(err error) error { return fmt.Errorf("call %s: %w", procedure, err) }
	b, err := proto.Marshal(req)
	if err != nil {
		return fail(err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://hub"+procedure, bytes.NewReader(b))
	if err != nil {
		return fail(err)
	}
	r.Header.Set("Content-Type", "application/proto")
	r.Header.Set("Connect-Protocol-Version", "1")
	resp, err := h.http.Do(r)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(io.LimitReader(resp.Body, 64<<20)); err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusOK {
		e := wireError{Code: resp.Status}
		_ = json.Unmarshal(b, &e)
		return fail(&RPCError{e.Code, e.Message})
	}
	if err := proto.Unmarshal(b, res); err != nil {
		return fail(err)
	}
	return nil
}

// Usage is what the hub's process has used.
type Usage struct {
	// RSS and Peak are resident bytes, now and at most.
	RSS, Peak int64
	// CPU is user and system time together.
	CPU time.Duration
	// Threads of the operating system.
	Threads int
	// Goroutines, Heap and Stack (bytes in use) are 0 where the hub has no debug
	// endpoint.
	Goroutines  int
	Heap, Stack int64
}

// Usage reads /proc, and the debug endpoint where there is one.
func (h *Hub) Usage(ctx context.Context) (Usage, error) {
	if h.cmd == nil {
		return Usage{}, errors.New("read usage: hub is not running")
	}
	var u Usage
	pid := strconv.Itoa(h.cmd.Process.Pid)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return u, fmt.Errorf("read usage: %w", err)
	}
	v := parseStatus(status)
	u.RSS, u.Peak, u.Threads = v["VmRSS"]<<10, v["VmHWM"]<<10, int(v["Threads"])
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return u, fmt.Errorf("read usage: %w", err)
	}
	if u.CPU, err = parseStat(string(stat)); err != nil {
		return u, err
	}
	h.debug(ctx, &u)
	return u, nil
}

// parseStatus reads the numbers of /proc/PID/status.
func parseStatus(b []byte) map[string]int64 {
	v := make(map[string]int64)
	for line := range strings.Lines(string(b)) {
		key, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || len(f) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
			v[key] = n
		}
	}
	return v
}

// parseStat reads the CPU time of /proc/PID/stat: the fields 14 and 15, counted
// from before the name, which may hold spaces.
func parseStat(s string) (time.Duration, error) {
	i := strings.LastIndexByte(s, ')')
	f := strings.Fields(s[i+1:])
	if i < 0 || len(f) < 13 {
		return 0, errors.New("read usage: malformed stat")
	}
	user, err := strconv.ParseInt(f[11], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read usage: %w", err)
	}
	system, err := strconv.ParseInt(f[12], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read usage: %w", err)
	}
	return time.Duration(user+system) * clockTick, nil
}

// debug asks the metrics port for what the hub's runtime tells of itself.
func (h *Hub) debug(ctx context.Context, u *Usage) {
	get := func(path string) string {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.metrics+path, nil)
		if err != nil {
			return ""
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return ""
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
		if err != nil || resp.StatusCode != http.StatusOK {
			return ""
		}
		return string(b)
	}
	for line := range strings.Lines(get("/metrics")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch name {
		case "go_goroutines":
			u.Goroutines = int(v)
		case "go_memstats_heap_alloc_bytes":
			u.Heap = int64(v)
		case "go_memstats_stack_inuse_bytes":
			u.Stack = int64(v)
		}
	}
}
