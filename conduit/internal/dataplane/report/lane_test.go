// SPDX-License-Identifier: Apache-2.0

package report

import (
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// Delays and the newest packet are those of the least urgent lane that arrived
// since the last report, whatever overtakes it; the counters are of all lanes up
// to that packet.
func TestLeastUrgentLane(t *testing.T) {
	const (
		c = packet.Critical
		e = packet.Telemetry
		b = packet.Bulk
	)
	delay := [packet.NumLanes]int64{c: 2 * ms, e: 20 * ms, b: 40 * ms}
	type counted struct {
		lane                     packet.Lane
		counter, packets, copies uint64
		samples                  int
	}
	const copied = packet.Lane(99)
	for name, tt := range map[string]struct {
		in   [][]packet.Lane // by report
		want []counted
	}{
		"bulk hides no queue": {
			[][]packet.Lane{{c, b, c, b, c, c}, {c}},
			[]counted{{b, 1, 4, 0, 2}, {c, 4, 7, 0, 1}},
		},
		"bulk comes late":          {[][]packet.Lane{{c, c, e, e, e, b}}, []counted{{b, 0, 6, 0, 1}}},
		"telemetry before urgent":  {[][]packet.Lane{{c, e, c, e, c}}, []counted{{e, 1, 4, 0, 2}}},
		"bulk before telemetry":    {[][]packet.Lane{{b, e, c, e}}, []counted{{b, 0, 1, 0, 1}}},
		"each report anew":         {[][]packet.Lane{{b, c}, {c, e}, {c, c}, {b}}, []counted{{b, 0, 1, 0, 1}, {e, 0, 4, 0, 1}, {c, 3, 6, 0, 2}, {b, 1, 7, 0, 1}}},
		"copies behind the newest": {[][]packet.Lane{{b, copied, c, copied}, {copied}, {c}}, []counted{{b, 0, 1, 0, 1}, {b, 0, 5, 3, 0}, {c, 1, 6, 3, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			var r Receiver
			s := sender{session: 7}
			now := int64(5e9)
			// Before: the fastest, so that all delays have one zero.
			r.Arrived(s.packet(c, now, delay[c]))
			zero := take(t, &r, now+delay[c]).Last
			for i, in := range tt.in {
				var last int64
				for _, l := range in {
					now += ms
					if l == copied {
						r.Copied(100)
						continue
					}
					a := s.packet(l, now-delay[l], delay[l])
					if l == tt.want[i].lane {
						last = a.At
					}
					r.Arrived(a)
				}
				now += 2 * ms
				got, want := take(t, &r, now), tt.want[i]
				if want.lane == c {
					want.counter++ // the one before
				}
				want.packets++
				if c := (counted{got.Lane, got.Counter, got.Packets, uint64(got.Copies), int(got.Samples)}); c != want || got.Bytes != bytes(got) {
					t.Errorf("report %d: %+v, want %+v; bytes %d", i, c, want, got.Bytes)
				}
				if want.samples == 0 {
					continue
				}
				if got.Received != uint64(last/1000) || got.Hold != uint32((now-last)/1000) {
					t.Errorf("report %d: received %d, hold %d", i, got.Received, got.Hold)
				}
				d := int32((delay[want.lane] - delay[c]) / 16e3)
				for _, x := range []int32{got.DelayMin, got.DelayP50, got.DelayMax, got.Last} {
					if x -= zero + d; x < -8 || x > 8 {
						t.Errorf("report %d: a delay is %d units off", i, x)
					}
				}
			}
		})
	}
}

// bytes are what a report of TestLeastUrgentLane is to have.
func bytes(r *wire.Report) uint64 {
	return (r.Packets-uint64(r.Copies))*1382 + uint64(r.Copies)*100
}

// An urgent lane gives the least delay where it is hardly ahead: what a smaller
// packet spares is no queue.
func TestLeastDelay(t *testing.T) {
	for _, tt := range []struct{ critical, want int64 }{ // ms
		{10, 10}, {17, 17}, {15, 20}, {25, 20},
	} {
		for _, criticalFirst := range []bool{true, false} {
			var r Receiver
			var s sender
			r.Arrived(s.packet(packet.Bulk, 0, 10*ms))
			zero := take(t, &r, 10*ms).Last
			in := []*Arrival{s.packet(packet.Critical, 50*ms-tt.critical*ms, tt.critical*ms), s.packet(packet.Bulk, 30*ms, 20*ms)}
			if tt.critical == 10 {
				in[1].At -= 7 * ms // 13 ms
			}
			if !criticalFirst {
				in[0], in[1] = in[1], in[0]
			}
			r.Arrived(in[0])
			r.Arrived(in[1])
			got := take(t, &r, 60*ms)
			if d := (got.DelayMin - zero) - int32((tt.want-10)*ms/16e3); d < -8 || d > 8 || got.Lane != packet.Bulk || got.Samples != 1 {
				t.Errorf("critical %d ms, first %t: least is %d units off; %+v", tt.critical, criticalFirst, d, got)
			}
		}
	}
}
