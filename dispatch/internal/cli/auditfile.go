// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// maxLine bounds a line of an exported file.
const maxLine = 64 << 10

// auditLine is one entry in an exported file: exactly what its hash covers.
type auditLine struct {
	Seq    uint64 `json:"seq"`
	TimeUS int64  `json:"time_us"`
	Actor  string `json:"actor"`
	Action string `json:"action"`
	Target string `json:"target"`
	Detail string `json:"detail"`
	Prev   string `json:"prev"`
	Hash   string `json:"hash"`
}

// checkpointLine is one line of a file of checkpoints. The first has the key, the
// others a checkpoint each.
type checkpointLine struct {
	PublicKey string `json:"public_key,omitempty"`
	Seq       uint64 `json:"seq,omitempty"`
	Signed    string `json:"signed,omitempty"`
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

func parseAuditLine(b []byte) (audit.Entry, error) {
	var l auditLine
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return audit.Entry{}, fmt.Errorf("%w: %w", audit.ErrBroken, err)
	}
	prev, err := hex.DecodeString(l.Prev)
	hash, herr := hex.DecodeString(l.Hash)
	if err != nil || herr != nil {
		return audit.Entry{}, fmt.Errorf("%w: hash of entry %d is no hexadecimal number", audit.ErrBroken, l.Seq)
	}
	return audit.Entry{
		Seq: l.Seq, Time: time.UnixMicro(l.TimeUS), Prev: prev, Hash: hash,
		Event: audit.Event{Actor: l.Actor, Action: l.Action, Target: l.Target, Detail: l.Detail},
	}, nil
}

