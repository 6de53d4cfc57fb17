// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bauxite-mesh/bauxite/dispatch"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

const adminTimeout = 15 * time.Second

// fleetCall calls the hub that runs on c's data directory.
func fleetCall[T any](c *cli.Context, call func(context.Context, dispatchv1connect.FleetServiceClient) (T, error)) (res T, err error) {
	dir, err := dataDir(c)
	if err != nil {
		return res, err
	}
	ctx, cancel := context.WithTimeout(c.Context, adminTimeout)
	defer cancel()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", dispatch.SocketPath(dir))
	}}
	defer tr.CloseIdleConnections()
	res, err = call(ctx, dispatchv1connect.NewFleetServiceClient(&http.Client{Transport: tr}, "http://hub"))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return res, fmt.Errorf("no hub runs on %s: start it with: bauxite-dispatch serve --data %s", dir, dir)
	case errors.Is(err, fs.ErrPermission):
		return res, fmt.Errorf("no permission to open %s: run as the user of the hub", dispatch.SocketPath(dir))
	}
	if ce := new(connect.Error); errors.As(err, &ce) {
		err = errors.New(ce.Message())
		if ce.Code() == connect.CodeInvalidArgument {
			err = usageError{err}
		}
	}
	return res, err
}

func tokenCommand() *cli.Command {
	return &cli.Command{
		Name: "token", Usage: "join tokens",
		Subcommands: []*cli.Command{{
			Name: "create", Usage: "make a join token on the running hub",
			Description: `The token is printed once; the hub keeps only a hash of its secret.

Examples:

  bauxite-dispatch token create --data ./hub
  bauxite-dispatch token create --data ./hub --uses 20 --ttl 2h --tag arm --tag berlin
  bauxite-dispatch token create --data ./hub --json | jq -r .token`,
			Flags: []cli.Flag{
				dataFlag(),
				&cli.UintFlag{Name: "uses", Value: 1, Usage: "how many machines may join with it, `N`"},
				&cli.DurationFlag{Name: "ttl", Value: 24 * time.Hour, Usage: "how long it is good for, `D`"},
				&cli.StringSliceFlag{Name: "tag", Usage: "give `T` to each node that joins with it; repeatable"},
				jsonFlag(),
			},
			Action: createToken,
		}},
	}
}

func createToken(c *cli.Context) error {
	if c.Uint("uses") == 0 || c.Uint("uses") > 1<<31 {
		return usagef("token create: --uses is at least 1")
	}
	res, err := fleetCall(c, func(ctx context.Context, f dispatchv1connect.FleetServiceClient) (*dispatchv1.CreateTokenResponse, error) {
		return f.CreateToken(ctx, &dispatchv1.CreateTokenRequest{
			Uses: uint32(c.Uint("uses")), Ttl: durationpb.New(c.Duration("ttl")), Tags: c.StringSlice("tag"),
		})
	})
	if err != nil {
		return fmt.Errorf("create token: %w", err)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Token   string    `json:"token"`
			ID      string    `json:"id"`
			Expires time.Time `json:"expires"`
			Uses    uint32    `json:"uses"`
			Tags    []string  `json:"tags"`
			JoinURL string    `json:"join_url"`
		}{res.GetToken(), res.GetId(), res.GetExpires().AsTime(), res.GetUses(), nonNil(res.GetTags()), res.GetJoinUrl()})
	}
	if _, err := fmt.Fprintln(c.App.Writer, res.GetToken()); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(c.App.ErrWriter, "bauxite-dispatch: good for %d join(s) until %s; on the robot:\n  bauxite join %s %s\n",
		res.GetUses(), res.GetExpires().AsTime().Local().Format(time.DateTime), res.GetToken(), res.GetJoinUrl())
	return nil
}

func nodeCommand() *cli.Command {
	return &cli.Command{
		Name: "node", Usage: "enrolled nodes",
		Subcommands: []*cli.Command{{
			Name: "list", Usage: "list the enrolled nodes by name",
			Description: "Example:\n\n  bauxite-dispatch node list --data ./hub",
			Flags:       []cli.Flag{dataFlag(), jsonFlag()},
			Action:      listNodes,
		}},
	}
}

type nodeFacts struct {
	Hostname string `json:"hostname"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Version  string `json:"version"`
}

type nodeRow struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	VirtualIP   string    `json:"virtual_ip"`
	VirtualIP6  string    `json:"virtual_ip6"`
	Tags        []string  `json:"tags"`
	Online      bool      `json:"online"`
	Created     time.Time `json:"created"`
	CertExpires time.Time `json:"certificate_expires"`
	Facts       nodeFacts `json:"facts"`
}

func listNodes(c *cli.Context) error {
	res, err := fleetCall(c, func(ctx context.Context, f dispatchv1connect.FleetServiceClient) (*dispatchv1.ListNodesResponse, error) {
		return f.ListNodes(ctx, &dispatchv1.ListNodesRequest{})
	})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	rows := make([]nodeRow, 0, len(res.GetNodes()))
	for _, n := range res.GetNodes() {
		f := n.GetFacts()
		rows = append(rows, nodeRow{
			n.GetNodeId(), n.GetName(), n.GetVirtualIp(), n.GetVirtualIp6(), nonNil(n.GetTags()), n.GetOnline(),
			n.GetCreated().AsTime(), n.GetCertificateExpires().AsTime(),
			nodeFacts{f.GetHostname(), f.GetOs(), f.GetArch(), f.GetVersion()},
		})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Nodes []nodeRow `json:"nodes"`
		}{rows})
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tVIRTUAL IP\tONLINE\tTAGS\tHOST\tCERT UNTIL\tID")
	for _, r := range rows {
		online := "no"
		if r.Online {
			online = "yes"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.VirtualIP, online, dash(strings.Join(r.Tags, ",")),
			dash(oneLine(r.Facts.Hostname)), r.CertExpires.Local().Format(time.DateOnly), r.ID[:min(8, len(r.ID))])
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
