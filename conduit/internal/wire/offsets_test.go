// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// TestOffsets compares the tables of docs/wire.md with what is written. A
// negative offset counts from the end. Offsets that depend on earlier lengths are
// those of the examples: two suites, 16 and 32 bytes of ICE credentials.
func TestOffsets(t *testing.T) {
	ex := examples()
	run := func(start byte, n int) string {
		b := make([]byte, n)
		pattern(b, start)
		return hex.EncodeToString(b)
	}
	sid, lock := run(0x10, 16), "0102030405060708"+run(0x40, 32)
	const n, u, p = 2, 16, 32
	for name, fields := range map[string]map[int]string{
		"invite": {
			0: "01", 1: "01", 2: sid, 18: "deadbeef", 22: "02", 23: "0102", 23 + n: "00000007", 27 + n: "01", 28 + n: lock,
			68 + n: run(0xa0, 32), 100 + n: run(0xb0, 32), 132 + n: run(1, 32), 164 + n: run(2, 1184), 1348 + n: "0000",
			1350 + n: "02" + "0005c1c1c1c1c1" + "0003c2c2c2", -64: run(3, 64),
		},
		"offer": {0: "02", 1: "01", 2: sid, 18: "01020304", 22: "02", 23: run(4, 32), 55: run(5, 1088), 1143: "5e5e"},
		"offer_body": {
			0: "00000003", 4: lock, 44: "10", 45: hex.EncodeToString([]byte("ufrag+16/chars+x")), 45 + u: "20",
			46 + u + p: "000109", 48 + u + p + 1: "02" + "0005c1", -96: run(6, 64), -32: run(7, 32),
		},
		"confirm":         {0: "03", 1: "01", 2: sid, 18: "5f5f"},
		"confirm_body":    {0: lock, 40: "10", 41 + u: "20", 42 + u + p: "0000", -96: run(8, 64), -32: run(9, 32)},
		"knock":           {0: "04", 1: "01", 2: sid, 18: run(0x0a, 32), 50: run(0x0b, 32), 82: run(0x0c, 64), -64: run(0x0c, 64)},
		"candidates":      {0: "05", 1: "01", 2: sid, 18: "0000000000000003", 26: "6060"},
		"candidates_body": {0: "03", 1: "01", 2: "002b", 4: "3120"},
		"reject":          {0: "06", 1: "01", 2: sid, 18: "02", 19: run(0x0d, 64), -64: run(0x0d, 64)},
		"rekey1":          {0: "08", 18: "00000007", 22: run(0x0e, 32), 54: run(0x0f, 1184), 1238: run(0x13, 32), -32: run(0x13, 32)},
		"rekey2":          {0: "09", 18: "00000008", 22: run(0x10, 32), 54: run(0x11, 1088), 1142: run(0x14, 32), -32: run(0x14, 32)},
		"relay":           {0: run(0x15, 32), 32: "8045", 36: "00000005"},
		"rekey3":          {0: "0a", 18: run(0x12, 32), -32: run(0x12, 32)},
		"fragment":        {0: "01020304", 4: "01", 5: "03", 6: "0000", 8: "7069"},
		"probe":           {0: "01", 1: "7f", 2: "0203", 4: "04050607", 8: "08090a0b0c0d0e0f"},
		"probe_ack":       {0: "01", 1: "04", 2: "0002", 4: "00000003", 8: "0000000000000004", 16: "00000005", 20: "0578", 22: "0000", -2: "0000"},
		"report": {
			0: "0001", 2: "02", 3: "00", 4: "0007", 6: "0012", 8: "0000000000000002", 16: "0000000000000003", 24: "0000000000000004",
			32: "0000000000000005", 40: "00000006", 44: "0000000c", 48: "fffffff8", 52: "00000009", 56: "0000000a", 60: "fffffff5",
			64: "000000000000000d", 72: "0000000e", 76: "0000000f", 80: "00000010", 84: "00000011", -4: "00000011",
		},
		"close": {0: "02", 1: "000000", -3: "000000"},
	} {
		m, ok := ex[name]
		if !ok {
			t.Fatalf("no example of %s", name)
		}
		b := m[0].Append(nil)
		for at, want := range fields {
			if at < 0 {
				at += len(b)
			}
			w, err := hex.DecodeString(want)
			if err != nil {
				t.Fatal(err)
			}
			if at+len(w) > len(b) || !bytes.Equal(b[at:at+len(w)], w) {
				t.Errorf("%s at %d is not %.32s", name, at, want)
			}
		}
		delete(ex, name)
	}
	for name := range ex {
		t.Errorf("docs/wire.md has no offsets of %s, or this test has not", name)
	}
	b := make([]byte, HeaderLen)
	for h, want := range map[Header]string{{Type: TypeData}: "8044", {Type: TypeProbe}: "804c", {Type: TypeHandshake, Lane: packet.Bulk}: "807e", {Type: TypeSignal}: "8068", {Type: TypeRelay}: "806c"} {
		if h.Put(b); hex.EncodeToString(b[:2]) != want {
			t.Errorf("type %d begins with %x, want %s", h.Type, b[:2], want)
		}
	}
}

