// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
)

// Two nodes made by hand. A program on a robot has its keys and certificate in
// files, a connector of package hub, and a kernel interface or a pipe.
func ExampleNode() {
	ca, err := conduittest.NewCA()
	if err != nil {
		fmt.Println(err)
		return
	}
	hub := conduittest.NewHub()
	var nodes []*conduit.Node
	for i, name := range []string{"robot", "operator"} {
		keys, err := identity.GenerateKeys()
		if err != nil {
			fmt.Println(err)
			return
		}
		cert, err := ca.Issue(keys, name, conduittest.Addr(i), conduittest.Addr6(i), time.Hour)
		if err != nil {
			fmt.Println(err)
			return
		}
		hub.Enrol(conduittest.PeerOf(cert))
		device, app := tun.Pipe(0) // app is the program's end: it reads and writes IP packets
		defer app.Close()
		node, err := conduit.New(conduit.Config{
			Keys: keys, Certificate: cert, Roots: ca.Roots(), Hub: hub.Connector(cert.ID), Device: device,
			MeshPrefixes:    []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16")},
			IncludeLoopback: true, // both are on this machine
			Uplinks:         []conduit.UplinkRule{{Name: "wwan*", Metered: true, Budget: 500e6}},
			Bonding:         conduit.Bonding{Telemetry: "duplicate"},
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer node.Close()
		if err := node.Start(context.Background()); err != nil {
			fmt.Println(err)
			return
		}
		nodes = append(nodes, node)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for { // until the operator is there
		operator, err := nodes[0].Lookup(ctx, "operator")
		if err == nil {
			err = nodes[0].Connect(ctx, operator.ID, nil)
		}
		if err == nil {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			fmt.Println(err)
			return
		}
	}
	status, err := nodes[0].Status(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range status.Peers {
		fmt.Println(p.Name, p.State)
	}
	// Output: operator connected
}
