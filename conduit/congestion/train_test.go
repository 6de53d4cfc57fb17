// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"testing"
	"time"
)

// A train that the receiver sees as a part of more, or a part of which it sees, is
// the train all the same if all of it left back to back.
func TestTrainInMore(t *testing.T) {
	const (
		size = 1410
		us   = time.Microsecond
		ms   = time.Millisecond
	)
	type sent struct {
		at      time.Duration
		n       uint64
		lane    uint8
		session uint32
	}
	paced := func(at time.Duration, n uint64) sent { return sent{at, n, Bulk, 7} }
	// The train is the 10 packets that leave at 50 ms.
	for name, tt := range map[string]struct {
		before, after []sent
		first, bytes  int // of what was seen, from the train's first and in packets
		want          bool
	}{
		"the train":                       {nil, nil, 0, 9, true},
		"with one before":                 {[]sent{paced(50*ms-100*us, 1)}, nil, -1, 10, true},
		"with some before":                {[]sent{paced(50*ms-180*us, 1), paced(50*ms-90*us, 2)}, nil, -3, 12, true},
		"critical between":                {[]sent{paced(50*ms-100*us, 1), {50*ms - 50*us, 1, Critical, 7}}, nil, -1, 10, true},
		"with one before, last lost":      {[]sent{paced(50*ms-100*us, 1)}, nil, -1, 9, true},
		"with one behind":                 {nil, []sent{paced(50*ms+100*us, 1)}, 0, 10, true},
		"first lost":                      {nil, nil, 1, 8, true},
		"last lost":                       {nil, nil, 0, 8, true},
		"four of it":                      {nil, nil, 6, 3, true},
		"the one before left long ago":    {[]sent{paced(50*ms-300*us, 1)}, nil, -1, 10, false},
		"the one behind left much later":  {nil, []sent{paced(50*ms+300*us, 1)}, 0, 10, false},
		"more than left":                  {nil, nil, 0, 10, false},
		"more than is behind its first":   {nil, nil, 6, 4, false},
		"before it":                       {[]sent{paced(50*ms-100*us, 5)}, nil, -5, 4, false},
		"behind it":                       {nil, []sent{paced(50*ms+100*us, 5)}, 10, 4, false},
		"as long, before it":              {[]sent{paced(49*ms, 10)}, nil, -10, 9, false},
		"never sent":                      {nil, nil, -1, 10, false},
		"another session's":               {[]sent{{50*ms - 100*us, 1, Bulk, 8}}, nil, -1, 10, false},
		"another lane's":                  {[]sent{{50*ms - 100*us, 1, Telemetry, 7}}, nil, -1, 10, false},
		"both, and nothing of it is lost": {[]sent{paced(50*ms-50*us, 2)}, []sent{paced(50*ms+100*us, 2)}, -2, 13, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := NewDelayRate(DelayRateConfig{})
			next := uint64(100)
			leave := func(s sent) {
				c.Sent(s.at, Sent{Lane: s.lane, Session: s.session, First: next, Last: next + s.n - 1, Packets: int(s.n), Bytes: int(s.n) * size})
				next += s.n
			}
			for _, s := range tt.before {
				leave(s)
				if s.lane == Critical {
					next-- // has a counter of its own
				}
			}
			first := next
			leave(paced(50*ms, 10))
			c.TrainSent(50*ms+30*us, Train{Session: 7, First: first, Last: first + 9, Packets: 10, Bytes: 9 * size})
			for _, s := range tt.after {
				leave(s)
			}
			r := Report{Train: TrainSeen{First: first + uint64(tt.first), Bytes: tt.bytes * size, Dispersion: time.Duration(tt.bytes) * ms}}
			if got := c.take(60*ms, &r); (got != 0) != tt.want || tt.want && (got < 1.40e6 || got > 1.42e6) {
				t.Errorf("it shows %.0f bytes/s", got)
			}
			if c.train.out() == tt.want || c.train.count == 1 != tt.want {
				t.Errorf("out: %t, results: %d", c.train.out(), c.train.count)
			}
		})
	}
}
