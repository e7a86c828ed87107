package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/sandbox"
)

func (p *program) portCommand() *cli.Command {
	return &cli.Command{
		Name: "port", ArgsUsage: "SANDBOX [PORT[/PROTO]] | add SANDBOX SPEC... | rm SANDBOX SPEC...",
		Usage: "Show or change the published ports of a sandbox",
		Description: `With a PORT of the sandbox only the host's side of that is shown.

'add' publishes ports of a sandbox that exists and prints them; a SPEC is
what -p takes. 'rm' takes ports back, named by the same SPEC or by the
sandbox's PORT[/PROTO]. All are added, or none; what is so already stays so.
A sandbox may be called add or rm: these words are commands only if a SANDBOX
and a SPEC follow.

Examples:
  sandnet port web
  sandnet port web 80/tcp
  sandnet port add web 8443:443 127.0.0.1:9000:9000
  sandnet port rm web 443/tcp`,
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, -1, "SANDBOX"); err != nil {
				return err
			}
			args := c.Args().Slice()
			if verb := args[0]; (verb == "add" || verb == "rm") && len(args) > 2 {
				return p.changePorts(c, verb == "add", args[1], args[2:])
			}
			if err := wantArgs(c, 2, "SANDBOX"); err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			err = p.showPorts(c.Context, m, args[0], c.Args().Get(1))
			if (args[0] == "add" || args[0] == "rm") && errors.As(err, new(*sandbox.NotFoundError)) {
				return usage("%s is missing", []string{"SANDBOX", "SPEC"}[len(args)-1])
			}
			return err
		},
	}
}

func (p *program) changePorts(c *cli.Context, add bool, ref string, specs []string) error {
	var ports []spec.Port
	for _, s := range specs {
		more, err := spec.ParsePublish(s)
		if err != nil {
			return err
		}
		ports = append(ports, more...)
	}
	m, err := p.manager(c)
	if err != nil {
		return err
	}
	if !add {
		return m.RemovePorts(c.Context, ref, ports)
	}
	published, err := m.AddPorts(c.Context, ref, ports)
	if err != nil {
		return err
	}
	for _, port := range published {
		if err := p.println(publishedAs(port)); err != nil {
			return err
		}
	}
	return nil
}

// publishedAs is a port as `port` lists it.
func publishedAs(port spec.Port) string {
	return fmt.Sprintf("%d/%s -> %s", port.Port, port.Proto, netip.AddrPortFrom(port.HostIP, port.HostPort))
}

// showPorts prints all published ports or, of one of the sandbox's, the host's side.
func (p *program) showPorts(ctx context.Context, m *sandbox.Manager, ref, wanted string) error {
	v, err := m.Get(ctx, ref)
	if err != nil {
		return err
	}
	if wanted = strings.ToLower(wanted); wanted != "" && !strings.Contains(wanted, "/") {
		wanted += "/tcp"
	}
	found := false
	for _, ep := range v.Endpoints {
		for _, port := range ep.Ports {
			line := publishedAs(port)
			if wanted != "" {
				inside, outside, _ := strings.Cut(line, " -> ")
				if wanted != inside {
					continue
				}
				line = outside
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
}
