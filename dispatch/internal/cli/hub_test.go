// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// session is an operator at a shell.
type session struct {
	t    *testing.T
	hub  *dispatchtest.Hub
	home string
	in   string // standard input of the next command
}

func newSession(t *testing.T) *session {
	t.Helper()
	s := &session{t: t, hub: dispatchtest.Start(t), home: t.TempDir()}
	t.Setenv("XDG_CONFIG_HOME", s.home)
	return s
}

// do runs a command, wants its exit code, and returns what it wrote.
func (s *session) do(code int, args ...string) (stdout, stderr string) {
	s.t.Helper()
	var o, e bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got := runWith(ctx, append([]string{"bauxite-dispatch"}, args...), strings.NewReader(s.in), &o, &e)
	s.in = ""
	if got != code {
		s.t.Fatalf("%s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, &o, &e)
	}
	return o.String(), e.String()
}

// local is do over the hub's socket.
func (s *session) local(code int, args ...string) (stdout, stderr string) {
	s.t.Helper()
	at := slices.Index(args, "--")
	if at < 0 {
		at = len(args)
	}
	return s.do(code, slices.Insert(args, at, "--data", s.hub.Dir())...)
}

func (s *session) want(what, got string, parts ...string) {
	s.t.Helper()
	for _, p := range parts {
		if !regexp.MustCompile(p).MatchString(got) {
			s.t.Errorf("%s does not have %q:\n%s", what, p, got)
		}
	}
}

// TestOwner is the way of a first owner: the link, the key file, and everything
// over TLS from then on.
func TestOwner(t *testing.T) {
	s := newSession(t)
	link := s.hub.OwnerLink()
	s.do(2, "node", "list") // no hub is named
	s.in = link
	_, e := s.do(0, "user", "claim", "-", "--name", "alice")
	file := filepath.Join(s.home, "bauxite-dispatch", "key")
	s.want("claim", e, "owner alice", regexp.QuoteMeta(file))
	if strings.Contains(e, "bxk1") {
		t.Error("the key is printed although it is in the file")
	}
	fi, err := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", fi.Mode(), err)
	}
	// The file knows the hub and how to tell it from others.
	o, _ := s.do(0, "user", "whoami")
	s.want("whoami", o, "user:alice/", "owner", "backups:write")
	_, e = s.do(6, "user", "claim", link, "--name", "bob")
	s.want("second claim", e, "exists", "--force")
	other := filepath.Join(t.TempDir(), "k")
	_, e = s.do(4, "user", "claim", link, "--name", "bob", "--key-file", other)
	s.want("used link", e, "owner link refused", "user link")
	if _, err := os.Stat(other); err == nil {
		t.Error("a refused claim wrote a key file")
	}
	_, e = s.do(4, "user", "link") // not over the network
	s.want("link", e, "hint: this works only on the hub's machine")

	// A key of an operator, in a file of its own.
	ops := filepath.Join(t.TempDir(), "ops.key")
	s.do(0, "user", "create", "bob", "--role", "operator")
	s.do(0, "key", "create", "--user", "bob", "--ttl", "7d", "--out", ops)
	o, _ = s.do(0, "key", "list", "--user", "bob", "--json")
	var keys keyList
	if err := json.Unmarshal([]byte(o), &keys); err != nil || len(keys.Keys) != 1 || keys.Keys[0].User != "bob" {
		t.Fatalf("keys: %s, %v", o, err)
	}
	o, _ = s.do(0, "node", "list", "--key-file", ops)
	s.want("node list", o, "^NAME")
	_, e = s.do(4, "audit", "list", "--key-file", ops)
	s.want("audit list", e, "needs the permission audit:read")
	_, e = s.do(4, "user", "create", "eve", "--role", "owner", "--key-file", ops)
	s.want("escalation", e, "users:write")
	s.do(0, "user", "role", "bob", "auditor")
	s.do(0, "audit", "list", "--key-file", ops)
	s.do(0, "key", "revoke", keys.Keys[0].ID)
	_, e = s.do(4, "node", "list", "--key-file", ops)
	s.want("revoked key", e, "it is revoked", "ask for a new key")
	s.do(5, "key", "revoke", keys.Keys[0].ID)
	_, e = s.do(6, "user", "delete", "alice")
	s.want("last owner", e, "last owner")
	_, e = s.do(6, "user", "role", "bob", "viewer", "--version", "1")
	s.want("stale version", e, "version 2, not 1")
	s.do(5, "user", "role", "nobody", "viewer")
	s.do(2, "user", "role", "bob", "king")
	s.do(0, "user", "delete", "bob")

	// The trust in the server comes from the pin, the CA file or the system.
	url := s.hub.AdminURL()
	plain := filepath.Join(t.TempDir(), "plain.key")
	key, _ := s.do(0, "key", "create")
	if err := os.WriteFile(plain, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	s.do(0, "status", "--hub", url, "--key-file", plain, "--pin", pinOf(t, link))
	s.do(0, "status", "--hub", url, "--key-file", plain, "--ca", filepath.Join(s.hub.Dir(), "ca", "root.crt"))
	_, e = s.do(3, "status", "--hub", url, "--key-file", plain)
	s.want("unknown authority", e, "--pin")
	_, e = s.do(3, "status", "--hub", url, "--key-file", plain, "--pin", strings.Repeat("A", 43))
	s.want("wrong pin", e, "not the hub that the pin names")
	if err := os.Chmod(plain, 0o644); err != nil {
		t.Fatal(err)
	}
	_, e = s.do(4, "status", "--hub", url, "--key-file", plain, "--pin", pinOf(t, link))
	s.want("exposed key", e, "chmod 600")
	s.do(4, "status", "--hub", url, "--key-file", filepath.Join(t.TempDir(), "none"), "--pin", pinOf(t, link))
	_, e = s.do(3, "status", "--hub", "https://127.0.0.1:1", "--key-file", file, "--pin", pinOf(t, link))
	s.want("nobody there", e, "https://127.0.0.1:1", "refused")
	s.do(2, "status", "--hub", "http://127.0.0.1", "--key-file", file)
	s.do(0, "health", "--hub", url, "--pin", pinOf(t, link)) // needs no key
	if strings.Contains(s.hub.Logs(), strings.Split(strings.TrimSpace(key), ".")[2]) {
		t.Error("the hub's log holds a key")
	}
}

func pinOf(t *testing.T, link string) string {
	t.Helper()
	c, err := parseLink(link)
	if err != nil {
		t.Fatal(err)
	}
	return c.pin
}

// TestOperate runs the commands over the socket.
func TestOperate(t *testing.T) {
	s := newSession(t)
	o, _ := s.local(0, "status")
	s.want("status", o, `nodes +0, of which 0 online`, `epoch 1\b`, "root key on the hub +yes")
	o, _ = s.local(0, "health")
	s.want("health", o, "^ready\n$")
	o, _ = s.local(0, "health", "--json")
	s.want("health", o, `"ready": true`)

	// Tokens.
	o, _ = s.local(0, "token", "create", "--tag", "b", "--tag", "a", "--site", "berlin", "--approve", "--note", "x\x1b[31m", "--json")
	var tok tokenCreated
	if err := json.Unmarshal([]byte(o), &tok); err != nil {
		t.Fatal(err)
	}
	o, _ = s.local(0, "token", "list")
	s.want("token list", o, `^ID +USED`, tok.ID+` +0/1 .* a,b +berlin +approve +socket`)
	if strings.Contains(o, "\x1b") {
		t.Error("a note colours the terminal")
	}
	s.local(0, "token", "revoke", "--", tok.ID)
	s.local(5, "token", "revoke", "--", tok.ID)
	o, _ = s.local(0, "token", "list", "--all", "--json")
	s.want("token list", o, `"revoked": true`)
	s.local(2, "token", "create", "--ttl", "soon")

	// Nodes that are not there.
	s.local(5, "node", "show", "nobody")
	s.local(5, "node", "approve", "nobody")
	s.local(5, "node", "revoke", "nobody", "--reason", "r")
	s.local(2, "node", "revoke")
	s.local(2, "node", "revoke", "--key", "ff")
	s.local(2, "node", "set", "nobody")
	s.local(5, "node", "set", "nobody", "--tag", "")
	s.local(5, "node", "delete", "nobody")
	s.local(2, "node", "show")
	s.local(2, "node", "show", "a", "b")

	// The authority and the mesh key.
	_, e := s.local(0, "ca", "rotate")
	s.want("ca rotate", e, "new intermediate signs")
	o, _ = s.local(0, "ca", "status")
	s.want("ca status", o, "intermediate good until")
	csr, _ := s.local(0, "ca", "csr")
	s.in = csr
	root := filepath.Join(s.hub.Dir(), "ca")
	crt, _ := s.do(0, "ca", "sign", "-", "--root", filepath.Join(root, "root.crt"), "--root-key", filepath.Join(root, "root.key"))
	file := filepath.Join(t.TempDir(), "next.crt")
	if err := os.WriteFile(file, []byte(crt), 0o600); err != nil {
		t.Fatal(err)
	}
	s.local(0, "ca", "install", file)
	o, _ = s.local(0, "psk", "rotate", "--json")
	s.want("psk rotate", o, `"psk_epoch": 2`)

	// Backups appear whole or not at all.
	dir := t.TempDir()
	name := filepath.Join(dir, "b.tar")
	o, _ = s.local(0, "backup", name, "--json")
	var b backupRow
	fi, err := os.Stat(name)
	if json.Unmarshal([]byte(o), &b) != nil || err != nil || fi.Size() != b.Bytes || fi.Mode().Perm() != 0o600 {
		t.Errorf("backup: %s, %v, %v", o, fi, err)
	}
	_, e = s.local(6, "backup", name)
	s.want("backup", e, "--force")
	s.local(0, "backup", name, "--force")
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left beside the backup: %v", left)
	}

	// Completion asks the hub.
	o, _ = s.do(0, "token", "revoke", "--data", s.hub.Dir(), completionFlag)
	s.want("completion", o, `(?m)^[\w-]{16}$`)
	o, _ = s.do(0, "user", completionFlag)
	s.want("completion", o, "(?m)^claim", "(?m)^whoami")
	o, _ = s.do(0, "user", "claim", "--na", completionFlag)
	s.want("completion of a flag", o, "^--name\n$")
	o, _ = s.do(0, completionFlag)
	s.want("completion", o, "(?m)^serve$")
	for _, none := range [][]string{{"node", "show", "--data", "/nonexistent"}, {"user", "claim", "--link-file"}} {
		if o, _ := s.do(0, append(none, completionFlag)...); o != "" {
			t.Errorf("completion of %v: %s", none, o)
		}
	}

	s.hub.Stop()
	_, e = s.local(3, "health")
	s.want("health of a stopped hub", e, "no hub runs on")
	s.local(3, "audit", "tail")
}

