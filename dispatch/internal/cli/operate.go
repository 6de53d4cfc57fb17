// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

type statusRow struct {
	Version             string     `json:"version"`
	URL                 string     `json:"url"`
	MeshID              string     `json:"mesh_id"`
	MeshCIDR            string     `json:"mesh_cidr"`
	MeshCIDR6           string     `json:"mesh_cidr6"`
	Epoch               uint64     `json:"epoch"`
	RV                  uint64     `json:"rv"`
	Nodes               uint32     `json:"nodes"`
	Online              uint32     `json:"online"`
	Pending             uint32     `json:"pending"`
	AuditSeq            uint64     `json:"audit_seq"`
	PolicyVersion       uint64     `json:"policy_version"`
	PSKEpoch            uint32     `json:"psk_epoch"`
	Started             *time.Time `json:"started"`
	IntermediateExpires *time.Time `json:"intermediate_expires"`
	RootKeyPresent      bool       `json:"root_key_present"`
	DatabaseBytes       uint64     `json:"database_bytes"`
	SchemaVersion       int64      `json:"schema_version"`
}

type healthRow struct {
	Ready  bool   `json:"ready"`
	Detail string `json:"detail"`
}

type backupRow struct {
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

type caRow struct {
	MeshID              string     `json:"mesh_id"`
	IntermediateExpires *time.Time `json:"intermediate_expires"`
	RootKeyPresent      bool       `json:"root_key_present"`
}

type rotated struct {
	IntermediateExpires *time.Time `json:"intermediate_expires"`
}

type pskRow struct {
	PSKEpoch uint32 `json:"psk_epoch"`
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show how the hub is",
		Description: describe("", statusRow{}, "status --data ./hub", "status --hub https://hub.example.org:8441 --json"),
		Flags:       hubFlags(), Action: showStatus,
	}
}

func hubStatus(c *cli.Context) (*dispatchv1.GetHubStatusResponse, error) {
	return call(c, "ask for status", func(ctx context.Context, h *hub) (*dispatchv1.GetHubStatusResponse, error) {
		return h.operate().GetHubStatus(ctx, &dispatchv1.GetHubStatusRequest{})
	})
}

func showStatus(c *cli.Context) error {
	s, err := hubStatus(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, statusRow{
			s.GetVersion(), s.GetUrl(), s.GetMeshId(), s.GetMeshCidr(), s.GetMeshCidr6(), s.GetEpoch(), s.GetRv(), s.GetNodes(), s.GetOnline(),
			s.GetPending(), s.GetAuditSeq(), s.GetPolicyVersion(), s.GetPskEpoch(), when(s.GetStarted()), when(s.GetIntermediateExpires()),
			s.GetRootKeyPresent(), s.GetDatabaseBytes(), s.GetSchemaVersion(),
		})
	}
	pending := ""
	if s.GetPending() > 0 {
		pending = fmt.Sprintf(", %d waiting for approval: node list --state pending", s.GetPending())
	}
	psk := "the operator keeps it"
	if s.GetPskEpoch() > 0 {
		psk = "epoch " + number(s.GetPskEpoch())
	}
	return list(c.App.Writer,
		"version", s.GetVersion(), "since", local(s.GetStarted()), "node URL", s.GetUrl(), "mesh", s.GetMeshId(),
		"prefixes", s.GetMeshCidr()+", "+s.GetMeshCidr6(),
		"nodes", fmt.Sprintf("%d, of which %d online%s", s.GetNodes(), s.GetOnline(), pending),
		"policy", "version "+number(s.GetPolicyVersion()), "mesh key", psk,
		"intermediate", "good until "+local(s.GetIntermediateExpires()), "root key on the hub", yesNo(s.GetRootKeyPresent()),
		"audit log", number(s.GetAuditSeq())+" entries", "database", fmt.Sprintf("%.1f MiB, schema %d", float64(s.GetDatabaseBytes())/(1<<20), s.GetSchemaVersion()),
		"state", fmt.Sprintf("epoch %d, revision %d", s.GetEpoch(), s.GetRv()))
}

func healthCommand() *cli.Command {
	return &cli.Command{
		Name: "health", Usage: "exit with 0 where the hub is ready, else with 3",
		Description: describe("It needs no key. For supervisors and containers.", healthRow{}, "health --data ./hub", "health --hub https://hub.example.org:8441 --pin PIN"),
		Flags:       hubFlags(), Action: checkHealth,
	}
}

func checkHealth(c *cli.Context) error {
	h, err := openHub(c, c.String("hub") == "")
	if err != nil {
		return err
	}
	defer h.close()
	ctx, cancel := context.WithTimeout(c.Context, callTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, h.base+"/readyz", nil)
	if err != nil {
		return err
	}
	res, err := h.http.Do(r)
	if err != nil {
		return h.explain(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if err != nil {
		return h.explain(err)
	}
	row := healthRow{res.StatusCode == http.StatusOK, strings.TrimSpace(string(b))}
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, row); err != nil {
			return err
		}
	}
	if !row.Ready {
		return failf(errNotReady, "", "%s is not ready: %s", h.name, oneLine(row.Detail))
	}
	if !c.Bool("json") {
		_, err = fmt.Fprintln(c.App.Writer, "ready")
	}
	return err
}

