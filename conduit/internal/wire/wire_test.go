// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

var update = flag.Bool("update", false, "write the golden files; they are the wire format, so a change breaks deployed nodes")

// pattern fills b with bytes that show misplaced fields.
func pattern(b []byte, start byte) {
	for i := range b {
		b[i] = start + byte(i)
	}
}

type message interface{ Append([]byte) []byte }

type parser interface {
	message
	Parse([]byte) error
}

// examples is one of everything on the wire, with a fresh value to parse into.
func examples() map[string][2]parser {
	var sid SID
	pattern(sid[:], 0x10)
	lock := Lock{Seq: 0x0102030405060708}
	pattern(lock.Head[:], 0x40)
	chain := [][]byte{bytes.Repeat([]byte{0xc1}, 5), bytes.Repeat([]byte{0xc2}, 3)}
	ice := ICE{Ufrag: "ufrag+16/chars+x", Pwd: "a-password-of-32-characters-here"}

	inv := &Invite{SID: sid, Index: 0xdeadbeef, Suites: []Suite{SuiteChaCha, SuiteAES}, Caps: 7, PSKEpoch: 1, Lock: lock, Statement: []byte{}, Chain: chain}
	pattern(inv.From[:], 0xa0)
	pattern(inv.To[:], 0xb0)
	pattern(inv.X25519[:], 0x01)
	pattern(inv.EncapKey[:], 0x02)
	pattern(inv.Sig[:], 0x03)
	off := &Offer{SID: sid, Index: 0x01020304, Suite: SuiteAES, Sealed: bytes.Repeat([]byte{0x5e}, 40)}
	pattern(off.X25519[:], 0x04)
	pattern(off.Ciphertext[:], 0x05)
	ob := &OfferBody{Caps: 3, Lock: lock, ICE: ice, Statement: []byte{9}, Chain: chain}
	pattern(ob.Sig[:], 0x06)
	pattern(ob.MAC[:], 0x07)
	cb := &ConfirmBody{Lock: lock, ICE: ice, Statement: []byte{}}
	pattern(cb.Sig[:], 0x08)
	pattern(cb.MAC[:], 0x09)
	kn := &Knock{SID: sid}
	pattern(kn.From[:], 0x0a)
	pattern(kn.To[:], 0x0b)
	pattern(kn.Sig[:], 0x0c)
	rj := &Reject{SID: sid, Reason: RejectPSKEpoch}
	pattern(rj.Sig[:], 0x0d)
	r1 := &Rekey1{SID: sid, Index: 7}
	pattern(r1.X25519[:], 0x0e)
	pattern(r1.EncapKey[:], 0x0f)
	pattern(r1.MAC[:], 0x13)
	r2 := &Rekey2{SID: sid, Index: 8}
	pattern(r2.X25519[:], 0x10)
	pattern(r2.Ciphertext[:], 0x11)
	pattern(r2.MAC[:], 0x14)
	r3 := &Rekey3{SID: sid}
	pattern(r3.MAC[:], 0x12)
	rl := &Relay{Packet: make([]byte, HeaderLen+TagLen)}
	pattern(rl.Peer[:], 0x15)
	(&Header{Type: TypeData, Lane: packet.Telemetry, Index: 5, Counter: 6}).Put(rl.Packet)

	return map[string][2]parser{
		"invite":          {inv, &Invite{}},
		"offer":           {off, &Offer{}},
		"offer_body":      {ob, &OfferBody{}},
		"confirm":         {&Confirm{SID: sid, Sealed: bytes.Repeat([]byte{0x5f}, 33)}, &Confirm{}},
		"confirm_body":    {cb, &ConfirmBody{}},
		"knock":           {kn, &Knock{}},
		"reject":          {rj, &Reject{}},
		"candidates":      {&Candidates{SID: sid, Seq: 3, Sealed: bytes.Repeat([]byte{0x60}, 20)}, &Candidates{}},
		"candidates_body": {&CandidatesBody{Lines: []string{"1 1 udp 2130706431 192.0.2.7 40000 typ host"}, Flags: CandidatesDone | CandidatesFresh}, &CandidatesBody{}},
		"rekey1":          {r1, &Rekey1{}},
		"rekey2":          {r2, &Rekey2{}},
		"rekey3":          {r3, &Rekey3{}},
		"relay":           {rl, &Relay{}},
		"fragment":        {&Fragment{ID: 0x01020304, Index: 1, Count: 3, Data: []byte("piece")}, &Fragment{}},
		"probe":           {&Probe{Flags: ProbeMoved, Uplink: 0x7f, Path: 0x0203, Seq: 0x04050607, Sent: 0x08090a0b0c0d0e0f}, &Probe{}},
		"probe_ack":       {&ProbeAck{Probe: Probe{Flags: 1, Uplink: 4, Path: 2, Seq: 3, Sent: 4}, Hold: 5, Size: 1400}, &ProbeAck{}},
		"report": {&Report{
			Path: 1, Packets: 2, Bytes: 3, Lane: packet.Bulk, Counter: 4, Received: 5, Hold: 6, Samples: 7,
			DelayMin: -8, DelayP50: 9, DelayMax: 10, Last: -11, CE: 12, TrainFirst: 13, TrainBytes: 14, TrainDispersion: 15, Session: 16, Copies: 17, TrainPackets: 18,
		}, &Report{}},
		"close": {&Close{Reason: CloseRevoked}, &Close{}},
	}
}

