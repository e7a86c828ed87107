package main

import (
	"github.com/urfave/cli/v2"
)

func (p *program) gcCommand() *cli.Command {
	return &cli.Command{
		Name: "gc", ArgsUsage: "[--dry-run]",
		Usage: "Remove what nobody owns any more, and print each thing",
		Description: `Every command cleans up after commands that were killed; gc also looks for
what no record knows.

Example:
  sandnet gc --dry-run`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "dry-run", Usage: "only print what would be removed"}},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			removed, err := m.GC(c.Context, c.Bool("dry-run"))
			for _, line := range removed {
				if e := p.println(line); e != nil && err == nil {
					err = e
				}
			}
			return err
		},
	}
}
