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
		c := f.endpoint(mark, s, ep, n, a.Addr())
		if len(c.Tables) > 0 {
			objs = append(objs, c)
		}
	}
	for _, p := range ep.Ports {
		if to, ok := firewall.Address(ep, p); ok && !firewall.Routed(n) {
			first, last := firewall.Reserve(s, p, to)
			reserve, forget = append(reserve, first...), append(forget, last...)
		}
	}
	return append(append(reserve, objs...), forget...)
}

// endpoint plans the chains of one of the endpoint's addresses.
func (f Firewall) endpoint(mark uint32, s spec.Sandbox, ep spec.Endpoint, n spec.Network, to netip.Addr) plan.Chains {
	c := plan.Chains{Family: "ip6", Legacy: f.Legacy, Name: ep.HostInterface, Mark: mark}
	if to.Is4() {
		c.Family = "ip"
	}
	filter, nat := plan.ChainsOf{Table: "filter"}, plan.ChainsOf{Table: "nat"}
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
	place := func(t *plan.ChainsOf, kind, in, match string, rules []string) {
		name := plan.ChainPrefix + kind + "-" + ep.HostInterface
		t.Chains = append(t.Chains, plan.RuleChain{Name: name, Rules: rules})
		t.Rules = append(t.Rules, plan.PlacedRule{Chain: in, Rule: match + "-j " + name})
	}
	if len(open) > 0 {
		place(&filter, "R", chainOpen, "", open)
	}
	if len(ports) > 0 {
		place(&nat, "P", chainPorts, "", ports)
		if n.NoICC {
			place(&filter, "S", chainSelf, "", []string{fmt.Sprintf("-s %[1]s -d %[1]s -j %[2]s", host(to), chainAccept)})
		}
	}
	if len(s.Egress) > 0 {
		place(&filter, "E", chainEgress, "-s "+host(to)+" ", egress(s.Egress, to.Is4()))
	}
	for _, t := range []plan.ChainsOf{filter, nat} {
		if len(t.Chains) > 0 {
			c.Tables = append(c.Tables, t)
		}
	}
	return c
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