func exportAudit(c *cli.Context) error {
	to, err := oneArg(c, "FILE")
	if err != nil {
		return err
	}
	points := c.String("checkpoints")
	for _, f := range []string{to, points} {
		if f != "-" && f != "" {
			if err := mayWrite(c, f); err != nil {
				return err
			}
		}
	}
	var entries, signatures int
	_, err = callFor(c.Context, c, "export audit log", func(ctx context.Context, h *hub) (struct{}, error) {
		// The checkpoints first: each is then of an entry that is in the file.
		if points != "" {
			if signatures, err = writeCheckpoints(ctx, h, points); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, writeTo(c, to, func(w io.Writer) error {
			return pageAudit(ctx, h, &dispatchv1.ListAuditEntriesRequest{}, 0, func(e *dispatchv1.AuditEntry) error {
				entries++
				return printLine(w, auditLine{
					e.GetSeq(), e.GetTime().AsTime().UnixMicro(), e.GetActor(), e.GetAction(), e.GetTarget(), e.GetDetail(),
					hex.EncodeToString(e.GetPrev()), hex.EncodeToString(e.GetHash()),
				})
			})
		})
	})
	if err == nil {
		note(c, "%d entries and %d checkpoints are exported", entries, signatures)
	}
	return err
}

func writeCheckpoints(ctx context.Context, h *hub, name string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := h.audit().ListAuditCheckpoints(ctx, &dispatchv1.ListAuditCheckpointsRequest{Limit: auditPage})
	if err != nil {
		return 0, err
	}
	var b bytes.Buffer
	_ = printLine(&b, checkpointLine{PublicKey: hex.EncodeToString(res.GetPublicKey())})
	for _, p := range slices.Backward(res.GetCheckpoints()) {
		_ = printLine(&b, checkpointLine{Seq: p.GetSeq(), Signed: base64.StdEncoding.EncodeToString(p.GetSigned())})
	}
	return len(res.GetCheckpoints()), identity.WriteFile(name, b.Bytes(), 0o600)
}

// writeTo writes a file of mode 0600 that appears only when it is whole, or
// standard output for "-".
func writeTo(c *cli.Context, name string, f func(io.Writer) error) error {
	if name == "-" {
		return f(c.App.Writer)
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	w := bufio.NewWriterSize(tmp, 1<<16)
	err = f(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return err
	}
	return identity.SyncDir(filepath.Dir(name))
}

// verifyResult is what audit verify --json prints.
type verifyResult struct {
	OK bool `json:"ok"`
	// Entries is how many are good, Checkpoints how many signatures match one.
	Entries     uint64 `json:"entries"`
	Head        string `json:"head"`
	Checkpoints int    `json:"checkpoints"`
	// CheckedTo is the newest entry that a checkpoint covers.
	CheckedTo uint64 `json:"checked_to"`
	PublicKey string `json:"public_key"`
	Error     string `json:"error,omitempty"`
}

// verification checks a log against itself and against checkpoints.
type verification struct {
	v audit.Verifier
	// points are those whose entry has not come yet.
	points map[uint64][]audit.Checkpoint
	res    verifyResult
	key    ed25519.PublicKey
	signed [][]byte
}

func verifyAudit(c *cli.Context) error {
	if c.NArg() > 1 {
		return usagef("audit verify: unexpected argument %q", c.Args().Get(1))
	}
	x := &verification{points: make(map[uint64][]audit.Checkpoint)}
	file, dir := c.Args().First(), c.String("data")
	if file == "" && dir == "" {
		return usagef("audit verify: want --data DIR, or a FILE of audit export")
	}
	err := x.run(c, file, dir)
	if err != nil {
		x.res.Error = err.Error()
	}
	x.res.OK = err == nil
	x.res.Entries, x.res.Head = x.v.Seq, hex.EncodeToString(x.v.Head)
	x.res.PublicKey = hex.EncodeToString(x.key)
	if c.Bool("json") {
		if perr := printJSON(c.App.Writer, x.res); err == nil {
			err = perr
		}
	} else if err == nil {
		_, err = fmt.Fprintf(c.App.Writer, "the log is whole: %d entries, %d signed checkpoints, the newest of entry %d\n",
			x.res.Entries, x.res.Checkpoints, x.res.CheckedTo)
		if x.res.Checkpoints == 0 {
			note(c, "warning: no checkpoint was checked, and without one nobody notices a log that was cut off or written anew: give --checkpoints FILE")
		}
	}
	if err != nil {
		return fmt.Errorf("verify audit log: %w", err)
	}
	return nil
}

func (x *verification) run(c *cli.Context, file, dir string) error {
	if err := x.trust(c, file, dir); err != nil {
		return err
	}
	for _, s := range x.signed {
		if err := x.checkpoint(s); err != nil {
			return err
		}
	}
	var err error
	if file != "" {
		err = x.file(file)
	} else {
		err = store.ReadAuditLog(c.Context, filepath.Join(dir, "dispatch.db"), x.checkpoint, x.entry)
	}
	if err != nil {
		return err
	}
	return x.rest()
}

// trust finds the key and the checkpoints from elsewhere.
func (x *verification) trust(c *cli.Context, file, dir string) error {
	if name := c.String("checkpoints"); name != "" {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if x.key, x.signed, err = parseCheckpoints(b); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	if file == "" && x.key == nil {
		key, err := ca.ReadKey(filepath.Join(dir, ca.AuditKeyFile))
		if err != nil {
			return fmt.Errorf("read audit key: %w", err)
		}
		x.key = key.Public().(ed25519.PublicKey)
	}
	if text := c.String("public-key"); text != "" {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != ed25519.PublicKeySize {
			return usagef("--public-key: want 64 hexadecimal digits")
		}
		// What the operator says counts, not what a file says of itself.
		x.key = b
	}
	return nil
}

func parseCheckpoints(b []byte) (key ed25519.PublicKey, signed [][]byte, err error) {
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		if len(bytes.TrimSpace(sc.Bytes())) == 0 {
			continue
		}
		var l checkpointLine
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return nil, nil, err
		}
		switch {
		case l.PublicKey != "":
			if key, err = hex.DecodeString(l.PublicKey); err != nil || len(key) != ed25519.PublicKeySize {
				return nil, nil, errors.New("malformed public key")
			}
		default:
			s, err := base64.StdEncoding.DecodeString(l.Signed)
			if err != nil {
				return nil, nil, errors.New("malformed checkpoint")
			}
			signed = append(signed, s)
		}
	}
	return key, signed, sc.Err()
}

// checkpoint checks a signature and remembers what it is of.
func (x *verification) checkpoint(signed []byte) error {
	if x.key == nil {
		return usagef("audit verify: the checkpoints come without their key: give --public-key")
	}
	p, err := audit.VerifyCheckpoint(signed, x.key)
	if err != nil {
		return err
	}
	x.points[p.Seq] = append(x.points[p.Seq], p)
	return nil
}

func (x *verification) entry(e *audit.Entry) error {
	if err := x.v.Next(e); err != nil {
		return err
	}
	for _, p := range x.points[e.Seq] {
		if !bytes.Equal(p.Head, e.Hash) {
			return fmt.Errorf("%w: entry %d is not the one that was signed on %s", audit.ErrBroken, e.Seq, p.Time.UTC().Format(time.RFC3339))
		}
		x.res.Checkpoints++
		x.res.CheckedTo = max(x.res.CheckedTo, e.Seq)
	}
	delete(x.points, e.Seq)
	return nil
}

// rest is what no entry has answered.
func (x *verification) rest() error {
	for _, seq := range slices.Sorted(maps.Keys(x.points)) {
		if seq > 0 {
			return fmt.Errorf("%w: it ends with entry %d, and entry %d was signed", audit.ErrTruncated, x.v.Seq, seq)
		}
	}
	return nil
}

func (x *verification) file(name string) error {
	var r io.Reader = os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		e, err := parseAuditLine(sc.Bytes())
		if err == nil {
			err = x.entry(&e)
		}
		if err != nil {
			return err
		}
	}
	return sc.Err()
}
