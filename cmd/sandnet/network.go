package main

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/sandbox"
)

func (p *program) networkCommand() *cli.Command {
	return &cli.Command{
		Name: "network", ArgsUsage: "COMMAND",
		Usage: "Create, inspect and remove networks, and connect sandboxes to them",
		Description: `A network is a bridge of its own with a subnet of its own, apart from all others.
The network "bridge" is the one that sandboxes are on without --net.`,
		Subcommands: []*cli.Command{
			p.networkCreateCommand(), p.networkLsCommand(), p.networkInspectCommand(),
			p.networkRmCommand(), p.networkPruneCommand(), p.networkConnectCommand(), p.networkDisconnectCommand(),
		},
	}
}

func (p *program) networkCreateCommand() *cli.Command {
	return &cli.Command{
		Name: "create", ArgsUsage: "[OPTIONS] NAME",
		Usage: "Create a network and print its name",
		Description: `Sandboxes on it reach each other by name, and nobody on another network.

Examples:
  sandnet network create backend
  sandnet network create --ipv6 backend
  sandnet network create --subnet 10.61.0.0/24 --ip-range 10.61.0.128/25 backend`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "subnet", Usage: "`CIDR` addresses of the network; without it a free subnet; one of IPv4, one of IPv6, or one of each (repeatable)"},
			&cli.StringSliceFlag{Name: "gateway", Usage: "`IP` the host's address in the subnet of its family; without it the first (repeatable)"},
			&cli.StringFlag{Name: "ip-range", Usage: "`CIDR` hand out addresses from this part of the subnet"},
			&cli.StringSliceFlag{Name: "aux-address", Usage: "`NAME=IP` never hand this address out (repeatable)"},
			&cli.BoolFlag{Name: "ipv6", Usage: "give it an IPv4 and an IPv6 subnet: free ones, unless --subnet says which"},
			&cli.BoolFlag{Name: "internal", Usage: "no way out of the network"},
			&cli.BoolFlag{Name: "no-icc", Usage: "its sandboxes do not reach each other"},
			&cli.BoolFlag{Name: "no-masquerade", Usage: "its sandboxes keep their own addresses outside"},
			&cli.IntFlag{Name: "mtu", Usage: "`BYTES` MTU of the network"},
			&cli.StringFlag{Name: "bridge", Usage: "`IFNAME` name of the bridge device"},
			&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"}, Usage: "`KEY=VALUE` label (repeatable)"},
			&cli.StringFlag{Name: "gateway-mode", Usage: "`MODE` of traffic with the outside: nat, routed or isolated"},
		},
		Action: p.networkCreate,
	}
}

func (p *program) networkCreate(c *cli.Context) error {
	if err := wantArgs(c, 1, "NAME"); err != nil {
		return err
	}
	n, err := spec.NetworkOptions{
		Name: c.Args().First(), Subnets: c.StringSlice("subnet"), Gateways: c.StringSlice("gateway"),
		IPRange: c.String("ip-range"), Aux: c.StringSlice("aux-address"), Bridge: c.String("bridge"), MTU: c.Int("mtu"),
		Internal: c.Bool("internal"), NoICC: c.Bool("no-icc"), NoMasquerade: c.Bool("no-masquerade"), IPv6: c.Bool("ipv6"),
		Labels: c.StringSlice("label"), GatewayMode: c.String("gateway-mode"),
	}.Parse()
	if err != nil {
		return err
	}
	m, err := p.manager(c)
	if err != nil {
		return err
	}
	if n, err = m.CreateNetwork(c.Context, n); err != nil {
		return err
	}
	return p.println(n.Name)
}

func (p *program) networkLsCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Aliases: []string{"list"}, ArgsUsage: "[OPTIONS]",
		Usage: "List networks",
		Description: `The network "bridge" is listed from its first use.

Example:
  sandnet network ls`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print names only"},
			formatFlag("table", "json"),
		},
		Action: p.networkLs,
	}
}

func (p *program) networkLs(c *cli.Context) error {
	if err := wantArgs(c, 0); err != nil {
		return err
	}
	f, err := format(c, "table", "json")
	if err != nil {
		return err
	}
	m, err := p.manager(c)
	if err != nil {
		return err
	}
	nets, err := m.Networks(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("quiet") {
		for _, n := range nets {
			if err := p.println(n.Name); err != nil {
				return err
			}
		}
		return nil
	}
	all, err := m.List(c.Context)
	if err != nil {
		return err
	}
	views := make([]networkView, len(nets))
	rows := [][]string{{"NETWORK", "DEVICE", "SUBNETS", "SANDBOXES", "OPTIONS"}}
	for i, n := range nets {
		v := viewNetwork(n, all)
		views[i] = v
		rows = append(rows, []string{n.Name, n.Bridge, join(n.Subnets), strconv.Itoa(len(v.Sandboxes)), v.options()})
	}
	if f == "json" {
		return p.printJSON(views)
	}
	return p.printTable(rows)
}

func join[T interface{ String() string }](items []T) string {
	var out []string
	for _, i := range items {
		out = append(out, i.String())
	}
	return strings.Join(out, ", ")
}

func (p *program) networkInspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", ArgsUsage: "[OPTIONS] NETWORK...",
		Usage: "Show everything about networks, as JSON",
		Description: `Among it are the sandboxes on each, with their addresses.

Examples:
  sandnet network inspect bridge
  sandnet network inspect backend | jq -r '.[].subnets[]'`,
		Flags: []cli.Flag{formatFlag("json")},
		Action: func(c *cli.Context) error {
			return p.inspectEach(c, "NETWORK", func(m *sandbox.Manager, ref string) (any, error) {
				n, on, err := m.GetNetwork(c.Context, ref)
				return viewNetwork(n, on), err
			})
		},
	}
}

