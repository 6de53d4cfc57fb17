// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// deathEnv makes TestHelperDeath, in a process of its own, end in some way.
const deathEnv = "BAUXITE_LAB_TEST_DEATH"

func TestHelperDeath(t *testing.T) {
	way := os.Getenv(deathEnv)
	if way == "" {
		t.Skip("helper of TestNothingIsLeft")
	}
	lab := New(t)
	h := lab.WAN("wan").Host("host", Link{})
	p, err := h.Command(t.Context(), ProcConfig{}, "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\nhelper: %s %d\n", h.Namespace(), p.Pid())
	switch way {
	case "fatal":
		t.Fatal("on purpose")
	case "panic":
		panic("on purpose")
	case "goroutine panic":
		go panic("on purpose")
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	<-p.Done() // the parent sends a signal
}

// again runs this test binary as a program of its own.
func again(t *testing.T, run string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+run+"$", "-test.v", "-test.timeout=30s")
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, stageEnv+"=") && !strings.HasPrefix(e, reasonEnv+"=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

func TestNothingIsLeft(t *testing.T) {
	New(t) // skips or fails where there are no namespaces
	if InUserNamespace() {
		t.Skip("another user namespace has names of its own")
	}
	for _, way := range []string{"fatal", "panic", "goroutine panic", "kill", "interrupt", "terminate"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			cmd := again(t, "TestHelperDeath", deathEnv+"="+way)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var ns string
			var pid int
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				if _, err := fmt.Sscanf(lines.Text(), "helper: %s %d", &ns, &pid); err != nil {
					continue
				}
				switch way {
				case "interrupt":
					_ = cmd.Process.Signal(syscall.SIGINT)
				case "terminate":
					_ = cmd.Process.Signal(syscall.SIGTERM)
				}
			}
			if err := cmd.Wait(); err == nil {
				t.Error("helper ended well")
			}
			if ns == "" {
				t.Fatal("helper never came to its lab")
			}
			if _, err := os.Stat(filepath.Join(nameDir, ns)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("namespace %s is still there: %v", ns, err)
			}
			awaitGone(t, pid)
		})
	}
}

func TestUserNamespace(t *testing.T) {
	New(t)
	if InUserNamespace() {
		t.Skip("already in one")
	}
	out, err := again(t, "TestNATKinds|TestCapture|TestDelay", usernsEnv+"=1", "CI=").CombinedOutput()
	if !strings.Contains(string(out), "running in a user namespace") || strings.Contains(string(out), "no network namespaces:") {
		t.Skipf("this kernel gives none:\n%s", out)
	}
	if err != nil {
		t.Errorf("tests in a user namespace: %v\n%s", err, out)
	}
}
