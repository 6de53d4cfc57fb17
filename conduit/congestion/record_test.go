// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"testing"
	"time"
)

func TestRecordFinds(t *testing.T) {
	var r record
	r.add(1*ms, &Sent{Lane: Bulk, Session: 1, First: 10, Last: 19, Packets: 10, Bytes: 1000})
	r.add(2*ms, &Sent{Bytes: 50, Packets: 1}) // STUN
	r.add(3*ms, &Sent{Lane: Critical, Session: 1, First: 10, Last: 10, Packets: 1, Bytes: 100})
	r.add(4*ms, &Sent{Lane: Critical, Session: 1, First: 10, Last: 10, Packets: 1, Bytes: 100, Copies: 1})
	r.add(5*ms, &Sent{Lane: Telemetry, Session: 2, First: 10, Last: 11, Packets: 2, Bytes: 300})
	r.add(6*ms, &Sent{Lane: Critical, Session: 2, First: 4, Last: 4, Packets: 1, Bytes: 100, Copies: 1})
	for _, c := range []struct {
		session uint32
		lane    uint8
		counter uint64
		at      time.Duration
		want    totals
	}{
		{1, Bulk, 19, 1 * ms, totals{bytes: 1000, bulk: 1000, packets: 10}},
		{1, Bulk, 10, 1 * ms, totals{bytes: 100, bulk: 100, packets: 1}},
		{1, Bulk, 14, 1 * ms, totals{bytes: 500, bulk: 500, packets: 5}},
		{1, Critical, 10, 3 * ms, totals{bytes: 1150, bulk: 1000, packets: 11}}, // not its copy
		{2, Telemetry, 10, 5 * ms, totals{bytes: 1400, bulk: 1000, telemetry: 150, packets: 13}},
		{2, Critical, 4, 6 * ms, totals{bytes: 1650, bulk: 1000, telemetry: 300, packets: 15}}, // a copy alone
	} {
		at, got, ok := r.find(c.session, c.lane, c.counter)
		if !ok || at != c.at || got != c.want {
			t.Errorf("find(%d, %d, %d) = %v, %+v, %v; want %v, %+v", c.session, c.lane, c.counter, at, got, ok, c.at, c.want)
		}
	}
	for _, c := range []struct {
		session uint32
		lane    uint8
		counter uint64
	}{{1, Bulk, 9}, {1, Bulk, 20}, {3, Bulk, 10}, {1, Telemetry, 10}, {0, 0, 0}} {
		if _, _, ok := r.find(c.session, c.lane, c.counter); ok {
			t.Errorf("found %+v", c)
		}
	}
}

func TestRecordGrows(t *testing.T) {
	var r record
	now := time.Duration(0)
	add := func(n int, gap time.Duration) {
		for range n {
			now += gap
			k := r.packets + 1
			r.add(now, &Sent{Lane: Bulk, Session: 1, First: k, Last: k, Packets: 1, Bytes: 100})
		}
	}
	add(1000, 20*ms)
	if len(r.ring) != recordMin {
		t.Errorf("%d batches kept at 50 per second, want %d", len(r.ring), recordMin)
	}
	add(1000, 2*ms)
	if len(r.ring) != 512 {
		t.Errorf("%d batches kept at 500 per second, want 512", len(r.ring))
	}
	for k := r.packets; k > r.packets-512; k-- {
		if _, got, ok := r.find(1, Bulk, k); !ok || got.packets != k || got.bytes != 100*k {
			t.Fatalf("find(%d) = %+v, %v", k, got, ok)
		}
	}
	if _, _, ok := r.find(1, Bulk, r.packets-512); ok {
		t.Error("found what must have been forgotten")
	}
	add(20000, 10*time.Microsecond)
	if len(r.ring) != recordMax {
		t.Errorf("%d batches kept at 100,000 per second, want %d", len(r.ring), recordMax)
	}
}
