// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestMain(m *testing.M) {
	// No key of whoever runs the tests is used.
	dir, err := os.MkdirTemp("", "bxd")
	if err == nil {
		err = errors.Join(os.Setenv("XDG_CONFIG_HOME", dir), os.Setenv("HOME", dir))
	}
	if err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func run(args ...string) (code int, stdout, stderr string) {
	var o, e bytes.Buffer
	code = Run(context.Background(), append([]string{"bauxite-dispatch"}, args...), &o, &e)
	return code, o.String(), e.String()
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"help", nil, 0, "serve", ""},
		{"help_flag", []string{"serve", "--help"}, 0, "--mesh-cidr", ""},
		{"version", []string{"version"}, 0, "bauxite-dispatch ", ""},
		{"version_json", []string{"version", "--json"}, 0, `"version":`, ""},
		{"completion", []string{"completion", "bash"}, 0, "complete -o default -F", ""},
		{"completion_fish", []string{"completion", "fish"}, 0, "complete -c bauxite-dispatch", ""},
		{"completion_other", []string{"completion", "cmd"}, 2, "", "want one of"},
		{"unknown", []string{"bogus"}, 2, "", `unknown command "bogus"`},
		{"unknown_sub", []string{"token", "bogus"}, 2, "", `unknown command "bogus"`},
		{"unknown_flag", []string{"token", "create", "--bogus"}, 2, "", "-bogus"},
		{"no_data", []string{"node", "list"}, 2, "", "--data DIR is missing"},
		{"argument", []string{"node", "list", "--data", dir, "x"}, 2, "", `unexpected argument "x"`},
		{"no_hub", []string{"node", "list", "--data", dir}, 3, "", "no hub runs on " + dir},
		{"uses", []string{"token", "create", "--data", dir, "--uses", "0"}, 2, "", "--uses"},
		{"cidr", []string{"serve", "--data", dir, "--mesh-cidr", "10.66"}, 2, "", "--mesh-cidr"},
		{"cidr_host", []string{"serve", "--data", dir, "--mesh-cidr", "10.66.0.1/16"}, 2, "", "10.66.0.1/16"},
		{"psk", []string{"serve", "--data", dir, "--psk", "x"}, 2, "", "--psk"},
		{"url", []string{"serve", "--data", dir, "--public-url", "http://x"}, 2, "", "https://"},
		{"log", []string{"serve", "--data", dir, "--log-format", "x"}, 2, "", "--log-format"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := run(tt.args...)
			if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, tt.code, stdout, stderr)
			}
			if code != 0 && stdout != "" {
				t.Errorf("an error wrote to stdout: %s", stdout)
			}
		})
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("wrong usage left %v", left)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serveHub runs serve until stop, and returns its first line of output.
func serveHub(t *testing.T, dir string, extra ...string) (line string, stderr *lockedBuffer, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	stderr = &lockedBuffer{}
	code := make(chan int, 1)
	go func() {
		args := append([]string{
			"bauxite-dispatch", "serve", "--data", dir, "--listen", "127.0.0.1:0", "--admin-listen", "off",
			"--stun-listen", "off", "--log-format", "json", "--log-level", "debug",
		}, extra...)
		code <- Run(ctx, args, w, stderr)
		_ = w.Close()
	}()
	buf := make([]byte, 1024)
	n, err := r.Read(buf)
	if err != nil {
		cancel()
		t.Fatalf("serve ended: %s", stderr)
	}
	rest := make(chan []byte, 1)
	go func() { b, _ := io.ReadAll(r); rest <- b }()
	return string(buf[:n]), stderr, func() int {
		cancel()
		if b := <-rest; len(b) != 0 {
			t.Errorf("serve wrote more than one line to stdout: %s", b)
		}
		return <-code
	}
}

func TestServe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hub")
	line, stderr, stop := serveHub(t, dir)
	m := regexp.MustCompile(`^bauxite-dispatch: node URL (https://127\.0\.0\.1:\d+)\n$`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("first line = %q", line)
	}
	if code, _, e := run("serve", "--data", dir, "--listen", "127.0.0.1:0"); code != 10 || !strings.Contains(e, "another hub uses") {
		t.Errorf("second hub: exit code %d, %s", code, e)
	}
	code, out, e := run("token", "create", "--data", dir, "--uses", "3", "--ttl", "2h", "--tag", "b", "--tag", "a", "--json")
	var tok struct {
		Token   string    `json:"token"`
		ID      string    `json:"id"`
		Expires time.Time `json:"expires"`
		Uses    int       `json:"uses"`
		Tags    []string  `json:"tags"`
		JoinURL string    `json:"join_url"`
	}
	if err := json.Unmarshal([]byte(out), &tok); code != 0 || err != nil {
		t.Fatalf("token create: exit code %d, %v: %s%s", code, err, out, e)
	}
	parsed, err := identity.ParseToken(tok.Token)
	if err != nil || parsed.ID != tok.ID || tok.Uses != 3 || strings.Join(tok.Tags, ",") != "a,b" || tok.JoinURL != m[1] {
		t.Errorf("token = %+v, %v", tok, err)
	}
	if d := time.Until(tok.Expires); d < time.Hour || d > 2*time.Hour {
		t.Errorf("token expires in %v, want 2 h", d)
	}
	if code, out, _ := run("token", "create", "--data", dir); code != 0 || strings.Count(out, "\n") != 1 {
		t.Errorf("token create: exit code %d, stdout %q; want the token alone", code, out)
	}
	for _, bad := range [][]string{{"--ttl", "0s"}, {"--tag", "No Label"}} {
		if code, _, _ := run(append([]string{"token", "create", "--data", dir}, bad...)...); code != 2 {
			t.Errorf("token create %v: exit code %d, want 2", bad, code)
		}
	}
	if code, out, _ := run("node", "list", "--data", dir, "--json"); code != 0 || !strings.Contains(out, `"nodes": []`) {
		t.Errorf("node list --json: exit code %d, %s", code, out)
	}
	if code, out, _ := run("node", "list", "--data", dir); code != 0 || !strings.HasPrefix(out, "NAME") {
		t.Errorf("node list: exit code %d, %s", code, out)
	}
	if code := stop(); code != 0 {
		t.Errorf("serve: exit code %d", code)
	}
	log := stderr.String()
	first := regexp.MustCompile(`bauxite join (bxt1\S+) ` + regexp.QuoteMeta(m[1])).FindStringSubmatch(log)
	if first == nil || strings.Count(log, first[1]) != 1 {
		t.Errorf("the first token is not printed once: %s", log)
	}
	if strings.Contains(log, parsed.Secret) {
		t.Error("the log holds a token's secret")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.sock")); left != nil {
		t.Errorf("left behind: %v", left)
	}

	// The prefix stays what it was.
	if code, _, e := run("serve", "--data", dir, "--listen", "127.0.0.1:0", "--mesh-cidr", "10.77.0.0/16"); code != 16 || !strings.Contains(e, "it is 10.66.0.0/16, not 10.77.0.0/16") {
		t.Errorf("other prefix: exit code %d, %s", code, e)
	}
	_, stderr, stop = serveHub(t, dir, "--mesh-cidr", "10.66.0.0/16")
	if stop(); strings.Contains(stderr.String(), "bxt1") {
		t.Error("the second start printed a token")
	}
}
