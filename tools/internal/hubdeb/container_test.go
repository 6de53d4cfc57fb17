// SPDX-License-Identifier: Apache-2.0

package hubdeb

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// nobodyID is the user of the image.
const nobodyID = 65532

// instruction is one of a container file, continuation lines joined.
type instruction struct{ name, rest string }

func containerfile(t *testing.T) (build, final []instruction) {
	t.Helper()
	text := strings.ReplaceAll(read(t, root(t), "packaging/container/Containerfile"), "\\\n", " ")
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		in := instruction{name, strings.Join(strings.Fields(rest), " ")}
		if in == (instruction{"FROM", "scratch"}) || final != nil {
			final = append(final, in)
		} else {
			build = append(build, in)
		}
	}
	return build, final
}

func TestContainerfile(t *testing.T) {
	build, final := containerfile(t)
	for _, want := range []instruction{
		{"USER", "65532:65532"},
		{"ENTRYPOINT", `["/bauxite-dispatch"]`},
		{"CMD", `["serve"]`},
		{"VOLUME", `["/var/lib/bauxite-dispatch"]`},
		{"ENV", "BAUXITE_DISPATCH_DATA=/var/lib/bauxite-dispatch"},
		{"COPY", "--from=build --chown=65532:65532 /state /var/lib/bauxite-dispatch"},
	} {
		if !slices.Contains(final, want) {
			t.Errorf("the image lacks %s %s", want.name, want.rest)
		}
	}
	health := false
	for _, in := range final {
		switch in.name {
		case "RUN":
			t.Errorf("RUN %s: the image has no shell", in.rest)
		case "HEALTHCHECK":
			health = strings.HasSuffix(in.rest, `CMD ["/bauxite-dispatch", "health"]`)
		}
	}
	if !health {
		t.Error("the image has no health check by the binary itself")
	}

	// The network serves the modules and nothing else.
	download, copied := -1, []string{}
	for i, in := range build {
		switch {
		case in.name == "ADD", strings.Contains(in.rest, "curl"), strings.Contains(in.rest, "apt-get"), strings.Contains(in.rest, "wget"):
			t.Errorf("%s %s: fetches something", in.name, in.rest)
		case in.name == "RUN" && strings.Contains(in.rest, "mod download"):
			download = i
		case in.name == "RUN" && strings.Contains(in.rest, "build") && (download < 0 || !strings.Contains(in.rest, "GOPROXY=off")):
			t.Errorf("RUN %s: may ask the network", in.rest)
		case in.name == "COPY" && download < 0:
			copied = append(copied, strings.Fields(in.rest)...)
		}
	}
	// What is copied before it must be all that the module file names.
	for _, m := range regexp.MustCompile(`=> \.\./(\S+)`).FindAllStringSubmatch(read(t, root(t), "dispatch/go.mod"), -1) {
		if !slices.Contains(copied, m[1]+"/go.*") {
			t.Errorf("the module file of %s is not copied before mod download", m[1])
		}
	}
}

// The image's tree, made without an engine: the same binary, alone in a root that
// it cannot write to, as the image's user.
func TestBinaryServesInEmptyRoot(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the image is for Linux")
	}
	if os.Geteuid() != 0 {
		lack(t, "needs root to change the root")
	}
	dir := t.TempDir()
	state := filepath.Join(dir, "var/lib/bauxite-dispatch")
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{dir: 0o755, state: 0o700} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(state, nobodyID, nobodyID); err != nil {
		t.Fatal(err)
	}
	if !step.NewRunner(t.Output()).Run(t.Context(), "build", func(ctx context.Context, log *step.Log) error {
		return Binary(ctx, log, root(t), filepath.Join(dir, "bauxite-dispatch"), "linux", runtime.GOARCH, "")
	}) {
		t.FailNow()
	}
	static(t, filepath.Join(dir, "bauxite-dispatch"))

	command := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "/bauxite-dispatch", args...)
		cmd.Path, cmd.Dir, cmd.Err = "/bauxite-dispatch", "/", nil
		cmd.Env = []string{
			"BAUXITE_DISPATCH_DATA=/var/lib/bauxite-dispatch", "BAUXITE_DISPATCH_LISTEN=127.0.0.1:0",
			"BAUXITE_DISPATCH_ADMIN_LISTEN=off", "BAUXITE_DISPATCH_STUN_LISTEN=off",
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: nobodyID, Gid: nobodyID}}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 20 * time.Second
		return cmd
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	hub := command(ctx, "serve")
	hub.Stderr = t.Output()
	stdout, err := hub.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 256)
	n, err := stdout.Read(line)
	if err != nil || !strings.HasPrefix(string(line[:n]), "bauxite-dispatch: node URL https://") {
		t.Errorf("serve printed %q, %v", line[:n], err)
	}
	// The image's health check.
	if out, err := command(ctx, "health").CombinedOutput(); err != nil {
		t.Errorf("health: %v: %s", err, out)
	}
	stop()
	_, _ = io.Copy(io.Discard, stdout)
	if err := hub.Wait(); hub.ProcessState.ExitCode() != 0 {
		t.Errorf("serve ended with %v", err)
	}
}
