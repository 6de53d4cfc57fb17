// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within bounds what should take a moment; it fails the test, it does not pace it.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func status(t *testing.T, n *conduit.Node) *conduit.Status {
	t.Helper()
	st, err := n.Status(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func exchange(t *testing.T, m *conduittest.Mesh, i, j int, payload string) {
	t.Helper()
	if err := m.Exchange(within(t), i, j, []byte(payload)); err != nil {
		t.Fatalf("node%d to node%d: %v; node%d sees %+v", i, j, err, i, status(t, m.Node(i)).Peers)
	}
}

// eventually waits until f holds, asking every few milliseconds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx := within(t); !f(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		}
	}
}

func TestStatusAndCounters(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	exchange(t, m, 0, 1, "small")
	big := bytes.Repeat([]byte("x"), 1200)
	if err := m.Exchange(within(t), 0, 1, big); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a round-trip time", func() bool { return status(t, m.Node(0)).Peers[0].Path.RTT > 0 })
	st := status(t, m.Node(0))
	p := st.Peers[0]
	if p.Name != "node1" || p.State != "connected" || p.Path.Type != "direct" || p.Path.Remote == "" || p.Cipher != cipherOf("chacha20poly1305") || !p.Online {
		t.Errorf("peer = %+v", p)
	}
	if !st.Hub.Connected || st.Node.Virtual4 != "10.66.0.1" || st.Policy.Version != 1 {
		t.Errorf("status = %+v", st)
	}
	if st.Lanes.Critical.TxPackets == 0 || st.Lanes.Bulk.TxPackets == 0 || st.Counters.TxPackets != st.Lanes.Critical.TxPackets+st.Lanes.Bulk.TxPackets {
		t.Errorf("lanes = %+v, counters = %+v", st.Lanes, st.Counters)
	}
	if r := status(t, m.Node(1)); r.Counters.RxPackets == 0 || r.Counters.RxPackets > st.Counters.TxPackets {
		t.Errorf("received %d of %d", r.Counters.RxPackets, st.Counters.TxPackets)
	}
}

