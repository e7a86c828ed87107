package main

import (
	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
)

func (p *program) createCommand() *cli.Command {
	return &cli.Command{
		Name: "create", ArgsUsage: "[OPTIONS]",
		Usage: "Create a sandbox and print its ID",
		Description: `The sandbox stays until 'sandnet rm'. Run commands in it with 'sandnet exec',
or start any program in its namespace, which is pinned at /run/netns/NAME.

Examples:
  sandnet create --name web -p 8080:80
  ID=$(sandnet create --net backend --ip 10.61.0.7)`,
		Flags: sandboxFlags(),
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
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
			v, err := m.Create(c.Context, s)
			if err != nil {
				return err
			}
			return p.println(v.ID)
		},
	}
}

// sandboxFlags are the options of `run`, `create` and `plan`.
func sandboxFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "net", Aliases: []string{"network"},
			Usage: "`MODE` bridge, a network's NAME or name=NAME,ip=IP,alias=NAME,gw-priority=N (repeatable), host, container:NAME|ID|PID or none"},
		&cli.StringFlag{Name: "name", Usage: "`NAME` a name to find the sandbox by"},
		&cli.StringSliceFlag{Name: "publish", Aliases: []string{"p"},
			Usage: "`SPEC` publish [IP:][HOSTPORT[-END]:]PORT[-END][/PROTO]; without HOSTPORT on a free port (repeatable)"},
		&cli.StringFlag{Name: "ip", Usage: "`IPv4` address on the first network"},
		&cli.StringFlag{Name: "ip6", Usage: "`IPv6` address on the first network"},
		&cli.StringFlag{Name: "mac-address", Usage: "`MAC` address on the first network"},
		&cli.StringFlag{Name: "hostname", Aliases: []string{"h"}, Usage: "`NAME` host name inside"},
		&cli.StringSliceFlag{Name: "dns", Usage: "`IP` name server (repeatable)"},
		&cli.StringSliceFlag{Name: "dns-search", Usage: "`DOMAIN` search domain (repeatable)"},
		&cli.StringSliceFlag{Name: "add-host", Usage: "`NAME:IP` line in /etc/hosts (repeatable)"},
		&cli.StringSliceFlag{Name: "network-alias", Usage: "`NAME` further name on user-defined networks (repeatable)"},
		&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"}, Usage: "`KEY=VALUE` label (repeatable)"},
		&cli.StringSliceFlag{Name: "sysctl", Usage: "`KEY=VALUE` kernel setting inside, below net (repeatable)"},
		&cli.IntFlag{Name: "gw-priority", Usage: "`N` of the first network: the one with the highest has the default gateway"},
		&cli.StringFlag{Name: "ingress-rate", Usage: "`RATE` limit of what it receives on each network, like 10mbit; a plain number is bit/s"},
		&cli.StringFlag{Name: "egress-rate", Usage: "`RATE` limit of what it sends on each network"},
		&cli.StringSliceFlag{Name: egressOption,
			Usage: "`RULE` allow or deny CIDR[:PORT[/PROTO]]; the first that matches decides (repeatable)"},
		&cli.IntFlag{Name: "mtu", Usage: "`BYTES` MTU of the interfaces"},
	}
}

func sandboxOptions(c *cli.Context) spec.SandboxOptions {
	return spec.SandboxOptions{
		Net: c.StringSlice("net"), Name: c.String("name"), Publish: c.StringSlice("publish"),
		IP: c.String("ip"), IP6: c.String("ip6"), MAC: c.String("mac-address"), Hostname: c.String("hostname"),
		DNS: c.StringSlice("dns"), DNSSearch: c.StringSlice("dns-search"), AddHost: c.StringSlice("add-host"),
		NetworkAlias: c.StringSlice("network-alias"), Labels: c.StringSlice("label"), Sysctls: c.StringSlice("sysctl"),
		MTU: c.Int("mtu"), GwPriority: c.Int("gw-priority"),
		IngressRate: c.String("ingress-rate"), EgressRate: c.String("egress-rate"), Egress: c.StringSlice(egressOption),
	}
}
