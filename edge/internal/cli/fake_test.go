// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// Status is that of a robot with two uplinks. FAKE_NODE says how it is: "plain" has no
// paths to tell of, "hub" is connected to its hub, "snapshot" started without it.
func (n *fakeNode) Status(context.Context) (*conduit.Status, error) {
	c := n.cfg.Certificate
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d - 20*time.Second) } // far from the next minute
	all := []string{"critical", "telemetry", "bulk"}
	st := &conduit.Status{
		Node: conduit.NodeStatus{
			ID: c.ID.String(), Name: c.Name, Virtual4: c.Virtual4.String(), Virtual6: c.Virtual6.String(),
			Device: n.cfg.Device.Name(), MTU: 1350, CertificateExpires: now.Add(7*24*time.Hour - time.Minute), UptimeSeconds: 3700,
			Uplinks: []conduit.UplinkStatus{
				{Name: "wlan0", Number: 1, Addresses: []string{"127.0.0.1"}, TxBytes: 12e6, RxBytes: 3e6},
				{Name: "wwan0", Number: 2, Addresses: []string{"10.3.4.5", "2001:db8:77::5", "2001:db8:77::6", "2001:db8:77::7"}, Metered: true, Spent: true, TxBytes: 5e8, RxBytes: 1},
			},
		},
		Hub: conduit.HubStatus{Error: "connection refused"},
		Peers: []conduit.PeerStatus{
			{
				ID: identity.PeerID{0x20}.String(), Name: "arm", Virtual4: "10.66.0.9", State: "idle",
				Path: conduit.PathStatus{Type: "none", Reason: "no direct path: both behind symmetric NAT"},
			},
			{
				ID: identity.PeerID{0x10}.String(), Name: "base", Virtual4: "10.66.0.8", State: "connected", Cipher: "chacha20poly1305",
				Path: conduit.PathStatus{Type: "direct", Remote: "198.51.100.7:41641", RTT: 12.4},
				Keys: conduit.KeyStatus{Since: ago(time.Hour), Rekeys: 12, Handshakes: 2},
				Paths: []conduit.PathDetail{
					{Kind: "direct", Uplink: "wlan0", Remote: "198.51.100.7:41641", State: "valid", RTT: 12.4, MTU: 1452, Lanes: all, Since: ago(2*time.Hour + 5*time.Minute)},
					{Kind: "direct", Uplink: "wwan0", Remote: "[2001:db8:1234:5678:9abc:def0:1234:5678]:41641", State: "suspect", RTT: 61.2, Loss: 0.034, MTU: 1232, Lanes: all[:1], Since: ago(time.Hour + 5*time.Minute)},
					{Kind: "hub-relay", Remote: "10.66.0.8:1", State: "valid", RTT: 80, MTU: 1400, Since: ago(2*time.Hour + 6*time.Minute), Reason: "a direct path is better"},
					{Kind: "direct", Uplink: "wlan0", Remote: "10.0.0.7:41641", State: "dead", Reason: "no answer"},
				},
			},
		},
		Counters: conduit.Counters{TxPackets: 1234567, TxBytes: 104857600, TxDropped: 3, TxDroppedBy: map[string]uint64{"no_path": 3}, RxPackets: 4, RxBytes: 512},
	}
	st.Lanes.Bulk.TxPackets, st.Lanes.Bulk.TxBytes = 1234567, 104857600
	switch os.Getenv("FAKE_NODE") {
	case "busy":
		busy(st, ago)
	case "plain":
		st.Node.Uplinks = nil
		for i := range st.Peers {
			st.Peers[i].Paths, st.Peers[i].Keys = nil, conduit.KeyStatus{}
		}
	case "hub":
		st.Hub = conduit.HubStatus{Connected: true, Since: ago(time.Hour)}
		st.Node.Uplinks = st.Node.Uplinks[:1]
	case "snapshot":
		st.Hub.Since, st.Hub.FromSnapshot = ago(2*time.Minute), true
	}
	return st, nil
}

// busy makes it one whose uplink is full.
func busy(st *conduit.Status, ago func(time.Duration) time.Time) {
	st.Hub = conduit.HubStatus{Connected: true}
	st.Node.Uplinks = st.Node.Uplinks[:2]
	u := &st.Node.Uplinks[1]
	u.Addresses, u.Metered, u.Spent, u.Rate, u.Backlog, u.Held = u.Addresses[:1], false, false, 20e6, 65000, []string{"bulk"}
	st.Peers[1].Paths[0].Pacing = &conduit.PacingStatus{
		Strategy: "delay-rate", State: conduit.PaceSteady, Rate: 16.25e6, Delivery: 15.9e6, Queue: 4.2, BaseRTT: 12.1, Noise: 0.5, Waiting: 9100,
	}
	st.Peers[1].Paths[1].Pacing = &conduit.PacingStatus{
		Strategy: "delay-rate", State: conduit.PaceCompeting, Rate: 840e3, Delivery: 800e3, Queue: 131, BaseRTT: 48, Noise: 8, Loss: 0.034, Copies: 2,
	}
	st.Peers[1].Paths[2].Pacing = &conduit.PacingStatus{Strategy: "null", State: conduit.PaceUnlimited} // nothing uses it
	l := &st.Lanes
	l.Critical = conduit.LaneStatus{TxPackets: 90210, TxBytes: 9e6, RxPackets: 90110, RxBytes: 9e6, Sojourn: 0.04, SojournMax: 0.31}
	l.Telemetry = conduit.LaneStatus{TxPackets: 4500, TxBytes: 5e6, RxPackets: 1, RxBytes: 80, Queued: 1, Sojourn: 1.2, SojournMax: 9.6}
	l.Bulk.Queued, l.Bulk.QueuedBytes, l.Bulk.Sojourn, l.Bulk.SojournMax = 7, 9100, 24, 131.5
	l.Bulk.Dropped, l.Bulk.DroppedBy, l.Bulk.Marked, l.Bulk.Demoted = 42, map[string]uint64{"codel": 40, "overflow": 2, "age": 0}, 17, 12
	st.Policy.Alarms = []conduit.PolicyAlarm{
		{Rule: "camera", Peer: "robot7", Lane: "telemetry", Action: "demote", Packets: 12, Since: ago(2 * time.Minute)},
		{Rule: "odd\nname", Packets: 1},
	}
}

