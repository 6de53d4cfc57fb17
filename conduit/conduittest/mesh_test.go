// SPDX-License-Identifier: Apache-2.0

package conduittest_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMesh(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m := conduittest.NewMesh(t, 2)
	for i := range 2 {
		if err := m.Exchange(ctx, i, 1-i, []byte("hello")); err != nil {
			st, _ := m.Node(i).Status(context.Background())
			t.Fatalf("from %d: %v; status %+v", i, err, st)
		}
	}
}
