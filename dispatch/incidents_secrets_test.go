// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// Secrets in the log.
func TestIncident16NoSecretsInLogs(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	token := h.Token(1)
	m := newMachine(t, h)
	res, err := m.provision(token, "m")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = m.provision(h.FirstToken()[:len(h.FirstToken())-3]+"abc", "")
	c := dispatchv1connect.NewAccessServiceClient(h.Admin(), "http://hub")
	link, err := c.CreateOwnerLink(ctx, &dispatchv1.CreateOwnerLinkRequest{})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := identity.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{string(res.GetPsk()), link.GetLink()[strings.Index(link.GetLink(), "#"):], token, token[strings.Index(token[5:], ".")+6:][:40]}
	for _, s := range secrets {
		if strings.Contains(h.Logs(), s) {
			t.Errorf("the log holds a secret of token %s", tok.ID)
		}
	}
	if !strings.Contains(h.Logs(), tok.ID) {
		t.Error("the log does not name the token's id, so this test sees nothing")
	}
}

// Secrets in the database as they are.
func TestIncident17HashesOnly(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	token, err := identity.ParseToken(h.Token(1))
	if err != nil {
		t.Fatal(err)
	}
	c := dispatchv1connect.NewAccessServiceClient(h.Admin(), "http://hub")
	link, err := c.CreateOwnerLink(ctx, &dispatchv1.CreateOwnerLinkRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, secret, _ := strings.Cut(link.GetLink(), "claim=")
	h.Stop()
	full := token.String()
	parts := strings.Split(full, ".")
	err = filepath.WalkDir(h.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, s := range []string{parts[2], secret} {
			if len(s) < 20 {
				t.Fatalf("secret of %d characters: the test is wrong", len(s))
			}
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("%s holds a secret as it is", filepath.Base(path))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
