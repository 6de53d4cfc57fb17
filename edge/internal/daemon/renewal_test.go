// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// TestRenewal lets a certificate of a week come due, with a hub that first is away
// and then lies.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := hubtest.NewCA(t, "testmesh")
		keys, err := identity.GenerateKeys()
		if err != nil {
			t.Fatal(err)
		}
		const week = 7 * 24 * time.Hour
		issue := func(ip string) [][]byte {
			ed, x := hubtest.Public(keys)
			return ca.Node(t, identity.Certificate{
				Name: "a", Ed25519: ed, X25519: x, Virtual4: netip.MustParseAddr(ip),
				NotBefore: time.Now(), NotAfter: time.Now().Add(week),
			})
		}
		first, err := identity.ParseCertificate(issue("10.66.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		start, asked, redialled := time.Now(), 0, 0
		got := make(chan *identity.Certificate, 1)
		r := &renewal{
			keys: keys, roots: ca.Roots(), log: slog.New(slog.DiscardHandler), cert: first,
			file: filepath.Join(t.TempDir(), "node.crt"),
			ask: func(context.Context, []byte) ([][]byte, error) {
				switch asked++; asked {
				case 1:
					return nil, errors.New("hub is away")
				case 2:
					return issue("10.66.0.9"), nil
				}
				return issue("10.66.0.1"), nil
			},
			set:    func(c *identity.Certificate) error { got <- c; return nil },
			redial: func() { redialled++ },
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.run(ctx) }()
		c := <-got
		synctest.Wait()
		cancel()
		<-done
		if asked != 3 || redialled != 1 {
			t.Errorf("asked %d times and dialled anew %d times, want 3 and 1", asked, redialled)
		}
		if last, problem := r.status(); last.Sub(start) < week/2 || problem != "" {
			t.Errorf("status = %v, %q", last, problem)
		}
		if d := time.Since(start); d < week/2 || d > week*8/10 {
			t.Errorf("renewed after %v, want about two thirds of a week", d)
		}
		if c.Virtual4 != first.Virtual4 || !c.NotAfter.After(first.NotAfter) {
			t.Errorf("renewed = %+v", c)
		}
		b, err := os.ReadFile(r.file)
		if err != nil || string(b) != string(identity.MarshalChainPEM(c.Chain)) {
			t.Errorf("file does not hold the new certificate: %v", err)
		}
		if string(r.tls.Load().Certificate[0]) != string(c.Chain[0]) {
			t.Error("the hub link does not show the new certificate")
		}
	})
}
