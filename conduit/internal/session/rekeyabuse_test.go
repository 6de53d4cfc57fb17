// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// What is no message of this rekey is dropped.
func TestRekeyRefused(t *testing.T) {
	r := newRekeyPair(t, nil)
	other := newRekeyPair(t, nil)
	r.now = r.now.Add(time.Minute)
	est := r.a.keys[r.a.send]
	double := newRefRekey(t, est, 'a')
	r1 := bytes.Clone(double.first(5))
	liar := func(change func(*refRekey)) []byte {
		d := newRefRekey(t, est, 'a')
		change(d)
		return d.first(5)
	}
	stranger := newRefRekey(t, other.a.keys[other.a.send], 'a')
	low := func(at, n int) []byte { // of R1, with a right MAC
		b := bytes.Clone(r1[:1238])
		copy(b[at:], bytes.Repeat([]byte{0xff}, n))
		if n == 32 {
			clear(b[at : at+n])
		}
		d := newRefRekey(t, est, 'a')
		d.seed(b)
		return append(b, refHMAC(refX(d.rekey, "rekey r1", nil, 32), d.tr1)...)
	}
	for name, c := range map[string]struct {
		msg  []byte
		want string
	}{
		"short":                {r1[:17], "header"},
		"a type of signalling": {append([]byte{1, 1}, r1[2:]...), "type 1"},
		"other session":        {stranger.first(5), "another session"},
		"other side":           {liar(func(d *refRekey) { d.side = 'b' }), "MAC"},
		"other index of A":     {liar(func(d *refRekey) { d.indexA++ }), "MAC"},
		"other index of B":     {liar(func(d *refRekey) { d.indexB++ }), "MAC"},
		"other suite":          {liar(func(d *refRekey) { d.suite = 2 }), "MAC"},
		"other chain":          {liar(func(d *refRekey) { d.rekey = make([]byte, 32) }), "MAC"},
		"degenerate point":     {low(22, 32), "degenerate"},
		"ML-KEM key":           {low(54, 1184), "ML-KEM"},
		"R1 too long":          {append(bytes.Clone(r1), 0), "rekey 1"},
		"R2 of nothing":        {append([]byte{9}, r1[1:1174]...), "no rekey of ours"},
		"R3 of nothing":        {append([]byte{10}, r1[1:50]...), "no rekey"},
	} {
		if err := r.b.stepMsg(t, c.msg, r.now); !refusedFor(err, c.want) || len(r.b.keys) != 1 || len(r.b.idx.live) != 1 || len(r.b.out) != 0 {
			t.Errorf("%s: %v, want one about %q", name, err, c.want)
		}
	}
	// Fragments are checked too, and those of keys that are not there are nothing.
	if err := r.b.r.Step(r.b.send, []byte{1}, r.now); err == nil {
		t.Error("a piece of one byte: accepted")
	}
	if err := r.b.r.Step(12345, wire.Split(1, r1)[0], r.now); err != nil || len(r.b.r.Ready()) != 0 {
		t.Errorf("a piece under unknown keys: %v", err)
	}
	if err := r.b.stepMsg(t, r1, r.now); err != nil {
		t.Fatal(err)
	}
	r2 := whole(t, r.b.out[0])
	// Another R1 for the same keys changes nothing: the first is the one.
	if err := r.b.stepMsg(t, newRefRekey(t, est, 'a').first(6), r.now); !refusedFor(err, "same keys") || len(r.b.keys) != 2 {
		t.Errorf("another R1: %v", err)
	}
	r3 := double.third(r2)
	bad := bytes.Clone(r3)
	bad[49] ^= 1
	if err := r.b.stepMsg(t, bad, r.now); !refusedFor(err, "MAC in rekey 3") {
		t.Errorf("forged R3: %v", err)
	}
	if err := r.b.stepMsg(t, append(bytes.Clone(r3), 0), r.now); !refusedFor(err, "rekey 3") {
		t.Errorf("long R3: %v", err)
	}
	if r.b.send != est.RemoteIndex {
		t.Error("B switched")
	}
	if err := r.b.stepMsg(t, r3, r.now); err != nil || r.b.send == est.RemoteIndex {
		t.Errorf("R3: %v", err)
	}

	// A on R2 of a liar.
	r = newRekeyPair(t, nil)
	r.advance(session.RekeyAfter)
	r1 = whole(t, r.a.out[0])
	d := newRefRekey(t, r.b.keys[r.b.send], 'a')
	r2 = d.second(r1, 9)
	for name, c := range map[string]struct {
		change func(b []byte)
		want   string
	}{
		"MAC":            {func(b []byte) { b[1173] ^= 1 }, "MAC in rekey 2"},
		"ciphertext":     {func(b []byte) { b[60] ^= 1 }, "MAC in rekey 2"},
		"index":          {func(b []byte) { b[21] ^= 1 }, "MAC in rekey 2"},
		"degenerate":     {func(b []byte) { clear(b[22:54]) }, "degenerate"},
		"index 0":        {func(b []byte) { clear(b[18:22]) }, "rekey 2"},
		"of another sid": {func(b []byte) { b[2] ^= 1 }, "another session"},
	} {
		bad := bytes.Clone(r2)
		c.change(bad)
		if err := r.a.stepMsg(t, bad, r.now); !refusedFor(err, c.want) || len(r.a.keys) != 1 {
			t.Errorf("R2, %s: %v", name, err)
		}
	}
	if err := r.a.stepMsg(t, r2, r.now); err != nil || len(r.a.keys) != 2 {
		t.Errorf("R2: %v", err)
	}
	if err := r.a.stepMsg(t, r2, r.now); err == nil || !strings.Contains(err.Error(), "no rekey of ours") {
		t.Errorf("R2 twice, under the new keys: %v", err)
	}
}

// FuzzRekey gives bytes to an end that has answered, and to one that waits.
func FuzzRekey(f *testing.F) {
	r := newRekeyPair(f, nil)
	r.advance(session.RekeyAfter)
	r1 := r.a.out[0]
	_ = r.deliver(r.a)
	for _, o := range []session.RekeyOutput{r1, r.b.out[0]} {
		for _, b := range o.Send {
			f.Add(b, true)
			f.Add(b, false)
		}
	}
	genuine := append(append([][]byte{}, r1.Send...), r.b.out[0].Send...)
	f.Fuzz(func(t *testing.T, b []byte, a bool) {
		for _, g := range genuine {
			if bytes.Equal(g, b) {
				return
			}
		}
		e := r.b
		if a {
			e = r.a
		}
		send, n := e.send, len(e.keys)
		_ = e.r.Step(e.send, b, r.now)
		e.collect(t)
		if e.send != send || len(e.keys) != n {
			t.Errorf("moved by %x", b)
		}
	})
}
