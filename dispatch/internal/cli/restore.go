// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/dispatch"
)

type restoreRow struct {
	MeshID  string    `json:"mesh_id"`
	Created time.Time `json:"backup_created"`
	Aside   string    `json:"aside"`
	Denials int       `json:"revocations_kept"`
	Warning string    `json:"warning,omitempty"`
}

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "put a backup into a data directory that no hub runs on", ArgsUsage: "FILE", Args: true,
		Description: describe(`The mesh gets a new epoch: every node fetches all anew by itself, and none has to
join again. What was in the directory is moved aside into it, and revocations that
are newer than the backup are kept. FILE - reads standard input.`,
			restoreRow{}, "restore backup.tar --data /var/lib/bauxite-dispatch"),
		Flags: []cli.Flag{dataFlag(), jsonFlag()}, Action: restore,
	}
}

func restore(c *cli.Context) error {
	if c.NArg() != 1 {
		return usagef("restore: want one FILE, the archive of bauxite-dispatch backup")
	}
	dir, err := dataDir(c)
	if err != nil {
		return err
	}
	var archive io.Reader = os.Stdin
	if name := c.Args().First(); name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		defer f.Close()
		archive = f
	}
	r, err := dispatch.Restore(c.Context, dir, archive)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	warning := ""
	if r.DenialsErr != nil {
		warning = fmt.Sprintf("the revocations of the database that was there could not be read (%v): revoke again what was revoked after %s",
			r.DenialsErr, r.Created.UTC().Format(time.RFC3339))
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, restoreRow{r.MeshID, r.Created, r.Aside, r.Denials, warning})
	}
	if warning != "" {
		_, _ = fmt.Fprintf(c.App.ErrWriter, "bauxite-dispatch: warning: %s\n", warning)
	}
	_, _ = fmt.Fprintf(c.App.ErrWriter, "bauxite-dispatch: mesh %s is restored as of %s; start the hub now\n", r.MeshID, r.Created.Local().Format(time.DateTime))
	if r.Aside != "" {
		_, _ = fmt.Fprintf(c.App.ErrWriter, "what was there before is in %s; %d revocations of it are kept\n", r.Aside, r.Denials)
	}
	return nil
}
