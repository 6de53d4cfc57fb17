// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// drainTime is how long a finished process's output may stay open, in case
// it left a child behind that holds it.
const drainTime = 2 * time.Second

// starter starts processes from one thread that lives as long as the lab. A
// child with a parent-death signal dies with the thread that started it, so
// a passing goroutine's thread will not do.
type starter struct {
	jobs chan func()
	done chan struct{}
}

func newStarter() *starter {
	s := &starter{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // never unlocked: the thread ends in some host's namespace
		for f := range s.jobs {
			f()
		}
	}()
	return s
}

func (s *starter) close() {
	close(s.jobs)
	<-s.done
}

// Proc is a process that runs in a host. Its output goes to a log file.
type Proc struct {
	Host *Host
	Args []string

	cmd  *exec.Cmd
	log  *procLog
	done chan struct{}
	err  error // set before done is closed
}

// ProcConfig is what Command may be told besides the command line.
type ProcConfig struct {
	Name string   // of the log file; "" means the program's name
	Env  []string // added to this process's environment
	Dir  string   // working directory; "" means the current one
}

// Command starts a program in the host. Standard output and error go to one
// log file each; the process gets a group of its own, is killed with it when
// ctx ends or the lab closes, and dies with this process.
func (h *Host) Command(ctx context.Context, cfg ProcConfig, bin string, args ...string) (*Proc, error) {
	if cfg.Name == "" {
		cfg.Name = filepath.Base(bin)
	}
	l := h.lab
	p := &Proc{Host: h, Args: append([]string{bin}, args...), done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, bin, args...)
	p.cmd.Env = append(os.Environ(), cfg.Env...)
	p.cmd.Dir = cfg.Dir
	p.cmd.WaitDelay = drainTime
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Cancel = func() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

	// Held until the process is listed, so that Close cannot miss it.
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("start %s in %s: lab is closed", bin, h.name)
	}
	var err error
	p.log, err = newProcLog(filepath.Join(l.logs, fmt.Sprintf("%s-%s-%d.log", h.name, cfg.Name, len(l.procs))))
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", bin, h.name, err)
	}
	p.cmd.Stdout = p.log.stream(&p.log.out)
	p.cmd.Stderr = p.log.stream(&p.log.err)
	if err := h.start(p.cmd); err != nil {
		_ = p.log.close()
		return nil, fmt.Errorf("start %s in %s: %w", bin, h.name, err)
	}
	l.procs = append(l.procs, p)
	go p.wait()
	return p, nil
}

// start starts cmd from the lab's own thread, inside the namespace.
func (h *Host) start(cmd *exec.Cmd) error {
	errc := make(chan error, 1)
	h.lab.starter.jobs <- func() {
		if err := netns.Set(h.ns); err != nil {
			errc <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		errc <- cmd.Start()
	}
	return <-errc
}

func (p *Proc) wait() {
	p.err = p.cmd.Wait()
	_ = p.log.close()
	close(p.done)
}

// Pid is the process id.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and its output is complete.
func (p *Proc) Done() <-chan struct{} { return p.done }

// rank is 1 while the process runs, 0 afterwards.
func (p *Proc) rank() int {
	select {
	case <-p.done:
		return 0
	default:
		return 1
	}
}

// succeeded tells whether the process has ended with status 0.
func (p *Proc) succeeded() bool { return p.rank() == 0 && p.err == nil }

// Wait waits for the end of the process or of ctx and returns how it ended,
// as exec.Cmd.Wait does.
func (p *Proc) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s in %s: %w", filepath.Base(p.Args[0]), p.Host.name, context.Cause(ctx))
	}
}

// Kill kills the process and its group with SIGKILL and waits for its end.
func (p *Proc) Kill() { p.end(syscall.SIGKILL, 0) }

// Stop asks the process to end with SIGTERM, waits up to the given time and
// then kills it. It reports whether the process ended by itself.
func (p *Proc) Stop(patience time.Duration) bool { return p.end(syscall.SIGTERM, patience) }

func (p *Proc) end(sig syscall.Signal, patience time.Duration) bool {
	select {
	case <-p.done: // its group id may belong to someone else by now
		return true
	default:
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, sig)
	if sig != syscall.SIGKILL {
		t := time.NewTimer(patience)
		defer t.Stop()
		select {
		case <-p.done:
			return true
		case <-t.C:
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		}
	}
	<-p.done
	return false
}

