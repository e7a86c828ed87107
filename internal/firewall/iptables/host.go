// Package iptables plans what filters, masquerades and publishes through
// iptables, for hosts whose kernel or whose administrator wants it so: chains
// of the host, which built-in chains jump to first of all, and in them jumps
// to chains of each network and each sandbox.
//
// It does what its sibling nftables does, with the same names, and is as pure:
// it neither reads nor changes the machine.
package iptables

import (
	"fmt"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// The chains of the host. Those of networks and sandboxes have a second dash
// and the name of their link.
const (
	chainRaw         = plan.ChainPrefix + "RAW"
	chainPrerouting  = plan.ChainPrefix + "PREROUTING"
	chainInside      = plan.ChainPrefix + "INSIDE" // who comes from a sandbox
	chainPorts       = plan.ChainPrefix + "PORTS"  // published ports
	chainPostrouting = plan.ChainPrefix + "POSTROUTING"
	chainInto        = plan.ChainPrefix + "INTO"       // by bridge a packet goes to
	chainMasquerade  = plan.ChainPrefix + "MASQUERADE" // what leaves
	chainForward     = plan.ChainPrefix + "FORWARD"
	chainFrom        = plan.ChainPrefix + "FROM"   // by bridge a packet comes from
	chainTo          = plan.ChainPrefix + "TO"     // by bridge it goes to
	chainLeave       = plan.ChainPrefix + "LEAVE"  // what nobody has refused
	chainOut         = plan.ChainPrefix + "OUT"    // is let out
	chainSelf        = plan.ChainPrefix + "SELF"   // sandboxes on their own published ports
	chainOpen        = plan.ChainPrefix + "OPEN"   // ports open at the sandbox's address
	chainEgress      = plan.ChainPrefix + "EGRESS" // sandboxes with an egress policy
	chainInput       = plan.ChainPrefix + "INPUT"
	chainAccept      = plan.ChainPrefix + "ACCEPT"
)

const (
	established = "-m conntrack --ctstate RELATED,ESTABLISHED"
	translated  = "-m conntrack --ctstate DNAT"
	first       = "-m conntrack --ctstate INVALID,NEW"
	unknown     = "-m conntrack --ctstate INVALID,UNTRACKED"
	loopback    = "127.0.0.0/8"
)

// Firewall is the choice of iptables. Legacy is its older home in the kernel.
type Firewall struct{ Legacy bool }

// Name is "iptables", or "iptables-legacy".
func (f Firewall) Name() string {
	if f.Legacy {
		return "iptables-legacy"
	}
	return "iptables"
}

// foreignBridges are names of other programs' bridges, which are those
// programs' to open or close. iptables cannot ask what kind a link is.
func foreignBridges() []string {
	return []string{"docker0", "br-+", "cni+", "podman+", "virbr+", "lxcbr+", "lxdbr+", "incusbr+"}
}

// Host plans what all networks share, with the mark of its owner. foreign is
// the chain of another firewall that has to let our packets pass, or empty.
// Each chain is explained in docs/rules/iptables.md.
func (f Firewall) Host(mark uint32, foreign string) []plan.Object {
	objs := []plan.Object{f.host(mark, "ip"), f.host(mark, "ip6"), firewall.AntiSpoof(mark), plan.BindGuard{}}
	if foreign != "" {
		objs = append(objs, firewall.AcceptIn(foreign)...)
	}
	return objs
}

func (f Firewall) host(mark uint32, family string) plan.Chains {
	out := make([]string, 0, len(foreignBridges())+1)
	for _, br := range foreignBridges() {
		out = append(out, "-o "+br+" -j RETURN")
	}
	jump := func(from, to string) plan.PlacedRule {
		return plan.PlacedRule{Chain: from, Rule: plan.ChainsComment(mark) + " -j " + to}
	}
	chain := func(name string, rules ...string) plan.RuleChain { return plan.RuleChain{Name: name, Rules: rules} }
	prerouting := []string{"-j " + chainInside, "-j " + chainPorts}
	if family == "ip" {
		// From outside, 127.0.0.0/8 is never translated: it then is a martian.
		prerouting = append([]string{"-d " + loopback + " -j RETURN"}, prerouting...)
	}
	c := plan.Chains{Family: family, Legacy: f.Legacy, Name: "host", Mark: mark, Tables: []plan.ChainsOf{
		{Table: "filter",
			Chains: []plan.RuleChain{
				chain(chainAccept, fmt.Sprintf("-j MARK --set-xmark 0x%[1]x/0x%[1]x", firewall.AcceptMark), "-j ACCEPT"),
				chain(chainOut, append(out, "-j "+chainAccept)...),
				chain(chainFrom), chain(chainTo), chain(chainLeave), chain(chainSelf), chain(chainOpen), chain(chainEgress),
				chain(chainForward, "-j "+chainFrom, "-j "+chainTo, "-j "+chainLeave),
				// The host itself is subject to an egress policy, too.
				chain(chainInput, first+" -j "+chainEgress),
			},
			Rules: []plan.PlacedRule{jump("FORWARD", chainForward), jump("INPUT", chainInput)}},
		{Table: "nat",
			Chains: []plan.RuleChain{chain(chainInside), chain(chainPorts), chain(chainInto), chain(chainMasquerade),
				chain(chainPrerouting, prerouting...), chain(chainPostrouting, "-j "+chainInto, "-j "+chainMasquerade)},
			Rules: []plan.PlacedRule{jump("PREROUTING", chainPrerouting), jump("OUTPUT", chainPorts), jump("POSTROUTING", chainPostrouting)}},
	}}
	// A bridge hands frames to reserved addresses (01:80:c2:00:00:0e) to the host
	// on the port that they came in by, past all rules for bridges.
	c.Tables = append(c.Tables, plan.ChainsOf{Table: "raw",
		Chains: []plan.RuleChain{chain(chainRaw, fmt.Sprintf("-i %s+ -m devgroup --src-group 0x%x -j DROP", spec.VethPrefix, mark))},
		Rules:  []plan.PlacedRule{jump("PREROUTING", chainRaw)}})
	return c
}
