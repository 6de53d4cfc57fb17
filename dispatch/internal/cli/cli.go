// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of bauxite-dispatch. Standard output is the
// answer, standard error the rest; --json is stable: fields are added, never
// changed. What the exit codes mean stands in exit.go.
package cli

import (
	"context"
	"crypto/fips140"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
)

// Run executes args, of which the first is the program's name, and returns the
// exit code. A command that serves ends with ctx.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return runWith(ctx, args, os.Stdin, stdout, stderr)
}

func runWith(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	app.Reader, app.Metadata = stdin, map[string]any{argsKey: args}
	err := mayStart(args, fips.Check())
	if err == nil {
		err = app.RunContext(ctx, flagsFirst(app, args))
	}
	if err == nil {
		return exitOK
	}
	_, _ = fmt.Fprintf(stderr, "bauxite-dispatch: %v\n", err)
	code, hint := verdict(err)
	if hint != "" {
		_, _ = fmt.Fprintf(stderr, "bauxite-dispatch: hint: %s\n", hint)
	}
	return code
}

// mayStart passes on why a FIPS build must not start. Commands that do no
// cryptography answer nevertheless: whoever mends the build needs them.
func mayStart(args []string, err error) error {
	if len(args) < 2 || slices.Contains([]string{"version", "exit-codes", "completion", "man", "help"}, args[1]) {
		return nil
	}
	return err
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:  "bauxite-dispatch",
		Usage: "the hub of a Bauxite mesh",
		Description: `Start a hub, make a join token, and let a robot join:

  bauxite-dispatch serve --data /var/lib/bauxite-dispatch
  bauxite-dispatch token create --data /var/lib/bauxite-dispatch
  bauxite join TOKEN URL                (on the robot)

Commands that call a hub find it by --data DIR on its own machine, or by --hub URL
and an API key from anywhere: see user claim and key create. Exit codes: 0 done,
1 an error, 2 wrong usage, 3 no hub reachable, 4 not permitted, 5 not found,
6 conflict; exit-codes lists all.`,
		Writer: stdout, ErrWriter: stderr,
		Commands: []*cli.Command{
			serveCommand(), statusCommand(), healthCommand(), tokenCommand(), nodeCommand(), policyCommand(), metricsCommand(), topCommand(), auditCommand(), userCommand(), keyCommand(),
			caCommand(), pskCommand(), backupCommand(), restoreCommand(), versionCommand(), completionCommand(), exitCodesCommand(), manCommand(),
		},
		EnableBashCompletion: true,
		HideVersion:          true,
		// The caller of Run decides about the process.
		ExitErrHandler: func(*cli.Context, error) {},
		Action:         noCommand,
	}
	app.OnUsageError = onUsageError
	app.BashComplete = completions(app.Flags, app.Commands, nil)
	for _, c := range app.Commands {
		complete(c)
	}
	return app
}

func exitCodesCommand() *cli.Command {
	return &cli.Command{
		Name: "exit-codes", Usage: "list what each exit code means",
		Action: func(c *cli.Context) error {
			_, err := fmt.Fprint(c.App.Writer, exitTable())
			return err
		},
	}
}

// complete gives a command and its subcommands the common behaviour.
func complete(c *cli.Command) {
	c.OnUsageError = onUsageError
	c.BashComplete = completions(c.Flags, c.Subcommands, c.BashComplete)
	if len(c.Subcommands) > 0 {
		c.Action = noCommand
	} else if do := c.Action; !c.Args {
		c.Action = func(cc *cli.Context) error {
			if cc.NArg() > 0 {
				return usagef("%s: unexpected argument %q", cc.Command.HelpName, cc.Args().First())
			}
			return do(cc)
		}
	}
	for _, s := range c.Subcommands {
		complete(s)
	}
}

func onUsageError(_ *cli.Context, err error, _ bool) error { return usageError{err} }

// noCommand is the action of what only has subcommands.
func noCommand(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("unknown command %q", c.Args().First())
	}
	return cli.ShowSubcommandHelp(c)
}

// dataFlag names the directory, of which every command needs one.
func dataFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "data", Usage: "`DIR` with the hub's state", EnvVars: []string{"BAUXITE_DISPATCH_DATA"},
	}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON, whose fields are stable"}
}

func dataDir(c *cli.Context) (string, error) {
	if d := c.String("data"); d != "" {
		return d, nil
	}
	return "", usagef("--data DIR is missing")
}

// version is set by the linker where a package is built from the tree, which the
// go command does not know the version of.
var version string

// programVersion returns the version, "(devel)" where nobody gave one.
func programVersion() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "(devel)"
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version", Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			v := struct {
				Version  string `json:"version"`
				Revision string `json:"revision,omitempty"`
				Go       string `json:"go"`
				OS       string `json:"os"`
				Arch     string `json:"arch"`
				FIPS     string `json:"fips,omitempty"` // version of the module, in a FIPS build
			}{Version: programVersion(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			suffix := ""
			if fips.Build {
				v.FIPS = fips140.Version()
				suffix = ", FIPS 140-3 module " + v.FIPS
			}
			if bi, ok := debug.ReadBuildInfo(); ok {
				for _, s := range bi.Settings {
					if s.Key == "vcs.revision" {
						v.Revision = s.Value
					}
				}
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, v)
			}
			_, err := fmt.Fprintf(c.App.Writer, "bauxite-dispatch %s (%s, %s/%s%s)\n", v.Version, v.Go, v.OS, v.Arch, suffix)
			return err
		},
	}
}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script for a shell", ArgsUsage: "bash|zsh|fish", Args: true,
		Description: `Examples:

  source <(bauxite-dispatch completion bash)
  bauxite-dispatch completion fish > ~/.config/fish/completions/bauxite-dispatch.fish`,
		Action: func(c *cli.Context) error {
			script, ok := map[string]string{"bash": bashCompletion, "zsh": zshCompletion}[c.Args().First()]
			if c.Args().First() == "fish" {
				var err error
				if script, err = c.App.ToFishCompletion(); err != nil {
					return err
				}
				ok = true
			}
			if !ok || c.NArg() != 1 {
				return usagef("completion: want one of bash, zsh, fish")
			}
			_, err := io.WriteString(c.App.Writer, script)
			return err
		},
	}
}

const bashCompletion = `_bauxite_dispatch() {
  local cur="${COMP_WORDS[COMP_CWORD]}" words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ "$cur" == -* ]] && words+=("$cur")
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o default -F _bauxite_dispatch bauxite-dispatch
`

const zshCompletion = `#compdef bauxite-dispatch
_bauxite_dispatch() {
  local -a opts
  local cur=${words[-1]}
  if [[ "$cur" == -* ]]; then
    opts=("${(@f)$(${words[@]:0:#words[@]-1} ${cur} --generate-bash-completion 2>/dev/null)}")
  else
    opts=("${(@f)$(${words[@]:0:#words[@]-1} --generate-bash-completion 2>/dev/null)}")
  fi
  _describe 'values' opts
}
compdef _bauxite_dispatch bauxite-dispatch
`

// isTerminal reports whether w is a character device.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
