package nftables

import (
	"fmt"
	"net/netip"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Endpoint plans a sandbox's place on a network: its addresses, its published
// ports, its egress policy.
func (Firewall) Endpoint(_ uint32, s spec.Sandbox, ep spec.Endpoint, n spec.Network) []plan.Object {
	var first, last []plan.Object
	objs := firewall.Own(ep)
	for _, p := range ep.Ports {
		to, ok := firewall.Address(ep, p)
		if !ok {
			continue
		}
		f := familyOf(to)
		if firewall.Routed(n) {
			objs = append(objs, element(f.open, fmt.Sprintf("%s . %s . %d", to, p.Proto, p.Port), ""))
			continue
		}
		reserve, forget := firewall.Reserve(s, p, to)
		first, last = append(first, reserve...), append(last, forget...)
		if firewall.OnLoopback6(p) {
			continue
		}
		key, set := fmt.Sprintf("%s . %d", p.Proto, p.HostPort), f.ports
		if !p.HostIP.IsUnspecified() {
			key, set = p.HostIP.String()+" . "+key, f.on
		}
		objs = append(objs,
			element(set, key, fmt.Sprintf("%s . %d", to, p.Port)),
			element(f.self, fmt.Sprintf("%s . %s", to, to), ""))
	}
	objs = append(objs, egress(s, ep)...)
	return append(append(first, objs...), last...)
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return families()[0]
	}
	return families()[1]
}

// egress plans the sandbox's policy: one chain, to which each of its addresses
// leads. The rules look at where the sandbox sent the packet, before a
// published port translated it.
func egress(s spec.Sandbox, ep spec.Endpoint) []plan.Object {
	if len(s.Egress) == 0 {
		return nil
	}
	chain := plan.TableChain{Family: tableFamily, Table: TableName, Name: "egress/" + s.ID[:min(12, len(s.ID))],
		// Of these nobody knows where they were sent.
		Rules: []string{"ct state invalid,untracked drop"}}
	for _, r := range s.Egress {
		chain.Rules = append(chain.Rules, egressRule(r))
	}
	if firewall.EgressDefault(s.Egress) {
		chain.Rules = append(chain.Rules, "drop")
	}
	objs := []plan.Object{chain}
	for _, a := range ep.Addresses {
		objs = append(objs, element(familyOf(a.Addr()).egress, a.Addr().String(), "jump "+chain.Name))
	}
	return objs
}

func egressRule(r spec.EgressRule) string {
	text := "ct original ip daddr " + r.To.String()
	if r.To.Addr().Is6() {
		text = "ct original ip6 daddr " + r.To.String()
	}
	if r.Proto != "" {
		text += " meta l4proto " + string(r.Proto)
	}
	if r.Port != 0 {
		text += fmt.Sprintf(" ct original proto-dst %d", r.Port)
	}
	if r.Allow {
		return text + " return"
	}
	return text + " drop"
}
