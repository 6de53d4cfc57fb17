// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// run feeds what each next returns, in the order of its time, and calls Take when
// due. It returns the times of the reports.
func run(r *Receiver, until int64, next func(now int64) *Arrival) (reports []int64) {
	due := int64(math.MaxInt64)
	for now := int64(0); now < until; now += ms {
		if a := next(now); a != nil {
			due = r.Arrived(a)
		}
		if due <= now {
			if r.Take(now, new(wire.Report)) {
				reports = append(reports, now)
			}
			due = math.MaxInt64
		}
	}
	return reports
}

func TestDue(t *testing.T) {
	var s sender
	each := func(lane packet.Lane, gap, delay int64) func(int64) *Arrival {
		s = sender{}
		return func(now int64) *Arrival {
			if now%gap != 0 {
				return nil
			}
			return s.packet(lane, now-delay, delay)
		}
	}
	for name, tt := range map[string]struct {
		next           func(int64) *Arrival
		least, most    int // reports in 10 s
		first, nearest int64
	}{
		"bulk":       {each(packet.Bulk, ms, 5*ms), 385, 400, 5 * ms, 25 * ms},
		"telemetry":  {each(packet.Telemetry, 5*ms, 5*ms), 330, 400, 5 * ms, 25 * ms},
		"critical":   {each(packet.Critical, 10*ms, 5*ms), 39, 41, 10 * ms, 250 * ms},
		"sparse":     {each(packet.Critical, 1e9, 5*ms), 8, 10, 1e9, 250 * ms},
		"telemetry1": {each(packet.Telemetry, 1e9, 5*ms), 8, 10, 1e9, 250 * ms},
		"probes": {func(now int64) *Arrival {
			a := s.packet(packet.Critical, now, 5*ms)
			a.Data = false
			return a
		}, 0, 0, 0, 0},
	} {
		var r Receiver
		got := run(&r, 10e9, tt.next)
		if len(got) < tt.least || len(got) > tt.most {
			t.Errorf("%s: %d reports, want %d to %d", name, len(got), tt.least, tt.most)
		}
		for i := range got {
			if i == 0 && got[0] > tt.first || i > 0 && got[i]-got[i-1] < tt.nearest {
				t.Errorf("%s: report %d at %d ms", name, i, got[i]/ms)
			}
		}
	}
}

// A second after the last Bulk, Critical alone is reported slowly again; probes let
// the last packets be told.
func TestDueAfterBulk(t *testing.T) {
	var r Receiver
	var s sender
	fast, slow := 0, 0
	for _, at := range run(&r, 5e9, func(now int64) *Arrival {
		if now < 1e9 {
			return s.packet(packet.Bulk, now-ms, ms)
		}
		return s.packet(packet.Critical, now-ms, ms)
	}) {
		if at > 1e9 && at < 2e9 {
			fast++
		}
		if at > 2100*ms {
			slow++
		}
	}
	if fast < 37 || fast > 40 || slow < 10 || slow > 13 {
		t.Errorf("%d reports in the second after Bulk, %d in the 3 s after that", fast, slow)
	}
	r.Arrived(s.packet(packet.Critical, 6e9, ms))
	r.Take(6e9, new(wire.Report))
	a := s.packet(packet.Critical, 6e9, ms)
	a.Data = false
	if due := r.Arrived(a); due != math.MaxInt64 {
		t.Errorf("a report about a probe, due %d", due)
	}
	r.Copied(5)
	if due := r.Arrived(a); due != 6e9+Slow {
		t.Errorf("due %d, want %d for the sake of a copy", due, int64(6e9+Slow))
	}
}

func TestUrgent(t *testing.T) {
	setup := func() (*Receiver, *sender) {
		r, s := new(Receiver), new(sender)
		for i := range int64(100) {
			r.Arrived(s.packet(packet.Bulk, i*ms, 5*ms))
		}
		r.Take(105*ms, new(wire.Report))
		return r, s
	}
	t.Run("late", func(t *testing.T) {
		r, s := setup()
		for i, want := range []int64{130, 130, 130, 122, 123} { // ms: due
			at := int64(118 + i + 1)
			if got := r.Arrived(s.packet(packet.Bulk, at*ms-14*ms, 14*ms)); got != want*ms {
				t.Errorf("packet %d: due at %.1f ms, want %d", i, float64(got)/1e6, want)
			}
		}
	})
	t.Run("apart", func(t *testing.T) {
		r, s := setup()
		for i := range int64(4) {
			want := 130 * ms
			if i == 3 {
				want = 113 * ms
			}
			if got := r.Arrived(s.packet(packet.Bulk, 106*ms-14*ms, 14*ms)); got != want {
				t.Errorf("packet %d: due at %d ms, want %d", i, got/ms, want/ms)
			}
		}
	})
	t.Run("not late", func(t *testing.T) {
		r, s := setup()
		for i := range int64(10) {
			if got := r.Arrived(s.packet(packet.Bulk, 120*ms-12*ms, 12*ms)); got != 130*ms {
				t.Errorf("packet %d: due at %d ms", i, got/ms)
			}
		}
	})
	t.Run("one late among four", func(t *testing.T) {
		r, s := setup()
		due := int64(0)
		for _, d := range []int64{5, 14, 5, 5} {
			due = r.Arrived(s.packet(packet.Bulk, (120-d)*ms, d*ms))
		}
		if due != 120*ms {
			t.Errorf("due at %d ms", due/ms)
		}
	})
	t.Run("standing", func(t *testing.T) {
		r, s := setup()
		got := run(r, 2e9, func(now int64) *Arrival {
			if now < 200*ms {
				return nil
			}
			return s.packet(packet.Bulk, now-20*ms, 20*ms)
		})
		urgent := 0
		for i := range got[1:] {
			switch d := got[i+1] - got[i]; {
			case d < Apart:
				t.Errorf("reports %d ms apart", d/ms)
			case d < Fast:
				urgent++
			}
		}
		if urgent < UrgentRow-2 || urgent > UrgentRow {
			t.Errorf("%d urgent reports, want about %d", urgent, UrgentRow)
		}
		// A calm report makes the next rise news again.
		r.Take(2e9, new(wire.Report))
		for i := range int64(10) {
			r.Arrived(s.packet(packet.Bulk, 2e9+i*ms, 5*ms))
		}
		r.Take(2e9+20*ms, new(wire.Report))
		due := int64(0)
		for range UrgentPackets {
			due = r.Arrived(s.packet(packet.Bulk, 2e9+20*ms, 14*ms))
		}
		if due > 2e9+34*ms {
			t.Errorf("due at %d ms", due/ms)
		}
	})
}
