package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sandnet/sandnet/internal/spec"
)

// Severity says what a finding means for traffic.
type Severity string

// A Broken host drops or misleads packets of sandboxes; a Warning may turn into
// that, or is of security; a Note explains.
const (
	Broken  Severity = "error"
	Warning Severity = "warning"
	Note    Severity = "note"
)

// Finding is one thing that doctor has to say.
type Finding struct {
	Severity Severity `json:"severity"`
	// Check is the name of what was looked at.
	Check string `json:"check"`
	What  string `json:"what"`
	// Cure is what to do about it; notes need none.
	Cure string `json:"cure,omitempty"`
}

// exam is everything that doctor judges.
type exam struct {
	spec.Health
	// networks are all that are defined, inUse says that the host's part of
	// them is made.
	networks []spec.Network
	inUse    bool
	// inUse6 says so of IPv6's part: a network that has outlived a reboot is made
	// with its next use.
	inUse6 bool
	resolv string
	// leftovers, interrupted and drift are a line for each thing.
	leftovers, interrupted, drift []string
}

// Doctor looks at the host and says what breaks traffic, or may. It changes
// nothing.
func (m *Manager) Doctor(ctx context.Context) ([]Finding, error) {
	if err := m.ready(); err != nil {
		return nil, err
	}
	m.lookOnly = true
	defer func() { m.lookOnly = false }()
	e := exam{resolv: hostResolv(), inUse: m.store.Has("host"), inUse6: m.store.Has(forward6)}
	var err error
	if e.Health, err = m.host.Health([]string{m.paths.Run, m.paths.Lib, m.paths.networks()}); err != nil {
		return nil, err
	}
	if e.networks, err = m.definitions(); err != nil {
		return nil, err
	}
	if e.interrupted, err = m.cleanUp(ctx, true); err != nil {
		return nil, err
	}
	if e.leftovers, err = m.leftovers(ctx, true); err != nil {
		return nil, err
	}
	diff, err := m.diff(ctx)
	for _, d := range diff {
		e.drift = append(e.drift, d.Owner+": "+d.Object+": "+d.Text())
	}
	return e.judge(), err
}

// judge is pure: the findings, the worst first.
func (e exam) judge() []Finding {
	var out []Finding
	for _, check := range []func(exam) []Finding{
		exam.checkKernel, exam.checkForwarding, exam.checkPolicies, exam.checkRoutes, exam.checkUplinks,
		exam.checkConntrack, exam.checkBridgeNetfilter, exam.checkFirewalls, exam.checkState, exam.checkResolv, exam.checkLocalnet,
	} {
		out = append(out, check(e)...)
	}
	rank := map[Severity]int{Broken: 0, Warning: 1, Note: 2}
	slices.SortStableFunc(out, func(a, b Finding) int { return rank[a.Severity] - rank[b.Severity] })
	return out
}

// hasIPv6 reports whether any network has an IPv6 subnet.
func (e exam) hasIPv6() bool {
	return slices.ContainsFunc(e.networks, func(n spec.Network) bool {
		return slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
	})
}

func (e exam) checkKernel() (out []Finding) {
	for _, l := range e.Lacks {
		f := Finding{Broken, "kernel", "the kernel lacks " + l.What + ", for " + l.For, l.Cure}
		if l.Optional {
			f.Severity = Warning
		}
		out = append(out, f)
	}
	return out
}

func (e exam) checkForwarding() (out []Finding) {
	// Before the first network, sandnet has not switched it on yet.
	if e.inUse && !e.Forward4 {
		out = append(out, Finding{Broken, "ip_forward", "IPv4 forwarding is off: sandboxes reach nothing but their own network",
			"sandnet gc --repair"})
	}
	if e.inUse6 && !e.Forward6 {
		out = append(out, Finding{Broken, "ip_forward", "IPv6 forwarding is off: sandboxes reach nothing over IPv6 but their own network",
			"sandnet gc --repair"})
	}
	return out
}

func (e exam) checkPolicies() (out []Finding) {
	for _, p := range e.Policies {
		if !p.Drops || p.Family == "ip6" && !e.hasIPv6() {
			continue
		}
		drops := p.Where + " drops forwarded packets by policy"
		switch {
		case p.Iptables && p.Accepts:
		case p.NoProgram:
			out = append(out, Finding{Broken, "forward", drops + ", and there is no iptables to let those of sandboxes pass", "apt install iptables"})
		case p.Iptables && !e.inUse:
			out = append(out, Finding{Note, "forward", drops + "; with its first network sandnet adds a rule that lets those of sandboxes pass", ""})
		case p.Iptables:
			out = append(out, Finding{Broken, "forward", drops + ", and sandnet's rule is not there",
				"sandnet gc --repair"})
		default:
			// Its rules may accept what they should: nobody can tell by looking.
			out = append(out, Finding{Warning, "forward", drops + " unless one of its rules accepts them; no other table can undo that",
				"nft insert rule " + strings.TrimPrefix(p.Where, "nftables chain ") + " meta mark and 0x1000000 != 0 accept"})
		}
	}
	return out
}

