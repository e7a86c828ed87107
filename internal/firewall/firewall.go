// Package firewall plans what filters, masquerades and publishes: the host's
// one nftables table, and the set elements that each network and each
// published port adds to it. Rules do not grow with networks, sandboxes or
// ports; only elements do.
//
// It is pure: it neither reads nor changes the machine.
package firewall

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Names and numbers of what the package makes.
const (
	tableFamily = "inet"
	// TableName is the name of the table, in family inet.
	TableName = "sandnet"
	// AcceptMark is the bit of the packet mark that says "sandnet has let this
	// packet through"; a foreign FORWARD chain with policy DROP accepts on it.
	AcceptMark = 0x01000000
	// insideMark is the bit that says "this packet came from a sandbox".
	insideMark = 0x02000000
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
	setSelf       = plan.Set{Name: "self", Type: "ipv4_addr . ipv4_addr", Comment: "sandboxes with published ports, each with itself"}
	setOutbound   = plan.Set{Name: "outbound", Type: "ifname", Comment: "bridges with a way in and out"}
	setMasquerade = plan.Set{Name: "masqueraded", Type: "ifname", Comment: "bridges whose traffic leaves with the address of the host"}
	mapPorts      = plan.Set{Name: "ports", Type: "inet_proto . inet_service", Data: "ipv4_addr . inet_service",
		Comment: "published on every address of the host"}
	mapPortsOn = plan.Set{Name: "ports-on", Type: "ipv4_addr . inet_proto . inet_service", Data: "ipv4_addr . inet_service",
		Comment: "published on one address"}
)

// Host plans what all networks share, with the mark of its owner. Each chain is explained in
// docs/modes/bridge.md.
func Host(mark uint32) []plan.Object {
	publish := []string{
		"dnat ip to ip daddr . meta l4proto . th dport map @ports-on",
		"fib daddr type local dnat ip to meta l4proto . th dport map @ports",
	}
	return []plan.Object{plan.Table{
		Family: tableFamily, Name: TableName, Mark: mark,
		Sets: []plan.Set{setBridges, setTalk, setApart, setSelf, setOutbound, setMasquerade, mapPorts, mapPortsOn},
		Chains: []plan.Chain{
			// Published ports on 127.0.0.1 need route_localnet on the bridges;
			// without this, a sandbox could reach everything on the host's loopback.
			{Name: "raw-prerouting", Type: "filter", Hook: "prerouting", Priority: prioRaw, Rules: []string{
				"ip daddr 127.0.0.0/8 iifname @bridges drop",
			}},
			// From outside, 127.0.0.0/8 is never translated: it then is a martian.
			{Name: "prerouting", Type: "nat", Hook: "prerouting", Priority: prioDstNAT,
				Rules: append([]string{
					"ip daddr 127.0.0.0/8 return",
					"iifname @bridges " + setMark(insideMark),
				}, publish...)},
			{Name: "output", Type: "nat", Hook: "output", Priority: prioDstNAT, Rules: publish},
			{Name: "accepted", Rules: []string{
				setMark(AcceptMark),
				"accept",
			}},
			{Name: "forward", Type: "filter", Hook: "forward", Priority: prioForward, Rules: []string{
				"oifname @bridges ct state established,related goto accepted",
				"iifname @bridges ct state established,related goto accepted",
				"iifname . oifname @talk goto accepted",
				// A packet of a sandbox to itself comes this way only if it was
				// sent to its own published port.
				"ip saddr . ip daddr @self ct status dnat goto accepted",
				"iifname . oifname @apart drop",
				"iifname @bridges iifname != @outbound drop",
				"oifname @bridges oifname != @outbound drop",
				"oifname @bridges ct status dnat goto accepted",
				"oifname @bridges drop",
				// Another program's bridge is that program's to open or close.
				`iifname @bridges meta oifkind "bridge" accept`,
				"iifname @bridges goto accepted",
			}},
			// The host itself, at whatever address, is outside an internal network.
			{Name: "input", Type: "filter", Hook: "input", Priority: prioForward, Rules: []string{
				"iifname @bridges iifname != @outbound ct state invalid,new drop",
			}},
			// Who reaches a neighbour or itself through the host must see the
			// answers come from the host, too. The mark tells where the packet came
			// from, since iifname does not where br_netfilter has kept the packet
			// on its bridge.
			{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: prioSrcNAT, Rules: []string{
				"oifname @bridges ip saddr 127.0.0.0/8 masquerade",
				fmt.Sprintf("oifname @bridges ct status dnat meta mark & 0x%08[1]x == 0x%08[1]x masquerade", insideMark),
				"oifname @bridges return",
				"iifname @masqueraded masquerade",
			}},
		},
	}, plan.BindGuard{}}
}

func setMark(bit uint32) string { return fmt.Sprintf("meta mark set meta mark | 0x%08x", bit) }

// Network plans the elements of one bridge network.
func Network(n spec.Network) []plan.Object {
	br := strconv.Quote(n.Bridge)
	pair := setTalk
	if n.NoICC {
		pair = setApart
	}
	objs := []plan.Object{element(setBridges, br, ""), element(pair, br+" . "+br, "")}
	if !n.Internal {
		objs = append(objs, element(setOutbound, br, ""))
		if !n.NoMasquerade {
			objs = append(objs, element(setMasquerade, br, ""))
		}
	}
	return objs
}

// Publish plans one published port of the sandbox address to: the port is
// reserved on the host, then translated.
func Publish(p spec.Port, to netip.Addr) []plan.Object {
	key := fmt.Sprintf("%s . %d", p.Proto, p.HostPort)
	set := mapPorts
	if !p.HostIP.IsUnspecified() {
		key, set = p.HostIP.String()+" . "+key, mapPortsOn
	}
	return []plan.Object{
		plan.HostPort{Proto: string(p.Proto), IP: p.HostIP, Port: p.HostPort, To: onLoopback6(p, to)},
		element(set, key, fmt.Sprintf("%s . %d", to, p.Port)),
		element(setSelf, fmt.Sprintf("%s . %s", to, to), ""),
	}
}

// onLoopback6 is where [::1]:HOSTPORT goes, which no rule can translate: the
// kernel drops the answers. SCTP has no other way there.
func onLoopback6(p spec.Port, to netip.Addr) netip.AddrPort {
	if p.Proto == spec.SCTP || !p.HostIP.IsUnspecified() && p.HostIP != netip.IPv6Loopback() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(to, p.Port)
}

// AcceptIn plans the one rule by which a foreign iptables chain that ends in
// DROP lets sandnet's packets pass.
func AcceptIn(chain string) plan.Object {
	mark := fmt.Sprintf("0x%x/0x%x", AcceptMark, AcceptMark)
	return plan.Rule{Family: "ip", Table: "filter", Chain: chain,
		Spec: []string{"-m", "mark", "--mark", mark, "-m", "comment", "--comment", "sandnet", "-j", "ACCEPT"}}
}

func element(s plan.Set, key, data string) plan.Element {
	s.Comment = ""
	return plan.Element{Family: tableFamily, Table: TableName, Set: s, Entry: key, Data: data}
}
