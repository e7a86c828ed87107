package main

import (
	"github.com/urfave/cli/v2"
)

func (p *program) planCommand() *cli.Command {
	return &cli.Command{
		Name: "plan", ArgsUsage: "[OPTIONS]",
		Usage: "Show what create would do, as ip, nft and iptables commands",
		Description: `It takes the options of 'sandnet create', changes nothing and needs no root.

Example:
  sandnet plan --net bridge -p 8080:80`,
		Flags: append(sandboxFlags(), formatFlag("text", "json")),
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			f, err := format(c, "text", "json")
			if err != nil {
				return err
			}
			s, err := sandboxOptions(c).Parse()
			if err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			plans, err := m.Plan(c.Context, s)
			if err != nil {
				return err
			}
			if f == "json" {
				return p.printJSON(plans)
			}
			for _, pl := range plans {
				if err := pl.WriteText(screen{p, p.stdout}); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