// checkRoutes finds routes that came after a network whose subnet they overlap.
func (e exam) checkRoutes() (out []Finding) {
	for _, n := range e.networks {
		for _, subnet := range n.Subnets {
			for _, r := range e.Routes {
				if r.Link == n.Bridge || !r.Prefix.Overlaps(subnet) {
					continue
				}
				// Of a larger prefix the subnet is the more specific part.
				f := Finding{Broken, "overlap", fmt.Sprintf("the route to %s on %s takes addresses of network %s (%s)", r.Prefix, r.Link, n.Name, subnet),
					"remove the route, or make the network anew with another --subnet"}
				if r.Prefix.Bits() < subnet.Bits() {
					f.Severity = Warning
					f.What = fmt.Sprintf("network %s (%s) hides a part of %s, which the host reaches on %s", n.Name, subnet, r.Prefix, r.Link)
				}
				out = append(out, f)
			}
		}
	}
	return out
}

func (e exam) checkUplinks() (out []Finding) {
	for _, u := range e.Uplinks {
		for _, n := range e.networks {
			if n.MTU > u.MTU && !n.Internal {
				out = append(out, Finding{Warning, "mtu", fmt.Sprintf("network %s has an MTU of %d, its way out, %s, one of %d: large packets are lost where path MTU discovery is", n.Name, n.MTU, u.Name, u.MTU),
					fmt.Sprintf("make the network anew with --mtu %d", u.MTU)})
			}
		}
		if u.RPFilter == 1 && len(e.Uplinks) > 1 {
			out = append(out, Finding{Warning, "rp_filter", "strict reverse path filtering on " + u.Name + ", one of several links with a default route, drops answers that take another way",
				"sysctl -w net.ipv4.conf." + strings.ReplaceAll(u.Name, ".", "/") + ".rp_filter=2"})
		}
	}
	return out
}

func (e exam) checkConntrack() []Finding {
	if e.ConntrackMax == 0 || e.Conntrack*10 < e.ConntrackMax*9 {
		return nil
	}
	return []Finding{{Broken, "conntrack", fmt.Sprintf("%d of %d tracked connections are in use: new ones will be dropped", e.Conntrack, e.ConntrackMax),
		fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*e.ConntrackMax)}}
}

func (e exam) checkBridgeNetfilter() []Finding {
	switch {
	case e.BridgeNetfilter:
		return []Finding{{Note, "br_netfilter", "packets between sandboxes of one network pass iptables and nftables, too (bridge-nf-call-iptables is 1)", ""}}
	case e.BridgeNetfilterKnown:
		return []Finding{{Note, "br_netfilter", "packets between sandboxes of one network pass their bridge alone (bridge-nf-call-iptables is 0)", ""}}
	}
	return []Finding{{Note, "br_netfilter", "packets between sandboxes of one network pass their bridge alone (br_netfilter is not loaded)", ""}}
}

func (e exam) checkFirewalls() (out []Finding) {
	for _, name := range e.Firewalls {
		out = append(out, Finding{Note, "firewall", name + " filters on this host, too: what it drops stays dropped", ""})
	}
	return out
}

func (e exam) checkState() (out []Finding) {
	for _, l := range e.interrupted {
		out = append(out, Finding{Warning, "interrupted", l, "sandnet gc"})
	}
	for _, l := range e.leftovers {
		out = append(out, Finding{Warning, "leftover", l + " belongs to nobody", "sandnet gc"})
	}
	for _, d := range e.drift {
		out = append(out, Finding{Broken, "drift", d, "sandnet gc --repair"})
	}
	for _, d := range e.OpenDirs {
		out = append(out, Finding{Warning, "permissions", d + " is open to others than root", "chmod 700 " + d})
	}
	if e.PrivateMounts {
		out = append(out, Finding{Note, "mounts", "this process has a mount namespace of its own: namespaces pinned here are seen in it, and perhaps nowhere else", ""})
	}
	return out
}

// checkResolv: what is on the host's loopback does not exist in a sandbox.
func (e exam) checkResolv() []Finding {
	for line := range strings.Lines(e.resolv) {
		f := strings.Fields(line)
		if len(f) > 1 && f[0] == "nameserver" && !strings.HasPrefix(f[1], "127.") && f[1] != "::1" {
			return nil
		}
	}
	return []Finding{{Warning, "resolv.conf", "/etc/resolv.conf names no server that a sandbox could reach: names are not resolved inside",
		"create sandboxes with --dns IP, or put a server that is not on a loopback address into /etc/resolv.conf"}}
}

func (e exam) checkLocalnet() (out []Finding) {
	for _, l := range e.LocalnetLinks {
		// On sandnet's own bridges its firewall closes what that opens.
		if slices.ContainsFunc(e.networks, func(n spec.Network) bool { return n.Bridge == l }) {
			continue
		}
		out = append(out, Finding{Warning, "route_localnet", "route_localnet is on for " + l + ": from there, services on the host's 127.0.0.1 can be reached",
			"sysctl -w net.ipv4.conf." + strings.ReplaceAll(l, ".", "/") + ".route_localnet=0"})
	}
	return out
}