// WaitStdout waits until a line of standard output matches re and returns the
// match and its groups. It fails when ctx or the process ends first.
func (p *Proc) WaitStdout(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	return p.waitLine(ctx, &p.log.out, re)
}

// WaitOutput is WaitStdout for lines of standard output or error.
func (p *Proc) WaitOutput(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	return p.waitLine(ctx, &p.log.all, re)
}

func (p *Proc) waitLine(ctx context.Context, in *bytes.Buffer, re *regexp.Regexp) ([]string, error) {
	for {
		m, changed := p.log.find(in, re)
		if m != nil {
			return m, nil
		}
		select {
		case <-changed:
		case <-p.done:
			if m, _ := p.log.find(in, re); m != nil {
				return m, nil
			}
			return nil, fmt.Errorf("%s in %s ended (%w) before it printed %q:\n%s",
				filepath.Base(p.Args[0]), p.Host.name, errOr(p.err, "exit status 0"), re, p.Tail(15))
		case <-ctx.Done():
			return nil, fmt.Errorf("%s in %s has not printed %q (%w):\n%s",
				filepath.Base(p.Args[0]), p.Host.name, re, context.Cause(ctx), p.Tail(15))
		}
	}
}

func errOr(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

// Output is what the process has written to standard output so far.
func (p *Proc) Output() string {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	return p.log.out.String()
}

// LogPath is the file with standard output and error in order of arrival.
func (p *Proc) LogPath() string { return p.log.file.Name() }

// Tail returns the last n lines of output and error together.
func (p *Proc) Tail(n int) string {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	lines := strings.Split(strings.TrimRight(p.log.all.String(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// procLog keeps a process's output in memory and in a file.
type procLog struct {
	file *os.File

	mu            sync.Mutex
	out, err, all bytes.Buffer
	changed       chan struct{} // closed and replaced at each write
}

func newProcLog(path string) (*procLog, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	return &procLog{file: f, changed: make(chan struct{})}, nil
}

// stream returns a writer that adds to one stream and to the common log.
func (l *procLog) stream(one *bytes.Buffer) *logWriter { return &logWriter{log: l, one: one} }

type logWriter struct {
	log *procLog
	one *bytes.Buffer
}

// Write implements io.Writer.
func (w *logWriter) Write(b []byte) (int, error) {
	l := w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	w.one.Write(b)
	l.all.Write(b)
	close(l.changed)
	l.changed = make(chan struct{})
	return l.file.Write(b)
}

// find looks through the whole lines of one of the log's buffers. changed is
// closed at the next write.
func (l *procLog) find(in *bytes.Buffer, re *regexp.Regexp) (match []string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(in.Bytes()) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // still being written
		}
		if m := re.FindStringSubmatch(strings.TrimRight(string(line), "\n")); m != nil {
			return m, nil
		}
	}
	return nil, l.changed
}

func (l *procLog) close() error { return l.file.Close() }

// Result is what a short command left behind.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1 when killed by a signal
}

// Run runs a short command in the host and waits for it. A command that ran
// and failed returns an error that has its exit code and its words; Result is
// valid then too.
func (h *Host) Run(ctx context.Context, bin string, args ...string) (Result, error) {
	return h.RunWith(ctx, ProcConfig{}, bin, args...)
}

// RunWith is Run with more to say.
func (h *Host) RunWith(ctx context.Context, cfg ProcConfig, bin string, args ...string) (Result, error) {
	p, err := h.Command(ctx, cfg, bin, args...)
	if err != nil {
		return Result{Code: -1}, err
	}
	<-p.done // ctx kills it
	p.log.mu.Lock()
	r := Result{Stdout: p.log.out.String(), Stderr: p.log.err.String(), Code: p.cmd.ProcessState.ExitCode()}
	p.log.mu.Unlock()
	if p.err != nil {
		words := strings.TrimSpace(r.Stderr)
		if words == "" {
			words = strings.TrimSpace(r.Stdout)
		}
		return r, fmt.Errorf("%s in %s: %w: %s", filepath.Base(bin), h.name, p.err, words)
	}
	return r, nil
}
