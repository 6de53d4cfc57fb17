// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/report"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// noReport is the time of a report that is not due.
const noReport = math.MaxInt64

// reports is the paths whose peers are to be told what came on them.
type reports struct {
	wake chan struct{}

	mu   sync.Mutex // guards the rest
	list []*pathStat
	next int64 // when sendReports looks again
}

func (r *reports) init() { r.wake, r.next = make(chan struct{}, 1), noReport }

// arrived counts an authenticated packet for the report of its path.
func (r *reader) arrived(st *pathStat, s *Session, size int) {
	if s.caps&wire.CapReport == 0 {
		return
	}
	isData := r.hdr.Type == wire.TypeData || r.hdr.Type == wire.TypeRelay || r.hdr.Type == wire.TypeEcho || r.hdr.Type == wire.TypeEchoReply
	rx := st.receiver.Load()
	if rx == nil {
		if !isData {
			return // probes alone are nothing to report
		}
		st.receiver.CompareAndSwap(nil, new(report.Receiver))
		rx = st.receiver.Load()
	}
	a := report.Arrival{
		Lane: r.hdr.Lane, Session: s.LocalIndex, Counter: r.hdr.Counter, Size: size, Sent: r.hdr.Time,
		At: r.at, Follower: r.follower, Rough: r.rough, Data: isData,
	}
	r.d.dueReport(st, rx.Arrived(&a))
}

// dueReport has a report sent at due, if none comes before.
func (d *Dataplane) dueReport(st *pathStat, due int64) {
	for {
		old := st.due.Load()
		if due >= old {
			return
		}
		if st.due.CompareAndSwap(old, due) {
			break
		}
	}
	r := &d.reports
	r.mu.Lock()
	if !st.listed {
		st.listed = true
		r.list = append(r.list, st)
	}
	sooner := due < r.next
	if sooner {
		r.next = due
	}
	r.mu.Unlock()
	if sooner {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// sendReports sends the reports that are due.
func (d *Dataplane) sendReports() {
	r := &d.reports
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	var due []*pathStat
	for {
		select {
		case <-d.done:
			return
		case <-r.wake:
		case <-t.C:
		}
		now := d.Now()
		due = due[:0]
		r.mu.Lock()
		r.next = noReport
		r.list = slices.DeleteFunc(r.list, func(st *pathStat) bool {
			at := st.due.Load()
			if at > now {
				r.next = min(r.next, at)
				return false
			}
			st.listed = false
			st.due.Store(noReport)
			due = append(due, st)
			return true
		})
		if r.next != noReport {
			t.Reset(time.Duration(r.next - now))
		}
		r.mu.Unlock()
		for _, st := range due {
			d.report(st, now)
		}
	}
}

// report tells the peer what came on one path, on that path.
func (d *Dataplane) report(st *pathStat, now int64) {
	rx, s := st.receiver.Load(), st.peer.active.Load()
	if rx == nil || s == nil || s.caps&wire.CapReport == 0 {
		return
	}
	var w wire.Report
	if !rx.Take(now, &w) {
		return
	}
	var b [wire.ReportLen]byte
	d.SendControl(s, wire.TypeReport, w.Append(b[:0]), st.path)
}

// reported takes the peer's report about what we sent on a path.
func (r *reader) reported(s *Session, body []byte, from Path) {
	var w wire.Report
	if !s.reported.allow(r.now, reportGap, reportSlack) {
		r.drop(RxControlRate)
		return
	}
	if w.Parse(body) != nil {
		r.drop(RxMalformed)
		return
	}
	st := s.Peer.statOf(from)
	if st == nil {
		return
	}
	pipe := st.pipe.Load()
	if pipe == nil {
		return
	}
	over := uint64(overIP(from.Remote.Addr()))
	const unit = 16 * time.Microsecond
	pipe.Report(&congestion.Report{
		Packets: w.Packets - uint64(w.Copies), Copies: uint64(w.Copies), Bytes: w.Bytes + w.Packets*over,
		Session: w.Session, Lane: uint8(w.Lane), Counter: w.Counter,
		Received: time.Duration(w.Received) * time.Microsecond, Hold: time.Duration(w.Hold) * time.Microsecond,
		Samples:  int(w.Samples),
		DelayMin: time.Duration(w.DelayMin) * unit, DelayP50: time.Duration(w.DelayP50) * unit,
		DelayMax: time.Duration(w.DelayMax) * unit, DelayLast: time.Duration(w.Last) * unit,
		CE: w.CE,
		Train: congestion.TrainSeen{
			First: w.TrainFirst, Bytes: int(w.TrainBytes) + int(w.TrainPackets)*int(over), Dispersion: time.Duration(w.TrainDispersion) * time.Microsecond,
		},
	})
	state := pipe.State()
	st.lossy(&state.State, r.now)
}

// realtime turns the kernel's stamps, of the wall clock, into our own clock's.
type realtime struct{ offset int64 }

// look compares the two clocks. The wall clock may be set at any time.
func (c *realtime) look(now int64) { c.offset = now - time.Now().UnixNano() }

// at returns when a message with that stamp arrived, at the latest now; rough is set
// where that is only when it was read.
func (c *realtime) at(stamp, now int64) (at int64, rough bool) {
	at = stamp + c.offset
	if stamp == 0 || at > now || at < now-int64(time.Second) {
		return now, true
	}
	return max(at, 1), false
}
