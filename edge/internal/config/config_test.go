// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func sample() *Config {
	return &Config{
		Hub: Hub{URL: "https://hub.example:8440"},
		Node: Node{
			Name: "robot7", ID: identity.PeerID{1}, MeshID: "m1",
			VirtualIP: netip.MustParseAddr("10.66.0.2"), VirtualIP6: netip.MustParseAddr("fd66::2"),
			MeshCIDRs: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16"), netip.MustParsePrefix("fd66::/64")},
		},
		PSK: PSK{Epoch: 1},
	}
}

func text(t testing.TB, c *Config) string {
	t.Helper()
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRoundTrip(t *testing.T) {
	for _, c := range []*Config{sample(), func() *Config {
		c := sample()
		c.Node.VirtualIP6 = netip.Addr{}
		c.Tun = Tun{Name: "bx1", MTU: 1400}
		c.Transport = Transport{Port: 7, STUNServers: []string{"s:1"}, Cipher: "aes256gcm", Relay: true, DSCP: new(false)}
		c.Bonding = Bonding{Critical: "duplicate", Telemetry: "redundant-adaptive", Bulk: "active-backup"}
		c.Uplinks = []Uplink{{Name: "wwan*", Metered: true, Budget: "1B", Rate: "64kbit"}, {Name: "eth1", Ignore: true}}
		c.Pacing = Pacing{Strategy: "fixed", Rate: "1Gbit", Floor: new(0.0), CriticalShare: new(1.0)}
		c.Lanes = []Lane{
			{Lane: "critical", Proto: "udp", Port: int64(7), SrcPort: "8-9", DstPort: "10", DSCP: []any{"ef", int64(40)}, Below: 300},
			{Lane: "telemetry", DSCP: "cs1"},
			{Lane: "bulk"},
		}
		c.Metrics = Metrics{Listen: "127.0.0.1:9464"}
		c.Log = Log{Format: "json", Level: "warn"}
		c.PSK.File = "other"
		c.Hub.Proxy = "http://proxy.example:3128"
		return c
	}()} {
		got, err := Parse([]byte(text(t, c)))
		if err != nil {
			t.Fatalf("%v in\n%s", err, text(t, c))
		}
		if d := cmp.Diff(c, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
			t.Errorf("round trip (-want +got):\n%s", d)
		}
	}
}

func TestDefaults(t *testing.T) {
	c := sample()
	if got, want := c.STUN(), []string{"hub.example:3478", PublicSTUN}; !cmp.Equal(got, want) {
		t.Errorf("STUN = %q, want %q", got, want)
	}
	if c.TunName() != "bauxite0" || c.TunMTU() != 1350 {
		t.Errorf("tun = %s %d", c.TunName(), c.TunMTU())
	}
	none, err := Parse([]byte(strings.Replace(text(t, c), "[transport]", "[transport]\nstun_servers = []", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if got := none.STUN(); len(got) != 0 {
		t.Errorf("STUN with an empty list = %q", got)
	}
}

func TestErrors(t *testing.T) {
	base := text(t, sample())
	for _, tc := range []struct{ name, old, new, want string }{
		{"Unknown", "[tun]", "[tun]\nmut = 1400", "unknown key tun.mut; did you mean tun.mtu?"},
		{"UnknownTable", "[tun]", "[tunnel]\nx = 1", "unknown key tunnel"},
		{"Syntax", "[tun]", "[tun]\nmtu = = 3", "line "},
		{"Type", "[tun]", "[tun]\nmtu = 'x'", "line "},
		{"MTU", "[tun]", "[tun]\nmtu = 100", "tun.mtu: is 100, want 1280 to 2000"},
		{"Interface", "[tun]", "[tun]\nname = 'a/b'", "tun.name"},
		{"URL", "https://hub", "http://hub", "hub.url"},
		{"Proxy", "[node]", "proxy = 'socks5://p'\n[node]", "hub.proxy"},
		{"Name", "robot7", "Robot 7", "node.name"},
		{"CIDR", "10.66.0.0/16", "10.66.0.1/16", "node.mesh_cidrs"},
		{"DefaultRoute", "10.66.0.0/16", "0.0.0.0/0", "node.mesh_cidrs"},
		{"Port", "[transport]", "[transport]\nport = 70000", "transport.port"},
		{"STUN", "[transport]", "[transport]\nstun_servers = ['x']", "transport.stun_servers"},
		{"Cipher", "[transport]", "[transport]\ncipher = 'rot13'", "is not one of auto,"},
		{"CipherNear", "[transport]", "[transport]\n\ncipher = 'aes256'", "line 32: transport.cipher: \"aes256\" is not one of auto, chacha20poly1305, aes256gcm; did you mean aes256gcm?"},
		{"Epoch", "epoch = 1", "epoch = 300", "line "},
		{"Large", "[tun]", strings.Repeat("#", MaxSize), "at most"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := strings.Replace(base, tc.old, tc.new, 1)
			if in == base {
				t.Fatal("nothing replaced")
			}
			_, err := Parse([]byte(in))
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestLoadWantsPrivate(t *testing.T) {
	name := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(name, []byte(text(t, sample())), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); !errors.Is(err, identity.ErrExposed) {
		t.Errorf("Load = %v, want ErrExposed", err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(text(f, sample())))
	f.Add([]byte(withUplinks(f, uplinks)))
	f.Add([]byte(withUplinks(f, "[[uplink]]\nname='a'\nbudget='1.5GB'\n[[uplink]]\n")))
	f.Add([]byte(withPart(f, lanes)))
	f.Add([]byte(withPart(f, "lane = [{lane='bulk', port=7, dscp=[1,'ef']}]\npacing = {floor=0.5}\n")))
	f.Add([]byte(withUplinks(f, "uplink = [{name='a*', budget='1KiB'}]\nbonding = {bulk='balance'}\n")))
	f.Add([]byte("[hub]\nurl='https://a'\n[hub]\n"))
	f.Add([]byte("node.virtual_ip = '::ffff:1.2.3.4'"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Parse(in)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Errorf("error %v is not ErrConfig", err)
			}
			return
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(out); err != nil {
			t.Errorf("does not read what it wrote: %v\n%s", err, out)
		}
	})
}
