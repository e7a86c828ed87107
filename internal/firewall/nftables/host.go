// Package nftables plans what filters, masquerades and publishes through
// nf_tables: one table on the host, and the set elements that each network and
// each sandbox adds to it. Rules do not grow with networks, sandboxes or
// ports, only elements do; a sandbox with an egress policy has a chain.
//
// It is pure: it neither reads nor changes the machine.
package nftables

import (
	"fmt"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/plan"
)

// Names of what the package makes.
const (
	tableFamily = "inet"
	// TableName is the name of the table, in family inet.
	TableName = "sandnet"
)

// Priorities of the base chains, relative to the kernel's own hooks
// (include/uapi/linux/netfilter_ipv4.h): the filter runs before foreign
// FORWARD chains at 0, so that the mark is there when they look.
const (
	prioRaw     = -300
	prioDstNAT  = -100
	prioForward = -10
	prioSrcNAT  = 100
)

var (
	setBridges    = plan.Set{Name: "bridges", Type: "ifname", Comment: "every bridge of sandnet"}
	setTalk       = plan.Set{Name: "talk", Type: "ifname . ifname", Comment: "bridge pairs whose sandboxes may talk"}
	setApart      = plan.Set{Name: "apart", Type: "ifname . ifname", Comment: "bridge pairs whose sandboxes may not, not even through published ports"}
	setOutbound   = plan.Set{Name: "outbound", Type: "ifname", Comment: "bridges with a way in and out"}
	setMasquerade = plan.Set{Name: "masqueraded", Type: "ifname", Comment: "bridges whose traffic leaves with the address of the host"}
)

// family has the sets that there are once per address family.
type family struct {
	ip                            string // what nft calls it
	self, open, ports, on, egress plan.Set
}

// families are IPv4 and IPv6.
func families() [2]family {
	var out [2]family
	for i, f := range []struct{ ip, addr, suffix string }{{"ip", "ipv4_addr", ""}, {"ip6", "ipv6_addr", "6"}} {
		out[i] = family{
			ip:   f.ip,
			self: plan.Set{Name: "self" + f.suffix, Type: f.addr + " . " + f.addr, Comment: "sandboxes with published ports, each with itself"},
			open: plan.Set{Name: "open" + f.suffix, Type: f.addr + " . inet_proto . inet_service", Comment: "ports published at the address of the sandbox"},
			ports: plan.Set{Name: "ports" + f.suffix, Type: "inet_proto . inet_service", Data: f.addr + " . inet_service",
				Comment: "published on every address of the host"},
			on: plan.Set{Name: "ports" + f.suffix + "-on", Type: f.addr + " . inet_proto . inet_service", Data: f.addr + " . inet_service",
				Comment: "published on one address"},
			egress: plan.Set{Name: "egress" + f.suffix, Type: f.addr, Data: "verdict", Comment: "sandboxes with an egress policy"},
		}
	}
	return out
}

// Firewall is the choice of nf_tables.
type Firewall struct{}

// Name is "nftables".
func (Firewall) Name() string { return "nftables" }

// Host plans what all networks share, with the mark of its owner. foreign is
// the chain of another firewall that has to let our packets pass, or empty.
// Each chain is explained in docs/rules/nftables.md.
func (Firewall) Host(mark uint32, foreign string) []plan.Object {
	objs := []plan.Object{table(mark), firewall.AntiSpoof(mark), plan.BindGuard{}}
	if foreign != "" {
		objs = append(objs, firewall.AcceptIn(foreign)...)
	}
	return objs
}

