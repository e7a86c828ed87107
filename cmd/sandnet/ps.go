package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/sandbox"
)

func (p *program) psCommand() *cli.Command {
	return &cli.Command{
		Name: "ps", ArgsUsage: "[OPTIONS]",
		Usage: "List sandboxes",
		Description: `All sandboxes are listed; in JSON each as 'sandnet inspect' shows it.

Examples:
  sandnet ps
  sandnet ps --format json | jq -r '.[].endpoints[].addresses[]'`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print IDs only"},
			&cli.BoolFlag{Name: "no-trunc", Usage: "print everything in full"},
			formatFlag("table", "json"),
		},
		Action: p.ps,
	}
}

func (p *program) ps(c *cli.Context) error {
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
	views, err := m.List(c.Context)
	if err != nil {
		return err
	}
	id := shortID
	if c.Bool("no-trunc") {
		id = func(s string) string { return s }
	}
	switch {
	case c.Bool("quiet"):
		for _, v := range views {
			if err := p.println(id(v.ID)); err != nil {
				return err
			}
		}
		return nil
	case f == "json":
		return p.printJSON(views)
	}
	rows := [][]string{{"SANDBOX ID", "NAME", "NETWORK", "ADDRESSES", "PORTS", "STATUS", "CREATED", "SOURCE"}}
	now := time.Now()
	for _, v := range views {
		rows = append(rows, []string{id(v.ID), v.Name, v.Mode, addresses(v.Endpoints), publications(v), v.Status, ago(now.Sub(v.Created)), source(v, id)})
	}
	if c.Bool("no-trunc") {
		return p.printTableTo(0, rows)
	}
	return p.printTable(rows)
}

// source is who asked for the sandbox, and the container it is for.
func source(v sandbox.View, id func(string) string) string {
	if v.Container == "" {
		return string(v.Source)
	}
	return string(v.Source) + " " + id(v.Container)
}

func addresses(endpoints []spec.Endpoint) string {
	var out []string
	for _, ep := range endpoints {
		for _, a := range ep.Addresses {
			out = append(out, a.Addr().String())
		}
	}
	return strings.Join(out, ", ")
}

// publications are the published ports, as docker ps shows them.
func publications(v sandbox.View) string {
	var out []string
	for _, ep := range v.Endpoints {
		for _, port := range ep.Ports {
			out = append(out, fmt.Sprintf("%s->%d/%s", netip.AddrPortFrom(port.HostIP, port.HostPort), port.Port, port.Proto))
		}
	}
	return strings.Join(out, ", ")
}
