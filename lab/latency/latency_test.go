// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/world"
)

func TestMeter(t *testing.T) {
	var m meter
	began := time.Now()
	total := uint64(0)
	for i := range 40 { // 1 kB/s for a second, then 10 kB/s
		m.at, m.bytes = append(m.at, began.Add(time.Duration(i)*meterEvery)), append(m.bytes, total)
		if total += 50; i >= 20 {
			total += 450
		}
	}
	after := func(d time.Duration) time.Time { return began.Add(d) }
	if got := m.rate(after(time.Second), after(2*time.Second)); got < 9900 || got > 10100 {
		t.Errorf("rate = %v, want 10000", got)
	}
	if got := m.rate(after(3*time.Second), after(4*time.Second)); got != 0 {
		t.Errorf("rate after the end = %v, want 0", got)
	}
	if got := m.reached(began, after(2*time.Second), 9000); got != 1200*time.Millisecond {
		t.Errorf("reached after %v, want 1.2s", got)
	}
	if got := m.reached(began, after(time.Second), 9000); got != world.Never {
		t.Errorf("reached within the first second after %v, want never", got)
	}
}

func TestParseReassembled(t *testing.T) {
	const text = "Ip: Forwarding ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs\nIp: 1 3 100 7 4 0\nIcmp: InMsgs\nIcmp: 0\n"
	whole, partial, err := parseReassembled(text)
	if whole != 7 || partial != 4 || err != nil {
		t.Errorf("%d whole, %d partial, %v, want 7, 4", whole, partial, err)
	}
	if _, _, err := parseReassembled("Icmp: InMsgs\nIcmp: 0\n"); err == nil {
		t.Error("no error without the counters")
	}
}

func TestPlan(t *testing.T) {
	seen := map[string]bool{}
	for _, sc := range Plan(0) {
		if sc.Text == "" || len(sc.Cases) == 0 || seen[sc.Name] {
			t.Errorf("scenario %q has no text, no case, or a name that was there before", sc.Name)
		}
		seen[sc.Name] = true
		for _, c := range sc.Cases {
			if c.Do == nil || c.Limit < time.Minute || !c.Alone {
				t.Errorf("case %q of %s: %+v", c.Name, sc.Name, c)
			}
		}
	}
	if Plan(time.Second)[0].Cases[0].Limit >= Plan(0)[0].Cases[0].Limit {
		t.Error("a shorter load has no shorter limit")
	}
}
