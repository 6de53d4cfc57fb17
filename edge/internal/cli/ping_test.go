// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
)

func TestPingStats(t *testing.T) {
	s := &pingStats{}
	if got := s.summary("bulk"); got != (laneSummary{Lane: "bulk"}) {
		t.Errorf("of nothing: %+v", got)
	}
	for i := range 200 { // 1 to 100 ms twice, and as many without an answer
		s.add(&edgev1.PingResponse{Answered: true, RttUs: 1000 * float64(i%100+1), WaitUs: 500, HoldUs: 250})
		s.add(&edgev1.PingResponse{})
	}
	want := laneSummary{Lane: "bulk", Sent: 400, Answered: 200, Loss: 0.5, Min: 1, Avg: 50.5, P50: 50, P99: 99, Max: 100, Mdev: 28.866, Wait: 0.5, Hold: 0.25}
	if diff := cmp.Diff(want, s.summary("bulk"), cmpopts.EquateApprox(0, 0.001)); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	for range maxSamples {
		s.add(&edgev1.PingResponse{Answered: true, RttUs: 7000})
	}
	if got := s.summary("bulk"); got.P99 != 7 || got.Max != 100 || len(s.recent) != maxSamples {
		t.Errorf("after many: %+v of %d", got, len(s.recent))
	}
}

// TestPingRows: rows come in their order, whatever the answers' is, and what was not
// complete in the end is shown too.
func TestPingRows(t *testing.T) {
	var out strings.Builder
	p := &pingPrinter{a: &App{Stdout: &out}, lanes: []string{"critical", "bulk"}, stats: []*pingStats{{}, {}}}
	tell := func(seq uint32, lane string) {
		t.Helper()
		if err := p.message(&edgev1.PingResponse{Name: "b", VirtualIp: "10.66.0.2", Size: 64, Seq: seq, Lane: lane, Answered: true, RttUs: 1000 * float64(seq)}); err != nil {
			t.Fatal(err)
		}
	}
	tell(0, "")
	out.Reset()
	tell(1, "critical")
	tell(2, "bulk")
	tell(2, "critical")
	if out.Len() != 0 {
		t.Errorf("row 2 before row 1:\n%s", out.String())
	}
	tell(1, "bulk")
	tell(3, "bulk")
	tell(9, "other")
	out.WriteString(p.end())
	want := `    1   1.00 ms  0.00+0.00      1.00 ms  0.00+0.00
    2   2.00 ms  0.00+0.00      2.00 ms  0.00+0.00
    3  -                        3.00 ms  0.00+0.00

b: times in ms; HERE and THERE are the mean waits in queues
`
	if got := out.String(); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
