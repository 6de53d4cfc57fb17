// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/daemon"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"bauxite": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		app := &App{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		if os.Getenv("FAKE_NODE") != "" {
			app.Deps.NewNode = func(c conduit.Config) (daemon.Node, error) { return &fakeNode{cfg: c}, nil }
		}
		os.Exit(app.Main(ctx, os.Args))
	}})
}

// fakeNode has one peer that answers and one that does not.
type fakeNode struct {
	cfg   conduit.Config
	pings [3]atomic.Int64 // by lane
}

func (n *fakeNode) Start(context.Context) error { return nil }
func (n *fakeNode) Close() error                { return n.cfg.Device.Close() }

func (n *fakeNode) Connect(_ context.Context, id identity.PeerID, progress func(string)) error {
	progress("handshake")
	if id != (identity.PeerID{0x10}) {
		return errors.New("no direct path")
	}
	progress("checking")
	return nil
}

func (n *fakeNode) Lookup(context.Context, string) (conduit.Peer, error) {
	return conduit.Peer{}, conduit.ErrUnknownPeer
}

func (n *fakeNode) SetCertificate(*identity.Certificate) error { return nil }
func (n *fakeNode) SetPSK([]byte, uint8) error                 { return nil }

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Condition: func(name string) (bool, error) {
			if name != "fips" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return fips.Build, nil
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("GODEBUG", os.Getenv("GODEBUG"))
			h := hubtest.New(t)
			other := hubtest.New(t)
			// A socket's path is limited, and the work directory is long.
			dir := t.TempDir()
			e.Values["hub"], e.Values["other"] = h, other
			e.Setenv("HUB", h.URL)
			e.Setenv("BAUXITE_HOME", filepath.Join(dir, "h"))
			e.Setenv("NO_COLOR", "")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"set": cmdSet, "stun": cmdSTUN, "code": cmdCode, "token": cmdToken, "waitfor": cmdWaitFor, "nopsk": cmdNoPSK,
			"pending": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value("hub").(*hubtest.Hub).SetPending(args[0] == "on")
			},
			"stophub": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Value("hub").(*hubtest.Hub).Stop() },
		},
	})
}

// cmdCode runs a program that must end with a code: code N program args…
func cmdCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		got = ee.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if want, _ := strconv.Atoi(args[0]); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// cmdToken sets TOKEN: token [expired|unknown|wrongpin|foreign]
func cmdToken(ts *testscript.TestScript, _ bool, args []string) {
	h, other := ts.Value("hub").(*hubtest.Hub), ts.Value("other").(*hubtest.Hub)
	tok := h.Token(1, time.Hour)
	switch strings.Join(args, " ") {
	case "expired":
		tok = h.Token(1, -time.Second)
	case "unknown":
		tok.Secret = other.Token(1, time.Hour).Secret
	case "wrongpin":
		tok.Pin = other.Pin()
	case "foreign":
		tok.MeshID, tok.Pin = "elsewhere", other.Pin()
	}
	ts.Setenv("TOKEN", tok.String())
	ts.Check(os.WriteFile(ts.MkAbs("token"), []byte(tok.String()+"\n"), 0o600))
}

func cmdNoPSK(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Value("hub").(*hubtest.Hub).Tamper(func(r *dispatchv1.ProvisionResponse) { r.Psk = nil })
}

// cmdWaitFor waits until the daemon listens.
func cmdWaitFor(ts *testscript.TestScript, _ bool, args []string) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if c, err := net.Dial("unix", args[0]); err == nil {
			_ = c.Close()
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	ts.Fatalf("nobody listens on %s", args[0])
}
