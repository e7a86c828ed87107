package main

import (
	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
)

func (p *program) networkConnectCommand() *cli.Command {
	return &cli.Command{
		Name: "connect", ArgsUsage: "[OPTIONS] NETWORK SANDBOX",
		Usage: "Connect a sandbox to one more network",
		Description: `The sandbox may be running: it gets the lowest ethN that is free. The
default gateway and the published ports are on the network with the highest
--gw-priority, of equals on the one it was connected to first.

Examples:
  sandnet network connect backend web
  sandnet network connect --ip 10.61.0.7 --alias db backend web`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "ip", Usage: "`IPv4` address on the network"},
			&cli.StringFlag{Name: "ip6", Usage: "`IPv6` address on the network"},
			&cli.StringSliceFlag{Name: "alias", Usage: "`NAME` further name on the network (repeatable)"},
			&cli.StringFlag{Name: "mac-address", Usage: "`MAC` address on the network"},
			&cli.IntFlag{Name: "gw-priority", Usage: "`N` the network with the highest has the default gateway"},
		},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 2, "NETWORK", "SANDBOX"); err != nil {
				return err
			}
			a, err := spec.AttachmentOptions{
				Network: c.Args().First(), IP: c.String("ip"), IP6: c.String("ip6"), MAC: c.String("mac-address"),
				Aliases: c.StringSlice("alias"), GwPriority: c.Int("gw-priority"),
			}.Parse()
			if err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			return m.Connect(c.Context, c.Args().Get(1), a)
		},
	}
}

func (p *program) networkDisconnectCommand() *cli.Command {
	return &cli.Command{
		Name: "disconnect", ArgsUsage: "[-f] NETWORK SANDBOX",
		Usage: "Disconnect a sandbox from a network",
		Description: `The sandbox may be running. If the network had the default gateway and the
published ports, the next one takes over.

Example:
  sandnet network disconnect backend web`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "accept that it is not connected"}},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 2, "NETWORK", "SANDBOX"); err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			return m.Disconnect(c.Context, c.Args().Get(1), c.Args().First(), c.Bool("force"))
		},
	}
}
