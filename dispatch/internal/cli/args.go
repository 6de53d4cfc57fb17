// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// flagsFirst puts the flags of a command before its arguments, where the parser
// wants them: people write "node show robot-7 --json". What follows -- stays.
func flagsFirst(app *cli.App, args []string) []string {
	cmds, flags := app.Commands, app.Flags
	i := 1
	for ; i < len(args); i++ { // the path to the command
		var found *cli.Command
		for _, c := range cmds {
			if c.HasName(args[i]) {
				found = c
			}
		}
		if found == nil {
			break
		}
		cmds, flags = found.Subcommands, found.Flags
	}
	if len(args) == 0 || i >= len(args) || len(cmds) > 0 && !strings.HasPrefix(args[i], "-") {
		return args // nothing follows, or no such command
	}
	out := append([]string{}, args[:i]...)
	var rest []string
	for ; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			// It also keeps the arguments before it from looking like flags.
			out = append(out, "--")
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			rest = append(rest, a)
			continue
		}
		if a == completionFlag {
			rest = append(rest, a) // the parser looks for it at the end
			continue
		}
		out = append(out, a)
		if name := strings.TrimLeft(a, "-"); !strings.Contains(name, "=") && takesValue(flags, name) && i+1 < len(args) && args[i+1] != completionFlag {
			i++
			out = append(out, args[i])
		}
	}
	return append(out, rest...)
}

const completionFlag = "--generate-bash-completion"

func takesValue(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			_, isBool := f.(*cli.BoolFlag)
			return !isBool
		}
	}
	return false
}

// oneArg returns the only argument of a command.
func oneArg(c *cli.Context, what string) (string, error) {
	a, err := nArgs(c, what)
	if err != nil {
		return "", err
	}
	return a[0], nil
}

// nArgs returns the arguments of a command, one for each of what.
func nArgs(c *cli.Context, what ...string) ([]string, error) {
	if c.NArg() < len(what) {
		return nil, usagef("%s: %s is missing", c.Command.HelpName, what[c.NArg()])
	}
	if c.NArg() > len(what) {
		return nil, usagef("%s: unexpected argument %q", c.Command.HelpName, c.Args().Get(len(what)))
	}
	for i, w := range what {
		if c.Args().Get(i) == "" {
			return nil, usagef("%s: %s is empty", c.Command.HelpName, w)
		}
	}
	return c.Args().Slice(), nil
}

// endOfStream makes nothing of an interruption: it is how a stream is left.
func endOfStream(c *cli.Context, err error) error {
	if errors.Is(err, context.Canceled) && c.Err() != nil {
		return nil
	}
	return err
}

// argsKey is where the app keeps what was typed.
const argsKey = "args"

// completions prints what may follow: flags after a hyphen, else subcommands or
// what names prints. After a flag with a value it prints nothing, and the shell
// offers files.
func completions(flags []cli.Flag, cmds []*cli.Command, names cli.BashCompleteFunc) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		last := ""
		if args, _ := c.App.Metadata[argsKey].([]string); len(args) > 1 {
			last = args[len(args)-2] // before completionFlag
		}
		switch {
		case strings.HasPrefix(last, "-") && takesValue(flags, strings.TrimLeft(last, "-")):
		case strings.HasPrefix(last, "-"):
			for _, f := range flags {
				if n := "--" + f.Names()[0]; strings.HasPrefix(n, last) {
					_, _ = fmt.Fprintln(c.App.Writer, n)
				}
			}
		case len(cmds) > 0:
			for _, cmd := range cmds {
				if !cmd.Hidden {
					_, _ = fmt.Fprintln(c.App.Writer, cmd.Name)
				}
			}
		case names != nil:
			names(c)
		}
	}
}

// completeTimeout is how long a shell may wait for names from the hub.
const completeTimeout = 700 * time.Millisecond

// completeWith completes with what the hub knows, where it answers quickly.
func completeWith(list func(context.Context, *hub) ([]string, error)) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		ctx, cancel := context.WithTimeout(c.Context, completeTimeout)
		defer cancel()
		h, err := openHub(c, true)
		if err != nil {
			return
		}
		defer h.close()
		names, err := list(ctx, h)
		if err != nil {
			return
		}
		for _, n := range names {
			_, _ = fmt.Fprintln(c.App.Writer, oneLine(n))
		}
	}
}

func nodeNames(ctx context.Context, h *hub) (out []string, err error) {
	res, err := h.fleet().ListNodes(ctx, &dispatchv1.ListNodesRequest{})
	for _, n := range res.GetNodes() {
		out = append(out, n.GetName())
	}
	return out, err
}

func tokenIDs(ctx context.Context, h *hub) (out []string, err error) {
	res, err := h.fleet().ListTokens(ctx, &dispatchv1.ListTokensRequest{})
	for _, t := range res.GetTokens() {
		out = append(out, t.GetId())
	}
	return out, err
}

func userNames(ctx context.Context, h *hub) (out []string, err error) {
	res, err := h.access().ListUsers(ctx, &dispatchv1.ListUsersRequest{})
	for _, u := range res.GetUsers() {
		out = append(out, u.GetName())
	}
	return out, err
}

func keyIDs(ctx context.Context, h *hub) (out []string, err error) {
	res, err := h.access().ListKeys(ctx, &dispatchv1.ListKeysRequest{})
	for _, k := range res.GetKeys() {
		if !k.GetRevoked() {
			out = append(out, k.GetId())
		}
	}
	return out, err
}
