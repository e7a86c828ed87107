package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/sandbox"
)

func (p *program) inspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", ArgsUsage: "[OPTIONS] NAME|ID...",
		Usage: "Show everything about sandboxes or networks, as JSON",
		Description: `What is both a sandbox and a network is taken for the sandbox.

Example:
  sandnet inspect web`,
		Flags: []cli.Flag{formatFlag("json")},
		Action: func(c *cli.Context) error {
			return p.inspectEach(c, "NAME", func(m *sandbox.Manager, ref string) (any, error) {
				return inspect(c.Context, m, ref)
			})
		},
	}
}

// inspect finds a sandbox or else a network.
func inspect(ctx context.Context, m *sandbox.Manager, ref string) (any, error) {
	var missing *sandbox.NotFoundError
	v, err := m.Get(ctx, ref)
	if err == nil || !errors.As(err, &missing) {
		return v, err
	}
	n, on, err := m.GetNetwork(ctx, ref)
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("no such sandbox or network: %s", ref)
	}
	return viewNetwork(n, on), err
}

// inspectEach prints what is found of each argument, and reports the rest.
func (p *program) inspectEach(c *cli.Context, arg string, find func(*sandbox.Manager, string) (any, error)) error {
	if err := wantArgs(c, -1, arg); err != nil {
		return err
	}
	if _, err := format(c, "json"); err != nil {
		return err
	}
	m, err := p.manager(c)
	if err != nil {
		return err
	}
	found := []any{}
	var errs several
	for _, ref := range c.Args().Slice() {
		v, err := find(m, ref)
		if errors.Is(err, sandbox.ErrNotRoot) {
			return err
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, v)
	}
	if err := p.printJSON(found); err != nil {
		errs = append(errs, err)
	}
	return errs.or()
}
