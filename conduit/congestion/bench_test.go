// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"testing"
	"time"
)

// feed is one path under load, ready to take more.
type feed struct {
	st  Strategy
	now time.Duration
	k   uint64
	r   Report
}

func newFeed(st Strategy) *feed {
	f := &feed{st: st}
	for range 200 { // 5 s
		f.round()
	}
	return f
}

func (f *feed) sent() {
	f.st.Sent(f.now, Sent{Lane: Bulk, Session: 1, First: f.k + 1, Last: f.k + 8, Packets: 8, Bytes: 8 * 1410})
	f.k += 8
}

func (f *feed) report() {
	n := f.k - f.r.Packets
	f.r.Packets, f.r.Bytes = f.k, f.r.Bytes+n*1410
	f.r.Session, f.r.Lane, f.r.Counter, f.r.Received, f.r.Samples = 1, Bulk, f.k, f.now, int(n)
	f.r.DelayP50 = time.Duration(f.k%16) * 100 * time.Microsecond
	f.st.Report(f.now+5*ms, &f.r)
}

// round is 25 ms.
func (f *feed) round() {
	for range 25 {
		f.sent()
		if train := f.st.Tick(f.now, 1<<20); train > 0 {
			n := uint64(train / 1410)
			f.st.TrainSent(f.now, Train{Session: 1, First: f.k + 1, Last: f.k + n, Packets: int(n), Bytes: int(n-1) * 1410})
		}
		f.now += ms
	}
	f.report()
	f.now += 6 * ms
}

func TestNoAllocations(t *testing.T) {
	for name, st := range strategies() {
		f := newFeed(st)
		if n := testing.AllocsPerRun(200, func() {
			f.round()
			f.st.Rate(f.now)
			f.st.State(f.now)
		}); n != 0 {
			t.Errorf("%s: %v allocations per 25 ms of load, want 0", name, n)
		}
	}
}

func BenchmarkSent(b *testing.B) {
	f := newFeed(NewDelayRate(DelayRateConfig{}))
	b.ReportAllocs()
	for b.Loop() {
		f.now += 100 * time.Microsecond
		f.sent()
	}
}

func BenchmarkTick(b *testing.B) {
	f := newFeed(NewDelayRate(DelayRateConfig{}))
	b.ReportAllocs()
	for b.Loop() {
		f.now += time.Microsecond
		f.st.Tick(f.now, 1<<20)
	}
}

func BenchmarkRate(b *testing.B) {
	f := newFeed(NewDelayRate(DelayRateConfig{}))
	b.ReportAllocs()
	for b.Loop() {
		f.st.Rate(f.now)
	}
}

func BenchmarkReport(b *testing.B) {
	f := newFeed(NewDelayRate(DelayRateConfig{}))
	b.ReportAllocs()
	for b.Loop() {
		f.now += 25 * ms
		f.sent()
		f.report()
	}
}
