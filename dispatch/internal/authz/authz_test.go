// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// TestTable compares the table with a file, so that a change of who may do what
// shows in a review as what it is.
func TestTable(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s", "")
	for _, r := range Roles() {
		fmt.Fprintf(&b, " %-8s", r)
	}
	b.WriteByte('\n')
	for _, w := range All() {
		fmt.Fprintf(&b, "%-14s", w)
		for _, r := range Roles() {
			fmt.Fprintf(&b, " %-8s", map[bool]string{true: "yes", false: "-"}[Allowed(r, nil, w)])
		}
		b.WriteByte('\n')
	}
	const name = "testdata/roles.golden"
	if *update {
		if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("roles changed (-want +got), rewrite with -update if that is meant:\n%s", d)
	}
}

func TestAllowed(t *testing.T) {
	for _, r := range Roles() {
		if Allowed(r, nil, "nodes:destroy") || Allowed(r, nil, "") {
			t.Errorf("%s may do what is not in the table", r)
		}
		for _, w := range All() {
			if Allowed(r, []Permission{w}, w) != Allowed(r, nil, w) {
				t.Errorf("%s: the scope %s widens or narrows itself", r, w)
			}
			for _, other := range All() {
				if other != w && Allowed(r, []Permission{other}, w) {
					t.Errorf("%s: the scope %s lets %s through", r, other, w)
				}
			}
			if read, found := strings.CutSuffix(string(w), ":write"); found && w != BackupsWrite && Allowed(r, nil, w) && !Allowed(r, nil, Permission(read+":read")) {
				t.Errorf("%s may write but not read %s", r, read)
			}
		}
		if Allowed(r, []Permission{"nodes:destroy"}, NodesRead) {
			t.Errorf("%s: an unknown scope lets something through", r)
		}
	}
	for _, r := range []Role{"", "root", "Owner"} {
		for _, w := range All() {
			if Allowed(r, nil, w) {
				t.Errorf("role %q has %s", r, w)
			}
		}
	}
}

func TestExceeds(t *testing.T) {
	for _, tt := range []struct {
		role   Role
		scopes []Permission
		than   Role
		ts     []Permission
		want   bool
	}{
		{Owner, nil, Owner, nil, false},
		{Owner, nil, Admin, nil, true},
		{Admin, nil, Owner, nil, false},
		{Admin, nil, Admin, nil, false},
		{Auditor, nil, Operator, nil, true},
		{Operator, nil, Auditor, nil, true},
		{Viewer, nil, Operator, nil, false},
		{Viewer, nil, Owner, []Permission{NodesRead}, true},
		{Owner, []Permission{NodesRead}, Viewer, nil, false},
		{Owner, []Permission{AuditRead}, Viewer, nil, true},
		{Viewer, []Permission{AuditRead}, "", nil, false}, // grants nothing
		{Viewer, nil, "", nil, true},
	} {
		if got := Exceeds(tt.role, tt.scopes, tt.than, tt.ts); got != tt.want {
			t.Errorf("Exceeds(%s %v, %s %v) = %v", tt.role, tt.scopes, tt.than, tt.ts, got)
		}
	}
}

func TestParse(t *testing.T) {
	if _, err := ParseRole("superuser"); !errors.Is(err, ErrRole) {
		t.Errorf("ParseRole: %v", err)
	}
	if r, err := ParseRole("auditor"); err != nil || r != Auditor {
		t.Errorf("ParseRole = %q, %v", r, err)
	}
	got, err := ParseScopes([]string{"tokens:write", "nodes:read", "tokens:write"})
	if d := cmp.Diff([]Permission{NodesRead, TokensWrite}, got); err != nil || d != "" {
		t.Errorf("ParseScopes: %v %s", err, d)
	}
	if _, err := ParseScopes([]string{"nodes:*"}); !errors.Is(err, ErrScope) {
		t.Errorf("ParseScopes: %v", err)
	}
}

func TestKey(t *testing.T) {
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseKey(k.String())
	if err != nil || got != k {
		t.Fatalf("ParseKey(%v) = %v, %v", k, got, err)
	}
	h := k.Hash()
	if !k.Match(h[:]) || k.Match(nil) || k.Match(h[:31]) {
		t.Error("Match is wrong")
	}
	h[31] ^= 1
	if k.Match(h[:]) {
		t.Error("a wrong hash matches")
	}
	for _, bad := range []string{
		"", "bxk1", k.String() + "x", "bxk2" + k.String()[4:], strings.ToUpper(k.String()),
		strings.Replace(k.String(), ".", "-", 1), k.String()[:len(k.String())-1] + "\n", strings.Repeat(".", 1<<20),
	} {
		if _, err := ParseKey(bad); !errors.Is(err, ErrKey) {
			t.Errorf("ParseKey(%.80q): %v", bad, err)
		} else if len(bad) > 20 && strings.Contains(err.Error(), bad[10:20]) {
			t.Error("the error repeats the key")
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("bxk1.aaaaaaaaaaaaaaaa.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add("bxk1..")
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKey(s); err == nil && k.String() != s {
			t.Errorf("%q reads as %q", s, k)
		}
	})
}
