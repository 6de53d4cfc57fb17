// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"flag"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// leaves calls f for each command that does something.
func leaves(cmds []*cli.Command, path string, f func(path string, c *cli.Command)) {
	for _, c := range cmds {
		if len(c.Subcommands) > 0 {
			leaves(c.Subcommands, path+c.Name+" ", f)
		} else if !c.Hidden {
			f(path+c.Name, c)
		}
	}
}

// TestContract holds still what scripts rely on: commands, flags, the shape of
// JSON and the exit codes. Additions are fine, changes and removals are not.
func TestContract(t *testing.T) {
	var b strings.Builder
	leaves(newApp(io.Discard, io.Discard).Commands, "", func(path string, c *cli.Command) {
		b.WriteString(path)
		if c.ArgsUsage != "" {
			b.WriteString(" " + c.ArgsUsage)
		}
		b.WriteByte('\n')
		var flags []string
		for _, f := range c.Flags {
			flags = append(flags, "--"+f.Names()[0])
		}
		slices.Sort(flags)
		b.WriteString("  " + strings.Join(flags, " ") + "\n")
		for line := range strings.Lines(c.Description) {
			if strings.HasPrefix(line, "JSON") {
				b.WriteString("  " + strings.TrimSpace(line) + "\n")
			}
		}
		if !strings.Contains(c.Description, "Example") && !slices.Contains([]string{"version", "exit-codes", "completion"}, path) {
			t.Errorf("%s has no example", path)
		}
	})
	b.WriteString("\n" + exitTable())
	const name = "testdata/contract.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("what scripts rely on has changed (-want +got), rewrite with -update if nothing breaks:\n%s", d)
	}
	codes := make(map[int]string)
	for _, e := range exits {
		if e.mean == "" {
			continue
		}
		if other, ok := codes[e.code]; ok && e.code > 2 {
			t.Errorf("exit code %d means %q and %q", e.code, other, e.mean)
		}
		codes[e.code] = e.mean
	}
}

// TestFlagsFirst: flags may stand after arguments, which the parser alone does not
// understand.
func TestFlagsFirst(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	for in, want := range map[string]string{
		"x":                                    "x",
		"x node show r --json":                 "x node show --json r",
		"x node show r --data d --json":        "x node show --data d --json r",
		"x node show --data=d r":               "x node show --data=d r",
		"x node set r --tag a --tag b":         "x node set --tag a --tag b r",
		"x user claim - --name n":              "x user claim --name n -",
		"x token revoke --data d -- -id":       "x token revoke --data d -- -id",
		"x token revoke id -- --data":          "x token revoke -- id --data",
		"x nonsense --flag y":                  "x nonsense --flag y",
		"x node show r " + completionFlag:      "x node show r " + completionFlag,
		"x node show --data " + completionFlag: "x node show --data " + completionFlag,
	} {
		if got := strings.Join(flagsFirst(app, strings.Fields(in)), " "); got != want {
			t.Errorf("flagsFirst(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "12h": 12 * time.Hour, "1h30m": 90 * time.Minute} {
		if d, err := parseDuration("ttl", in); err != nil || d != want {
			t.Errorf("parseDuration(%s) = %v, %v", in, d, err)
		}
	}
	for _, bad := range []string{"", "0s", "-1h", "d", "-3d", "1w", "99999999d"} {
		if _, err := parseDuration("ttl", bad); err == nil {
			t.Errorf("parseDuration(%s): accepted", bad)
		}
	}
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{"2026-04-30T00:00:00Z": time.Date(2026, 4, 30, 0, 0, 0, 0, time.UTC), "7d": now.Add(-7 * 24 * time.Hour)} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("parseSince(%s) = %v, %v", in, got, err)
		}
	}
	if _, err := parseSince("yesterday", now); err == nil {
		t.Error("parseSince(yesterday): accepted")
	}
	if got := oneLine("a\x1b[31m\tb\u202ec\u009bd\ne"); strings.ContainsAny(got, "\x1b\t\n\u202e\u009b") {
		t.Errorf("oneLine = %q", got)
	}
	for what, bad := range map[string]string{
		"plain": "http://h/#claim=" + strings.Repeat("A", 43), "no secret": "https://h/#claim=", "cut off": "https://h/#claim=abc", "no link": "x",
	} {
		if _, err := parseLink(bad); err == nil || len(bad) > 5 && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("parseLink of %s: %v", what, err)
		}
	}
}

func FuzzParseKeyFile(f *testing.F) {
	f.Add([]byte("bxk1.aaaaaaaaaaaaaaaa.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"))
	f.Add([]byte("# c\nkey bxk1.aaaaaaaaaaaaaaaa.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nhub https://h\npin p\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseKeyFile(b)
		if err != nil {
			return
		}
		if _, err := authz.ParseKey(k.key); err != nil {
			t.Errorf("a file with the key %q is accepted", k.key)
		}
		if again, err := parseKeyFile(k.marshal()); err != nil || again != k {
			t.Errorf("%+v reads as %+v, %v", k, again, err)
		}
	})
}

func FuzzParseAuditLine(f *testing.F) {
	f.Add([]byte(`{"seq":1,"time_us":2,"actor":"a","action":"b","target":"c","detail":"","prev":"00","hash":"ff"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseAuditLine(b)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := printLine(&out, auditLine{
			e.Seq, e.Time.UnixMicro(), e.Actor, e.Action, e.Target, e.Detail, hex.EncodeToString(e.Prev), hex.EncodeToString(e.Hash),
		}); err != nil {
			t.Fatal(err)
		}
		// What is not UTF-8 was replaced by the decoder, so that its hash is wrong.
		again, err := parseAuditLine(out.Bytes())
		if d := cmp.Diff(e, again); err != nil || d != "" {
			t.Errorf("%s reads as something else: %v %s", b, err, d)
		}
	})
}

func FuzzParseCheckpoints(f *testing.F) {
	f.Add([]byte(`{"public_key":"` + strings.Repeat("ab", 32) + "\"}\n{\"seq\":1,\"signed\":\"" + base64.StdEncoding.EncodeToString([]byte("x")) + "\"}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, _, err := parseCheckpoints(b); err == nil && key != nil && len(key) != 32 {
			t.Errorf("key of %d bytes", len(key))
		}
	})
}

func FuzzParseLink(f *testing.F) {
	f.Add("https://hub.example.org:8441/#claim=" + strings.Repeat("A", 43) + ".pin")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := parseLink(s); err == nil && (!authz.ValidSecret(c.secret) || !strings.HasPrefix(c.hub, "https://")) {
			t.Errorf("%q reads as %+v", s, c)
		}
	})
}