// Ping is answered as over an uplink whose Bulk stands in a queue; every fifth echo in
// Bulk is lost. FAKE_PING=caps is a peer that answers none, and =silent one that is
// gone.
func (n *fakeNode) Ping(ctx context.Context, _ identity.PeerID, o conduit.PingOptions) (conduit.PingResult, error) {
	switch os.Getenv("FAKE_PING") {
	case "caps":
		return conduit.PingResult{}, conduit.ErrPingCaps
	case "silent":
		<-ctx.Done()
		return conduit.PingResult{}, ctx.Err()
	}
	l := slices.Index([]string{"critical", "telemetry", "bulk"}, o.Lane)
	seq := time.Duration(n.pings[l].Add(1))
	ms := time.Millisecond
	r := conduit.PingResult{
		Lane: o.Lane, Size: o.Size, Kind: "direct", Uplink: "wlan0", Remote: "198.51.100.7:41641",
		RTT: 12*ms + seq*100*time.Microsecond, Wait: 40 * time.Microsecond, Hold: 60 * time.Microsecond,
	}
	switch o.Lane {
	case "telemetry":
		r.RTT += 2 * ms
		r.Wait += 2 * ms
	case "bulk":
		if seq%5 == 0 {
			<-ctx.Done()
			return conduit.PingResult{}, ctx.Err()
		}
		r.RTT += 31 * ms
		r.Wait += 24 * ms
		r.Hold += 7 * ms
	}
	return r, nil
}

// Policy lets robots talk to all and cameras to robots, on one port.
func (n *fakeNode) Policy(context.Context) (*conduit.PolicyInForce, error) {
	p := &conduit.PolicyInForce{Document: []byte("null"), Self: conduit.PolicySubject{ID: n.cfg.Certificate.ID.String(), Name: n.cfg.Certificate.Name, Tags: []string{"robot"}}}
	for id, name := range map[byte]string{0x10: "base", 0x20: "arm"} {
		p.Peers = append(p.Peers, conduit.PolicySubject{ID: identity.PeerID{id}.String(), Name: name, Tags: []string{"cam"}})
	}
	if os.Getenv("FAKE_NODE") != "plain" {
		p.Version, p.Document = 7, (&policy.Document{
			Version: 1,
			Allow: []policy.Rule{
				{ID: "all", Src: []string{"tag:robot"}, Dst: []string{"*"}},
				{ID: "ros", Src: []string{"role:camera"}, Dst: []string{"tag:robot"}, Proto: "udp", Ports: []string{"7400"}},
			},
			Guards: []policy.Rule{{ID: "no-ssh", Src: []string{"*"}, Dst: []string{"*"}, Proto: "tcp", Ports: []string{"22"}}},
			Roles: []policy.Role{{
				Name: "camera", Members: []string{"tag:cam"}, Publish: []policy.Lane{policy.Telemetry},
				Budgets: map[policy.Lane]policy.Limit{policy.Telemetry: {PacketsPerSecond: 100}},
			}},
		}).Marshal()
	}
	return p, nil
}

// cmdSet writes a line into a table of config.toml: set TABLE LINE
func cmdSet(ts *testscript.TestScript, _ bool, args []string) {
	name := filepath.Join(ts.Getenv("BAUXITE_HOME"), "config.toml")
	text, err := os.ReadFile(name)
	ts.Check(err)
	head := "[" + args[0] + "]\n"
	if !strings.Contains(string(text), head) {
		ts.Fatalf("no %s in\n%s", head, text)
	}
	ts.Check(os.WriteFile(name, []byte(strings.Replace(string(text), head, head+args[1]+"\n", 1)), 0o600))
}

// cmdSTUN runs a STUN server for the script and sets STUN to where it is.
func cmdSTUN(ts *testscript.TestScript, _ bool, _ []string) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	ts.Check(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n != 20 {
				continue
			}
			out := append([]byte{1, 1, 0, 12}, b[4:20]...)
			port, ip := from.Port()^0x2112, from.Addr().Unmap().As4()
			out = append(out, 0, 0x20, 0, 8, 0, 1, byte(port>>8), byte(port), ip[0]^0x21, ip[1]^0x12, ip[2]^0xa4, ip[3]^0x42)
			_, _ = c.WriteToUDPAddrPort(out, from)
		}
	}()
	ts.Defer(func() { _ = c.Close(); <-done })
	ts.Setenv("STUN", c.LocalAddr().String())
}
