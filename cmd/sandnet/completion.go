package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/sandbox"
)

// The shells' sides: each hands the words up to the cursor to the hidden
// command below and offers what that prints; where it prints nothing, files.
const (
	bashCompletion = `_sandnet() {
	local IFS=$'\n' cur=${COMP_WORDS[COMP_CWORD]}
	COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "$cur"))
}
complete -o default -F _sandnet sandnet
`
	zshCompletion = `#compdef sandnet
_sandnet() {
	local -a words_found
	words_found=(${(f)"$(${words[1]} __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
	if (( $#words_found )); then compadd -a words_found; else _files; fi
}
compdef _sandnet sandnet
`
	fishCompletion = `function __sandnet_complete
	set -l words (commandline -opc) (commandline -ct)
	$words[1] __complete -- $words[2..-1] 2>/dev/null
end
complete -c sandnet -a '(__sandnet_complete)'
`
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", ArgsUsage: "bash|zsh|fish",
		Usage: "Print a script that completes command lines",
		Description: `Examples:
  source <(sandnet completion bash)
  sandnet completion fish > ~/.config/fish/completions/sandnet.fish`,
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 1, "SHELL"); err != nil {
				return err
			}
			scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
			script, ok := scripts[c.Args().First()]
			if !ok {
				return usage("no completion for %q, but for bash, zsh and fish", c.Args().First())
			}
			_, err := io.WriteString(p.stdout, script)
			return err
		},
	}
}

// completeCommand prints what the last of its arguments, the beginning of a
// word, may become. It is not for people.
func (p *program) completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, ArgsUsage: "WORD...",
		Usage: "Print how a command line can go on",
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) == 0 {
				words = []string{""}
			}
			begun := words[len(words)-1]
			l, _ := takeApart(p.root, words[:len(words)-1])
			found := p.candidates(c.Context, l, begun)
			slices.Sort(found)
			for _, s := range slices.Compact(found) {
				if !strings.HasPrefix(s, begun) {
					continue
				}
				if err := p.println(s); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// candidates are the words that may follow l.
func (p *program) candidates(ctx context.Context, l line, begun string) []string {
	cmd := l.last()
	switch {
	case l.pending == "net":
		return append(networkNames(ctx, l), "bridge", "host", "none", "container:")
	case l.pending == egressOption:
		return []string{"allow", "deny"}
	case l.pending == "format":
		return []string{"json", "table", "text"}
	case l.pending != "", takesCommand(cmd) && len(l.args) > 0:
		return nil
	case strings.HasPrefix(begun, "-"):
		var out []string
		for _, f := range cmd.Flags {
			out = append(out, "--"+f.Names()[0])
		}
		return out
	case len(cmd.Subcommands) > 0:
		return visibleNames(cmd)
	}
	switch l.name() {
	case "port":
		if len(l.args) == 0 {
			return append(sandboxNames(ctx, l), "add", "rm")
		}
		if len(l.args) == 1 && (l.args[0] == "add" || l.args[0] == "rm") {
			return sandboxNames(ctx, l)
		}
		return nil
	case "exec", "rm":
		return sandboxNames(ctx, l)
	case "network connect", "network disconnect":
		switch len(l.args) {
		case 0:
			return networkNames(ctx, l)
		case 1:
			return sandboxNames(ctx, l)
		}
		return nil
	case "inspect":
		return append(sandboxNames(ctx, l), networkNames(ctx, l)...)
	case "network rm", "network inspect":
		return networkNames(ctx, l)
	case "completion":
		return []string{"bash", "fish", "zsh"}
	case "help":
		return visibleNames(p.root)
	}
	return nil
}

func visibleNames(cmd *cli.Command) []string {
	var out []string
	for _, c := range cmd.Subcommands {
		if !c.Hidden {
			out = append(out, c.Name)
		}
	}
	return out
}

// sandboxNames and networkNames are empty for those who may not know.
func sandboxNames(ctx context.Context, l line) []string {
	var out []string
	if m, err := l.manager(); err == nil {
		views, _ := m.List(ctx)
		for _, v := range views {
			out = append(out, v.Name)
		}
	}
	return out
}

func networkNames(ctx context.Context, l line) []string {
	var out []string
	if m, err := l.manager(); err == nil {
		nets, _ := m.Networks(ctx)
		for _, n := range nets {
			out = append(out, n.Name)
		}
	}
	return out
}

// manager opens the host that the line's --root names.
func (l *line) manager() (*sandbox.Manager, error) {
	root := os.Getenv("SANDNET_ROOT")
	for _, o := range l.options[0] {
		if dir, ok := strings.CutPrefix(o, "--root="); ok {
			root = dir
		}
	}
	return openHost(root, "auto", slog.New(slog.DiscardHandler))
}
