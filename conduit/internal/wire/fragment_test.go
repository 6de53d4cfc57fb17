// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"testing"
)

func counted(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// All lengths come back in any order of the pieces, and each piece fits a
// datagram of 1232 bytes with what the dearest packet adds.
func TestSplit(t *testing.T) {
	for _, n := range []int{1, FragmentData - 1, FragmentData, FragmentData + 1, 2 * FragmentData, 2*FragmentData + 1, MaxSplit} {
		msg := counted(n)
		bodies := Split(7, msg)
		want := (n + FragmentData - 1) / FragmentData
		if len(bodies) != want {
			t.Fatalf("%d bytes: %d pieces, want %d", n, len(bodies), want)
		}
		for _, b := range bodies {
			if sealed, plain := Overhead+12+len(b), HeaderLen+2*TagLen+len(b); sealed > 1232 || plain > 1232 {
				t.Errorf("%d bytes: a piece takes a datagram of %d or %d", n, sealed, plain)
			}
		}
		for start := range bodies {
			var r Reassembler
			for i := range bodies {
				got, err := r.Add(bodies[(start+i)%len(bodies)])
				switch {
				case err != nil:
					t.Fatal(err)
				case i < len(bodies)-1 && (got != nil || !r.Pending()):
					t.Errorf("%d bytes: whole after %d pieces", n, i+1)
				case i == len(bodies)-1 && (!bytes.Equal(got, msg) || r.Pending()):
					t.Errorf("%d bytes from piece %d: another message came out", n, start)
				}
			}
		}
	}
	for _, n := range []int{0, MaxSplit + 1} {
		if Split(7, make([]byte, n)) != nil {
			t.Errorf("%d bytes were split", n)
		}
	}
}

func TestReassembler(t *testing.T) {
	x, y := Split(1, counted(3000)), Split(2, counted(2000))
	one := Split(3, []byte("one"))[0]
	var r Reassembler
	add := func(b []byte) []byte {
		t.Helper()
		got, err := r.Add(b)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	add(x[0])
	add(x[0]) // a copy counts once
	add(x[2])
	add(x[2])
	if string(add(one)) != "one" || !r.Pending() {
		t.Error("a message of one piece ended the other")
	}
	if got := add(x[1]); !bytes.Equal(got, counted(3000)) {
		t.Errorf("got %d bytes", len(got))
	}
	// A piece of another message ends the one before.
	add(x[0])
	add(x[1])
	add(y[0])
	if add(x[2]) != nil {
		t.Error("pieces of a message that was given up made one")
	}
	add(y[0])
	if got := add(y[1]); !bytes.Equal(got, counted(2000)) {
		t.Errorf("got %d bytes", len(got))
	}
	// The same id with another count is another message.
	two := (&Fragment{ID: 9, Index: 0, Count: 2, Data: []byte("ab")}).Append(nil)
	three := (&Fragment{ID: 9, Index: 1, Count: 3, Data: []byte("cd")}).Append(nil)
	add(two)
	if add(three) != nil {
		t.Error("pieces of different counts made a message")
	}
	// No more than MaxMessage is kept.
	r.Reset()
	big := func(i uint8, n int) []byte {
		return (&Fragment{ID: 4, Index: i, Count: 3, Data: make([]byte, n)}).Append(nil)
	}
	add(big(0, MaxMessage-2))
	add(big(1, 1))
	if got := add(big(2, 1)); len(got) != MaxMessage {
		t.Errorf("%d bytes", len(got))
	}
	add(big(0, MaxMessage-2))
	add(big(1, 2))
	if _, err := r.Add(big(2, 1)); err == nil || r.Pending() {
		t.Errorf("too long: %v, pending %t", err, r.Pending())
	}
	if _, err := r.Add([]byte{1, 2}); err == nil {
		t.Error("a short piece was taken")
	}
}

// FuzzReassembler: any pieces in any order make no panic and no message beyond the
// bound, and what is split comes together.
func FuzzReassembler(f *testing.F) {
	f.Add([]byte{0, 1, 2}, counted(3000), uint32(1))
	f.Add([]byte{2, 0x83, 0, 1}, counted(1500), uint32(0xffffffff))
	f.Fuzz(func(t *testing.T, order, msg []byte, id uint32) {
		var r Reassembler
		bodies := Split(id, msg)
		if bodies == nil {
			_, _ = r.Add(msg)
			return
		}
		for i, o := range order {
			b := bodies[int(o&15)%len(bodies)]
			if o&0x80 != 0 {
				b = msg[min(i, len(msg)-1):]
			}
			got, err := r.Add(b)
			if err == nil && len(got) > MaxMessage {
				t.Fatalf("%d bytes", len(got))
			}
		}
		r.Reset()
		for i := range bodies {
			got, err := r.Add(bodies[len(bodies)-1-i])
			if err != nil || (i == len(bodies)-1) != bytes.Equal(got, msg) {
				t.Fatalf("piece %d: %d bytes, %v", i, len(got), err)
			}
		}
	})
}
