package main

import (
	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
)

func (p *program) execCommand() *cli.Command {
	return &cli.Command{
		Name: "exec", ArgsUsage: "[OPTIONS] SANDBOX [--] COMMAND [ARG...]",
		Usage: "Run a command in a sandbox that exists",
		Description: `The exit code is the command's.

Examples:
  sandnet exec web ip addr
  sandnet exec -e LANG=C web -- ping -c 1 172.30.0.1`,
		Flags: processFlags(),
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) > 1 && args[1] == "--" {
				args = append(args[:1:1], args[2:]...)
			}
			switch len(args) {
			case 0:
				return usage("SANDBOX is missing")
			case 1:
				return usage("COMMAND is missing")
			}
			if err := spec.CheckName("sandbox", args[0]); err != nil {
				return err
			}
			proc, err := p.process(c, args[1:])
			if err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			return ended(m.Exec(c.Context, args[0], proc))
		},
	}
}
