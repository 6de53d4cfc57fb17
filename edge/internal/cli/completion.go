// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"

	"github.com/urfave/cli/v2"
)

// The shells ask the program itself, so that completion is never out of date.
const bashCompletion = `# bash completion for bauxite: source <(bauxite completion bash)
_bauxite() {
  local cur="${COMP_WORDS[COMP_CWORD]}" words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  case "$cur" in -*) words+=("$cur") ;; esac
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o default -F _bauxite bauxite
`

const zshCompletion = `#compdef bauxite
# zsh completion for bauxite: source <(bauxite completion zsh)
_bauxite() {
  local -a opts
  local cur=${words[-1]}
  if [[ $cur == -* ]]; then
    opts=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 ${words[@]:0:#words[@]-1} $cur --generate-bash-completion 2>/dev/null)}")
  else
    opts=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 ${words[@]:0:#words[@]-1} --generate-bash-completion 2>/dev/null)}")
  fi
  if [[ -n ${opts[1]} ]]; then _describe 'bauxite' opts; else _files; fi
}
compdef _bauxite bauxite
`

func (a *App) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script", UsageText: "bauxite completion bash|zsh|fish",
		Description: "For bash put this line into ~/.bashrc: source <(bauxite completion bash)",
		BashComplete: func(*cli.Context) {
			_, _ = io.WriteString(a.Stdout, "bash\nzsh\nfish\n")
		},
		Action: func(c *cli.Context) error {
			if err := nargs(c, 1, 1); err != nil {
				return err
			}
			var text string
			var err error
			switch shell := c.Args().First(); shell {
			case "bash":
				text = bashCompletion
			case "zsh":
				text = zshCompletion
			case "fish":
				text, err = c.App.ToFishCompletion()
			default:
				return usagef("completion: unknown shell %q: bash, zsh or fish", shell)
			}
			if err == nil {
				_, err = io.WriteString(a.Stdout, text)
			}
			return err
		},
	}
}
