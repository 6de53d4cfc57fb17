// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestCommand(t *testing.T) {
	lab := New(t)
	h := lab.WAN("wan").Host("host", Link{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	p, err := h.Command(ctx, ProcConfig{Env: []string{"WORD=ready"}}, "sh", "-c", `
		trap 'echo bye; exit 3' TERM
		echo "$WORD on $(cat /sys/class/net/*/address 2>/dev/null | wc -l)"
		echo oops >&2
		while :; do sleep 0.05; done`)
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.WaitOutput(ctx, regexp.MustCompile(`^(\w+) on`))
	if err != nil || m[1] != "ready" {
		t.Fatalf("WaitOutput = %q, %v, want ready", m, err)
	}
	if _, err := p.WaitOutput(ctx, regexp.MustCompile(`oops`)); err != nil {
		t.Fatal(err)
	}
	if !p.Stop(5 * time.Second) {
		t.Error("Stop had to kill the process")
	}
	if err := p.Wait(ctx); err == nil || err.Error() != "exit status 3" {
		t.Errorf("Wait = %v, want exit status 3", err)
	}
	if got := p.Output(); !strings.Contains(got, "bye\n") || strings.Contains(got, "oops") {
		t.Errorf("Output = %q, want standard output only", got)
	}
	log, err := os.ReadFile(p.LogPath())
	if err != nil || !strings.Contains(string(log), "oops") || !strings.Contains(p.Tail(2), "bye") {
		t.Errorf("log = %q, tail %q, %v", log, p.Tail(2), err)
	}
	if _, err := p.WaitOutput(ctx, regexp.MustCompile("never")); err == nil {
		t.Error("WaitOutput found what was never printed")
	}
}

func TestRun(t *testing.T) {
	lab := New(t)
	h := lab.WAN("wan").Host("host", Link{})
	r, err := h.Run(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 4")
	if err == nil || !strings.Contains(err.Error(), "err") {
		t.Errorf("error = %v, want its words", err)
	}
	if r.Code != 4 || r.Stdout != "out\n" || r.Stderr != "err\n" {
		t.Errorf("result = %+v", r)
	}
	if _, err := h.Run(t.Context(), "/no/such/program"); err == nil {
		t.Error("Run started a program that is not there")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r, err := h.Run(ctx, "sleep", "60"); err == nil || r.Code != -1 {
		t.Errorf("Run past its context = %+v, %v, want a killed process", r, err)
	}
}

func TestCloseKillsAndRemoves(t *testing.T) {
	var pids []int
	var names []string
	t.Run("lab", func(t *testing.T) {
		lab := New(t)
		h := lab.WAN("wan").Host("host", Link{})
		names = []string{h.Namespace()}
		if _, err := os.Stat(filepath.Join(nameDir, names[0])); err != nil {
			t.Errorf("namespace has no name for iproute2: %v", err)
		}
		p, err := h.Command(t.Context(), ProcConfig{}, "sh", "-c", "trap '' TERM; sleep 60 & echo $!; wait")
		if err != nil {
			t.Fatal(err)
		}
		m, err := p.WaitOutput(t.Context(), regexp.MustCompile(`^\d+$`))
		if err != nil {
			t.Fatal(err)
		}
		var child int
		_, _ = fmt.Sscan(m[0], &child)
		pids = []int{p.Pid(), child}
	})
	for _, pid := range pids {
		awaitGone(t, pid)
	}
	for _, n := range names {
		if _, err := os.Stat(filepath.Join(nameDir, n)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("namespace %s is still there: %v", n, err)
		}
	}
}

// awaitGone waits until a process has ended; an orphan is reaped elsewhere.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			return
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d still runs", pid)
		}
	}
}

func TestSweepRemovesStaleOnly(t *testing.T) {
	lab := New(t)
	h := lab.WAN("wan").Host("host", Link{})
	// A name of this process id with another start time: a process long gone.
	stale := fmt.Sprintf("%s%d-0-1-x", namePrefix, os.Getpid())
	ns, err := createNamed(stale)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	if err := sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(nameDir, stale)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stale namespace survived: %v", err)
	}
	if _, err := os.Stat(filepath.Join(nameDir, h.Namespace())); err != nil {
		t.Errorf("sweep took a living lab's namespace: %v", err)
	}
}

func TestRunProgram(t *testing.T) {
	if err := Usable(); err != nil {
		New(t) // skips or fails
	}
	ran := false
	var wan *WAN
	err := Run(t.Context(), "program", func(l *Lab) error {
		wan = l.WAN("wan")
		defer func() { ran = true }()
		l.WAN("wan") // ends the function
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "two hosts named wan") || !ran {
		t.Errorf("Run = %v, deferred call ran: %v", err, ran)
	}
	if err := wan.host.Do(func() error { return nil }); err == nil {
		t.Error("the namespace outlived Run")
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = Run(ctx, "program", func(l *Lab) error {
		h := l.WAN("wan").Host("host", Link{})
		time.AfterFunc(50*time.Millisecond, cancel)
		_, err := h.Run(context.Background(), "sleep", "60")
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Run past its context = %v, want canceled", err)
	}
}
