package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"
)

func (p *program) portCommand() *cli.Command {
	return &cli.Command{
		Name: "port", ArgsUsage: "SANDBOX [PORT[/PROTO]]",
		Usage: "Show the published ports of a sandbox",
		Description: `With a PORT of the sandbox only the host's side of that is shown.

Examples:
  sandnet port web
  sandnet port web 80/tcp`,
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 2, "SANDBOX"); err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			v, err := m.Get(c.Context, c.Args().First())
			if err != nil {
				return err
			}
			wanted := c.Args().Get(1)
			if wanted != "" && !strings.Contains(wanted, "/") {
				wanted += "/tcp"
			}
			found := false
			for _, ep := range v.Endpoints {
				for _, port := range ep.Ports {
					inside := fmt.Sprintf("%d/%s", port.Port, port.Proto)
					line := netip.AddrPortFrom(port.HostIP, port.HostPort).String()
					if wanted == "" {
						line = inside + " -> " + line
					} else if wanted != inside {
						continue
					}
					found = true
					if err := p.println(line); err != nil {
						return err
					}
				}
			}
			if wanted != "" && !found {
				return fmt.Errorf("sandbox %s does not publish %s", v.Name, wanted)
			}
			return nil
		},
	}
}
