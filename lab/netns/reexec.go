// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	// stageEnv tells a child how it was started: stageRoot or stageUser. A
	// debugger that wants no child sets it to "root".
	stageEnv  = "BAUXITE_LAB_STAGE"
	reasonEnv = "BAUXITE_LAB_REASON" // why there is no user namespace
	// usernsEnv=1 asks for a user namespace even as root.
	usernsEnv = "BAUXITE_LAB_USERNS"

	stageRoot = "root" // privileged already
	stageUser = "user" // in a user and mount namespace of its own
	stageNone = "none" // neither; reasonEnv says why
)

// Main is TestMain for packages that use labs: it runs the tests as Reexec
// says, closes all labs on SIGINT and SIGTERM, and checks for leaked
// goroutines at the end. It does not return.
func Main(m goleak.TestingM) {
	Reexec()
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGINT, unix.SIGTERM)
	g := &guarded{m: m}
	go func() {
		s := <-sig
		g.interrupted.Store(true)
		signal.Stop(sig) // a second one kills
		CloseAll()
		os.Exit(128 + int(s.(syscall.Signal)))
	}()
	goleak.VerifyTestMain(g, goleak.IgnoreCurrent())
}

// guarded keeps tests that happen to end during a signal's clean-up from
// reporting success.
type guarded struct {
	m           goleak.TestingM
	interrupted atomic.Bool
}

// Run implements goleak.TestingM.
func (g *guarded) Run() int {
	code := g.m.Run()
	if g.interrupted.Load() {
		select {} // the signal's goroutine exits the process
	}
	return code
}

// Reexec must be called first in a program that makes labs, on the main
// goroutine. It starts the program again as a child that may make network
// namespaces and exits with the child's status once that is over, after
// removing whatever namespaces the child left; in the child it returns at
// once. Root's child is a plain one. Anybody else's gets a user namespace,
// which Reexec says on standard error, where the kernel allows one; where it
// does not, Usable and New report why.
func Reexec() {
	stage := os.Getenv(stageEnv)
	switch stage {
	case "":
		os.Exit(supervise())
	case stageUser:
		if err := enterUserStage(); err != nil {
			_ = os.Setenv(stageEnv, stageNone)
			_ = os.Setenv(reasonEnv, err.Error())
		}
	}
	// Delay boxes and what makes traffic share this process. With no more Ps than
	// cores, a frame that is due waits for up to 10 ms while some goroutine works;
	// the kernel's scheduler does not let it.
	runtime.GOMAXPROCS(max(minProcs, runtime.GOMAXPROCS(0)))
}

// minProcs is more than what works at a time in a lab.
const minProcs = 16

// supervise runs the child and returns the status to exit with.
func supervise() int {
	// The child dies with the thread that starts it; keep that one.
	runtime.LockOSThread()
	stage, reason := stageRoot, ""
	if os.Geteuid() != 0 || os.Getenv(usernsEnv) == "1" || tryNamespace() != nil {
		stage = stageUser
	}
	cmd, err := startChild(stage, "")
	if err != nil && stage == stageUser {
		reason = fmt.Sprintf("not root, and the kernel refuses a user namespace (%v)", err)
		cmd, err = startChild(stageNone, reason)
	} else if stage == stageUser {
		fmt.Fprintln(os.Stderr, "lab: running in a user namespace")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: start again:", err)
		return 1
	}
	prefix, prefixErr := processPrefix(cmd.Process.Pid)

	sig := make(chan os.Signal, 4)
	signal.Notify(sig, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
	go func() {
		for s := range sig {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	if prefixErr == nil {
		if err := sweepPrefix(prefix); err != nil {
			fmt.Fprintln(os.Stderr, "lab: clean up:", err)
		}
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	return 0
}

func startChild(stage, reason string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"="+stage, reasonEnv+"="+reason)
	// A group of its own: a terminal's Ctrl-C reaches the child once, through
	// the supervisor, which lives on to clean up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if stage == stageUser {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return cmd, cmd.Start()
}

// enterUserStage makes a place for namespace names in the private mount
// namespace.
func enterUserStage() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	dir := nameDir
	if _, err := os.Stat(dir); err != nil {
		dir = "/run"
	}
	if err := unix.Mount("lab", dir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// Usable reports why labs cannot be made here, or nil.
var Usable = sync.OnceValue(func() error {
	if reason := os.Getenv(reasonEnv); os.Getenv(stageEnv) == stageNone {
		return errors.New(reason)
	}
	if err := tryNamespace(); err != nil {
		return fmt.Errorf("create network namespace: %w (needs root or unprivileged user namespaces)", err)
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open TUN: %w", err)
	}
	return f.Close()
})

// tryNamespace makes a network namespace and brings up its loopback, which
// some kernels allow to make but not to use.
func tryNamespace() error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return linkUp("lo")
	})
}

// InUserNamespace tells whether the lab runs without root.
func InUserNamespace() bool { return strings.EqualFold(os.Getenv(stageEnv), stageUser) }