// TestAuditVerify finds what somebody has done to the log, without a hub.
func TestAuditVerify(t *testing.T) {
	s := newSession(t)
	for range 3 {
		s.local(0, "token", "create")
	}
	dir := t.TempDir()
	log, points := filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "points.jsonl")
	o, _ := s.local(0, "audit", "list", "--action", "token.", "--limit", "2", "--json")
	var l auditList
	if err := json.Unmarshal([]byte(o), &l); err != nil || len(l.Entries) != 2 || l.Entries[0].Seq < l.Entries[1].Seq || l.Entries[0].Actor != "socket" {
		t.Errorf("audit list: %s, %v", o, err)
	}
	waitFor(t, "checkpoint", func() bool {
		s.local(0, "audit", "export", log, "--checkpoints", points, "--force")
		b, err := os.ReadFile(points)
		return err == nil && bytes.Count(b, []byte("signed")) > 0
	})
	good, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	o, _ = s.do(0, "audit", "verify", log, "--checkpoints", points, "--json")
	var r verifyResult
	if err := json.Unmarshal([]byte(o), &r); err != nil || !r.OK || r.Checkpoints == 0 || r.Entries == 0 {
		t.Errorf("verify: %s, %v", o, err)
	}
	s.local(0, "audit", "verify") // while the hub runs
	lines := bytes.SplitAfter(bytes.TrimSuffix(good, []byte("\n")), []byte("\n"))
	for what, bad := range map[string][]byte{
		"changed":   bytes.Replace(good, []byte(`"token.create"`), []byte(`"token.delete"`), 1),
		"left away": bytes.Join(append(append([][]byte{}, lines[:1]...), lines[2:]...), nil),
		"cut off":   bytes.Join(lines[:1], nil),
		"no JSON":   []byte("x\n"),
	} {
		if err := os.WriteFile(log, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, e := s.do(7, "audit", "verify", log, "--checkpoints", points); !strings.Contains(e, "verify audit log") {
			t.Errorf("%s: %s", what, e)
		}
	}
	if err := os.WriteFile(log, good, 0o600); err != nil {
		t.Fatal(err)
	}
	_, e := s.do(7, "audit", "verify", log, "--checkpoints", points, "--public-key", strings.Repeat("ab", 32))
	s.want("another key", e, "bad signature")
	_, e = s.do(0, "audit", "verify", log)
	s.want("without checkpoints", e, "warning")
	s.do(2, "audit", "verify")
	s.hub.Stop()
	s.local(0, "audit", "verify", "--checkpoints", points)
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}

