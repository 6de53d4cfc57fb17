// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
)

var (
	testID  = strings.Repeat("i", tokenIDLen)
	testSec = strings.Repeat("s", tokenSecLen-1) + "A"
	testPin = strings.Repeat("p", tokenPinLen-1) + "A"
)

func testToken(parts ...string) string { return strings.Join(parts, ".") }

func TestNewToken(t *testing.T) {
	for _, mesh := range []string{"", "farm", strings.Repeat("m", maxMeshIDLen)} {
		a, err := NewToken(testPin, mesh)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := NewToken(testPin, mesh)
		if a.ID == b.ID || a.Secret == b.Secret {
			t.Error("two tokens share an id or a secret")
		}
		got, err := ParseToken(a.String())
		if err != nil || got != a {
			t.Errorf("mesh %q: reads back as %+v, %v", mesh, got, err)
		}
		if len(a.String()) > maxTokenBytes {
			t.Errorf("a token has %d bytes, more than the limit", len(a.String()))
		}
		if a.SecretHash() != sha256.Sum256([]byte(a.Secret)) {
			t.Error("SecretHash is not that of the secret")
		}
	}
}

func TestParseToken(t *testing.T) {
	for name, tc := range map[string]struct {
		in string
		ok bool
	}{
		"plain":            {testToken("bxt1", testID, testSec, testPin), true},
		"with mesh":        {testToken("bxt1", testID, testSec, testPin, "farm"), true},
		"longest mesh":     {testToken("bxt1", testID, testSec, testPin, strings.Repeat("m", 63)), true},
		"empty":            {"", false},
		"too few parts":    {testToken("bxt1", testID, testSec), false},
		"too many parts":   {testToken("bxt1", testID, testSec, testPin, "farm", "x"), false},
		"other version":    {testToken("bxt2", testID, testSec, testPin), false},
		"short id":         {testToken("bxt1", testID[1:], testSec, testPin), false},
		"long secret":      {testToken("bxt1", testID, testSec+"A", testPin), false},
		"no pin":           {testToken("bxt1", testID, testSec, ""), false},
		"empty mesh":       {testToken("bxt1", testID, testSec, testPin, ""), false},
		"mesh too long":    {testToken("bxt1", testID, testSec, testPin, strings.Repeat("m", 64)), false},
		"mesh upper case":  {testToken("bxt1", testID, testSec, testPin, "Farm"), false},
		"huge":             {strings.Repeat(".", 1<<20), false},
		"standard base64":  {testToken("bxt1", "+"+testID[1:], testSec, testPin), false},
		"padding":          {testToken("bxt1", testID[:14]+"==", testSec, testPin), false},
		"stray bits":       {testToken("bxt1", testID, testSec[:42]+"B", testPin), false},
		"line end":         {testToken("bxt1", testID, testSec, testPin) + "\n", false},
		"line end in id":   {testToken("bxt1", testID[:14]+"\r\n", testSec, testPin), false},
		"line ends in sec": {testToken("bxt1", testID, "\n"+testSec[:41]+"A", testPin), false},
		"line end in pin":  {testToken("bxt1", testID, testSec, "\n"+testPin[:41]+"A"), false},
	} {
		t.Run(name, func(t *testing.T) {
			tok, err := ParseToken(tc.in)
			if (err == nil) != tc.ok {
				t.Fatalf("ParseToken = %v", err)
			}
			if tc.ok {
				if tok.String() != tc.in {
					t.Errorf("reads as %s", tok)
				}
				return
			}
			if !errors.Is(err, ErrToken) || tok != (Token{}) {
				t.Errorf("ParseToken = %+v, %v, want zero and ErrToken", tok, err)
			}
			for _, part := range []string{testID[:8], testSec[:8], testPin[:8]} {
				if strings.Contains(err.Error(), part) {
					t.Errorf("the error repeats the token: %v", err)
				}
			}
		})
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(testToken("bxt1", testID, testSec, testPin))
	f.Add(testToken("bxt1", testID, testSec, testPin, "farm"))
	f.Add(testToken("bxt1", testID[:14]+"\r\n", testSec, testPin))
	f.Add("bxt1....")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrToken) || tok != (Token{}) {
				t.Fatalf("%q: %+v, %v", s, tok, err)
			}
			return
		}
		if tok.String() != s {
			t.Fatalf("%q reads as %q", s, tok)
		}
		if strings.ContainsAny(s, "\r\n\t \x00") {
			t.Fatalf("%q was accepted", s)
		}
	})
}
