// Package firewall is what sandnet's two firewalls, its sub-packages nftables
// and iptables, have in common: the bits of the packet mark, the rule in a
// foreign FORWARD chain, and the table that keeps sandboxes from using each
// other's addresses.
//
// Like both of them it is pure: it neither reads nor changes the machine.
package firewall

import (
	"fmt"
	"hash/fnv"
	"net/netip"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Bits of the packet mark.
const (
	// AcceptMark says "sandnet has let this packet through"; a foreign FORWARD
	// chain with policy DROP accepts on it.
	AcceptMark = 0x01000000
	// InsideMark says "this packet came from a sandbox".
	InsideMark = 0x02000000
)

// AcceptIn plans the rule by which a foreign iptables chain that ends in DROP
// lets sandnet's packets pass, in each family that has the chain.
func AcceptIn(chain string) []plan.Object {
	mark := fmt.Sprintf("0x%x/0x%x", AcceptMark, AcceptMark)
	spec := []string{"-m", "mark", "--mark", mark, "-m", "comment", "--comment", "sandnet", "-j", "ACCEPT"}
	return []plan.Object{
		plan.Rule{Family: "ip", Table: "filter", Chain: chain, Spec: spec},
		plan.Rule{Family: "ip6", Table: "filter", Chain: chain, Spec: spec},
	}
}

// Routed reports whether the outside reaches the network's sandboxes at their
// own addresses.
func Routed(n spec.Network) bool { return n.GatewayMode == spec.GatewayRouted }

// Closed reports whether nothing leaves or enters the network.
func Closed(n spec.Network) bool { return n.Internal || n.GatewayMode == spec.GatewayIsolated }

// Address is the endpoint's address to publish p at: that of p's family.
func Address(ep spec.Endpoint, p spec.Port) (netip.Addr, bool) {
	for _, a := range ep.Addresses {
		if a.Addr().Is4() == p.HostIP.Is4() {
			return a.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// Reserve plans the reservation of the host's port, and at the end what is to
// be forgotten of it.
func Reserve(s spec.Sandbox, p spec.Port, to netip.Addr) (first, last []plan.Object) {
	first = []plan.Object{plan.HostPort{Proto: string(p.Proto), IP: p.HostIP, Port: p.HostPort, To: onLoopback6(p, to), Owner: owner(s.Name)}}
	if p.Proto == spec.UDP && !OnLoopback6(p) {
		last = []plan.Object{plan.Flow{IP: p.HostIP, Port: p.HostPort, To: netip.AddrPortFrom(to, p.Port)}}
	}
	return first, last
}

// OnLoopback6 reports whether p is published on [::1], where the kernel cannot
// translate packets: no rule publishes it.
func OnLoopback6(p spec.Port) bool { return p.HostIP.Is6() && p.HostIP.IsLoopback() }

// onLoopback6 is where [::1]:HOSTPORT goes, which no rule can translate: the
// kernel drops the answers. SCTP has no other way there.
func onLoopback6(p spec.Port, to netip.Addr) netip.AddrPort {
	if p.Proto == spec.SCTP || !p.HostIP.IsUnspecified() && p.HostIP != netip.IPv6Loopback() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(to, p.Port)
}

// owner is what a sandbox's reservations are known by, made of its name, which
// nobody else is given before the last of them is gone.
func owner(sandbox string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(sandbox))
	return h.Sum32()
}

// EgressDefault reports whether what no rule of the policy matches is denied.
func EgressDefault(rules []spec.EgressRule) (deny bool) {
	for _, r := range rules {
		deny = deny || r.Allow
	}
	return deny
}
