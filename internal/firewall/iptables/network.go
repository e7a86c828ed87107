package iptables

import (
	"fmt"
	"net/netip"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Network plans the chains of one bridge network, in each of its families.
func (f Firewall) Network(mark uint32, n spec.Network) []plan.Object {
	var objs []plan.Object
	for _, subnet := range n.Subnets {
		objs = append(objs, f.network(mark, n, subnet))
	}
	return objs
}

func (f Firewall) network(mark uint32, n spec.Network, subnet netip.Prefix) plan.Chains {
	br, v4 := n.Bridge, subnet.Addr().Is4()
	from, to := plan.ChainPrefix+"FROM-"+br, plan.ChainPrefix+"TO-"+br
	post := plan.ChainPrefix + "POST-" + br
	filter := plan.ChainsOf{Table: "filter",
		Chains: []plan.RuleChain{{Name: from, Rules: fromRules(n)}, {Name: to, Rules: toRules(n)}},
		Rules: []plan.PlacedRule{
			{Chain: chainFrom, Rule: "-i " + br + " -j " + from},
			{Chain: chainTo, Rule: "-o " + br + " -j " + to},
			{Chain: chainLeave, Rule: "-i " + br + " -j " + chainOut},
		}}
	if firewall.Closed(n) {
		// The host itself, at whatever address, is outside an internal network.
		filter.Rules = append(filter.Rules, plan.PlacedRule{Chain: chainInput, Rule: "-i " + br + " " + first + " -j DROP"})
	}
	nat := plan.ChainsOf{Table: "nat",
		Chains: []plan.RuleChain{{Name: post, Rules: postRules(v4)}},
		Rules: []plan.PlacedRule{
			{Chain: chainInside, Rule: fmt.Sprintf("-i %s -j MARK --set-xmark 0x%[2]x/0x%[2]x", br, firewall.InsideMark)},
			{Chain: chainInto, Rule: "-o " + br + " -j " + post},
		}}
	if !firewall.Closed(n) && !firewall.Routed(n) && !n.NoMasquerade {
		masq := plan.ChainPrefix + "MASQ-" + br
		nat.Chains = append(nat.Chains, plan.RuleChain{Name: masq, Rules: []string{"-s " + subnet.String() + " " + inside() + " -j MASQUERADE"}})
		nat.Rules = append(nat.Rules, plan.PlacedRule{Chain: chainMasquerade, Rule: "-j " + masq})
	}
	c := plan.Chains{Family: "ip6", Legacy: f.Legacy, Name: br, Mark: mark, Tables: []plan.ChainsOf{filter, nat}}
	if v4 {
		c.Family = "ip"
		// Published ports on 127.0.0.1 need route_localnet on the bridges; without
		// this, a sandbox could reach everything on the host's loopback.
		c.Tables = append(c.Tables, plan.ChainsOf{Table: "raw",
			Rules: []plan.PlacedRule{{Chain: chainRaw, Rule: "-d " + loopback + " -i " + br + " -j DROP"}}})
	}
	return c
}

// fromRules say what may leave the bridge, or go back into it.
func fromRules(n spec.Network) []string {
	rules := []string{established + " -j " + chainAccept}
	if n.NoICC {
		// A packet of a sandbox to itself comes this way only if it was sent to its
		// own published port.
		rules = append(rules, "-o "+n.Bridge+" "+translated+" -j "+chainSelf, "-o "+n.Bridge+" -j DROP")
	} else {
		rules = append(rules, "-o "+n.Bridge+" -j "+chainAccept)
	}
	if firewall.Closed(n) {
		return append(rules, "-j DROP")
	}
	return append(rules, "-j "+chainEgress)
}

// toRules say what may enter the bridge from elsewhere.
func toRules(n spec.Network) []string {
	rules := []string{established + " -j " + chainAccept}
	if !firewall.Closed(n) {
		rules = append(rules, translated+" -j "+chainAccept)
		if firewall.Routed(n) {
			rules = append(rules, "-j "+chainOpen)
		}
	}
	return append(rules, "-j DROP")
}

// postRules are for what goes to the bridge. Who reaches a neighbour or itself
// through the host must see the answers come from the host, too; all else
// keeps its address, and so is no longer marked for masquerading.
func postRules(v4 bool) []string {
	rules := []string{inside() + " " + translated + " -j MASQUERADE", fmt.Sprintf("-j MARK --set-xmark 0x0/0x%x", firewall.InsideMark)}
	if v4 {
		rules = append([]string{"-s " + loopback + " -j MASQUERADE"}, rules...)
	}
	return rules
}

func inside() string { return fmt.Sprintf("-m mark --mark 0x%[1]x/0x%[1]x", firewall.InsideMark) }