func table(mark uint32) plan.Table {
	sets := []plan.Set{setBridges, setTalk, setApart, setOutbound, setMasquerade}
	var publish, self, open, egress []string
	for _, f := range families() {
		sets = append(sets, f.self, f.open, f.ports, f.on, f.egress)
		publish = append(publish,
			fmt.Sprintf("dnat %[1]s to %[1]s daddr . meta l4proto . th dport map @%[2]s", f.ip, f.on.Name),
			fmt.Sprintf("fib daddr type local dnat %s to meta l4proto . th dport map @%s", f.ip, f.ports.Name))
		// A packet of a sandbox to itself comes this way only if it was sent to
		// its own published port.
		self = append(self, fmt.Sprintf("%[1]s saddr . %[1]s daddr @%[2]s ct status dnat goto accepted", f.ip, f.self.Name))
		open = append(open, fmt.Sprintf("%[1]s daddr . meta l4proto . th dport @%[2]s goto accepted", f.ip, f.open.Name))
		egress = append(egress, fmt.Sprintf("%s saddr vmap @%s", f.ip, f.egress.Name))
	}
	return plan.Table{
		Family: tableFamily, Name: TableName, Mark: mark, Sets: sets,
		Chains: []plan.Chain{
			// A bridge hands frames to reserved addresses (01:80:c2:00:00:0e) to the
			// host on the port that they came in by, past all rules for bridges.
			// Published ports on 127.0.0.1 need route_localnet on the bridges;
			// without this, a sandbox could reach everything on the host's loopback.
			{Name: "raw-prerouting", Type: "filter", Hook: "prerouting", Priority: prioRaw, Rules: []string{
				fmt.Sprintf(`iifgroup %d meta iifkind "veth" drop`, mark),
				"ip daddr 127.0.0.0/8 iifname @bridges drop",
			}},
			// From outside, 127.0.0.0/8 is never translated: it then is a martian.
			{Name: "prerouting", Type: "nat", Hook: "prerouting", Priority: prioDstNAT,
				Rules: append([]string{
					"ip daddr 127.0.0.0/8 return",
					"iifname @bridges " + setMark(firewall.InsideMark),
				}, publish...)},
			{Name: "output", Type: "nat", Hook: "output", Priority: prioDstNAT, Rules: publish},
			{Name: "accepted", Rules: []string{
				setMark(firewall.AcceptMark),
				"accept",
			}},
			{Name: "forward", Type: "filter", Hook: "forward", Priority: prioForward, Rules: concat(
				"oifname @bridges ct state established,related goto accepted",
				"iifname @bridges ct state established,related goto accepted",
				"iifname . oifname @talk goto accepted",
				self,
				"iifname . oifname @apart drop",
				"iifname @bridges iifname != @outbound drop",
				"oifname @bridges oifname != @outbound drop",
				egress,
				"oifname @bridges ct status dnat goto accepted",
				open,
				"oifname @bridges drop",
				// Another program's bridge is that program's to open or close.
				`iifname @bridges meta oifkind "bridge" accept`,
				"iifname @bridges goto accepted",
			)},
			// The host itself, at whatever address, is outside an internal network,
			// and subject to an egress policy.
			{Name: "input", Type: "filter", Hook: "input", Priority: prioForward, Rules: concat(
				"iifname @bridges iifname != @outbound ct state invalid,new drop",
				"ct state established,related,untracked accept",
				egress,
			)},
			// Who reaches a neighbour or itself through the host must see the
			// answers come from the host, too. The mark tells where the packet came
			// from, since iifname does not where br_netfilter has kept the packet
			// on its bridge.
			{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: prioSrcNAT, Rules: []string{
				"oifname @bridges ip saddr 127.0.0.0/8 masquerade",
				fmt.Sprintf("oifname @bridges ct status dnat meta mark & 0x%08[1]x == 0x%08[1]x masquerade", firewall.InsideMark),
				"oifname @bridges return",
				"iifname @masqueraded masquerade",
			}},
		},
	}
}

// concat joins rules and lists of rules.
func concat(parts ...any) []string {
	var out []string
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			out = append(out, p)
		case []string:
			out = append(out, p...)
		}
	}
	return out
}

func setMark(bit uint32) string { return fmt.Sprintf("meta mark set meta mark | 0x%08x", bit) }
