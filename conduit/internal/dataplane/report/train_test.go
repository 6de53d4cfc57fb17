// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

func TestTrain(t *testing.T) {
	const size = 1382
	// bulk makes n packets that left at sent ms and arrive gap µs apart.
	type p = Arrival
	bulk := func(from, n int, sent uint16, at, gap int64) (out []p) {
		for i := range n {
			out = append(out, p{Lane: packet.Bulk, Session: 1, Counter: uint64(from + i), Size: size, Sent: sent, At: at*ms + int64(i)*gap*1000, Data: true})
		}
		return out
	}
	change := func(in []p, f func(i int, a *p)) []p {
		for i := range in {
			f(i, &in[i])
		}
		return in
	}
	without := func(in []p, i int) []p { return append(append([]p(nil), in[:i]...), in[i+1:]...) }
	critical := func(at int64) p {
		return p{Lane: packet.Critical, Session: 1, Counter: 77, Size: 222, At: at * ms, Data: true}
	}
	join := func(in ...[]p) (out []p) {
		for _, s := range in {
			out = append(out, s...)
		}
		return out
	}
	after := bulk(900, 1, 900, 90, 0)
	tell := func(first, packets, dispersion int) seen {
		return seen{uint64(first), uint16(packets), uint32(packets * size), uint32(dispersion)}
	}
	run := func(from, to int) func(int, *p) { // those of [from,to) are one run
		return func(i int, a *p) {
			if i > from && i < to {
				a.Follower = true
			}
		}
	}
	for name, tt := range map[string]struct {
		in   []p
		now  int64 // ms
		want seen
	}{
		"eight":                  {join(bulk(10, 8, 5, 10, 500), after), 91, tell(10, 7, 3500)},
		"four":                   {join(bulk(10, 4, 5, 10, 2300), after), 91, tell(10, 3, 6900)},
		"three":                  {join(bulk(10, 3, 5, 10, 500), after), 91, seen{}},
		"span of two units":      {join(change(bulk(10, 6, 5, 10, 500), func(i int, a *p) { a.Sent += uint16(i / 2) }), after), 91, tell(10, 5, 2500)},
		"span of three":          {join(change(bulk(10, 6, 5, 10, 500), func(i int, a *p) { a.Sent += uint16(i) }), after), 91, seen{}},
		"time wraps":             {join(change(bulk(10, 6, math.MaxUint16, 10, 500), func(i int, a *p) { a.Sent += uint16(i / 3) }), after), 91, tell(10, 5, 2500)},
		"first is missing":       {join(without(bulk(10, 8, 5, 10, 500), 0), after), 91, tell(11, 6, 3000)},
		"last is missing":        {join(without(bulk(10, 8, 5, 10, 500), 7), after), 91, tell(10, 6, 3000)},
		"one is missing":         {join(without(bulk(10, 12, 5, 10, 500), 5), after), 91, seen{}},
		"two changed places":     {join(change(bulk(10, 8, 5, 10, 500), func(i int, a *p) { a.Counter ^= uint64(i >> 2 & 1) }), after), 91, seen{}},
		"late one of before":     {join(bulk(10, 4, 5, 10, 500), bulk(9, 1, 4, 12, 0), bulk(14, 4, 5, 13, 500), after), 91, tell(10, 7, 4500)},
		"critical between":       {join(bulk(10, 4, 5, 10, 500), []p{critical(12)}, bulk(14, 4, 5, 12, 500), after), 91, tell(10, 7, 3500)},
		"telemetry is no train":  {join(change(bulk(10, 8, 5, 10, 500), func(_ int, a *p) { a.Lane = packet.Telemetry }), after), 91, seen{}},
		"another session":        {join(change(bulk(10, 8, 5, 10, 500), func(i int, a *p) { a.Session += uint32(i / 3) }), after), 91, seen{}},
		"longest of two":         {join(bulk(10, 5, 5, 10, 500), bulk(15, 9, 50, 20, 100), bulk(24, 6, 90, 30, 500), after), 91, tell(15, 8, 800)},
		"run of half":            {join(change(bulk(10, 8, 5, 10, 500), run(0, 4)), after), 91, tell(10, 7, 3500)},
		"run of more than half":  {join(change(bulk(10, 8, 5, 10, 500), run(1, 6)), after), 91, tell(10, 7, 0)},
		"two runs":               {join(change(change(bulk(10, 8, 5, 10, 500), run(0, 4)), run(4, 8)), after), 91, tell(10, 7, 3500)},
		"all at once":            {join(bulk(10, 8, 5, 10, 0), after), 91, tell(10, 7, 0)},
		"clock steps back":       {join(bulk(10, 8, 5, 10, -500), after), 91, tell(10, 7, 0)},
		"rough":                  {join(change(bulk(10, 8, 5, 10, 500), func(_ int, a *p) { a.Rough = true }), after), 91, seen{}},
		"a rough one":            {join(change(bulk(10, 8, 5, 10, 500), func(i int, a *p) { a.Rough = i == 4 }), after), 91, seen{}},
		"ended by silence":       {bulk(10, 8, 5, 10, 500), 18, tell(10, 7, 3500)},
		"not over yet":           {bulk(10, 8, 5, 10, 500), 16, seen{}},
		"same time a turn later": {join(bulk(10, 3, 5, 10, 500), bulk(13, 3, 5, 10+4194, 500), bulk(16, 1, 900, 4300, 0)), 4301, seen{}},
	} {
		t.Run(name, func(t *testing.T) {
			var r Receiver
			for i := range tt.in {
				r.Arrived(&tt.in[i])
			}
			var out wire.Report
			r.Take(tt.now*ms, &out)
			got := seen{out.TrainFirst, out.TrainPackets, out.TrainBytes, out.TrainDispersion}
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(seen{})); d != "" {
				t.Errorf("train differs (-want +got):\n%s", d)
			}
			r.Copied(1)
			if r.Take(tt.now*ms+1, &out); out.TrainBytes != 0 {
				t.Errorf("told twice: %+v", out)
			}
		})
	}
}