func TestIPv6AndDrops(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	ctx := within(t)
	send := func(pkt []byte) {
		t.Helper()
		if err := m.App(0).Send(ctx, pkt); err != nil {
			t.Fatal(err)
		}
	}
	exchange(t, m, 0, 1, "go")
	send(conduittest.UDP(conduittest.Addr6(0), conduittest.Addr6(1), 1, 2, []byte("six")))
	for {
		b, err := m.Recv(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		if string(b) == "six" {
			break
		}
	}
	before := status(t, m.Node(0)).Counters.TxDroppedBy                                     // packets before the topology came
	send(conduittest.UDP(netip.MustParseAddr("10.66.9.9"), conduittest.Addr(1), 1, 2, nil)) // not our address
	send(conduittest.UDP(conduittest.Addr(0), netip.MustParseAddr("10.66.9.9"), 1, 2, nil)) // nobody's
	send([]byte("not a packet"))
	eventually(t, "all drops counted", func() bool {
		d := status(t, m.Node(0)).Counters.TxDroppedBy
		return d["source"] == before["source"]+1 && d["no_route"] == before["no_route"]+1 && d["malformed"] == before["malformed"]+1
	})
}

func TestConnect(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	ctx := within(t)
	for i := range 2 { // the lower and the higher PeerID
		eventually(t, "peer online", func() bool {
			p := status(t, m.Node(i)).Peers
			return len(p) == 1 && p[0].Online
		})
		var last atomic.Value
		if err := m.Node(i).Connect(ctx, m.Node(1-i).ID(), func(s string) { last.Store(s) }); err != nil {
			t.Fatalf("node%d: %v", i, err)
		}
		if last.Load() != "connected" {
			t.Errorf("last state = %v, want connected", last.Load())
		}
	}
	if err := m.Node(0).Connect(ctx, identity.PeerID{1}, nil); !errors.Is(err, conduit.ErrUnknownPeer) {
		t.Errorf("connect to a stranger: %v, want ErrUnknownPeer", err)
	}
	for _, text := range []string{"node1", "NODE1.mesh", "10.66.0.2", "fd66::2", m.Node(1).ID().String(), m.Node(1).ID().String()[:10]} {
		if p, err := m.Node(0).Resolve(text); err != nil || p.ID != m.Node(1).ID() {
			t.Errorf("Resolve(%q) = %v, %v", text, p.Name, err)
		}
	}
}

// A node that comes back without its sessions is found again, whichever side
// has something to say.
func TestRestart(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	exchange(t, m, 0, 1, "first")
	for i := range 2 {
		m.Restart(t, i, nil)
		exchange(t, m, 0, 1, "to the restarted")
		exchange(t, m, 1, 0, "from the restarted")
	}
}

func TestHubDown(t *testing.T) {
	m := conduittest.NewMesh(t, 3)
	exchange(t, m, 0, 1, "first")
	m.Hub.SetDown(true)
	eventually(t, "hub link down", func() bool { return !status(t, m.Node(0)).Hub.Connected })
	exchange(t, m, 0, 1, "without hub")
	exchange(t, m, 1, 0, "without hub")
	m.Hub.SetDown(false)
	exchange(t, m, 0, 2, "hub is back")
}

func TestOfflinePeer(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	eventually(t, "peer known", func() bool { return len(status(t, m.Node(0)).Peers) == 1 })
	if err := m.Node(1).Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Node(0).Connect(within(t), m.Node(1).ID(), nil); err == nil {
		t.Error("connected to a node that is gone")
	}
	if st := status(t, m.Node(0)); st.Peers[0].Path.Type != "none" || st.Peers[0].Path.Reason == "" {
		t.Errorf("path = %+v, want none with a reason", st.Peers[0].Path)
	}
}

func TestPolicy(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	exchange(t, m, 0, 1, "allowed")
	m.Hub.SetPolicy(&policy.Document{Version: 1, Allow: []policy.Rule{{ID: "one-way", Src: []string{"name:node0"}, Dst: []string{"name:node1"}, Proto: "udp", Ports: []string{"7400"}}}})
	eventually(t, "policy 2 at both", func() bool {
		return status(t, m.Node(0)).Policy.Version == 2 && status(t, m.Node(1)).Policy.Version == 2
	})
	exchange(t, m, 0, 1, "still allowed")
	before := status(t, m.Node(0)) // a packet that found the peer known and no policy yet was denied, too
	ctx := within(t)
	if err := m.App(0).Send(ctx, conduittest.UDP(conduittest.Addr(0), conduittest.Addr(1), 7400, 7401, []byte("no"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "denied and counted", func() bool {
		st := status(t, m.Node(0))
		dropped, denied := before.Counters.TxDroppedBy["policy"]+1, before.Policy.Denied[policy.NoRule]+1
		return st.Counters.TxDroppedBy["policy"] == dropped && st.Policy.Denied[policy.NoRule] == denied
	})
	// Rules by tag know the node itself, too.
	m.Hub.SetPolicy(&policy.Document{Version: 1, Allow: []policy.Rule{{Src: []string{"tag:arm"}, Dst: []string{"*"}}}})
	p := conduittest.PeerOf(m.Certificate(0))
	p.Tags = []string{"arm"}
	m.Hub.Enrol(p)
	exchange(t, m, 0, 1, "by tag")
	m.Hub.Remove(m.Node(1).ID())
	eventually(t, "peer gone", func() bool { return len(status(t, m.Node(0)).Peers) == 0 })
}

// A hub that describes a peer with other keys is not believed, and one that
// changes messages gets nowhere.
func TestHostileHub(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	exchange(t, m, 0, 1, "first")
	evil, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	p := conduittest.PeerOf(m.Certificate(1))
	p.X25519 = evil.X25519.PublicKey()
	m.Hub.Enrol(p)
	exchange(t, m, 0, 1, "second")

	m2 := conduittest.NewMesh(nil, 2)
	defer m2.Close()
	var flipped atomic.Int64
	m2.Hub.SetTap(func(_, _ identity.PeerID, body []byte) []byte {
		if flipped.Add(1) <= 3 {
			body[len(body)-1] ^= 1
		}
		return body
	})
	exchange(t, m2, 0, 1, "after the tampering")
}

// The certificate says which addresses are a peer's; a hub that says otherwise is
// not believed.
func TestAddressesOfCertificate(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	p := conduittest.PeerOf(m.Certificate(1))
	p.Virtual4 = conduittest.Addr(9)
	eventually(t, "peer known", func() bool { return len(status(t, m.Node(0)).Peers) == 1 })
	m.Hub.Enrol(p)
	eventually(t, "the hub's lie arrives", func() bool { return status(t, m.Node(0)).Peers[0].Virtual4 == "10.66.0.10" })
	eventually(t, "peer online", func() bool { return status(t, m.Node(0)).Peers[0].Online })
	if err := m.Node(0).Connect(within(t), p.ID, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("connect: %v, want one about the certificate", err)
	}
}

// cipherOf is the cipher that a setting gives in this build.
func cipherOf(setting string) string {
	if fips.Only() {
		return "aes256gcm-fips"
	}
	return setting
}

func TestCiphers(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	for i := range 2 {
		m.Restart(t, i, func(c *conduit.Config) { c.Cipher = "aes256gcm" })
	}
	exchange(t, m, 0, 1, "aes")
	if c, want := status(t, m.Node(0)).Peers[0].Cipher, cipherOf("aes256gcm"); c != want {
		t.Errorf("cipher = %q, want %q", c, want)
	}
}

// Keys are replaced in time, and no packet is lost over it.
func TestRehandshake(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	for i := range 2 {
		m.Restart(t, i, func(c *conduit.Config) { c.Rehandshake = time.Second })
	}
	exchange(t, m, 0, 1, "first")
	before := status(t, m.Node(0)).Peers[0].Keys.Handshakes
	ctx := within(t)
	sent := 0
	eventually(t, "a new session", func() bool {
		sent++
		if err := m.Send(ctx, 0, 1, []byte{byte(sent >> 8), byte(sent), 1}); err != nil {
			t.Fatal(err)
		}
		b, err := m.Recv(ctx, 1)
		for err == nil && len(b) != 3 { // what Exchange sent too often
			b, err = m.Recv(ctx, 1)
		}
		if err != nil || int(b[0])<<8|int(b[1]) != sent {
			t.Fatalf("datagram %d: got %v, %v", sent, b, err)
		}
		return status(t, m.Node(0)).Peers[0].Keys.Handshakes > before+1
	})
}

// A renewed certificate serves the next handshakes; another node's is refused.
func TestSetCertificate(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	exchange(t, m, 0, 1, "first")
	n := m.Node(0)
	c, err := m.CA.Issue(m.Keys(0), "node0", conduittest.Addr(0), conduittest.Addr6(0), 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.SetCertificate(c); err != nil {
		t.Fatal(err)
	}
	if got := status(t, n).Node.CertificateExpires; !got.Equal(c.NotAfter) {
		t.Errorf("expires %v, want %v", got, c.NotAfter)
	}
	m.Restart(t, 1, nil)
	exchange(t, m, 0, 1, "after the renewal")
	moved, err := m.CA.Issue(m.Keys(0), "node0", conduittest.Addr(7), conduittest.Addr6(0), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	expired, err := m.CA.Issue(m.Keys(0), "node0", conduittest.Addr(0), conduittest.Addr6(0), -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]*identity.Certificate{"another's": m.Certificate(1), "with another address": moved, "expired": expired} {
		if err := n.SetCertificate(c); err == nil {
			t.Errorf("certificate %s: accepted", what)
		}
	}
}

func TestWrongPSK(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	m.Restart(t, 1, func(c *conduit.Config) { c.PSK = bytes.Repeat([]byte{7}, 32) })
	eventually(t, "peer online", func() bool { return status(t, m.Node(0)).Peers[0].Online })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := m.Node(0).Connect(ctx, m.Node(1).ID(), nil); err == nil {
		t.Error("connected with another pre-shared key")
	}
}

// TestSetPSK changes the mesh's key at one node after the other: sessions go on,
// and who is behind is still talked to.
func TestSetPSK(t *testing.T) {
	m := conduittest.NewMesh(t, 3)
	exchange(t, m, 0, 1, "before")
	since := status(t, m.Node(0)).Peers[0].Path.Since
	key := bytes.Repeat([]byte{7}, 32)
	set := func(i int) {
		t.Helper()
		if err := m.Node(i).SetPSK(key, 2); err != nil {
			t.Fatal(err)
		}
	}
	set(0)
	exchange(t, m, 0, 1, "during")
	if now := status(t, m.Node(0)).Peers[0].Path.Since; !now.Equal(since) {
		t.Error("the session did not go on")
	}
	exchange(t, m, 0, 2, "to one that is behind, or from it")
	set(1)
	exchange(t, m, 2, 1, "from one that is behind, or to it")
	set(2)
	m.Restart(t, 1, func(c *conduit.Config) { c.PSK, c.PSKEpoch = key, 2 })
	eventually(t, "a session with the new key alone", func() bool {
		return m.Node(2).Connect(within(t), m.Node(1).ID(), nil) == nil
	})
	exchange(t, m, 2, 1, "after")

	for name, err := range map[string]error{
		"short":     m.Node(0).SetPSK(key[1:], 3),
		"ambiguous": m.Node(0).SetPSK(make([]byte, 32), 2),
	} {
		if !errors.Is(err, conduit.ErrConfig) {
			t.Errorf("%s key: %v, want ErrConfig", name, err)
		}
	}
	set(0) // again changes nothing
}

func TestClose(t *testing.T) {
	m := conduittest.NewMesh(t, 1)
	n := m.Node(0)
	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Status(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("status after close: %v", err)
	}
	if err := n.Connect(t.Context(), identity.PeerID{}, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("connect after close: %v", err)
	}
	if err := n.Start(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("start after close: %v", err)
	}
}

func TestConfigRefused(t *testing.T) {
	m := conduittest.NewMesh(t, 1)
	dev, app := tun.Pipe(0)
	defer app.Close()
	good := conduit.Config{Keys: m.Keys(0), Certificate: m.Certificate(0), Roots: m.CA.Roots(), Hub: m.Hub.Connector(m.Node(0).ID()), Device: dev}
	other, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conduit.New(good); err != nil {
		t.Fatalf("good config: %v", err)
	}
	for name, spoil := range map[string]func(*conduit.Config){
		"no keys":        func(c *conduit.Config) { c.Keys = nil },
		"other keys":     func(c *conduit.Config) { c.Keys = other },
		"no certificate": func(c *conduit.Config) { c.Certificate = nil },
		"no roots":       func(c *conduit.Config) { c.Roots = nil },
		"no hub":         func(c *conduit.Config) { c.Hub = nil },
		"no device":      func(c *conduit.Config) { c.Device = nil },
		"short psk":      func(c *conduit.Config) { c.PSK = []byte{1} },
		"port":           func(c *conduit.Config) { c.Port = 70000 },
		"cipher":         func(c *conduit.Config) { c.Cipher = "rot13" },
		"lane":           func(c *conduit.Config) { c.Lanes = []conduit.LaneRule{{Lane: "fast"}} },
		"pacing":         func(c *conduit.Config) { c.Pacing.Strategy = "bbr" },
		"uplink's rate":  func(c *conduit.Config) { c.Uplinks = []conduit.UplinkRule{{Name: "*", Rate: 1}} },
	} {
		c := good
		spoil(&c)
		if _, err := conduit.New(c); !errors.Is(err, conduit.ErrConfig) {
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
}

// Clone must copy each field: one that is added and forgotten fails here.
func TestConfigClone(t *testing.T) {
	m := conduittest.NewMesh(t, 1)
	dev, app := tun.Pipe(0)
	defer app.Close()
	c := conduit.Config{
		Keys: m.Keys(0), Certificate: m.Certificate(0), Roots: m.CA.Roots(), PSK: []byte{1}, PSKEpoch: 2, Cipher: "auto",
		Hub: m.Hub.Connector(m.Node(0).ID()), Device: dev, Port: 3, STUNServers: []string{"a:1"}, Rehandshake: time.Second,
		MeshPrefixes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16")}, IncludeLoopback: true, Logger: conduittest.Logger(t),
		Uplinks: []conduit.UplinkRule{{Name: "wwan*"}}, Bonding: conduit.Bonding{Bulk: "balance"}, StateFile: "state", Relay: true,
		Lanes: []conduit.LaneRule{{Lane: "critical", DSCP: []uint8{46}}}, Pacing: conduit.Pacing{Strategy: "none"}, NoDSCP: true,
	}
	got := reflect.ValueOf(*c.Clone())
	for i := range got.NumField() {
		name := got.Type().Field(i).Name
		if reflect.ValueOf(c).Field(i).IsZero() {
			t.Errorf("the test does not set %s", name)
		}
		if !reflect.DeepEqual(got.Field(i).Interface(), reflect.ValueOf(c).Field(i).Interface()) {
			t.Errorf("Clone forgot %s", name)
		}
	}
}

// Two nodes in one process, without root, TUN or a hub of their own.
func Example() {
	mesh := conduittest.NewMesh(nil, 2) // no root, no TUN, no hub
	defer mesh.Close()
	err := mesh.Exchange(context.Background(), 0, 1, []byte("hello"))
	fmt.Println(err)
	// Output: <nil>
}
