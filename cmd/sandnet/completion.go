package main

import (
	_ "embed"
	"io"

	"github.com/urfave/cli/v2"
)

// The shells' sides: each hands the words up to the cursor to `__complete`,
// below in complete.go, and offers what that prints.
var (
	//go:embed completion/sandnet.bash
	bashCompletion string
	//go:embed completion/sandnet.zsh
	zshCompletion string
	//go:embed completion/sandnet.fish
	fishCompletion string
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", ArgsUsage: "bash|zsh|fish",
		Usage: "Print a script that completes command lines",
		Description: `The script asks sandnet itself what may follow, so that it never is out of date.
'make install' puts it where the shells look for it.

Examples:
  source <(sandnet completion bash)
  sandnet completion zsh > ~/.zfunc/_sandnet
  sandnet completion fish > ~/.config/fish/completions/sandnet.fish`,
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 1, "SHELL"); err != nil {
				return err
			}
			script := ""
			switch shell := c.Args().First(); shell {
			case "bash":
				script = bashCompletion
			case "zsh":
				script = zshCompletion
			case "fish":
				script = fishCompletion
			default:
				return usage("no completion for %q, but for bash, zsh and fish", shell)
			}
			_, err := io.WriteString(p.stdout, script)
			return err
		},
	}
}
