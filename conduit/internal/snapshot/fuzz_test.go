// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

func FuzzDecode(f *testing.F) {
	for _, n := range []int{0, 1, 3} {
		b, err := sample(n).encodeBody()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(encoded(f, sample(n)))
	}
	f.Add([]byte{0xa2, 0x01, 0x61, 'm', 0x01, 0x61, 'm'})
	f.Add([]byte{0xbf, 0x01, 0x61, 'm', 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, b := range [][]byte{in, wrap(t, in)} { // a checksum would keep the fuzzer out
			s, err := Decode(b, "m1", self)
			if err != nil {
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrForeign) {
					t.Errorf("error %v is none of ours", err)
				}
				continue
			}
			for i := range s.Peers {
				if err := s.Peers[i].Check(); err != nil {
					t.Errorf("peer %d: %v", i, err)
				}
			}
			s.Written = time.Time{} // or denials run out
			out, err := s.Encode()
			if err != nil {
				t.Fatalf("does not write what it read: %v", err)
			}
			again, err := Decode(out, "m1", self)
			if err != nil {
				t.Fatalf("does not read what it wrote: %v", err)
			}
			if twice := encoded(t, again); !bytes.Equal(out, twice) {
				t.Error("a second round differs")
			}
		}
	})
}

func BenchmarkEncode10k(b *testing.B) {
	s := sample(10_000)
	var n int
	for b.Loop() {
		n = len(encoded(b, s))
	}
	b.ReportMetric(float64(n), "file-bytes")
}

func BenchmarkDecode10k(b *testing.B) {
	in := encoded(b, sample(10_000))
	for b.Loop() {
		if _, err := Decode(in, "m1", self); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(in)), "file-bytes")
}
