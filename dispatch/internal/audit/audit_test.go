// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

const goldenHash = "60b234594e7812e8f4f8ef1da37c26419ade8a21b5149c175da918562aab65de"

func chain(n int) []Entry {
	var out []Entry
	var v Verifier
	for i := range n {
		e := New(v.Seq, v.Head, time.UnixMicro(int64(i)*1_000_003), Event{
			Actor: "socket", Action: "node.revoke", Target: fmt.Sprint("node-", i), Detail: `{"reason":"lost"}`,
		})
		v.Seq, v.Head = e.Seq, e.Hash
		out = append(out, e)
	}
	return out
}

func verify(entries []Entry) error {
	var v Verifier
	for i := range entries {
		if err := v.Next(&entries[i]); err != nil {
			return err
		}
	}
	return nil
}

// TestGolden holds the encoding still: a hub must verify what an older one wrote.
func TestGolden(t *testing.T) {
	e := New(0, nil, time.UnixMicro(1), Event{Actor: "a", Action: "b", Target: "c", Detail: "d"})
	if got := hex.EncodeToString(e.Hash); got != goldenHash {
		t.Errorf("hash = %s, want %s", got, goldenHash)
	}
}

func TestChain(t *testing.T) {
	good := chain(5)
	if err := verify(good); err != nil {
		t.Fatalf("an untouched chain: %v", err)
	}
	for name, spoil := range map[string]func([]Entry) []Entry{
		"actor":      func(e []Entry) []Entry { e[2].Actor = "hub"; return e },
		"action":     func(e []Entry) []Entry { e[2].Action = "x"; return e },
		"target":     func(e []Entry) []Entry { e[2].Target = "x"; return e },
		"detail":     func(e []Entry) []Entry { e[2].Detail = ""; return e },
		"shifted":    func(e []Entry) []Entry { e[2].Actor, e[2].Action = "sock", "etnode.revoke"; return e },
		"time":       func(e []Entry) []Entry { e[2].Time = e[2].Time.Add(time.Microsecond); return e },
		"hash":       func(e []Entry) []Entry { e[4].Hash[0] ^= 1; return e },
		"deleted":    func(e []Entry) []Entry { return append(e[:2], e[3:]...) },
		"first gone": func(e []Entry) []Entry { return e[1:] },
		"swapped":    func(e []Entry) []Entry { e[1], e[2] = e[2], e[1]; return e },
		"restamped":  func(e []Entry) []Entry { e[2].Target = "x"; e[2].Hash = e[2].sum(); return e },
	} {
		if err := verify(spoil(chain(5))); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v, want ErrBroken", name, err)
		}
	}
}

func TestCuts(t *testing.T) {
	e := New(0, nil, time.Now(), Event{Detail: strings.Repeat("x", MaxDetail+1), Target: strings.Repeat("y", MaxText+1)})
	if len(e.Detail) != MaxDetail || len(e.Target) != MaxText {
		t.Errorf("detail of %d and target of %d bytes", len(e.Detail), len(e.Target))
	}
}

func TestCheckpoint(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := Checkpoint{Epoch: 7, Seq: 9, Time: time.Unix(1700000000, 0), Head: bytes.Repeat([]byte{3}, HashLen)}
	b := c.Sign(key)
	got, err := VerifyCheckpoint(b, pub)
	if err != nil || got.Epoch != 7 || got.Seq != 9 || !got.Time.Equal(c.Time) || !bytes.Equal(got.Head, c.Head) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := VerifyCheckpoint(bad, pub); err == nil {
			t.Fatalf("a checkpoint with byte %d changed is accepted", i)
		}
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add((&Checkpoint{Head: make([]byte, HashLen)}).Sign(key))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCheckpoint(b); err == nil && len(c.Head) != HashLen {
			t.Errorf("head of %d bytes", len(c.Head))
		}
	})
}

// BenchmarkVerify shows what a million entries cost.
func BenchmarkVerify(b *testing.B) {
	e := chain(1000)
	b.ReportAllocs()
	for b.Loop() {
		if err := verify(e); err != nil {
			b.Fatal(err)
		}
	}
}