// A report in the middle of a train does not cut it.
func TestTrainOverReport(t *testing.T) {
	var r Receiver
	var out wire.Report
	for i := range int64(12) {
		r.Arrived(&Arrival{Lane: packet.Bulk, Counter: uint64(i), Size: 100, At: i * 2 * ms, Data: true})
		if r.Take(i*2*ms+ms, &out); out.TrainBytes != 0 {
			t.Fatalf("told after %d of 12 packets", i+1)
		}
	}
	r.Arrived(&Arrival{Lane: packet.Bulk, Counter: 12, Size: 100, Sent: 900, At: 60 * ms, Data: true})
	if r.Take(61*ms, &out); out.TrainFirst != 0 || out.TrainPackets != 11 || out.TrainBytes != 1100 || out.TrainDispersion != 22000 {
		t.Errorf("%+v", out)
	}
}

// FuzzReceiver: whatever comes, counts are exact, the delays of a report are in
// order and within its bounds, trains are what they are said to be, and the
// packets that are waiting are told in time.
func FuzzReceiver(f *testing.F) {
	f.Add([]byte{2, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2, 9, 1, 9})
	f.Add([]byte{0x42, 0xff, 0, 0x80, 0x12, 1, 1, 1, 0x82, 3, 3, 3})
	f.Add([]byte{1, 0, 250, 0, 0xf, 0, 250, 0, 0xf, 0, 250, 255, 1, 0, 9, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, twin Receiver
		var packets, bytes, copies uint64
		var counter [packet.NumLanes]uint64
		at := int64(1e9)
		waiting := false
		for ; len(b) >= 4; b = b[4:] {
			kind := b[0]
			if kind&15 == 15 {
				r.Copied(int(b[1]))
				twin.Copied(int(b[1]))
				packets, bytes, copies, waiting = packets+1, bytes+uint64(b[1]), copies+1, true
				continue
			}
			lane := packet.Lane(kind & 3 % 3)
			counter[lane] += uint64(int64(int8(b[1]) >> 5))
			counter[lane]++
			at += int64(b[2]) * int64(b[2]) * int64(b[2]) * 1000
			a := Arrival{
				Lane: lane, Session: uint32(kind >> 7), Counter: counter[lane], Size: 100, Sent: uint16(at/64000) + uint16(b[3])<<8,
				At: at - int64(b[1])*1000, Follower: kind&16 != 0, Data: kind&32 == 0, Rough: kind&64 != 0,
			}
			due := r.Arrived(&a)
			if other := twin.Arrived(&a); other != due {
				t.Fatalf("due at %d and at %d", due, other)
			}
			packets, bytes, waiting = packets+1, bytes+100, waiting || a.Data
			if waiting != (due != math.MaxInt64) || waiting && due > a.At+Slow+at {
				t.Fatalf("due at %d with waiting = %v at %d", due, waiting, a.At)
			}
			if due > at && kind&12 != 12 {
				continue
			}
			var out, same wire.Report
			if r.Take(at, &out) != waiting || twin.Take(at, &same) != waiting {
				t.Fatalf("take = %v", !waiting)
			}
			if d := cmp.Diff(out, same); d != "" {
				t.Fatalf("the same gives another report:\n%s", d)
			}
			if !waiting {
				continue
			}
			waiting = false
			if out.Packets != packets || out.Bytes != bytes || uint64(out.Copies) != copies {
				t.Fatalf("%d packets, %d bytes, %d copies: %+v", packets, bytes, copies, out)
			}
			if out.Samples > 0 && (out.DelayMin > out.DelayP50 || out.DelayP50 > out.DelayMax) {
				t.Fatalf("delays out of order: %+v", out)
			}
			if out.TrainBytes != 0 && (out.TrainPackets < trainPackets-1 || out.TrainBytes != 100*uint32(out.TrainPackets)) {
				t.Fatalf("train: %+v", out)
			}
			var again wire.Report
			if err := again.Parse(out.Append(nil)); err != nil || again != out {
				t.Fatalf("%+v comes back as %+v, %v", out, again, err)
			}
			if r.Take(at, &out) {
				t.Fatal("told twice")
			}
			twin.Take(at, &same)
		}
	})
}
