// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// enrol makes a node of the given name and tags.
func enrol(t *testing.T, h *dispatchtest.Hub, name string, tags ...string) {
	t.Helper()
	k, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := k.CSR()
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true} // a test on loopback
	defer tr.CloseIdleConnections()
	_, err = dispatchv1connect.NewProvisioningServiceClient(&http.Client{Transport: tr}, h.URL()).Provision(context.Background(), &dispatchv1.ProvisionRequest{
		Token: h.Token(1, tags...), Csr: csr, X25519PublicKey: k.X25519.PublicKey().Bytes(), Name: name,
		Facts: &dispatchv1.NodeFacts{Os: "linux", Arch: "arm64"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

const goodPolicy = `// Cameras stream, operators do all.
{
	"version": 1,
	"allow": [
		{"id": "ops", "src": ["role:ops"], "dst": ["*"]},
		{"id": "video", "src": ["tag:cam"], "dst": ["role:ops"], "proto": "udp", "ports": ["5000-5010"], "lanes": ["bulk"]},
	],
	"roles": [
		{"name": "ops", "members": ["tag:ops"]},
		{"name": "cam", "members": ["tag:cam"], "publish": ["bulk"], "budgets": {"bulk": {"bits_per_second": 8000000}}},
	],
	"tests": [
		{"src": "tag:cam", "dst": "tag:ops", "proto": "udp", "port": 5004, "lane": "bulk", "want": "allow"},
		{"src": "tag:cam", "dst": "tag:ops", "lane": "critical", "want": "deny"},
	],
}
`

// expect runs a command and checks its end and what it says.
func expect(t *testing.T, code int, stdout, stderr string, args ...string) string {
	t.Helper()
	got, o, e := run(args...)
	if got != code || !strings.Contains(o, stdout) || !strings.Contains(e, stderr) {
		t.Errorf("%q: exit code %d, want %d\nstdout: %s\nwant %q\nstderr: %s\nwant %q", args, got, code, o, stdout, e, stderr)
	}
	return o
}

func TestPolicyOffline(t *testing.T) {
	good := writeFile(t, "good.hujson", goodPolicy)
	bad := writeFile(t, "bad.hujson", strings.Replace(goodPolicy, "role:ops\"], \"dst", "role:nobody\"], \"dst", 1))
	failing := writeFile(t, "failing.hujson", strings.Replace(goodPolicy, `"critical", "want": "deny"`, `"critical", "want": "allow"`, 1))
	node := func(name, tag string, n byte) string {
		return `{"id": "` + identity.PeerID{n}.String() + `", "name": "` + name + `", "state": "active", "key_origin": "node", "tags": ["` + tag + `"]}`
	}
	nodes := writeFile(t, "nodes.json", `{"nodes": [`+node("cam1", "cam", 1)+`,`+node("op1", "ops", 2)+`,`+node("cam2", "cam", 3)+`]}`)

	expect(t, 0, "good: 2 allow rules, 0 guards, 2 roles, 2 tests", "", "policy", "validate", good)
	expect(t, 0, `"ok": true`, "", "policy", "validate", good, "--json")
	expect(t, 1, "", bad+`:5:25: allow rule "ops": selector "role:nobody": no such role`, "policy", "validate", bad)
	expect(t, 1, `"line": 5`, "no such role", "policy", "validate", bad, "--json")
	expect(t, 2, "", "no such file", "policy", "validate", good+"x")
	expect(t, 2, "", "FILE is missing", "policy", "validate")

	expect(t, 0, "good: 2 tests hold", "", "policy", "test", good, "--nodes", nodes)
	expect(t, 8, "", failing+":14:3: test 2: cam1 to op1: want allow, denied, since its role cam may not publish on lane critical: cam1 to op1, lane critical (and 1 pairs like it)", "policy", "test", failing, "--nodes", nodes)
	expect(t, 8, `"failed": 1`, "1 of 2 tests do not hold", "policy", "test", failing, "--nodes", nodes, "--json")
	expect(t, 1, "", "no such role", "policy", "test", bad, "--nodes", nodes)
	expect(t, 2, "", "not the output of node list --json", "policy", "test", good, "--nodes", good)

	out := expect(t, 0, "cam1, cam2", "", "policy", "reach", good, "--nodes", nodes)
	if want := `FROM        TO          PROTO  PORTS      LANES
cam1, cam2  op1         udp    5000-5010  bulk
op1         cam1, cam2  any    -          critical,telemetry,bulk
`; out != want {
		t.Errorf("reach:\n%s\nwant\n%s", out, want)
	}
	expect(t, 0, `"dst_nodes": 2`, "", "policy", "reach", good, "--nodes", nodes, "--json")
	expect(t, 0, "// Cameras stream", "", "policy", "format", good)
	expect(t, 1, "", ":1:1: ", "policy", "format", writeFile(t, "x", "x"))
	dir := t.TempDir()
	expect(t, 3, "", "no hub runs on "+dir, "policy", "test", good, "--data", dir)
}

func TestPolicyCommands(t *testing.T) {
	h := dispatchtest.Start(t)
	enrol(t, h, "cam1", "cam")
	enrol(t, h, "op1", "ops")
	good := writeFile(t, "good.hujson", goodPolicy)
	failing := writeFile(t, "failing.hujson", strings.Replace(goodPolicy, `"critical", "want": "deny"`, `"critical", "want": "allow"`, 1))
	data := func(args ...string) []string {
		return append([]string{"policy", args[0], "--data", h.Dir()}, args[1:]...)
	}

	expect(t, 0, `"enrolled"`, "", data("show")...)
	expect(t, 0, "good: 2 tests hold", "", data("test", good)...)
	expect(t, 8, "", failing+":14:3: test 2: ", data("test", failing)...)
	expect(t, 8, "", "1 of 2 tests do not hold", data("propose", failing)...)
	expect(t, 0, "version 2", "policy activate 2", data("propose", good, "--note", "first\x1b[31m")...)
	expect(t, 6, "", "version 2 is the newest, not 1", data("propose", good, "--base", "1")...)
	if out := expect(t, 0, "", "", data("show", "2")...); out != goodPolicy {
		t.Errorf("show: %s", out)
	}
	expect(t, 0, `"source": "// Cameras`, "", data("show", "2", "--json")...)
	expect(t, 5, "", "policy version 9", data("show", "9")...)
	expect(t, 2, "", "no version number", data("show", "x")...)
	if out := expect(t, 0, "VERSION", "", data("list")...); strings.Contains(out, "\x1b") || len(strings.Split(out, "\n")) != 4 {
		t.Errorf("list: %s", out)
	}
	out := expect(t, 0, "", "", data("diff", "2")...)
	if want := `rules:
  - allow enrolled: * to *
  + allow ops: role:ops to *
  + allow video: tag:cam to role:ops udp 5000-5010 on bulk
  + role ops: tag:ops
  + role cam: tag:cam publish bulk budgets {"bulk":{"bits_per_second":8000000}}
  + test: tag:cam to tag:ops udp 5004 on bulk: allow
  + test: tag:cam to tag:ops on critical: deny
who can reach what:
  - cam1 to op1: icmp, every lane
  - cam1 to op1: tcp, every lane
  - cam1 to op1: udp 0-4999,5011-65535, every lane
  - cam1 to op1: udp 5000-5010, critical and telemetry
  - cam1 to op1: other, every lane
`; out != want {
		t.Errorf("diff:\n%s\nwant\n%s", out, want)
	}
	expect(t, 0, "the same", "", data("diff", "2", good)...)
	expect(t, 0, "allowed by rule enrolled: cam1 to op1, lane critical (version 1)", "", data("why", "cam1", "op1")...)
	expect(t, 0, "denied, since its role cam may not publish on lane critical: cam1 to op1, lane critical (version 2)", "", data("why", "cam1", "op1", "--version", "2")...)
	expect(t, 0, "within 8000000 bit/s (role cam)", "", data("why", "cam1", "op1", "--version", "2", "--proto", "udp", "--port", "5000", "--lane", "bulk")...)
	expect(t, 5, "", "not found", data("why", "cam1", "nobody")...)
	expect(t, 0, "cam1, op1  cam1, op1  any", "", data("reach")...)
	expect(t, 0, "5000-5010", "", data("reach", "2")...)

	expect(t, 2, "", "--hold needs --canary", data("activate", "2", "--hold", "1m")...)
	expect(t, 2, "", "match no node", data("activate", "2", "--canary", "tag:nobody")...)
	expect(t, 6, "", "version 1 is active, not 7", data("activate", "2", "--if-active", "7")...)
	expect(t, 0, "version 2: 0 of 1 canary nodes have applied it", "", data("activate", "2", "--canary", "role:cam", "--hold", "1m")...)
	expect(t, 6, "", "a staged activation is under way", data("activate", "2")...)
	expect(t, 0, "canary", "", data("status")...)
	expect(t, 0, "version 2: dark", "", data("rollback", "--reason", "dark")...)
	var a struct {
		State      string
		Base       uint64
		Generation uint64
	}
	if err := json.Unmarshal([]byte(expect(t, 0, "", "", data("activate", "2", "--json")...)), &a); err != nil || a.State != "active" || a.Base != 2 || a.Generation < 4 {
		t.Errorf("activate: %+v, %v", a, err)
	}
	expect(t, 0, "version in force  1", "", data("rollback")...)
	expect(t, 6, "", "no earlier version", data("rollback")...)
}

func TestPolicyEdit(t *testing.T) {
	h := dispatchtest.Start(t)
	enrol(t, h, "cam1", "cam")
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("VISUAL", "")
	data := []string{"policy", "edit", "--data", h.Dir()}
	t.Setenv("EDITOR", "true")
	expect(t, 0, "", "nothing changed", data...)
	t.Setenv("EDITOR", "false")
	expect(t, 1, "", "run editor false", data...)
	t.Setenv("EDITOR", "sed -i s/enrolled/all/")
	expect(t, 0, "version 2", "", data...)
	expect(t, 0, `"all"`, "", "policy", "show", "--data", h.Dir(), "2")
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	t.Setenv("EDITOR", "sed -i s/allow/alow/")
	_, _, e := run(data...)
	_, file, _ := strings.Cut(e, "your text is kept in ")
	file, _, _ = strings.Cut(file, "\n")
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "alow") || !strings.Contains(e, `unknown key "alow"`) {
		t.Errorf("the text is lost: %v\n%s", err, e)
	}
}
