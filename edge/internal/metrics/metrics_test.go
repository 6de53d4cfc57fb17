// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// robot has an uplink whose Bulk stands in a queue.
func robot() *conduit.Status {
	st := &conduit.Status{
		Node: conduit.NodeStatus{
			ID: "abc", Name: "robot7", CertificateExpires: time.Unix(1_800_000_000, 0), UptimeSeconds: 3700.5,
			Uplinks: []conduit.UplinkStatus{{Name: "wwan0", Metered: true, TxBytes: 12e6, RxBytes: 3e6, Rate: 8e6, Backlog: 3000}},
		},
		Hub:    conduit.HubStatus{Connected: true},
		Policy: conduit.PolicyStatus{Version: 4, Denied: map[string]uint64{"default": 3, "odd \"rule\"\\\n": 7}, Alarms: []conduit.PolicyAlarm{{Rule: "camera", Peer: "base", Lane: "bulk", Action: "demote", Packets: 9}}},
		Peers: []conduit.PeerStatus{
			{Name: "arm", State: "idle"},
			{
				Name: "base", State: "connected", TxPackets: 5, TxBytes: 500, Keys: conduit.KeyStatus{Rekeys: 12, Handshakes: 2},
				Paths: []conduit.PathDetail{
					{
						Kind: "direct", Uplink: "wwan0", Remote: "198.51.100.7:41641", State: "valid", RTT: 12.5, MTU: 1452, TxBytes: 1 << 60,
						Pacing: &conduit.PacingStatus{Strategy: "delay-rate", State: conduit.PaceSteady, Rate: 16e6, Delivery: 12e6, Queue: 4, BaseRTT: 12, Noise: 0.5, Loss: 0.01, Copies: 1, Waiting: 9000},
					},
					{Kind: "peer-relay", State: "valid", RTT: 30},
					{Kind: "peer-relay", State: "valid", RTT: 40}, // through another peer; the text cannot tell them apart
					{Kind: "direct", Uplink: "wlan0", Remote: "10.0.0.7:41641", State: "dead"},
				},
			},
		},
		Counters: conduit.Counters{TxDroppedBy: map[string]uint64{"no_path": 3}, RxDroppedBy: map[string]uint64{"forged": 1, "replay": 0}, WireTxBytes: 1000},
	}
	st.Lanes.Bulk = conduit.LaneStatus{TxPackets: 10, TxBytes: 13000, Queued: 7, QueuedBytes: 9100, Sojourn: 24, SojournMax: 31.5, Dropped: 3, DroppedBy: map[string]uint64{"codel": 2, "overflow": 1}, Marked: 4}
	st.Lanes.Telemetry.Demoted = 9
	return st
}

func TestText(t *testing.T) {
	got := string(Text(robot(), "1.2"))
	const name = "testdata/robot.txt"
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("text (-want +got); -update writes it anew:\n%s", diff)
	}
	check(t, got)
}

// sampleLine is a line as the format has it, with the names that this package uses.
var sampleLine = regexp.MustCompile(`^(bauxite_[a-z_]+)(\{[a-z]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z]+="(?:[^"\\\n]|\\[\\"n])*")*\})? (-?[0-9.e+-]+|\+Inf)$`)

// check reads the text as a server would: each metric once with HELP and TYPE before
// its samples, and no sample twice.
func check(t *testing.T, text string) (samples int) {
	t.Helper()
	seen, current := map[string]bool{}, ""
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, l := range lines {
		if name, ok := strings.CutPrefix(l, "# HELP "); ok {
			current, _, _ = strings.Cut(name, " ")
			if seen[current] {
				t.Errorf("metric %s stands twice", current)
			}
			seen[current] = true
			typ := "gauge"
			if strings.HasSuffix(current, "_total") {
				typ = "counter"
			}
			if want := "# TYPE " + current + " " + typ; i+1 >= len(lines) || lines[i+1] != want {
				t.Errorf("after %q comes no %q", l, want)
			}
			continue
		}
		if strings.HasPrefix(l, "# TYPE ") {
			continue
		}
		m := sampleLine.FindStringSubmatch(l)
		if m == nil || m[1] != current || seen[m[1]+m[2]] && m[2] != "" {
			t.Errorf("bad line %q in %s", l, current)
			continue
		}
		seen[m[1]+m[2]] = true
		samples++
	}
	return samples
}

// TestBounded: a large mesh and a large policy cost no more than so many lines.
func TestBounded(t *testing.T) {
	st := robot()
	st.Policy.Denied = map[string]uint64{}
	for i := range 10_000 {
		st.Policy.Denied[fmt.Sprintf("rule-%d", i)] = uint64(i)
		st.Policy.Alarms = append(st.Policy.Alarms, conduit.PolicyAlarm{Rule: fmt.Sprint(i)})
	}
	busy := st.Peers[1]
	for i := range 5000 {
		p := busy
		p.Name = fmt.Sprintf("a%d", i) // sorts before base
		if i < 4000 {
			p.State, p.Paths = "idle", nil
		} else {
			for j := range 50 {
				p.Paths = append(p.Paths, conduit.PathDetail{Kind: "direct", State: "valid", Remote: fmt.Sprint(j)})
			}
		}
		st.Peers = append(st.Peers, p)
	}
	text := string(Text(st, ""))
	if n := check(t, text); n > 10_000 {
		t.Errorf("%d samples", n)
	}
	for _, want := range []string{
		`bauxite_metrics_omitted{kind="peer"} 4938`, `bauxite_metrics_omitted{kind="rule"} 9936`, `bauxite_metrics_omitted{kind="alarm"} 9937`,
		`bauxite_policy_denied_packets_total{rule="rule-9999"} 9999`, `bauxite_peers{state="idle"} 4001`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(text, `peer="a1"`) {
		t.Error("an idle peer took the place of a connected one")
	}
}

func TestServe(t *testing.T) {
	fail := false
	s, err := Serve(t.Context(), "127.0.0.1:0", "1.2", func(context.Context) (*conduit.Status, error) {
		if fail {
			return nil, errors.New("is stopping")
		}
		return robot(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	if code, text := get("/metrics"); code != http.StatusOK || text != string(Text(robot(), "1.2")) {
		t.Errorf("/metrics: %d, %s", code, text)
	}
	if code, _ := get("/"); code != http.StatusNotFound {
		t.Errorf("/: %d, want 404", code)
	}
	fail = true
	if code, text := get("/metrics"); code != http.StatusServiceUnavailable || !strings.Contains(text, "is stopping") {
		t.Errorf("without a status: %d, %s", code, text)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Serve(t.Context(), "256.0.0.1:1", "", nil); err == nil {
		t.Error("listens on 256.0.0.1")
	}
}
