// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// -rewrite writes what the machine says into the scenarios. Read the difference
// before you commit it: it is what the machine will do to a fleet.
var rewrite = flag.Bool("rewrite", false, "rewrite testdata/stage")

// TestStages runs the scenarios of testdata/stage. A line is a command, a line
// that begins with > is what the machine says, # begins a comment:
//
//	nodes c1 c2 -c3              canary nodes, online or (-) not
//	start hold=10m applied=100 denied=50 online=90
//	report c1 applied=2 denied=7
//	tests broken                 or: tests ok
//	tick 1m                      in steps of 5 s; shows changes only
//	jump -87600h                 the hub was away and the clock is another one
func TestStages(t *testing.T) {
	files, err := filepath.Glob("testdata/stage/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(err, "no scenarios")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := (&scenario{t: t, now: time.Unix(1e9, 0)}).run(string(b))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(b), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

type scenario struct {
	t     *testing.T
	now   time.Time
	plan  Plan
	m     *Machine
	until time.Time // hold_until as it would be stored
	nodes []Node
	tests error
	last  string
	out   strings.Builder
}

func (s *scenario) run(text string) string {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, ">") {
			continue
		}
		s.out.WriteString(line + "\n")
		if f := strings.Fields(line); len(f) > 0 && f[0] != "#" {
			s.command(f[0], f[1:])
		}
	}
	return s.out.String()
}

func (s *scenario) command(name string, args []string) {
	switch name {
	case "nodes":
		old := s.nodes
		s.nodes = nil
		for _, a := range args {
			id, off := strings.CutPrefix(a, "-")
			n := Node{ID: id, Name: id}
			if i := slices.IndexFunc(old, func(o Node) bool { return o.ID == id }); i >= 0 {
				n = old[i]
			}
			n.Online = !off
			s.nodes = append(s.nodes, n)
		}
	case "start":
		s.plan = Plan{Base: 1, Candidate: 2, Canary: []string{"tag:canary"}, Hold: s.duration(args, "hold")}
		s.plan.Expect = Expectations{
			MinAppliedPercent: int(s.number(args, "applied")), MaxDeniedPerMinute: s.number(args, "denied"), MinOnlinePercent: int(s.number(args, "online")),
		}
		for _, n := range s.nodes {
			if n.Online {
				s.plan.Online = append(s.plan.Online, n.ID)
			}
		}
		if err := s.plan.Validate(); err != nil {
			s.say(err.Error())
			return
		}
		s.m, s.until = NewMachine(s.plan, s.now), s.now.Add(s.plan.Hold)
		s.step()
	case "report":
		for i := range s.nodes {
			if s.nodes[i].ID == args[0] {
				s.nodes[i].Applied, s.nodes[i].Denied, s.nodes[i].Reported = s.number(args, "applied"), s.number(args, "denied"), s.now
			}
		}
	case "tests":
		s.tests = nil
		if args[0] != "ok" {
			s.tests = errors.New("test 1: " + args[0])
		}
	case "tick":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			s.t.Fatal(err)
		}
		for range d / (5 * time.Second) {
			s.now = s.now.Add(5 * time.Second)
			s.step()
		}
	case "jump":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			s.t.Fatal(err)
		}
		s.now = s.now.Add(d)
		for i := range s.nodes {
			s.nodes[i].Reported, s.nodes[i].Applied = time.Time{}, 0
		}
		s.m = Resume(s.plan, s.until, s.now)
		s.last = ""
		s.step()
	default:
		s.t.Fatalf("unknown command %q", name)
	}
}

func (s *scenario) step() {
	p := s.m.Step(s.now, s.nodes, s.tests)
	text := fmt.Sprintf("%s, %d of %d applied", p.State, p.Applied, p.Nodes)
	if p.Reason != "" {
		text += ": " + p.Reason
	}
	if text == s.last {
		return
	}
	s.last = text
	s.say(fmt.Sprintf("%s, %s left", text, p.Left))
}

func (s *scenario) say(text string) { s.out.WriteString("> " + text + "\n") }

func (s *scenario) value(args []string, key string) string {
	for _, a := range args {
		if k, v, ok := strings.Cut(a, "="); ok && k == key {
			return v
		}
	}
	return ""
}

func (s *scenario) number(args []string, key string) uint64 {
	v := s.value(args, key)
	if v == "" {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *scenario) duration(args []string, key string) time.Duration {
	v := s.value(args, key)
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// A clock that goes back within a run of the hub makes no hold longer.
func TestClockGoesBack(t *testing.T) {
	start := time.Unix(1e9, 0)
	p := Plan{Candidate: 2, Canary: []string{"*"}, Hold: time.Minute}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	m := NewMachine(p, start)
	nodes := []Node{{ID: "a", Online: true, Applied: 2}}
	if got := m.Step(start.Add(-time.Hour), nodes, nil); got.Left != time.Minute {
		t.Errorf("an hour back: %+v", got)
	}
	if got := m.Step(start.Add(-time.Hour+10*time.Second), nodes, nil); got.Left != 50*time.Second {
		t.Errorf("10 s later: %+v", got)
	}
	// Forwards it ends none at once either.
	m = NewMachine(Plan{Candidate: 2, Hold: time.Hour, Expect: p.Expect}, start)
	if got := m.Step(start.Add(10*365*24*time.Hour), nodes, nil); got.State != Canary || got.Left != 59*time.Minute {
		t.Errorf("ten years on: %+v", got)
	}
}
