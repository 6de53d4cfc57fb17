// SPDX-License-Identifier: Apache-2.0

package stun

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// message returns a Binding request with attributes of the given types, each with a
// value of size bytes.
func message(size int, attrs ...uint16) []byte {
	b := make([]byte, HeaderLen)
	b[1] = 1
	binary.BigEndian.PutUint32(b[4:], MagicCookie)
	for _, a := range attrs {
		b = binary.BigEndian.AppendUint16(b, a)
		b = binary.BigEndian.AppendUint16(b, uint16(size))
		b = append(b, make([]byte, (size+3)&^3)...)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-HeaderLen))
	return b
}

// free lets every attribute come any number of times.
func free(uint16, int, int) (uint64, bool) { return 0, true }

func TestWalk(t *testing.T) {
	many := make([]uint16, maxAttributes+1)
	for name, tc := range map[string]struct {
		b    []byte
		want bool
	}{
		"empty":                 {message(0), true},
		"padded":                {message(3, 0x8022), true},
		"fingerprint last":      {message(4, MessageIntegrity, Fingerprint), true},
		"after integrity":       {message(4, MessageIntegrity, 0x8022), false},
		"after fingerprint":     {message(4, Fingerprint, 0x8022), false},
		"as many as may be":     {message(0, many[:maxAttributes]...), true},
		"one too many":          {message(0, many...), false},
		"longer than the limit": {message(200, 0x8022), false},
		"short":                 {message(0)[:HeaderLen-4], false},
		"first bits":            {append([]byte{0x40}, message(0)[1:]...), false},
		"length of the message": {append(message(0), 0, 0, 0, 0), false},
	} {
		if got := Walk(tc.b, 180, free); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	b := message(4, 0x8022)
	b[HeaderLen+3] = 8 // the value ends behind the message
	if Walk(b, 180, free) {
		t.Error("a value that leaves the message was given out")
	}
	once := func(uint16, int, int) (uint64, bool) { return 1, true }
	if Walk(message(4, 1, 2), 180, once) {
		t.Error("a mark that was seen twice passed")
	}
}

func TestXORAddress(t *testing.T) {
	msg := message(0)
	v := []byte{0, 1, 0xA1 ^ 0x21, 0x47 ^ 0x12, 192 ^ 0x21, 0 ^ 0x12, 2 ^ 0xA4, 1 ^ 0x42}
	if !AddressOK(v) {
		t.Fatal("a good address is refused")
	}
	if got, want := XORAddress(v, msg), netip.MustParseAddrPort("192.0.2.1:41287"); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	if AddressOK(v[:7]) || AddressOK(append(v, 0)) {
		t.Error("an address of another length passed")
	}
}

func FuzzWalk(f *testing.F) {
	f.Add(message(4, 1, MessageIntegrity, Fingerprint))
	f.Fuzz(func(t *testing.T, b []byte) {
		Walk(b, 1500, func(_ uint16, off, size int) (uint64, bool) {
			if off < HeaderLen || size < 0 || off+AttrHeader+size > len(b) {
				t.Fatalf("attribute at %d of %d bytes in %d", off, size, len(b))
			}
			return 0, true
		})
	})
}