func backupCommand() *cli.Command {
	return &cli.Command{
		Name: "backup", Usage: "write a consistent copy of all state while the hub runs", ArgsUsage: "FILE|-", Args: true,
		Description: describe(`The file is a tar archive with the database, the authority's keys and the mesh
key: keep it as you keep those. It appears only when it is whole and its digest is
checked. See restore for the way back.`, backupRow{},
			"backup --data ./hub /backup/hub-$(date +%F).tar", "backup --data ./hub - | age -r age1… > hub.tar.age"),
		Flags: hubFlags(&cli.BoolFlag{Name: "with-root-key", Usage: "include the root's key where it is on the hub"}, forceFlag()),
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "FILE")
			if err != nil {
				return err
			}
			if name != "-" {
				if err := mayWrite(c, name); err != nil {
					return err
				}
			}
			var row backupRow
			_, err = callFor(c.Context, c, "back up", func(ctx context.Context, h *hub) (struct{}, error) {
				return struct{}{}, writeTo(c, name, func(w io.Writer) (err error) {
					row, err = receiveBackup(ctx, h, w, c.Bool("with-root-key"))
					return err
				})
			})
			if err != nil {
				return err
			}
			row.File = name
			if c.Bool("json") && name != "-" {
				return printJSON(c.App.Writer, row)
			}
			note(c, "backup of %d bytes is in %s, SHA-256 %s", row.Bytes, name, row.SHA256)
			return nil
		},
	}
}

func receiveBackup(ctx context.Context, h *hub, w io.Writer, withRoot bool) (backupRow, error) {
	s, err := h.operate().CreateBackup(ctx, &dispatchv1.CreateBackupRequest{WithRootKey: withRoot})
	if err != nil {
		return backupRow{}, err
	}
	defer s.Close()
	sum := sha256.New()
	var n int64
	var want []byte
	for s.Receive() {
		m := s.Msg()
		if len(m.GetSha256()) > 0 {
			want = bytes.Clone(m.GetSha256())
			continue
		}
		if want != nil {
			return backupRow{}, errors.New("the hub sent more after the end")
		}
		_, _ = sum.Write(m.GetChunk())
		n += int64(len(m.GetChunk()))
		if _, err := w.Write(m.GetChunk()); err != nil {
			return backupRow{}, failf(nil, "", "write backup: %w", err)
		}
	}
	if err := s.Err(); err != nil {
		return backupRow{}, err
	}
	if got := sum.Sum(nil); !bytes.Equal(got, want) {
		return backupRow{}, failf(nil, "try again", "the backup arrived incomplete or changed")
	}
	return backupRow{Bytes: n, SHA256: hex.EncodeToString(want)}, nil
}

func caCommand() *cli.Command {
	return &cli.Command{
		Name: "ca", Usage: "the certificate authority",
		Description: `The root signs the intermediate, the intermediate signs nodes. The root's key is
needed only to replace the intermediate: keep it elsewhere.

With the root's key on the hub:   ca rotate
With the root's key elsewhere:    ca csr, there ca sign, then ca install`,
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "show the authority", Description: describe("", caRow{}, "ca status --data ./hub"),
				Flags: hubFlags(), Action: showCA,
			},
			{
				Name: "rotate", Usage: "replace the intermediate with the root's key of --data",
				Description: describe("Certificates of the old intermediate stay valid until they expire.", rotated{}, "ca rotate --data ./hub"),
				Flags:       hubFlags(), Action: rotateCA,
			},
			{
				Name: "csr", Usage: "make a key for the next intermediate and print the request for it",
				Description: describe("The key stays on the hub. The same command gives the request again.", nil, "ca csr --data ./hub > next.csr"),
				Flags:       hubFlags(), Action: beginRotation,
			},
			{
				Name: "sign", Usage: "sign a request with the root's key, on a machine without a hub", ArgsUsage: "CSR|-", Args: true,
				Description: describe("The certificate is printed.", nil, "ca sign --root root.crt --root-key root.key next.csr > next.crt"),
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "root", Usage: "`FILE` with the root's certificate"},
					&cli.StringFlag{Name: "root-key", Usage: "`FILE` with the root's key, of mode 0600"},
				},
				Action: signIntermediate,
			},
			{
				Name: "install", Usage: "put a signed intermediate into use", ArgsUsage: "CERT|-", Args: true,
				Description: describe("", rotated{}, "ca install --data ./hub next.crt"),
				Flags:       hubFlags(), Action: installIntermediate,
			},
		},
	}
}

