// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"

	"github.com/urfave/cli/v2"
)

// manCommand is for those who make packages.
func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page, in roff", Hidden: true,
		Action: func(c *cli.Context) error {
			page, err := c.App.ToManWithSection(8)
			if err != nil {
				return err
			}
			_, err = io.WriteString(c.App.Writer, page)
			return err
		},
	}
}