func TestGolden(t *testing.T) {
	for name, ex := range examples() {
		t.Run(name, func(t *testing.T) {
			got := ex[0].Append(nil)
			file := filepath.Join("testdata", name+".hex")
			if *update {
				if err := os.WriteFile(file, []byte(wrap(hex.EncodeToString(got))), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("encoding differs from %s:\n got %x\nwant %x", file, got, want)
			}
			if err := ex[1].Parse(want); err != nil {
				t.Fatalf("parse golden: %v", err)
			}
			if d := cmp.Diff(ex[0], ex[1]); d != "" {
				t.Errorf("parsed golden differs (-want +got):\n%s", d)
			}
			for i := range want {
				if err := ex[1].Parse(want[:i]); err == nil && name != "offer" && name != "confirm" && name != "candidates" && name != "fragment" {
					t.Errorf("parse of the first %d of %d bytes succeeded", i, len(want))
				}
			}
			if err := ex[1].Parse(append(bytes.Clone(want), 0)); err == nil {
				switch name {
				case "offer", "confirm", "candidates", "fragment", "probe", "relay": // end in a field without length, or in padding
				default:
					t.Error("a trailing byte was accepted")
				}
			}
		})
	}
}

func wrap(s string) string {
	var b strings.Builder
	for len(s) > 64 {
		b.WriteString(s[:64] + "\n")
		s = s[64:]
	}
	b.WriteString(s + "\n")
	return b.String()
}

func TestHeader(t *testing.T) {
	h := Header{Type: TypeProbe, Lane: packet.Bulk, Time: 0x1234, Index: 0x89abcdef, Counter: 0x0102030405060708}
	b := make([]byte, HeaderLen+TagLen)
	h.Put(b)
	const want = "804e123489abcdef0102030405060708"
	if got := hex.EncodeToString(b[:HeaderLen]); got != want {
		t.Errorf("header = %s, want %s", got, want)
	}
	var p Header
	if !p.Parse(b) || p != h {
		t.Errorf("parsed %+v, want %+v", p, h)
	}
	for name, mutate := range map[string]func([]byte) []byte{
		"short":          func(b []byte) []byte { return b[:HeaderLen+TagLen-1] },
		"first byte":     func(b []byte) []byte { b[0] = 0x81; return b },
		"version":        func(b []byte) []byte { b[1] ^= 0xc0; return b },
		"lane 3":         func(b []byte) []byte { b[1] |= 3; return b },
		"type 0":         func(b []byte) []byte { b[1] &= 0xc3; return b },
		"reserved index": func(b []byte) []byte { copy(b[4:], "\x21\x12\xa4\x42"); return b },
	} {
		if p.Parse(mutate(bytes.Clone(b))) {
			t.Errorf("%s: accepted", name)
		}
	}
	if n := testing.AllocsPerRun(100, func() { h.Put(b); p.Parse(b) }); n != 0 {
		t.Errorf("header allocates %v times, want 0", n)
	}
}

func FuzzHeader(f *testing.F) {
	b := make([]byte, HeaderLen+TagLen)
	(&Header{Type: TypeData, Index: 1}).Put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Header
		if !h.Parse(b) {
			return
		}
		out := make([]byte, HeaderLen)
		h.Put(out)
		if !bytes.Equal(out, b[:HeaderLen]) {
			t.Errorf("%x parsed and encoded gives %x", b[:HeaderLen], out)
		}
	})
}

// FuzzMessage feeds every decoder; what decodes must encode to the same bytes,
// but for reserved fields and padding.
func FuzzMessage(f *testing.F) {
	for name, ex := range examples() {
		f.Add(name, ex[0].Append(nil))
	}
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		ex, ok := examples()[name]
		if !ok {
			return
		}
		m := ex[1]
		if m.Parse(b) != nil {
			return
		}
		once := m.Append(nil)
		if err := m.Parse(once); err != nil {
			t.Fatalf("%s: re-parse: %v", name, err)
		}
		if twice := m.Append(nil); !bytes.Equal(once, twice) {
			t.Errorf("%s: encoding is not stable", name)
		}
		_, _, _ = ParseMsgHeader(b)
	})
}
