// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// maxRenewal bounds the hub's answer, in bytes.
const maxRenewal = 64 << 10

// Renew asks the hub for a new certificate and returns the chain that it sent,
// leaf first, in DER. csr is a PKCS #10 request in DER, signed by the node's
// Ed25519 key. It opens a connection of its own, so it needs no Run, and gives up
// after 20 s. The caller verifies the chain and makes Config.Certificate return it.
func (c *Connector) Renew(ctx context.Context, csr []byte) (chain [][]byte, err error) {
	cert, id, err := c.own()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timing.dial)
	defer cancel()
	tr := c.transport(cert, id.MeshID)
	defer tr.CloseIdleConnections()
	hc := &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	client := dispatchv1connect.NewProvisioningServiceClient(hc, c.url.String(),
		connect.WithReadMaxBytes(maxRenewal))
	res, err := client.Renew(ctx, &dispatchv1.RenewRequest{Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	if chain, err = identity.ParseChainPEM(res.GetNodeCrt()); err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	if len(chain) == 0 {
		return nil, errors.New("renew certificate: answer holds none")
	}
	return chain, nil
}
