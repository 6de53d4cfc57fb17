// SPDX-License-Identifier: Apache-2.0

package local

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestPolicy(t *testing.T) {
	path, _ := serve(t)
	c := NewClient(path)
	defer c.Close()
	p, nodes, err := c.Policy(t.Context(), "b", "self", "10.66.0.2", "far", "a", "a.mesh", strings.ToUpper(idA.String()))
	if err != nil || p.Version != 7 || string(p.Document) != `{"version":1}` {
		t.Fatalf("%+v, %v", p, err)
	}
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	if want := []string{"b", "a", "b", "far", "a", "a", "a"}; !slices.Equal(names, want) {
		t.Errorf("nodes = %v, want %v", names, want)
	}
	if !slices.Equal(nodes[1].Tags, []string{"x"}) {
		t.Errorf("tags = %v", nodes[1].Tags)
	}
	for what, want := range map[string]error{"nobody": ErrNoPeer, "": ErrNoPeer, identity.PeerID{0x12}.String()[:2]: ErrAmbiguous} {
		if _, _, err := c.Policy(t.Context(), what); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", what, err, want)
		}
	}
	// A peer of the status that the policy does not know left between the two.
	if _, _, err := c.Policy(t.Context(), "c"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("c: %v", err)
	}
	if _, _, err := c.Policy(t.Context(), make([]string, maxPolicyNodes+1)...); err == nil {
		t.Error("any number of nodes")
	}
}