func showCA(c *cli.Context) error {
	s, err := hubStatus(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, caRow{s.GetMeshId(), when(s.GetIntermediateExpires()), s.GetRootKeyPresent()})
	}
	if err := list(c.App.Writer, "mesh", s.GetMeshId(), "intermediate good until", local(s.GetIntermediateExpires()), "root key on the hub", yesNo(s.GetRootKeyPresent())); err != nil {
		return err
	}
	if s.GetRootKeyPresent() {
		note(c, "hint: move ca/root.key to another place; it is needed only to replace the intermediate")
	}
	return nil
}

func requestIntermediate(c *cli.Context) ([]byte, error) {
	res, err := call(c, "request intermediate", func(ctx context.Context, h *hub) (*dispatchv1.BeginIntermediateRotationResponse, error) {
		return h.operate().BeginIntermediateRotation(ctx, &dispatchv1.BeginIntermediateRotationRequest{})
	})
	return res.GetCsr(), err
}

func beginRotation(c *cli.Context) error {
	csr, err := requestIntermediate(c)
	if err != nil {
		return err
	}
	if _, err := c.App.Writer.Write(csr); err != nil {
		return err
	}
	note(c, "sign it where the root's key is: bauxite-dispatch ca sign --root root.crt --root-key root.key")
	return nil
}

func sign(root, key string, csr []byte) ([]byte, error) {
	crt, err := ca.ReadRoot(root)
	if err != nil {
		return nil, err
	}
	k, err := ca.ReadKey(key)
	if err != nil {
		return nil, err
	}
	return ca.SignIntermediate(crt, k, csr, time.Now())
}

// readArg reads the file that an argument names, or standard input for "-".
func readArg(c *cli.Context, what string) ([]byte, error) {
	name, err := oneArg(c, what)
	if err != nil {
		return nil, err
	}
	if name == "-" {
		return io.ReadAll(io.LimitReader(c.App.Reader, 1<<20))
	}
	return os.ReadFile(name)
}

func signIntermediate(c *cli.Context) error {
	if c.String("root") == "" || c.String("root-key") == "" {
		return usagef("ca sign: want --root FILE and --root-key FILE")
	}
	csr, err := readArg(c, "CSR")
	if err != nil {
		return err
	}
	crt, err := sign(c.String("root"), c.String("root-key"), csr)
	if err != nil {
		return err
	}
	_, err = c.App.Writer.Write(crt)
	return err
}

func install(c *cli.Context, crt []byte) error {
	res, err := call(c, "install intermediate", func(ctx context.Context, h *hub) (*dispatchv1.InstallIntermediateResponse, error) {
		return h.operate().InstallIntermediate(ctx, &dispatchv1.InstallIntermediateRequest{Certificate: crt})
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, rotated{when(res.GetExpires())})
	}
	note(c, "the new intermediate signs from now on, good until %s", local(res.GetExpires()))
	return nil
}

func installIntermediate(c *cli.Context) error {
	crt, err := readArg(c, "CERT")
	if err != nil {
		return err
	}
	return install(c, crt)
}

func rotateCA(c *cli.Context) error {
	dir := c.String("data")
	if dir == "" || c.String("hub") != "" {
		return usagef("ca rotate: works with --data DIR only, where the root's key is; else use ca csr, ca sign and ca install")
	}
	key := filepath.Join(dir, "ca", "root.key")
	if _, err := identity.ReadSecret(key); err != nil {
		return failf(errNotFound, "with the root's key elsewhere use ca csr, there ca sign, then ca install", "read the root's key: %w", err)
	}
	csr, err := requestIntermediate(c)
	if err != nil {
		return err
	}
	crt, err := sign(filepath.Join(dir, "ca", "root.crt"), key, csr)
	if err != nil {
		return err
	}
	return install(c, crt)
}

func pskCommand() *cli.Command {
	return &cli.Command{
		Name: "psk", Usage: "the mesh's pre-shared key",
		Subcommands: []*cli.Command{{
			Name: "rotate", Usage: "make a new mesh key",
			Description: describe("Nodes fetch it by themselves, and those that are offline when they are back.", pskRow{}, "psk rotate --data ./hub"),
			Flags:       hubFlags(),
			Action: func(c *cli.Context) error {
				res, err := call(c, "rotate mesh key", func(ctx context.Context, h *hub) (*dispatchv1.RotateMeshKeyResponse, error) {
					return h.operate().RotateMeshKey(ctx, &dispatchv1.RotateMeshKeyRequest{})
				})
				if err != nil {
					return err
				}
				if c.Bool("json") {
					return printJSON(c.App.Writer, pskRow{res.GetPskEpoch()})
				}
				note(c, "the mesh key has the epoch %d now", res.GetPskEpoch())
				return nil
			},
		}},
	}
}
