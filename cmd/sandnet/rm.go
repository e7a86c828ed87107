package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/sandbox"
)

func (p *program) rmCommand() *cli.Command {
	return &cli.Command{
		Name: "rm", ArgsUsage: "[OPTIONS] SANDBOX...",
		Usage: "Remove sandboxes",
		Description: `A sandbox is named by its name, its ID or the beginning of that.

Examples:
  sandnet rm web
  sandnet rm -f $(sandnet ps -q)`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "end what runs in them, and accept that there is no such sandbox"},
		},
		Action: func(c *cli.Context) error {
			force := c.Bool("force")
			if err := wantArgs(c, -1, "SANDBOX"); err != nil {
				return err
			}
			return p.removeEach(c, "sandbox", force, func(m *sandbox.Manager, ref string) error {
				return m.Remove(c.Context, ref, force)
			})
		},
	}
}

// removeEach removes what the arguments name, goes on past failures and prints
// each that is gone.
func (p *program) removeEach(c *cli.Context, what string, force bool, remove func(*sandbox.Manager, string) error) error {
	for _, ref := range c.Args().Slice() {
		if err := spec.CheckName(what, ref); err != nil {
			return err
		}
	}
	m, err := p.manager(c)
	if err != nil {
		return err
	}
	var errs several
	for i, ref := range c.Args().Slice() {
		p.step(i, c.NArg())
		err := remove(m, ref)
		var missing *sandbox.NotFoundError
		switch {
		case errors.Is(err, sandbox.ErrNotRoot):
			return err
		case force && errors.As(err, &missing):
			continue
		case err == nil:
			err = p.println(ref)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs.or()
}