// TestWatch sees a token in the tail of the log as it is made.
func TestWatch(t *testing.T) {
	s := newSession(t)
	ctx, cancel := context.WithCancel(t.Context())
	var out lockedBuffer
	done := make(chan int, 1)
	go func() {
		done <- Run(ctx, []string{"bauxite-dispatch", "audit", "tail", "--json", "--data", s.hub.Dir()}, &out, &lockedBuffer{})
	}()
	waitFor(t, "old entries", func() bool { return strings.Contains(out.String(), "owner-link.create") })
	s.local(0, "user", "create", "zoe", "--role", "viewer")
	waitFor(t, "new entry", func() bool { return strings.Contains(out.String(), `"user.create","target":"zoe"`) })
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("an interrupted tail: exit code %d", code)
	}
	ctx, cancel = context.WithCancel(t.Context())
	var nodes lockedBuffer
	go func() {
		done <- Run(ctx, []string{"bauxite-dispatch", "node", "watch", "--json", "--data", s.hub.Dir()}, &nodes, &lockedBuffer{})
	}()
	waitFor(t, "synced", func() bool { return strings.Contains(nodes.String(), `{"event":"synced"}`) })
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("an interrupted watch: exit code %d", code)
	}
}

// TestFreshHub: a new hub has no credential but the link and the token, and keeps
// neither of them.
func TestFreshHub(t *testing.T) {
	s := newSession(t)
	users, _ := s.local(0, "user", "list", "--json")
	keys, _ := s.local(0, "key", "list", "--json")
	if !strings.Contains(users, `"users": []`) || !strings.Contains(keys, `"keys": []`) {
		t.Errorf("a fresh hub has %s %s", users, keys)
	}
	link, err := parseLink(s.hub.OwnerLink())
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{link.secret, strings.Split(s.hub.FirstToken(), ".")[2]}
	s.hub.Stop()
	err = filepath.WalkDir(s.hub.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.Mode().Perm()&0o077 != 0 && !strings.HasSuffix(path, ".crt") {
			t.Errorf("%s has mode %v", path, fi.Mode())
		}
		b, err := os.ReadFile(path)
		for _, secret := range secrets {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds a secret of the first start", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range secrets {
		if strings.Contains(s.hub.Logs(), secret) {
			t.Error("the log holds a secret of the first start")
		}
	}
	s.hub.Restart()
	if s.hub.OwnerLink() != "" || s.hub.FirstToken() != "" {
		t.Error("the second start made credentials")
	}
}

// provision lets a machine join and returns the answer.
func (s *session) provision(token, name string) (*dispatchv1.ProvisionResponse, error) {
	s.t.Helper()
	keys, err := identity.GenerateKeys()
	if err != nil {
		s.t.Fatal(err)
	}
	csr, err := keys.CSR()
	if err != nil {
		s.t.Fatal(err)
	}
	tok, err := identity.ParseToken(token)
	if err != nil {
		s.t.Fatal(err)
	}
	h, err := target{url: s.hub.URL(), pin: tok.Pin}.open()
	if err != nil {
		s.t.Fatal(err)
	}
	defer h.close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return dispatchv1connect.NewProvisioningServiceClient(h.http, h.base).Provision(ctx, &dispatchv1.ProvisionRequest{
		Token: token, Csr: csr, X25519PublicKey: keys.X25519.PublicKey().Bytes(), Name: name,
		Facts: &dispatchv1.NodeFacts{Hostname: "host\x1b[2J", Os: "linux", Arch: "arm64", Version: "v1"},
	})
}

// TestNodes is a node's life as an operator sees it.
func TestNodes(t *testing.T) {
	s := newSession(t)
	token, _ := s.local(0, "token", "create", "--uses", "2", "--approve", "--tag", "arm", "--site", "berlin")
	token = strings.TrimSpace(token)
	if _, err := s.provision(token, "robot-1"); err == nil {
		t.Fatal("a node that waits for approval got a certificate")
	}
	o, _ := s.local(0, "node", "list", "--state", "pending")
	s.want("pending nodes", o, `robot-1 .* no +pending +berlin +arm `)
	if strings.Contains(o, "\x1b") {
		t.Error("a host name clears the terminal")
	}
	o, _ = s.local(0, "status")
	s.want("status", o, "1 waiting for approval")
	_, e := s.local(0, "node", "approve", "robot-1")
	s.want("approve", e, "robot-1 .* is approved")
	o, _ = s.local(0, "node", "show", "robot-1", "--json")
	var n nodeShow
	if err := json.Unmarshal([]byte(o), &n); err != nil || n.Node.State != "active" || n.Node.Site != "berlin" || n.Node.ApprovedBy != "socket" || n.Node.Facts.Arch != "arm64" {
		t.Fatalf("node show: %s, %v", o, err)
	}
	old := n.Node.Version
	s.local(0, "node", "set", n.Node.ID[:12], "--name", "arm-1", "--tag", "a", "--tag", "b", "--site", "") // by the beginning of its id
	s.local(6, "node", "set", "arm-1", "--tag", "c", "--version", number(old))
	o, _ = s.local(0, "node", "show", "arm-1")
	s.want("node show", o, `name +arm-1`, `tags +a, b`, `program +v1`, `approved by +socket`)
	o, _ = s.local(0, "node", "list", "--tag", "b", "--json")
	s.want("nodes of a tag", o, `"name": "arm-1"`)
	o, _ = s.local(0, "node", "list", "--site", "berlin", "--json")
	s.want("nodes of a site", o, `"nodes": \[\]`)
	o, _ = s.do(0, "node", "approve", "--data", s.hub.Dir(), completionFlag)
	s.want("completion", o, "^arm-1\n$")

	o, _ = s.local(0, "audit", "list", "--target", n.Node.ID, "--json")
	s.want("audit log of a node", o, `"action": "node\.approve"`, `"actor": "socket"`)
	s.local(0, "node", "revoke", "arm-1", "--reason", "stolen")
	o, _ = s.local(0, "node", "list", "--state", "all")
	s.want("revoked node", o, `arm-1 .* revoked`)
	o, _ = s.local(0, "audit", "list", "--action", "node.revoke")
	s.want("audit log", o, `socket +node\.revoke .*stolen`)
	s.local(0, "node", "delete", "arm-1")
	o, _ = s.local(0, "node", "list", "--state", "all", "--json")
	s.want("after the deletion", o, `"nodes": \[\]`)
}