// Lengths that docs/wire.md bounds, just inside and just outside.
func TestBounds(t *testing.T) {
	sized := func(n int) string { return string(bytes.Repeat([]byte{'a'}, n)) }
	inv := func(change func(*Invite)) parser {
		m := Invite{Index: 1, Suites: []Suite{1}, Chain: [][]byte{{1}}}
		change(&m)
		return &m
	}
	off := func(change func(*Offer)) parser {
		m := Offer{Index: 1, Suite: 1, Sealed: make([]byte, TagLen+1)}
		change(&m)
		return &m
	}
	relayed := func(t Type) []byte {
		b := make([]byte, HeaderLen+TagLen)
		(&Header{Type: t, Index: 1}).Put(b)
		return b
	}
	for name, c := range map[string]struct {
		m    parser
		good bool
	}{
		"8 suites":             {inv(func(m *Invite) { m.Suites = make([]Suite, 8) }), true},
		"9 suites":             {inv(func(m *Invite) { m.Suites = make([]Suite, 9) }), false},
		"no suite":             {inv(func(m *Invite) { m.Suites = nil }), false},
		"3 certificates":       {inv(func(m *Invite) { m.Chain = make([][]byte, 3) }), true},
		"4 certificates":       {inv(func(m *Invite) { m.Chain = make([][]byte, 4) }), false},
		"no certificate":       {inv(func(m *Invite) { m.Chain = nil }), false},
		"invite index 0":       {inv(func(m *Invite) { m.Index = 0 }), false},
		"invite STUN index":    {inv(func(m *Invite) { m.Index = 0x2112A442 }), false},
		"offer index 0":        {off(func(m *Offer) { m.Index = 0 }), false},
		"offer STUN index":     {off(func(m *Offer) { m.Index = 0x2112A442 }), false},
		"offer with a tag":     {off(func(m *Offer) { m.Sealed = m.Sealed[:TagLen] }), false},
		"offer":                {off(func(*Offer) {}), true},
		"ufrag of 128":         {&ConfirmBody{ICE: ICE{Ufrag: sized(128)}}, true},
		"ufrag of 129":         {&ConfirmBody{ICE: ICE{Ufrag: sized(129)}}, false},
		"password of 129":      {&ConfirmBody{ICE: ICE{Pwd: sized(129)}}, false},
		"32 candidates":        {&CandidatesBody{Lines: make([]string, 32)}, true},
		"33 candidates":        {&CandidatesBody{Lines: make([]string, 33)}, false},
		"candidate of 512":     {&CandidatesBody{Lines: []string{sized(512)}}, true},
		"candidate of 513":     {&CandidatesBody{Lines: []string{sized(513)}}, false},
		"fragment 3 of 3":      {&Fragment{Index: 2, Count: 3, Data: []byte{1}}, true},
		"fragment 4 of 3":      {&Fragment{Index: 3, Count: 3, Data: []byte{1}}, false},
		"fragment 1 of 4":      {&Fragment{Index: 0, Count: 4, Data: []byte{1}}, false},
		"fragment of nothing":  {&Fragment{Index: 0, Count: 1}, false},
		"fragment of 4096":     {&Fragment{Count: 1, Data: make([]byte, 4096)}, true},
		"fragment of 4097":     {&Fragment{Count: 1, Data: make([]byte, 4097)}, false},
		"relay of 31 bytes":    {&Relay{Packet: relayed(TypeData)[:31]}, false},
		"relay of data":        {&Relay{Packet: relayed(TypeData)}, true},
		"relay of relay":       {&Relay{Packet: relayed(TypeRelay)}, false},
		"relay of STUN":        {&Relay{Packet: make([]byte, 32)}, false},
		"rekey 1 index 0":      {&Rekey1{}, false},
		"rekey 1 STUN index":   {&Rekey1{Index: ReservedIndex}, false},
		"rekey 2 index 0":      {&Rekey2{}, false},
		"rekey 2 STUN index":   {&Rekey2{Index: ReservedIndex}, false},
		"report of lane 3":     {&Report{Lane: 3}, false},
		"candidates of no tag": {&Candidates{Sealed: make([]byte, TagLen)}, false},
	} {
		if err := c.m.Parse(c.m.Append(nil)); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What every handshake message starts with, and what has one length only.
func TestFixed(t *testing.T) {
	head := append([]byte{byte(MsgKnock), MsgVersion}, make([]byte, SIDLen)...)
	head[2] = 7
	if mt, sid, err := ParseMsgHeader(head); err != nil || mt != MsgKnock || sid != (SID{7}) {
		t.Errorf("header: %v %v %v", mt, sid, err)
	}
	if _, _, err := ParseMsgHeader(head[:MsgHeaderLen-1]); err == nil {
		t.Error("a short header: accepted")
	}
	for _, v := range []byte{0, MsgVersion + 1} {
		head[1] = v
		if _, _, err := ParseMsgHeader(head); err == nil {
			t.Errorf("version %d: accepted", v)
		}
	}
	var p PathChallenge
	if err := p.Parse([]byte("8 bytes!")); err != nil || string(p[:]) != "8 bytes!" {
		t.Errorf("challenge: %q, %v", p, err)
	}
	for _, n := range []int{0, 7, 9} {
		if p.Parse(make([]byte, n)) == nil {
			t.Errorf("a challenge of %d bytes: accepted", n)
		}
	}
}
