// SPDX-License-Identifier: Apache-2.0

// Package step runs named steps one after another and reports each in one
// line with the time it took. A step's output is shown only when it fails;
// the result lines of `go test` are shown always, because they are what a
// reader looks for.
package step

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// heartbeat is how often a silent step says that it is still at work.
const heartbeat = 30 * time.Second

// Runner runs steps and counts their results. Its methods are not safe for
// concurrent use.
type Runner struct {
	out    io.Writer
	passed int
	failed []string
}

// NewRunner returns a Runner that reports to out.
func NewRunner(out io.Writer) *Runner { return &Runner{out: out} }

// Skip is the error of a step that cannot run here. It counts as neither
// passed nor failed.
type Skip string

// Error says why the step was skipped.
func (s Skip) Error() string { return string(s) }

// Run runs one step. It reports whether the step did not fail.
func (r *Runner) Run(ctx context.Context, name string, f func(ctx context.Context, log *Log) error) bool {
	if ctx.Err() != nil {
		return false
	}
	log := &Log{out: r.out}
	start := time.Now()
	stop := r.beat(log, name, start)
	err := f(ctx, log)
	stop()
	took := time.Since(start).Round(100 * time.Millisecond)

	if skip, ok := errors.AsType[Skip](err); ok {
		fmt.Fprintf(r.out, "skip  %-34s %8s  %s\n", name, took, skip)
		return true
	}
	if err != nil {
		r.failed = append(r.failed, name)
		fmt.Fprintf(r.out, "%s", log.buf.Bytes())
		fmt.Fprintf(r.out, "FAIL  %-34s %8s  %v\n", name, took, err)
		return false
	}
	r.passed++
	fmt.Fprintf(r.out, "ok    %-34s %8s%s\n", name, took, log.note)
	return true
}

// beat reports every heartbeat that the step is still running.
func (r *Runner) beat(log *Log, name string, start time.Time) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(heartbeat)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				log.show(fmt.Sprintf("...   %-34s %8s  still running\n", name, time.Since(start).Round(time.Second)))
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// Finish prints how many steps passed and failed, and returns an error that
// names those which failed.
func (r *Runner) Finish(ctx context.Context) error {
	fmt.Fprintf(r.out, "%d passed, %d failed\n", r.passed, len(r.failed))
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stopped before the end: %w", err)
	}
	if len(r.failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(r.failed, ", "))
	}
	return nil
}

// Log collects the output of one step.
type Log struct {
	out io.Writer

	mu   sync.Mutex // guards what follows: heartbeats come from their own goroutine
	buf  bytes.Buffer
	rest []byte // an unfinished line
	tail bool   // show result lines of go test at once
	note string
}

// Note adds words to the line that reports the step's success.
func (l *Log) Note(format string, args ...any) { l.note = "  " + fmt.Sprintf(format, args...) }

// Printf adds a line to the step's output.
func (l *Log) Printf(format string, args ...any) { fmt.Fprintf(l, format+"\n", args...) }

func (l *Log) show(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprint(l.out, line)
}

// Write stores p and shows the result lines of go test in it.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p)
	if !l.tail {
		return len(p), nil
	}
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if result(string(line)) {
			fmt.Fprintf(l.out, "      %s\n", line)
		}
		l.rest = rest
	}
}

func result(line string) bool {
	for _, p := range []string{"ok  \t", "FAIL\t", "--- FAIL", "--- SKIP", "panic: "} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}

// Cmd is one command of a step.
type Cmd struct {
	Dir   string   // where it runs
	Env   []string // added to the environment
	Tests bool     // show go test's result lines while it runs
}

// Run runs the command and stores its output in log.
func (c Cmd) Run(ctx context.Context, log *Log, name string, args ...string) error {
	log.Printf("$ %s %s", name, strings.Join(args, " "))
	cmd := c.command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	log.tail = c.Tests
	defer func() { log.tail = false }()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(name), first(args), err)
	}
	return nil
}

// Output runs the command and returns what it wrote to its standard output.
func (c Cmd) Output(ctx context.Context, log *Log, name string, args ...string) (string, error) {
	log.Printf("$ %s %s", name, strings.Join(args, " "))
	cmd := c.command(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, log
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(log, "%s", out.Bytes())
		return out.String(), fmt.Errorf("%s %s: %w", filepath.Base(name), first(args), err)
	}
	return out.String(), nil
}

func (c Cmd) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), c.Env...)
	// An interrupt lets tests take their namespaces down.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 15 * time.Second
	return cmd
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
