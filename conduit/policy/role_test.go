// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func role(fields string) string {
	return `{"version":1,"roles":[{"name":"cam","members":["tag:cam"]` + fields + `}],"allow":[{"src":["role:cam"],"dst":["*"]}]}`
}

func TestParseRoles(t *testing.T) {
	for name, text := range map[string]string{
		"group":        role(``),
		"nothing":      role(`,"publish":[]`),
		"lanes":        role(`,"publish":["bulk"]`),
		"budget":       role(`,"publish":["bulk"],"budgets":{"bulk":{"packets_per_second":1}}`),
		"whole budget": role(`,"publish":["bulk"],"budgets":{"bulk":{"packets_per_second":1,"burst_packets":1,"bits_per_second":1,"burst_bits":16000}}`),
		"test":         strings.TrimSuffix(role(``), "}") + `,"tests":[{"src":"role:cam","dst":"*","want":"allow"}]}`,
	} {
		d, err := Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		again, err := Parse(d.Marshal())
		if err != nil {
			t.Errorf("%s: own text: %v", name, err)
		}
		// An empty list of lanes must not come back as none at all.
		if diff := cmp.Diff(d, again); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
	for name, text := range map[string]string{
		"no name":         `{"version":1,"roles":[{"members":["*"]}]}`,
		"bad name":        `{"version":1,"roles":[{"name":"A b","members":["*"]}]}`,
		"name twice":      `{"version":1,"roles":[{"name":"a","members":["*"]},{"name":"a","members":["*"]}]}`,
		"no members":      `{"version":1,"roles":[{"name":"a"}]}`,
		"role as member":  `{"version":1,"roles":[{"name":"a","members":["*"]},{"name":"b","members":["role:a"]}]}`,
		"bad member":      `{"version":1,"roles":[{"name":"a","members":["10.0.0.1"]}]}`,
		"unknown role":    `{"version":1,"allow":[{"src":["role:x"],"dst":["*"]}]}`,
		"role in test":    `{"version":1,"tests":[{"src":"role:x","dst":"*","want":"deny"}]}`,
		"empty role":      `{"version":1,"allow":[{"src":["role:"],"dst":["*"]}]}`,
		"publish null":    role(`,"publish":null`),
		"publish lane":    role(`,"publish":["fast"]`),
		"budget, group":   role(`,"budgets":{"bulk":{"packets_per_second":1}}`),
		"budget, other":   role(`,"publish":["bulk"],"budgets":{"critical":{"packets_per_second":1}}`),
		"budget lane":     role(`,"publish":["bulk"],"budgets":{"fast":{"packets_per_second":1}}`),
		"budget empty":    role(`,"publish":["bulk"],"budgets":{"bulk":{}}`),
		"budget zero":     role(`,"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":0}}`),
		"budget negative": role(`,"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":-1}}`),
		"budget twice":    role(`,"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":1},"bulk":{"bits_per_second":2}}`),
		"burst alone":     role(`,"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":1,"burst_packets":1}}`),
		"burst small":     role(`,"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":1,"burst_bits":15999}}`),
		"burst large":     role(`,"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":1,"burst_bits":4000000001}}`),
		"rate large":      role(`,"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":1000000000001}}`),
		"budget key":      role(`,"publish":["bulk"],"budgets":{"bulk":{"bytes":1}}`),
		"too many":        `{"version":1,"roles":[` + strings.TrimSuffix(strings.Repeat(`{"name":"a","members":["*"]},`, MaxRoles+1), ",") + `]}`,
	} {
		if d, err := Parse([]byte(text)); !errors.Is(err, ErrDocument) || d != nil {
			t.Errorf("%s: Parse = %v, %v, want nil, ErrDocument", name, d, err)
		}
	}
	d := &Document{Version: 1, Roles: []Role{{Name: "a", Members: []string{"*"}, Publish: []Lane{Bulk}, Budgets: map[Lane]Limit{7: {BitsPerSecond: 1}}}}}
	if err := d.Validate(); !errors.Is(err, ErrDocument) {
		t.Errorf("budget of lane 7: %v", err)
	}
}

func sandboxes() *Document {
	d := Default()
	d.Roles = []Role{
		{Name: "robot", Members: []string{"tag:robot"}, Publish: []Lane{Telemetry, Bulk}, Budgets: map[Lane]Limit{
			Bulk: {BitsPerSecond: 1_000_000, PacketsPerSecond: 100},
		}},
		{Name: "camera", Members: []string{"tag:cam"}, Publish: []Lane{Bulk}, Budgets: map[Lane]Limit{
			Bulk: {BitsPerSecond: 20_000_000, BurstBits: 500_000, PacketsPerSecond: 50},
		}},
		{Name: "stop", Members: []string{"tag:stop"}, Publish: []Lane{Critical}},
		{Name: "muted", Members: []string{"tag:muted"}, Publish: []Lane{}},
		{Name: "free", Members: []string{"tag:free"}, Publish: []Lane{Bulk}},
		{Name: "group", Members: []string{"*"}},
	}
	d.Guards = []Rule{{ID: "no-ssh", Src: []string{"role:camera"}, Dst: []string{"*"}, Proto: "tcp", Ports: []string{"22"}}}
	return d
}

func TestExplainRoles(t *testing.T) {
	d, dst := sandboxes(), subject(9)
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		tags string
		lane Lane
		rule string // that decides; "" allowed
		why  string
	}{
		{"", Critical, "", "allowed by rule enrolled: robot1 to robot9, udp port 1, lane critical"},
		{"robot", Telemetry, "", "allowed by rule enrolled: robot1 to robot9, udp port 1, lane telemetry"},
		{"robot", Critical, "role:robot", "denied, since its role robot may not publish on lane critical: robot1 to robot9, udp port 1, lane critical"},
		{"robot", Bulk, "", "allowed by rule enrolled: robot1 to robot9, udp port 1, lane bulk, within 100 packets/s (role robot) and 1000000 bit/s (role robot)"},
		{"robot cam", Bulk, "", "allowed by rule enrolled: robot1 to robot9, udp port 1, lane bulk, within 100 packets/s (role robot) and 20000000 bit/s (role camera)"},
		{"robot cam", Critical, "role:camera", "denied, since none of its roles camera, robot may publish on lane critical: robot1 to robot9, udp port 1, lane critical"},
		{"robot stop", Critical, "", "allowed by rule enrolled: robot1 to robot9, udp port 1, lane critical"},
		{"robot muted", Telemetry, "", "allowed by rule enrolled: robot1 to robot9, udp port 1, lane telemetry"},
		{"muted", Bulk, "role:muted", "denied, since its role muted may not publish on lane bulk: robot1 to robot9, udp port 1, lane bulk"},
		{"robot free", Bulk, "", "allowed by rule enrolled: robot1 to robot9, udp port 1, lane bulk"},
	} {
		src := subject(1, strings.Fields(tc.tags)...)
		got := d.Explain(src, dst, "udp", 1, tc.lane)
		if got.Allow != (tc.rule == "") || !got.Allow && got.Rule != tc.rule || got.Why != tc.why {
			t.Errorf("%q on %s: %+v\nwant %q %q", tc.tags, tc.lane, got, tc.rule, tc.why)
		}
		// Where it goes to does not matter: the right is the sender's.
		if got := d.Explain(dst, src, "udp", 1, tc.lane); !got.Allow {
			t.Errorf("%q on %s: the way to it is denied: %s", tc.tags, tc.lane, got.Why)
		}
	}
	// A guard speaks first, a missing rule last.
	cam := subject(1, "cam")
	if got := d.Explain(cam, dst, "tcp", 22, Critical); got.Rule != "guard:no-ssh" {
		t.Errorf("guard and role: %+v", got)
	}
	d.Allow = nil
	if got := d.Explain(cam, dst, "udp", 1, Critical); got.Rule != "role:camera" {
		t.Errorf("role and no rule: %+v", got)
	}
	if got := d.Explain(cam, dst, "udp", 1, Bulk); got.Rule != NoRule || !got.Budget.IsZero() {
		t.Errorf("a role allows: %+v", got)
	}
	roles, err := d.RolesOf(subject(1, "stop", "cam"))
	if diff := cmp.Diff([]string{"camera", "stop", "group"}, roles); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// The order of roles makes no difference, budgets included.
func TestRolesOrderFree(t *testing.T) {
	a, b := sandboxes(), sandboxes()
	for i := range b.Roles {
		b.Roles[i] = a.Roles[len(a.Roles)-1-i]
	}
	for _, tags := range []string{"robot cam", "cam robot stop", "robot free", "muted robot"} {
		for lane := Critical; lane <= Bulk; lane++ {
			s := subject(1, strings.Fields(tags)...)
			if x, y := a.Explain(s, subject(2), "", 0, lane), b.Explain(s, subject(2), "", 0, lane); x != y {
				t.Errorf("%q on %s: %+v or %+v", tags, lane, x, y)
			}
		}
	}
}

func TestEngineRoles(t *testing.T) {
	d := sandboxes()
	one, two := subject(1, "one", "cam"), subject(2, "two")
	ea, eb := NewEngine(one), NewEngine(two)
	ea.Apply(d, []Subject{two})
	eb.Apply(d, []Subject{one})
	a, b := end{ea, ea.Peer(two.ID)}, end{eb, eb.Peer(one.ID)}
	i := pkt(17, 5000, 9)
	if a.Outbound(a.peer, i, Critical, 0).Allow || b.Inbound(b.peer, i, Critical, 0).Allow {
		t.Error("a camera publishes on critical")
	}
	for _, e := range []end{a, b} {
		if diff := cmp.Diff(map[string]uint64{"role:camera": 1}, e.Counters()); diff != "" {
			t.Error(diff)
		}
	}
	if !a.out(i, 0) || !b.in(i, 0) {
		t.Error("a camera does not publish on bulk")
	}
	// Who begins a flow has the right: the answers may use its lane.
	back := reply(pkt(17, 6000, 9))
	back.SrcPort, back.DstPort = 6000, 9
	if !b.Outbound(b.peer, back, Critical, 0).Allow || !a.Inbound(a.peer, back, Critical, 0).Allow {
		t.Fatal("nobody may talk to a camera on critical")
	}
	if !a.Outbound(a.peer, reply(back), Critical, 1).Allow || !b.Inbound(b.peer, reply(back), Critical, 1).Allow {
		t.Error("a camera may not answer on critical")
	}
	// The tag gone, so is the sandbox.
	ea.SetSelf(subject(1, "one"))
	eb.SetPeers([]Subject{subject(1, "one")})
	if !a.Outbound(a.peer, i, Critical, 2).Allow || !b.Inbound(b.peer, i, Critical, 2).Allow {
		t.Error("the sandbox stays")
	}
}

func TestSpend(t *testing.T) {
	d := sandboxes()
	d.Roles[1].Budgets[Bulk] = Limit{PacketsPerSecond: 10, BurstPackets: 2, BitsPerSecond: 16_000, BurstBits: 20_000}
	cam, two, three := subject(1, "cam"), subject(2), subject(3, "cam")
	e := NewEngine(cam)
	e.Apply(d, []Subject{two, three})
	free, limited := e.Peer(two.ID), e.Peer(three.ID)
	within := func(v Verdict) bool {
		if !v.Allow {
			t.Error("a budget denies")
		}
		return !v.Demote
	}
	for range 1000 {
		if !within(e.SpendInbound(free, Bulk, 1500, 0)) || !within(e.SpendOutbound(Telemetry, 1500, 0)) || !within(e.SpendOutbound(9, 1500, 0)) {
			t.Fatal("limited without a budget")
		}
	}
	for name, spend := range map[string]func(size int, now int64) bool{
		"out": func(size int, now int64) bool { return within(e.SpendOutbound(Bulk, size, now)) },
		"in":  func(size int, now int64) bool { return within(e.SpendInbound(limited, Bulk, size, now)) },
	} {
		burst := map[string]int{"out": 2, "in": 10}[name] // a receiver bears what queues gathered
		for range burst {
			if !spend(100, 0) {
				t.Errorf("%s: the burst is over", name)
			}
		}
		if spend(100, 0) {
			t.Errorf("%s: more than the burst", name)
		}
		if !spend(1500, second) || spend(1500, second) {
			t.Errorf("%s: bits", name)
		}
	}
	if diff := cmp.Diff(map[string]uint64{"budget:camera": 4}, e.Counters()); diff != "" {
		t.Error(diff)
	}
	// A new policy with the same budget gives nobody a new burst; another does.
	d.Allow = append(d.Allow, Rule{Src: []string{"tag:x"}, Dst: []string{"*"}})
	e.Apply(d, []Subject{two, three})
	if within(e.SpendOutbound(Bulk, 1500, second)) || within(e.SpendInbound(limited, Bulk, 1500, second)) {
		t.Error("a new policy refills")
	}
	d.Roles[1].Budgets[Bulk] = Limit{PacketsPerSecond: 11}
	e.Apply(d, []Subject{two, three})
	if !within(e.SpendOutbound(Bulk, 1500, second)) || !within(e.SpendInbound(limited, Bulk, 1500, second)) {
		t.Error("the new budget is not in force")
	}
	e.SetPeers([]Subject{two})
	if e.SpendInbound(limited, Bulk, 1, 9*second).Allow {
		t.Error("a peer that left has a budget")
	}
	e.Apply(Default(), []Subject{two, three})
	for range 100 {
		if !within(e.SpendOutbound(Bulk, 1500, second)) || !within(e.SpendInbound(limited, Bulk, 1500, second)) {
			t.Fatal("the budget stays")
		}
	}
}

// A receiver bears twice the budget of an urgent lane and no more; on Bulk all.
func TestReceiverDenies(t *testing.T) {
	d := Default()
	limit := Limit{PacketsPerSecond: 100}
	d.Roles = []Role{{
		Name: "r", Members: []string{"tag:one"}, Publish: []Lane{Critical, Telemetry, Bulk},
		Budgets: map[Lane]Limit{Critical: limit, Bulk: limit},
	}}
	a, b := ends(t, d)
	i := pkt(17, 5000, 9)
	for _, tc := range []struct {
		lane                 Lane
		rate                 int // packets a second
		over, denied, demote bool
	}{
		{Critical, 90, false, false, false},
		{Critical, 150, true, false, true},
		{Critical, 1000, true, true, true},
		{Telemetry, 1000, false, false, false},
		{Bulk, 1000, true, false, true},
	} {
		a.Apply(Default(), []Subject{subject(2, "two")})
		b.Apply(Default(), []Subject{subject(1, "one")})
		a.Apply(d, []Subject{subject(2, "two")}) // full buckets
		b.Apply(d, []Subject{subject(1, "one")})
		over, denied, demoted := false, false, false
		for n := range 10 * tc.rate {
			now := int64(n) * second / int64(tc.rate)
			in, out := b.Receive(b.peer, nil, i, tc.lane, now), a.Send(a.peer, nil, i, tc.lane, now)
			over, denied, demoted = over || in.Demote, denied || !in.Allow, demoted || out.Demote
			if !out.Allow {
				t.Fatal("the sender drops")
			}
		}
		if over != tc.over || denied != tc.denied || demoted != tc.demote {
			t.Errorf("%s at %d/s: over %v, denied %v, demoted %v", tc.lane, tc.rate, over, denied, demoted)
		}
	}
}

func TestAlarms(t *testing.T) {
	d := sandboxes()
	d.Roles[1].Budgets[Bulk] = Limit{PacketsPerSecond: 10}
	cam, three := subject(1, "cam"), subject(3, "cam")
	e := NewEngine(cam)
	e.Apply(d, []Subject{three})
	p := e.Peer(three.ID)
	var got []Alarm
	e.SetAlarm(func(a Alarm) { got = append(got, a) })
	for n := range 1000 { // a hundred each second
		e.SpendOutbound(Bulk, 100, int64(n)*second/100)
	}
	if len(got) != 1 || got[0].Rule != "budget:camera" || got[0].Node != cam.ID || got[0].Lane != Bulk || got[0].Packets != 1 || got[0].Denied != 0 {
		t.Errorf("alarms = %+v", got)
	}
	e.SpendOutbound(Bulk, 100, 11*second)
	e.SpendOutbound(Bulk, 100, 11*second)
	if len(got) != 2 || got[1].Packets < 800 {
		t.Errorf("alarms = %+v", got)
	}
	for range 100 {
		e.SpendInbound(p, Bulk, 100, 20*second)
	}
	if len(got) != 3 || got[2].Node != three.ID {
		t.Errorf("alarms = %+v", got)
	}
	if all := e.Alarms(0); len(all) != 2 || all[0].Node != cam.ID || all[1].Node != three.ID || all[1].Packets != 90 || all[1].At != 20*second {
		t.Errorf("alarms = %+v", all)
	}
	if late := e.Alarms(15 * second); len(late) != 1 || late[0].Node != three.ID {
		t.Errorf("alarms = %+v", late)
	}
	e.SetAlarm(nil)
	e.SpendOutbound(Bulk, 100, 99*second)
}

func TestBudgetFor(t *testing.T) {
	d := sandboxes()
	got, err := d.BudgetFor(subject(1, "robot", "cam"), Bulk)
	want := Budget{
		Limit:       Limit{PacketsPerSecond: 100, BurstPackets: 10, BitsPerSecond: 20_000_000, BurstBits: 500_000},
		PacketsRole: "robot", BitsRole: "camera",
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := d.BudgetFor(subject(1), packet.NumLanes); err == nil {
		t.Error("budget of no lane")
	}
	d.Roles[0].Name = "robot "
	if _, err := d.BudgetFor(subject(1), Bulk); !errors.Is(err, ErrDocument) {
		t.Errorf("bad document: %v", err)
	}
}

func TestSharpKeys(t *testing.T) {
	// Each key of the types is known to the strict reader, or Parse would refuse
	// its own text.
	d := sandboxes()
	d.Roles[0].Budgets[Bulk] = Limit{PacketsPerSecond: 1, BurstPackets: 1, BitsPerSecond: 1, BurstBits: 16_000}
	d.Roles[0].Budgets[Telemetry] = Limit{PacketsPerSecond: 1}
	d.Roles[2].Budgets = map[Lane]Limit{Critical: {PacketsPerSecond: 1}}
	d.Tests = []Test{{Src: "*", Dst: "*", Proto: "udp", Port: 1, Want: "deny"}}
	d.Allow[0].Lanes, d.Allow[0].Proto, d.Allow[0].Ports = []Lane{Bulk}, "tcp", []string{"1"}
	if _, err := Parse(d.Marshal()); err != nil {
		t.Error(err)
	}
	if !json.Valid(d.Marshal()) {
		t.Error("not JSON")
	}
}

func TestSelect(t *testing.T) {
	d := sandboxes()
	nodes := []Subject{subject(1, "cam"), subject(2), subject(3, "stop")}
	got, err := d.Select(nodes, []string{"role:camera", "name:robot3"})
	if diff := cmp.Diff([]Subject{nodes[0], nodes[2]}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for _, bad := range []string{"role:nobody", "robot1", ""} {
		if got, err := d.Select(nodes, []string{"*", bad}); err == nil {
			t.Errorf("selector %q: %v", bad, got)
		}
	}
}

// Of two roles with the same rate the larger burst counts, whichever comes first.
func TestBudgetTie(t *testing.T) {
	limit := func(burst uint64) map[Lane]Limit {
		return map[Lane]Limit{Bulk: {BitsPerSecond: 1000, BurstBits: 20_000 + burst, PacketsPerSecond: 10, BurstPackets: 5 + burst}}
	}
	for _, bursts := range [][2]uint64{{1, 2}, {2, 1}} {
		d := Default()
		for i, name := range []string{"a", "b"} {
			d.Roles = append(d.Roles, Role{Name: name, Members: []string{"*"}, Publish: []Lane{Bulk}, Budgets: limit(bursts[i])})
		}
		got, err := d.BudgetFor(subject(1), Bulk)
		want := map[bool]string{true: "a", false: "b"}[bursts[0] > bursts[1]]
		if err != nil || got.BurstBits != 20_002 || got.BurstPackets != 7 || got.BitsRole != want || got.PacketsRole != want {
			t.Errorf("bursts %v: %+v, %v", bursts, got, err)
		}
	}
}

func TestReachLeavesOutItself(t *testing.T) {
	d := &Document{Version: 1, Allow: []Rule{{Src: []string{"*"}, Dst: []string{"name:robot1"}}}}
	flows, _, err := d.Reach([]Subject{subject(1), subject(2)})
	if err != nil || len(flows) != 1 || flows[0].String() != "robot2 to robot1: any, every lane" {
		t.Errorf("%v, %v", flows, err)
	}
	one, _ := Diff(&Document{Version: 1}, d, []Subject{subject(1)})
	if len(one.Reach) != 0 {
		t.Errorf("a mesh of one node: %v", one.Reach)
	}
}
