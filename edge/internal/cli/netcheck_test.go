// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/edge/internal/netcheck"
)

func TestJudge(t *testing.T) {
	seen := func(nat string) netUplink {
		return netUplink{Name: "eth0", Checks: []netcheck.Check{{Local: "192.0.2.1:5", NAT: nat, Answers: []netcheck.Answer{{Mapped: "198.51.100.1:1"}}}}}
	}
	silent := netUplink{Name: "wwan0", Checks: []netcheck.Check{{Local: "10.0.0.1:5", Answers: []netcheck.Answer{{Error: "no answer"}}}}}
	stun := []string{"s:1"}
	for _, tc := range []struct {
		name    string
		in      netReport
		servers []string
		udp     string
		nat     string
		problem string
		warning string
	}{
		{"Good", netReport{Hub: netHub{Reachable: true}, Uplinks: []netUplink{seen(netcheck.EndpointIndependent)}}, stun, "works", "endpoint-independent", "", ""},
		{"Symmetric", netReport{Hub: netHub{Reachable: true}, Uplinks: []netUplink{seen(netcheck.Symmetric), seen(netcheck.None)}}, stun, "works", "symmetric", "", "a symmetric NAT: "},
		{"OneSilent", netReport{Hub: netHub{Reachable: true}, Uplinks: []netUplink{seen(netcheck.None), silent}}, stun, "works", "none", "", "wwan0: no STUN server answers 10.0.0.1:5"},
		{"Blocked", netReport{Hub: netHub{Reachable: true}, Uplinks: []netUplink{silent}, HubRelay: &netRelay{Available: true}}, stun, "blocked", "", "UDP is blocked", "the hub carries all traffic meanwhile"},
		{"NoSTUN", netReport{Hub: netHub{Reachable: true}, Uplinks: []netUplink{silent}, udpPaths: 1}, stun, "works", "", "", "peers are reached by UDP"},
		{"NoUplink", netReport{Hub: netHub{Reachable: true}}, stun, "unknown", "", "no interface", ""},
		{"NoServers", netReport{Hub: netHub{Reachable: true}, Uplinks: []netUplink{silent}}, nil, "unknown", "", "", "names no STUN servers"},
		{"NoHub", netReport{Hub: netHub{Error: "boom"}, Uplinks: []netUplink{seen(netcheck.None)}}, stun, "works", "none", "the hub is not reachable: boom", ""},
		{"NoHubYet", netReport{Uplinks: []netUplink{seen(netcheck.None)}}, stun, "works", "none", "no connection yet", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := tc.in
			r.judge(tc.servers)
			if r.UDP != tc.udp || r.NAT != tc.nat || r.OK != (tc.problem == "") {
				t.Errorf("udp %s, nat %s, ok %v", r.UDP, r.NAT, r.OK)
			}
			has := func(list []string, want string) bool {
				if want == "" {
					return len(list) == 0
				}
				return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, want) })
			}
			if !has(r.Problems, tc.problem) || !has(r.Warnings, tc.warning) {
				t.Errorf("problems %q, warnings %q", r.Problems, r.Warnings)
			}
		})
	}
}

// TestWatch: each tick draws over the last frame, and an interrupt is a good end.
func TestWatch(t *testing.T) {
	var out bytes.Buffer
	a := &App{Stdout: &out}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tick := make(chan time.Time, 2)
	tick <- time.Time{}
	tick <- time.Time{}
	frames := []string{"one\ntwo\n", "three\n"}
	err := a.watch(ctx, tick, func(context.Context) (string, error) {
		if len(frames) == 0 {
			cancel()
			return "", ctx.Err()
		}
		f := frames[0]
		frames = frames[1:]
		return f, nil
	})
	if want := "\x1b[H\x1b[J\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J\x1b[Hthree\x1b[K\n\x1b[J"; err != nil || out.String() != want {
		t.Errorf("watch = %v\n%q, want\n%q", err, out.String(), want)
	}
	boom := errors.New("boom")
	if err := a.watch(t.Context(), tick, func(context.Context) (string, error) { return "", boom }); !errors.Is(err, boom) {
		t.Errorf("watch = %v, want boom", err)
	}
}

func TestFit(t *testing.T) {
	for _, tc := range []struct {
		height int
		want   string
	}{{0, "1\n2\n3\n4\n"}, {5, "1\n2\n3\n4\n"}, {4, "1\n2\n… and 2 lines more\n"}, {3, "1\n… and 3 lines more\n"}} {
		if got := fit("1\n2\n3\n4\n", tc.height); got != tc.want {
			t.Errorf("fit to %d = %q, want %q", tc.height, got, tc.want)
		}
	}
}

func TestFormat(t *testing.T) {
	for f, want := range map[float64]string{0: "-", 0.0001: "-", 0.0005: "0.1 %", 0.034: "3.4 %", 0.0994: "9.9 %", 0.0995: "10 %", 0.5: "50 %", 1: "100 %"} {
		if got := share(f); got != want {
			t.Errorf("share(%v) = %s, want %s", f, got, want)
		}
	}
	for _, tc := range []struct {
		in    string
		width int
		want  string
	}{{"abc", 3, "abc"}, {"abcdefgh", 5, "ab…gh"}, {"äöüäöü", 4, "ä…öü"}} {
		if got := clip(tc.in, tc.width); got != tc.want {
			t.Errorf("clip(%s, %d) = %s, want %s", tc.in, tc.width, got, tc.want)
		}
	}
	if got := lanes([]string{"bulk", "critical", "x"}); got != "CB" {
		t.Errorf("lanes = %s", got)
	}
}
