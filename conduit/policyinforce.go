// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"context"
	"encoding/json"

	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// PolicyInForce is the policy by which a node judges packets, and the nodes to
// which it applies. Its JSON form is stable: fields are added, never renamed.
type PolicyInForce struct {
	// Version is that of the hub; 0 means that there is none, so all is denied.
	Version uint64 `json:"version"`
	// Document is as package policy reads it; null where there is none.
	Document json.RawMessage `json:"document"`
	// Self is this node, Peers the others that it knows, by name.
	Self  PolicySubject   `json:"self"`
	Peers []PolicySubject `json:"peers"`
}

// PolicySubject is a node as rules know it.
type PolicySubject struct {
	ID   string   `json:"id"`
	Name string   `json:"name"`
	Tags []string `json:"tags,omitempty"`
}

// Policy returns the policy in force. After Close it returns net.ErrClosed.
func (n *Node) Policy(ctx context.Context) (*PolicyInForce, error) {
	for {
		_, version, err := n.engine.Status(ctx)
		if err != nil {
			return nil, err
		}
		doc, self, peers := n.policy.InForce()
		_, after, err := n.engine.Status(ctx)
		if err != nil {
			return nil, err
		}
		if version != after { // it changed meanwhile
			continue
		}
		out := &PolicyInForce{Version: version, Document: json.RawMessage("null"), Self: subjectOf(&self), Peers: make([]PolicySubject, 0, len(peers))}
		if doc != nil {
			out.Document = doc.Marshal()
		}
		for i := range peers {
			out.Peers = append(out.Peers, subjectOf(&peers[i]))
		}
		return out, nil
	}
}

func subjectOf(s *policy.Subject) PolicySubject {
	return PolicySubject{ID: s.ID.String(), Name: s.Name, Tags: s.Tags}
}
