// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit"
	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
)

// maxPolicyNodes bounds the nodes that one question names.
const maxPolicyNodes = 16

// GetPolicy implements LocalService.
func (s *Server) GetPolicy(ctx context.Context, req *edgev1.GetPolicyRequest) (*edgev1.GetPolicyResponse, error) {
	if n := len(req.GetNodes()); n > maxPolicyNodes {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d nodes, at most %d", n, maxPolicyNodes))
	}
	out := &edgev1.GetPolicyResponse{}
	for _, what := range req.GetNodes() {
		st, err := s.status(ctx)
		if err != nil {
			return nil, err
		}
		if st.Node.is(what) {
			out.NodeIds = append(out.NodeIds, st.Node.ID)
			continue
		}
		id, _, err := s.find(ctx, what)
		if err != nil {
			return nil, coded(err)
		}
		out.NodeIds = append(out.NodeIds, id.String())
	}
	// Whoever had to be looked up is known from now on.
	p, err := s.backend.Policy(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	out.PolicyJson, err = json.Marshal(p)
	return out, err
}

// is reports whether what means this node.
func (n *Node) is(what string) bool {
	addr, _ := netip.ParseAddr(what)
	return what == "self" || strings.TrimSuffix(what, ".mesh") == n.Name || strings.EqualFold(what, n.ID) ||
		addr.IsValid() && (sameAddr(n.VirtualIP, addr) || sameAddr(n.VirtualIP6, addr))
}

// Policy returns the policy in force and the nodes that are asked for, which the
// daemon looks up at the hub where it has to.
func (c *Client) Policy(ctx context.Context, nodes ...string) (*conduit.PolicyInForce, []conduit.PolicySubject, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	res, err := c.rpc.GetPolicy(ctx, &edgev1.GetPolicyRequest{Nodes: nodes})
	if err != nil {
		return nil, nil, c.explain(err)
	}
	p := new(conduit.PolicyInForce)
	if err := json.Unmarshal(res.GetPolicyJson(), p); err != nil {
		return nil, nil, fmt.Errorf("read policy: %w", err)
	}
	all := append(slices.Clip(p.Peers), p.Self)
	var found []conduit.PolicySubject
	for n, id := range res.GetNodeIds() {
		i := slices.IndexFunc(all, func(s conduit.PolicySubject) bool { return s.ID == id })
		if i < 0 {
			return nil, nil, fmt.Errorf("%w: %.100q left the mesh meanwhile", ErrNoPeer, nodes[n])
		}
		found = append(found, all[i])
	}
	return p, found, nil
}
