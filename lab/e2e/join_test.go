// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
)

// files lists everything below a folder, with modes of regular files.
func files(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	found := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		found[rel] = info.Mode().Perm()
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return found
}

func TestJoinWritesIdentity(t *testing.T) {
	w := newWorld(t)
	n := fleet.NewNode(w.hub.Host, w.bin, w.lab.LogDir(), "robot")
	ctx := within(t, startTime)
	token, err := w.hub.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Flags after the arguments, as the help shows them.
	if _, err := n.Host.Run(ctx, w.bin.Bauxite, "join", token, w.hub.URL, "--home", n.Home, "--name", n.Name); err != nil {
		t.Fatal(err)
	}
	got := files(t, n.Home)
	for _, name := range []string{"certs/ca.crt", "certs/node.crt", "certs/node.key", "certs/x25519.key", "config.toml"} {
		if mode, ok := got[name]; !ok || mode != 0o600 {
			t.Errorf("%s: there %v, mode %v, want 0600", name, ok, mode)
		}
	}
	for name, mode := range got {
		if mode&0o077 != 0 {
			t.Errorf("%s has mode %v: others can read it", name, mode)
		}
	}
}

// refusal is a join that must fail.
type refusal struct {
	name  string
	token string
	url   string
	home  string // "" for a fresh one
	// keeps tells that home holds an identity already, which must stay.
	keeps bool
	code  int // what scripts are promised
}

func TestJoinRefusals(t *testing.T) {
	w := newWorld(t)
	ctx := within(t, 2*time.Minute)
	token := func(hub *fleet.Hub, flags ...string) string {
		t.Helper()
		tok, err := hub.Token(ctx, flags...)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	other, err := fleet.StartHub(ctx, w.wan.Host("hub2", netns.Link{}), w.bin, filepath.Join(w.lab.LogDir(), "hub2"))
	if err != nil {
		t.Fatal(err)
	}
	client := w.wan.Host("client", netns.Link{})
	member := fleet.NewNode(client, w.bin, w.lab.LogDir(), "member")
	used := token(w.hub)
	if _, err := member.Join(ctx, used, w.hub.URL); err != nil {
		t.Fatal(err)
	}
	before := files(t, member.Home)

	// A file where the home should be: even root cannot write there.
	blocked := filepath.Join(w.lab.LogDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expired := token(w.hub, "--ttl", "1s")
	wait(t, 1500*time.Millisecond)

	good := token(w.hub, "--uses", "50")
	theirs := token(other)
	// bxt1.ID.SECRET.PIN.MESH
	part, theirPart := strings.Split(good, "."), strings.Split(theirs, ".")
	if len(part) != 5 || len(theirPart) != 5 {
		t.Fatalf("token %q, want five parts", good)
	}
	unknown := strings.Join([]string{part[0], part[1], theirPart[2], part[3], part[4]}, ".")
	wrongPin := strings.Join([]string{part[0], part[1], part[2], theirPart[3], part[4]}, ".")

	refusals := []refusal{
		{name: "malformed token", code: 10, token: "not-a-token", url: w.hub.URL},
		{name: "expired token", code: 12, token: expired, url: w.hub.URL},
		{name: "used-up token", code: 13, token: used, url: w.hub.URL},
		{name: "wrong secret", code: 11, token: unknown, url: w.hub.URL},
		{name: "foreign token", code: 15, token: theirs, url: w.hub.URL},
		{name: "wrong pin", code: 16, token: wrongPin, url: w.hub.URL},
		{name: "unreachable hub", code: 17, token: good, url: fmt.Sprintf("https://%v:1", w.hub.Host.Addr4())},
		{name: "existing identity", code: 18, token: good, url: w.hub.URL, home: member.Home, keeps: true},
		{name: "unwritable home", code: 19, token: good, url: w.hub.URL, home: filepath.Join(blocked, "home")},
	}
	for i, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			n := fleet.NewNode(client, w.bin, w.lab.LogDir(), fmt.Sprintf("refused%d", i))
			if r.home != "" {
				n.Home = r.home
			}
			res, err := n.Join(ctx, r.token, r.url)
			if err == nil {
				t.Fatalf("join succeeded: %s", res.Stdout)
			}
			t.Logf("exit %d: %s", res.Code, strings.TrimSpace(res.Stderr))
			checkSentence(t, res)
			if res.Code != r.code {
				t.Errorf("exit code = %d, want %d", res.Code, r.code)
			}
			switch {
			case r.name == "unwritable home": // nothing can be there
			case r.keeps:
				if after := files(t, n.Home); fmt.Sprint(after) != fmt.Sprint(before) {
					t.Errorf("files were %v, now %v", before, after)
				}
			default:
				if left := files(t, n.Home); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			}
		})
	}
	t.Run("force", func(t *testing.T) {
		if _, err := member.Join(ctx, good, w.hub.URL, "--force"); err != nil {
			t.Errorf("join with --force: %v", err)
		}
	})
}

// checkSentence demands one line that says what is wrong and one that says
// what to do, without Go's insides.
func checkSentence(t *testing.T, r netns.Result) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.Stderr), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "bauxite: error: ") || !strings.HasPrefix(lines[1], "bauxite: hint: ") {
		t.Errorf("standard error is %q, want an error and a hint", r.Stderr)
	}
	for _, ugly := range []string{"goroutine ", "panic", "%!", "0xc0"} {
		if strings.Contains(r.Stderr, ugly) {
			t.Errorf("standard error shows %q", ugly)
		}
	}
}

// wait lets time pass in which nothing happens that could be awaited.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal(context.Cause(t.Context()))
	}
}

// TestParallelJoins lets 50 machines race for a token that is good for one.
func TestParallelJoins(t *testing.T) {
	const machines = 50
	w := newWorld(t)
	ctx := within(t, 2*time.Minute)
	token, err := w.hub.Token(ctx, "--uses", "1")
	if err != nil {
		t.Fatal(err)
	}
	results := make([]netns.Result, machines)
	nodes := make([]*fleet.Node, machines)
	var wg sync.WaitGroup
	for i := range machines {
		nodes[i] = fleet.NewNode(w.hub.Host, w.bin, w.lab.LogDir(), fmt.Sprintf("m%d", i))
		wg.Go(func() {
			results[i], _ = nodes[i].Join(ctx, token, w.hub.URL) // the code tells
		})
	}
	wg.Wait()
	codes := map[int]int{}
	for i, r := range results {
		codes[r.Code]++
		left := files(t, nodes[i].Home)
		if r.Code != 0 && len(left) > 0 {
			t.Errorf("machine %d was refused and left %v", i, left)
		}
	}
	if codes[0] != 1 || len(codes) != 2 {
		t.Errorf("exit codes (code: machines) = %v, want one success and the same refusal for the rest", codes)
		for _, r := range results[:3] {
			t.Logf("exit %d: %s", r.Code, strings.TrimSpace(r.Stderr))
		}
	}
}
