package main

import (
	"github.com/urfave/cli/v2"
)

func (p *program) gcCommand() *cli.Command {
	return &cli.Command{
		Name: "gc", ArgsUsage: "[OPTIONS]",
		Usage: "Remove what nobody owns any more, and print each thing",
		Description: `Every command cleans up after commands that were killed; gc also looks for
what no record knows. With --repair it puts right what 'sandnet diff' shows.

Examples:
  sandnet gc --dry-run
  sandnet gc --repair`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "only print what would be removed or mended"},
			&cli.BoolFlag{Name: "repair", Usage: "also mend what differs from the records"},
		},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			lines, err := m.GC(c.Context, c.Bool("dry-run"))
			if err == nil && c.Bool("repair") {
				var mended []string
				mended, err = m.Repair(c.Context, c.Bool("dry-run"))
				lines = append(lines, mended...)
			}
			for _, line := range lines {
				if e := p.println(line); e != nil && err == nil {
					err = e
				}
			}
			return err
		},
	}
}
