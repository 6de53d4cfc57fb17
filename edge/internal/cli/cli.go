// SPDX-License-Identifier: Apache-2.0

// Package cli is the bauxite command.
//
// Its voice: stdout carries the answer and nothing else, stderr the rest. An
// error is one line "bauxite: error: …", mostly followed by "bauxite: hint: …",
// which says what to do. JSON is stable: fields are added, never changed. Colour
// appears on terminals only, never carries meaning alone, and NO_COLOR ends it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/edge/internal/daemon"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
)

// App is one invocation.
type App struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Deps are the parts that `bauxite run` puts together.
	Deps daemon.Deps
}

// Main runs the command and returns its exit code. args includes the program's
// name.
func (a *App) Main(ctx context.Context, args []string) int {
	app := a.command()
	err := mayStart(args, fips.Check())
	if err == nil {
		err = app.RunContext(ctx, reorder(app, args))
	}
	if err == nil {
		return 0
	}
	code, hint := verdict(err)
	var u *usageError
	if errors.As(err, &u) && hint == "" {
		hint = "bauxite help"
	}
	if code != 130 {
		fmt.Fprintf(a.Stderr, "bauxite: %s %s\n", a.paint(a.Stderr, red, "error:"), oneLine(err.Error()))
		if hint != "" {
			fmt.Fprintf(a.Stderr, "bauxite: %s %s\n", a.paint(a.Stderr, yellow, "hint:"), hint)
		}
	}
	return code
}

// mayStart passes on why a FIPS build must not start. Commands that do no
// cryptography answer nevertheless: whoever mends the build needs them.
func mayStart(args []string, err error) error {
	if len(args) < 2 || slices.Contains([]string{"version", "exit-codes", "completion", "help"}, args[1]) {
		return nil
	}
	return err
}

func (a *App) command() *cli.App {
	app := &cli.App{
		Name:                 "bauxite",
		Usage:                "encrypted peer-to-peer mesh for robots",
		UsageText:            "bauxite COMMAND [options] [arguments]",
		Description:          "Start with: bauxite join TOKEN HUB_URL, then: bauxite run",
		HideVersion:          true,
		EnableBashCompletion: true,
		Suggest:              false,
		Reader:               a.Stdin, Writer: a.Stdout, ErrWriter: a.Stderr,
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return cli.ShowAppHelp(c)
			}
			return usagef("unknown command %q", c.Args().First())
		},
	}
	app.OnUsageError = usageProblem
	app.Commands = []*cli.Command{
		a.joinCommand(), a.runCommand(), a.statusCommand(), a.peersCommand(), a.pathsCommand(), a.connectCommand(), a.pingCommand(), a.metricsCommand(), a.policyCommand(),
		a.netcheckCommand(), a.leaveCommand(), a.versionCommand(), a.completionCommand(), a.exitCodesCommand(),
	}
	for _, c := range app.Commands {
		c.OnUsageError = usageProblem
		c.Flags = append(c.Flags, &cli.StringFlag{Name: "home", Usage: "`DIR` of this node (default: $BAUXITE_HOME, else .bauxite in the user's home)"})
	}
	return app
}

func usageProblem(_ *cli.Context, err error, _ bool) error { return usagef("%s", err.Error()) }

func (a *App) exitCodesCommand() *cli.Command {
	return &cli.Command{
		Name: "exit-codes", Usage: "list what each exit code means", Description: exitTable(),
		Action: func(*cli.Context) error {
			_, err := io.WriteString(a.Stdout, exitTable())
			return err
		},
	}
}

// reorder moves options before arguments, because people write them after, and
// the flag package stops at the first argument. What follows "--" stays.
func reorder(app *cli.App, args []string) []string {
	if len(args) < 3 || args[len(args)-1] == "--generate-bash-completion" {
		return args
	}
	var cmd *cli.Command
	for _, c := range app.Commands {
		if c.HasName(args[1]) {
			cmd = c
		}
	}
	if cmd == nil {
		return args
	}
	valued := make(map[string]bool)
	for _, f := range cmd.Flags {
		d, ok := f.(cli.DocGenerationFlag)
		for _, n := range f.Names() {
			valued[n] = ok && d.TakesValue()
		}
	}
	var flags, rest []string
	for in := args[2:]; len(in) > 0; in = in[1:] {
		s := in[0]
		if s == "--" {
			rest = append(rest, in[1:]...)
			break
		}
		if len(s) < 2 || s[0] != '-' {
			rest = append(rest, s)
			continue
		}
		flags = append(flags, s)
		name := strings.TrimLeft(s, "-")
		if valued[name] && len(in) > 1 {
			in = in[1:]
			flags = append(flags, in[0])
		}
	}
	out := append([]string{args[0], args[1]}, flags...)
	if len(rest) > 0 {
		out = append(append(out, "--"), rest...)
	}
	return out
}

// homeDir returns the home that a command is about.
func homeDir(c *cli.Context) (string, error) {
	if d := c.String("home"); d != "" {
		return filepath.Abs(d)
	}
	if c.IsSet("home") {
		return "", usagef("--home is empty")
	}
	return home.Default()
}

// nargs checks the number of arguments.
func nargs(c *cli.Context, low, high int) error {
	switch n := c.NArg(); {
	case n < low:
		return usagef("%s: an argument is missing: %s", c.Command.Name, c.Command.UsageText)
	case n > high:
		return usagef("%s: unexpected argument %q", c.Command.Name, c.Args().Get(high))
	}
	return nil
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case r < ' ' || r == 0x7f:
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
}

type colour string

const (
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	grey   colour = "90"
	bold   colour = "1"
)

// paint colours s where w is a terminal and nobody objects.
func (a *App) paint(w io.Writer, c colour, s string) string {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || !isTerminal(w) || s == "" {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}