func (p *program) networkRmCommand() *cli.Command {
	return &cli.Command{
		Name: "rm", Aliases: []string{"remove"}, ArgsUsage: "[OPTIONS] NETWORK...",
		Usage: "Remove networks without sandboxes",
		Description: `The device, its addresses and its rules go with the network. The network
"bridge" comes back with its next use.

Example:
  sandnet network rm backend`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "accept that there is no such network"}},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, -1, "NETWORK"); err != nil {
				return err
			}
			return p.removeEach(c, "network name", c.Bool("force"), func(m *sandbox.Manager, ref string) error {
				return m.RemoveNetwork(c.Context, ref)
			})
		},
	}
}

func (p *program) networkPruneCommand() *cli.Command {
	return &cli.Command{
		Name: "prune", ArgsUsage: "[OPTIONS]",
		Usage: "Remove all networks without sandboxes, and print each",
		Description: `The network "bridge" stays.

Example:
  sandnet network prune`,
		// Scripts written for docker have it.
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "do not ask; sandnet never does"}},
		Action: func(c *cli.Context) error {
			if err := wantArgs(c, 0); err != nil {
				return err
			}
			m, err := p.manager(c)
			if err != nil {
				return err
			}
			removed, err := m.PruneNetworks(c.Context)
			for _, n := range removed {
				if e := p.println(n); e != nil && err == nil {
					err = e
				}
			}
			return err
		},
	}
}

// networkView is a network as `network inspect` shows it: nothing is left out
// and nothing is null, so that a script can ask for any of it.
type networkView struct {
	Name         string                `json:"name"`
	Bridge       string                `json:"bridge"`
	Subnets      []netip.Prefix        `json:"subnets"`
	Gateways     []netip.Addr          `json:"gateways"`
	IPv6         bool                  `json:"ipv6"`
	Range        string                `json:"range"`
	Aux          map[string]netip.Addr `json:"aux"`
	MTU          int                   `json:"mtu"`
	Internal     bool                  `json:"internal"`
	NoICC        bool                  `json:"noICC"`
	NoMasquerade bool                  `json:"noMasquerade"`
	GatewayMode  spec.GatewayMode      `json:"gatewayMode"`
	Labels       map[string]string     `json:"labels"`
	Created      time.Time             `json:"created"`
	Sandboxes    []networkMember       `json:"sandboxes"`
}

type networkMember struct {
	Name      string         `json:"name"`
	ID        string         `json:"id"`
	Addresses []netip.Prefix `json:"addresses"`
}

// viewNetwork picks those of the sandboxes that are on the network.
func viewNetwork(n spec.Network, sandboxes []sandbox.View) networkView {
	v := networkView{
		Name: n.Name, Bridge: n.Bridge, Subnets: n.Subnets, Gateways: n.Gateways, IPv6: n.HasIPv6(), Aux: n.Aux, MTU: n.MTU,
		Internal: n.Internal, NoICC: n.NoICC, NoMasquerade: n.NoMasquerade,
		GatewayMode: cmp.Or(n.GatewayMode, spec.GatewayNAT), Labels: n.Labels, Created: n.Created,
		Sandboxes: []networkMember{},
	}
	if n.Range.IsValid() {
		v.Range = n.Range.String()
	}
	if v.Aux == nil {
		v.Aux = map[string]netip.Addr{}
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	for _, s := range sandboxes {
		i := slices.IndexFunc(s.Endpoints, func(e spec.Endpoint) bool { return e.Network == n.Name })
		if i >= 0 {
			v.Sandboxes = append(v.Sandboxes, networkMember{s.Name, s.ID, s.Endpoints[i].Addresses})
		}
	}
	return v
}

// options are those that were chosen at its creation, as one types them.
func (v networkView) options() string {
	var out []string
	if v.Internal {
		out = append(out, "internal")
	}
	if v.NoICC {
		out = append(out, "no-icc")
	}
	if v.NoMasquerade {
		out = append(out, "no-masquerade")
	}
	if v.GatewayMode != spec.GatewayNAT {
		out = append(out, string(v.GatewayMode))
	}
	return strings.Join(out, ", ")
}
