// SPDX-License-Identifier: Apache-2.0

package rival

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
)

func TestMain(m *testing.M) { netns.Main(m) }

func TestStart(t *testing.T) {
	for _, s := range All() {
		t.Run(s.Name, func(t *testing.T) {
			lab := netns.New(t)
			if err := s.Usable(); err != nil {
				if os.Getenv("CI") == "true" && !netns.InUserNamespace() {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			wan := lab.WAN("wan")
			a, b, c := wan.Host("a", netns.Link{}), wan.Host("b", netns.Link{}), wan.Host("c", netns.Link{})
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			tun, err := s.Start(ctx, lab.LogDir(), End{a, a.Addr4()}, End{b, b.Addr4()}, End{c, c.Addr4()})
			if err != nil {
				t.Fatal(err)
			}
			defer tun.Stop()
			at, err := b.ListenUDP("0.0.0.0:7000")
			if err != nil {
				t.Fatal(err)
			}
			defer probe.StartEcho(at).Close()
			from, err := a.ListenUDP("")
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			took, err := probe.WaitAnswer(ctx, from, netip.AddrPortFrom(tun.Virtual[1], 7000), 0)
			if err != nil {
				t.Fatalf("%v\n%s", err, tun.Procs[0].Tail(20))
			}
			t.Logf("%s %s: first answer after %v", s.Name, s.Version(ctx), took)
		})
	}
}
