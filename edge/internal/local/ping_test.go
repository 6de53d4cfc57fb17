// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
)

func ping(t *testing.T, path string, req *edgev1.PingRequest) ([]*edgev1.PingResponse, error) {
	t.Helper()
	c := NewClient(path)
	defer c.Close()
	var out []*edgev1.PingResponse
	err := c.Ping(t.Context(), req, func(m *edgev1.PingResponse) error {
		out = append(out, m)
		return nil
	})
	return out, err
}

func TestPing(t *testing.T) {
	path, _ := serve(t)
	got, err := ping(t, path, &edgev1.PingRequest{Peer: "b", Count: 2, IntervalUs: 20_000, TimeoutUs: 1000, Lanes: []string{"critical", "telemetry"}})
	if err != nil || len(got) != 5 {
		t.Fatalf("ping = %v, %v; want five messages", got, err)
	}
	if m := got[0]; m.GetSeq() != 0 || m.GetName() != "b" || m.GetVirtualIp() != "10.66.0.2" || m.GetSize() != conduit.DefaultPing {
		t.Errorf("first message = %v", m)
	}
	var seen []string
	for _, m := range got[1:] {
		seen = append(seen, fmt.Sprint(m.GetLane(), m.GetSeq(), m.GetAnswered()))
		if m.GetAnswered() && (m.GetRttUs() != 12000 || m.GetWaitUs() != 1000 || m.GetHoldUs() != 1.5 || m.GetPathType() != "direct" || m.GetUplink() != "wlan0" || m.GetRemote() != "192.0.2.1:7") {
			t.Errorf("answer = %v", m)
		}
	}
	slices.Sort(seen)
	if want := "critical1 true critical2 true telemetry1 false telemetry2 false"; strings.Join(seen, " ") != want {
		t.Errorf("told of %v, want %v", seen, want)
	}
}

func TestPingErrors(t *testing.T) {
	path, _ := serve(t)
	for _, tc := range []struct {
		name string
		req  *edgev1.PingRequest
		is   error  // may be nil
		want string // in the text
	}{
		{"NoPeer", &edgev1.PingRequest{Peer: "nobody"}, ErrNoPeer, "nobody"},
		{"NoPath", &edgev1.PingRequest{Peer: "c"}, ErrNoPath, "no path: no answer"},
		{"Lane", &edgev1.PingRequest{Peer: "b", Lanes: []string{"fast"}}, nil, `"fast"`},
		{"Lanes", &edgev1.PingRequest{Peer: "b", Lanes: make([]string, 4)}, nil, "three"},
		{"Interval", &edgev1.PingRequest{Peer: "b", IntervalUs: 19_999}, nil, "19.999ms"},
		{"LongInterval", &edgev1.PingRequest{Peer: "b", IntervalUs: 1 << 63}, nil, "24h"},
		{"Timeout", &edgev1.PingRequest{Peer: "b", TimeoutUs: 1 << 40}, nil, "timeout"},
		{"Small", &edgev1.PingRequest{Peer: "b", Size: 1}, nil, "size is 1"},
		{"Large", &edgev1.PingRequest{Peer: "b", Size: 1 << 31}, nil, "size is 2147483648"},
		{"Size", &edgev1.PingRequest{Peer: "b", Size: 1000}, nil, "1000 bytes"},
		{"Caps", &edgev1.PingRequest{Peer: "b", Size: 1001}, nil, "answers no echoes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ping(t, path, tc.req)
			if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("ping = %v, want %v with %q", err, tc.is, tc.want)
			}
		})
	}
	// What may pass is told of each echo.
	got, err := ping(t, path, &edgev1.PingRequest{Peer: "b", Count: 1, Size: 1002})
	if err != nil || len(got) != 2 || got[1].GetAnswered() || got[1].GetError() == "" {
		t.Errorf("ping = %v, %v", got, err)
	}
}

// TestPingPace: echoes leave at their interval, whether or not there are answers.
func TestPingPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var mu sync.Mutex // guards sent
		var sent, told []time.Duration
		p := &pinger{lanes: []string{"bulk"}, count: 3, interval: time.Second, timeout: 2500 * time.Millisecond}
		p.ping = func(ctx context.Context, _ string) (conduit.PingResult, error) {
			mu.Lock()
			sent = append(sent, time.Since(start))
			mu.Unlock()
			<-ctx.Done()
			return conduit.PingResult{}, ctx.Err()
		}
		p.send = func(m *edgev1.PingResponse) error {
			if m.GetAnswered() || m.GetError() != "" {
				t.Errorf("message = %v", m)
			}
			told = append(told, time.Since(start))
			return nil
		}
		if err := p.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := time.Second
		if !slices.Equal(sent, []time.Duration{0, s, 2 * s}) || !slices.Equal(told, []time.Duration{5 * s / 2, 7 * s / 2, 9 * s / 2}) {
			t.Errorf("sent at %v, told at %v", sent, told)
		}
	})
}

// TestPingEnds: nothing is left of a caller who goes away, or whose reading fails.
func TestPingEnds(t *testing.T) {
	for _, byCaller := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p := &pinger{lanes: []string{"critical", "telemetry", "bulk"}, interval: time.Second, timeout: 5 * time.Second}
			p.ping = func(ctx context.Context, lane string) (conduit.PingResult, error) {
				if lane == "bulk" {
					return conduit.PingResult{}, nil
				}
				<-ctx.Done()
				return conduit.PingResult{}, ctx.Err()
			}
			n, broken := 0, errors.New("broken pipe")
			p.send = func(*edgev1.PingResponse) error {
				switch n++; {
				case n < 4:
					return nil
				case byCaller:
					cancel()
					return nil
				}
				return broken
			}
			if err := p.run(ctx); byCaller && !errors.Is(err, context.Canceled) || !byCaller && !errors.Is(err, broken) {
				t.Errorf("run = %v", err)
			}
		})
	}
}
