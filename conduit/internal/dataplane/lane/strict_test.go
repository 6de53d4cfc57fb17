// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// queueStrategy reports a queue.
type queueStrategy struct {
	congestion.Strategy
	queue   time.Duration
	startup bool
}

func (q *queueStrategy) State(now time.Duration) congestion.State {
	s := q.Strategy.State(now)
	s.Queue, s.Startup = q.queue, q.startup
	return s
}

// Critical is policed only where it is in somebody's way.
func TestPoliceOnlyBesideOthers(t *testing.T) {
	passes := func(r *rig, p *Pipe) (n int) {
		for range 1000 {
			if p.Police(r.clock, 140) {
				n++
			}
		}
		return n
	}
	for name, tt := range map[string]struct {
		queue         time.Duration
		startup, bulk bool
		want          bool // policed
	}{
		"alone":                 {},
		"beside Bulk":           {bulk: true, want: true},
		"beside Bulk, start-up": {bulk: true, startup: true},
		"a queue":               {queue: 6 * time.Millisecond, want: true},
		"a short queue":         {queue: 4 * time.Millisecond},
		"a queue, start-up":     {queue: time.Second, startup: true},
	} {
		r := newRig(t, Config{})
		p := r.AddUplink().AddPipe(&queueStrategy{congestion.NewFixed(100e3), tt.queue, tt.startup}, 60)
		if tt.bulk {
			r.fill(p, 50, packet.Bulk, 1, 1350)
		}
		p.Report(&congestion.Report{})
		if got := passes(r, p) < 1000; got != tt.want {
			t.Errorf("%s: policed is %v, want %v", name, got, tt.want)
		}
	}
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(congestion.NewFixed(100e3), 60)
	r.fill(p, 5, packet.Bulk, 1, 1350)
	r.run(10*int64(time.Second), 64, nil)
	if passes(r, p) < 1000 {
		t.Error("policed long after the last Bulk had to wait")
	}
}

// That no reports come says nothing of the way there: Critical keeps its share.
func TestPoliceWithoutReports(t *testing.T) {
	r := newRig(t, Config{})
	st := &fakeStrategy{rate: 2.5e6}
	p := r.AddUplink().AddPipe(st, 60)
	p.Report(&congestion.Report{})
	r.fill(p, 500, packet.Bulk, 1, 1350)
	r.run(r.clock+5*ms, 64, nil)
	r.clock += int64(2 * time.Second)
	st.rate = congestion.MinRate
	r.run(r.clock+10*int64(time.Second), 64, nil)
	r.fill(p, 1, packet.Bulk, 1, 1350)
	n := 0
	for range 10 {
		if p.Police(r.clock, 1000) {
			n++
		}
	}
	if n < 10 {
		t.Errorf("%d of 10 pass ten seconds after the last report", n)
	}
}

// sharer remembers what it was told.
type sharer struct {
	congestion.Strategy
	told []float64
}

func (s *sharer) Beside(total float64) { s.told = append(s.told, total) }

// A strategy hears what the paths that want its uplink are given together.
func TestBeside(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	st := &sharer{Strategy: congestion.NewFixed(100e3)}
	p := u.AddPipe(st, 60)
	for i, other := range []congestion.Strategy{congestion.NewFixed(200e3), congestion.NewFixed(400e3), congestion.NewNull()} {
		q := u.AddPipe(other, 60)
		if i != 1 {
			r.fill(q, 50, packet.Bulk, uint32(i), 1350)
		}
	}
	other := r.AddUplink().AddPipe(congestion.NewFixed(800e3), 60)
	r.fill(other, 50, packet.Bulk, 9, 1350)
	r.fill(p, 50, packet.Bulk, 10, 1350)
	r.clock += 20 * ms // the sum is not worked out all the time
	p.Report(&congestion.Report{})
	if len(st.told) != 1 || st.told[0] != 300e3 {
		t.Errorf("told of %v, want 300 kB/s: of those two that wait and have a rate", st.told)
	}
}

// A flood on a path of which nothing is known is policed by what those beside it are
// given.
func TestPoliceBesideAnotherPath(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	r.fill(u.AddPipe(congestion.NewFixed(1e6), 60), 50, packet.Bulk, 1, 1350)
	flood := u.AddPipe(&queueStrategy{congestion.NewFixed(100e3), 0, true}, 60)
	elsewhere := r.AddUplink().AddPipe(congestion.NewFixed(100e3), 60)
	n := [2]int{}
	for i, p := range []*Pipe{flood, elsewhere} {
		for p.Police(r.clock, 940) && n[i] < 1000 {
			n[i]++
		}
	}
	if n[0] != 20 || n[1] != 1000 { // 50 ms of 400 kB/s
		t.Errorf("%d packets pass beside Bulk and %d on another uplink, want 20 and all", n[0], n[1])
	}
}

// What is demoted on a path of its own is not one more sender beside those that wait.
func TestDemotedYieldsToOtherPaths(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	bulk, flood := u.AddPipe(congestion.NewFixed(1e6), 60), u.AddPipe(congestion.NewFixed(1e6), 60)
	left := map[*Pipe]int{}
	r.fill(bulk, 400, packet.Bulk, 1, 1350)
	for range 400 {
		b := packet.Get()
		b.N, b.Lane, b.Demoted = 940, packet.Bulk, true
		r.Enqueue([]*packet.Buf{b}, []*Pipe{flood})
	}
	r.run(r.clock+100*ms, 64, func(p *Pipe, b *packet.Buf, _ bool) { left[p] += b.N })
	if left[bulk] < 90e3 || left[flood] > left[bulk]/4 {
		t.Errorf("%d bytes of Bulk left, and %d of what is demoted on another path", left[bulk], left[flood])
	}
}
