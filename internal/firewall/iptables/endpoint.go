package iptables

import (
	"fmt"
	"net/netip"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Endpoint plans a sandbox's place on a network: its addresses, its published
// ports, its egress policy. Without ports and policy it has no rules.
func (f Firewall) Endpoint(mark uint32, s spec.Sandbox, ep spec.Endpoint, n spec.Network) []plan.Object {
	reserve, objs, forget := []plan.Object(nil), firewall.Own(ep), []plan.Object(nil)
	for _, a := range ep.Addresses {
		objs = append(objs, f.endpoint(mark, s, ep, n, a.Addr())...)
	}
	for _, p := range ep.Ports {
		if to, ok := firewall.Address(ep, p); ok && !firewall.Routed(n) {
			first, last := firewall.Reserve(s, p, to)
			reserve, forget = append(reserve, first...), append(forget, last...)
		}
	}
	return append(append(reserve, objs...), forget...)
}

// endpoint plans the chains of one of the endpoint's addresses, each an object
// of its own: on a living sandbox one comes or goes while another stays.
func (f Firewall) endpoint(mark uint32, s spec.Sandbox, ep spec.Endpoint, n spec.Network, to netip.Addr) []plan.Object {
	var objs []plan.Object
	var open, ports []string
	for _, p := range ep.Ports {
		switch at, ok := firewall.Address(ep, p); {
		case !ok || at != to:
		case firewall.Routed(n):
			open = append(open, fmt.Sprintf("-d %s -p %s -m %s --dport %d -j %s", host(to), p.Proto, p.Proto, p.Port, chainAccept))
		case !firewall.OnLoopback6(p):
			ports = append(ports, publish(p, to))
		}
	}
	add := func(table, kind, in, match string, rules []string) {
		c := plan.Chains{Family: "ip6", Legacy: f.Legacy, Name: kind + "-" + ep.HostInterface, Mark: mark}
		if to.Is4() {
			c.Family = "ip"
		}
		chain := plan.ChainPrefix + c.Name
		c.Tables = []plan.ChainsOf{{Table: table, Chains: []plan.RuleChain{{Name: chain, Rules: rules}},
			Rules: []plan.PlacedRule{{Chain: in, Rule: match + "-j " + chain}}}}
		objs = append(objs, c)
	}
	if len(open) > 0 {
		add("filter", "R", chainOpen, "", open)
	}
	if len(ports) > 0 {
		add("nat", "P", chainPorts, "", ports)
		if n.NoICC {
			add("filter", "S", chainSelf, "", []string{fmt.Sprintf("-s %[1]s -d %[1]s -j %[2]s", host(to), chainAccept)})
		}
	}
	if len(s.Egress) > 0 {
		add("filter", "E", chainEgress, "-s "+host(to)+" ", egress(s.Egress, to.Is4()))
	}
	return objs
}

// host is an address as iptables prints it.
func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// publish is the rule that translates a published port.
func publish(p spec.Port, to netip.Addr) string {
	where, local := "", " -m addrtype --dst-type LOCAL"
	if !p.HostIP.IsUnspecified() {
		where, local = "-d "+host(p.HostIP)+" ", ""
	}
	return fmt.Sprintf("%s-p %s -m %s --dport %d%s -j DNAT --to-destination %s",
		where, p.Proto, p.Proto, p.HostPort, local, netip.AddrPortFrom(to, p.Port))
}

// egress is the policy's rules for one family. They look at where the sandbox
// sent the packet, before a published port translated it.
func egress(policy []spec.EgressRule, v4 bool) []string {
	// Of these nobody knows where they were sent.
	rules := []string{unknown + " -j DROP"}
	for _, r := range policy {
		if r.To.Addr().Is4() == v4 {
			rules = append(rules, egressRule(r))
		}
	}
	if firewall.EgressDefault(policy) {
		rules = append(rules, "-j DROP")
	}
	return rules
}

func egressRule(r spec.EgressRule) string {
	rule, match := "", ""
	if r.Proto != "" {
		rule = "-p " + string(r.Proto) + " "
	}
	switch {
	case r.To.IsSingleIP():
		match += " --ctorigdst " + r.To.Addr().String()
	case r.To.Bits() > 0:
		match += " --ctorigdst " + r.To.String()
	}
	if r.Port != 0 {
		match += fmt.Sprintf(" --ctorigdstport %d", r.Port)
	}
	if match != "" {
		rule += "-m conntrack" + match + " "
	}
	if r.Allow {
		return rule + "-j RETURN"
	}
	return rule + "-j DROP"
}
