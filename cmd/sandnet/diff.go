package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/sandbox"
)

func (p *program) diffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", ArgsUsage: "[OPTIONS]",
		Usage: "Show what differs between the records and the kernel",
		Description: `Each line names the owner, the object and what is wrong with it. The exit code
is 1 if anything differs; 'sandnet gc --repair' mends it.

Example:
  sandnet diff --format json`,
		Flags: []cli.Flag{formatFlag("text", "json")},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			f, err := format(c, "text", "json")
			if err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			diff, err := m.Diff(c.Context)
			if err != nil {
				return err
			}
			if f == "json" {
				err = p.printJSON(append([]sandbox.Difference{}, diff...))
			} else {
				err = p.printDiff(diff)
			}
			if err == nil && len(diff) > 0 {
				err = status(exitFailed)
			}
			return err
		},
	}
}

// printDiff prints lines for people, and nothing if there is nothing to say.
func (p *program) printDiff(diff []sandbox.Difference) error {
	w := tabwriter.NewWriter(p.stdout, 0, 1, 3, ' ', 0)
	for _, d := range diff {
		fmt.Fprintf(w, "%s\t%s\t%s\n", d.Owner, oneLine(d.Object), oneLine(d.Text()))
	}
	return w.Flush()
}
