// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// goldenPeerID was computed by hand, with another implementation of SHA-256 and
// base32.
const goldenPeerID = "k73pgn3vcvvwyss4aj7srsajhdax4qqcwssk7qt6ytdswktzznka"

func TestNewPeerIDIsStable(t *testing.T) {
	ed, x := make([]byte, 32), make([]byte, 32)
	for i := range ed {
		ed[i], x[i] = byte(i), byte(64+i)
	}
	id := NewPeerID(ed, x)
	// sha256("bx-id-v1" + ed + x): a change would rename every enrolled node.
	if got, want := id.String(), goldenPeerID; got != want {
		t.Errorf("NewPeerID = %s, want %s", got, want)
	}
	if NewPeerID(x, ed) == id {
		t.Error("exchanging the keys did not change the id")
	}
	if id.Short() != goldenPeerID[:8] {
		t.Errorf("Short = %s, want %s", id.Short(), goldenPeerID[:8])
	}
	if id.IsZero() || !(PeerID{}).IsZero() {
		t.Error("IsZero is wrong")
	}
	if id.Compare(id) != 0 || (PeerID{}).Compare(PeerID{31: 1}) >= 0 || (PeerID{1}).Compare(PeerID{31: 1}) <= 0 {
		t.Error("Compare does not order by bytes")
	}
}

func TestParsePeerID(t *testing.T) {
	for name, tc := range map[string]struct {
		in string
		ok bool
	}{
		"lower":          {goldenPeerID, true},
		"upper":          {strings.ToUpper(goldenPeerID), true},
		"zero":           {strings.Repeat("a", PeerIDLen), true},
		"empty":          {"", false},
		"short":          {goldenPeerID[:51], false},
		"long":           {goldenPeerID + "a", false},
		"stray bits":     {strings.Repeat("a", 51) + "b", false},
		"not base32":     {"1" + goldenPeerID[1:], false},
		"line end":       {goldenPeerID[:51] + "\n", false},
		"line ends":      {"\r\n" + goldenPeerID[:48] + "\r\n", false},
		"padding":        {goldenPeerID[:48] + "====", false},
		"kelvin sign":    {"\u212a" + goldenPeerID[:49], false}, // lower case is a plain k
		"two in a row":   {goldenPeerID + goldenPeerID, false},
		"leading space":  {" " + goldenPeerID[:51], false},
		"trailing space": {goldenPeerID[:51] + " ", false},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := ParsePeerID(tc.in)
			if (err == nil) != tc.ok {
				t.Fatalf("ParsePeerID(%q) = %v", tc.in, err)
			}
			switch {
			case tc.ok && id.String() != strings.ToLower(tc.in):
				t.Errorf("reads as %s", id)
			case !tc.ok && (!errors.Is(err, ErrPeerID) || !id.IsZero()):
				t.Errorf("ParsePeerID(%q) = %s, %v, want zero and ErrPeerID", tc.in, id, err)
			}
		})
	}
}

func TestPeerIDText(t *testing.T) {
	id := PeerID{1, 2, 3}
	b, err := json.Marshal(map[PeerID]PeerID{id: id})
	if err != nil {
		t.Fatal(err)
	}
	var back map[PeerID]PeerID
	if err := json.Unmarshal(b, &back); err != nil || back[id] != id {
		t.Errorf("%s reads as %v, %v", b, back, err)
	}
	kept := id
	if err := kept.UnmarshalText([]byte("nobody")); !errors.Is(err, ErrPeerID) || kept != id {
		t.Errorf("UnmarshalText = %s, %v, want the old value and ErrPeerID", kept, err)
	}
}

func FuzzParsePeerID(f *testing.F) {
	f.Add(goldenPeerID)
	f.Add(strings.ToUpper(goldenPeerID))
	f.Add(strings.Repeat("7", PeerIDLen))
	f.Add("\r\n" + goldenPeerID[:50])
	f.Add("\u212a" + goldenPeerID[:49])
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParsePeerID(s)
		if err != nil {
			if !errors.Is(err, ErrPeerID) || !id.IsZero() {
				t.Fatalf("%q: %s, %v", s, id, err)
			}
			return
		}
		if !strings.EqualFold(id.String(), s) || len(s) != PeerIDLen {
			t.Fatalf("%q reads as %s", s, id)
		}
	})
}
