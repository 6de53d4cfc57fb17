// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// Caller makes single calls to a hub, as an operator on its socket and as machines
// on its node port. It is safe for concurrent use.
type Caller struct{ l *load }

// NewCaller calls the hub with data directory dir and node port addr. It finds the
// mesh's root with a token that it makes.
func NewCaller(ctx context.Context, dir, addr string) (*Caller, error) {
	c, err := newClients(ctx, &hub{dir: dir, addr: addr})
	if err != nil {
		return nil, err
	}
	return &Caller{l: newLoad(c, 0)}, nil
}

// Machine is a node that has joined.
type Machine struct {
	ID, Name, IP string

	m *machine
}

// Token makes a join token for many machines and returns what Join takes.
func (c *Caller) Token(ctx context.Context) (Token, error) {
	res, err := c.l.c.fleet.CreateToken(ctx, &dispatchv1.CreateTokenRequest{Uses: 10_000, Note: "caller"})
	if err != nil {
		return Token{}, err
	}
	return Token{&token{text: res.GetToken(), id: res.GetId()}}, nil
}

// Token is a join token.
type Token struct{ t *token }

// Join lets a new machine join.
func (c *Caller) Join(ctx context.Context, t Token) (*Machine, error) {
	m, err := c.l.machine(t.t)
	if err != nil {
		return nil, err
	}
	return c.JoinAgain(ctx, &Machine{m: m})
}

// JoinAgain sends the request of a machine once more.
func (c *Caller) JoinAgain(ctx context.Context, m *Machine) (*Machine, error) {
	hc, done := c.l.c.node(nil)
	defer done()
	res, err := dispatchv1connect.NewProvisioningServiceClient(hc, c.l.c.url()).Provision(ctx, m.m.req)
	if err != nil {
		return m, err
	}
	m.m.res = res
	return &Machine{ID: res.GetNodeId(), Name: res.GetName(), IP: res.GetVirtualIp(), m: m.m}, nil
}

// Use reads the policy with the machine's certificate.
func (c *Caller) Use(ctx context.Context, m *Machine) error {
	cert := m.m.certificate()
	hc, done := c.l.c.node(&cert)
	defer done()
	_, err := dispatchv1connect.NewPolicyServiceClient(hc, c.l.c.url()).GetPolicy(ctx, &dispatchv1.GetPolicyRequest{})
	return err
}

// Nodes lists the nodes, by PeerID.
func (c *Caller) Nodes(ctx context.Context) (map[string]*dispatchv1.Node, error) {
	res, err := c.l.c.fleet.ListNodes(ctx, &dispatchv1.ListNodesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	out := make(map[string]*dispatchv1.Node)
	for _, n := range res.GetNodes() {
		out[n.GetNodeId()] = n
	}
	return out, nil
}
