package modes

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Firewall plans what filters, masquerades and publishes. It is pure. What it
// plans carries mark, by which the machine's owner knows it again.
type Firewall interface {
	// Name is what --firewall calls it.
	Name() string
	// Host plans what all networks share. foreign is the chain of another
	// firewall that has to let our packets pass, or empty.
	Host(mark uint32, foreign string) []plan.Object
	// Network plans what there is for one network.
	Network(mark uint32, n spec.Network) []plan.Object
	// Endpoint plans what there is for a sandbox on a network: what it may call
	// itself, its published ports, its egress policy.
	Endpoint(mark uint32, s spec.Sandbox, ep spec.Endpoint, n spec.Network) []plan.Object
}

// Bridge connects a sandbox to bridge networks, each by a veth pair. One of
// them, the gateway, has the default route; see spec.Gateway.
type Bridge struct{ Firewall Firewall }

// Name is "bridge".
func (Bridge) Name() string { return string(spec.ModeBridge) }

// Plan makes the namespace, an interface per network, the files, and last
// what lets traffic in.
func (br Bridge) Plan(s spec.Sandbox, f spec.Facts) (plan.Plan, error) {
	if len(f.Endpoints) == 0 && !f.Rewired || len(f.Endpoints) != len(f.Networks) {
		return plan.Plan{}, fmt.Errorf("%d endpoints for %d networks", len(f.Endpoints), len(f.Networks))
	}
	objs := append(namespace(s, f), ignoreRouters(s, f)...)
	for i, ep := range f.Endpoints {
		objs = append(objs, endpoint(ep, f, f.Networks[i])...)
		objs = append(objs, rates(s, ep, f)...)
	}
	objs = append(objs, defaultRoutes(s, f)...)
	objs = append(objs, sysctls(s, f)...)
	objs = append(objs, etcFiles(s, f)...)
	objs = append(objs, hosts(s, f)...)
	return plan.Plan{Objects: append(objs, br.Rules(s, f.Endpoints, f.Networks, f.Mark)...)}, nil
}

// Rules plans the firewall's part of a sandbox. Reservations come first, what
// is to be forgotten last: so the kernel is asked once for each.
func (br Bridge) Rules(s spec.Sandbox, eps []spec.Endpoint, nets []spec.Network, mark uint32) []plan.Object {
	var reserve, rules, forget []plan.Object
	seen := map[string]bool{}
	for i, ep := range eps {
		for _, o := range br.Firewall.Endpoint(mark, s, ep, nets[i]) {
			switch {
			case seen[o.Key()]:
			case o.Kind() == plan.KindHostPort:
				reserve = append(reserve, o)
			case o.Kind() == plan.KindFlow:
				forget = append(forget, o)
			default:
				rules = append(rules, o)
			}
			seen[o.Key()] = true
		}
	}
	return slices.Concat(reserve, rules, forget)
}

// namespace is what every sandbox with a namespace of its own starts with: one
// that is made, or a container's, which a runtime has made.
func namespace(s spec.Sandbox, f spec.Facts) []plan.Object {
	switch f.JoinPath {
	case "":
		return []plan.Object{index(s, f), plan.Netns{Path: f.Netns, Mark: f.Mark}}
	case f.Netns:
		return []plan.Object{index(s, f)}
	}
	return []plan.Object{index(s, f), plan.Netns{Path: f.Netns, Join: f.JoinPath}}
}

// addressOf is the index of the endpoint's address of the same family as a, or -1.
func addressOf(ep spec.Endpoint, a netip.Addr) int {
	return slices.IndexFunc(ep.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
}

func hasIPv6(ep spec.Endpoint) bool { return addressOf(ep, netip.IPv6Unspecified()) >= 0 }

// ignoreRouters keeps router advertisements, which anybody on a network can
// send, from giving a sandbox addresses and routes, unless the user says
// otherwise. It is set before there are interfaces, which inherit it.
func ignoreRouters(s spec.Sandbox, f spec.Facts) []plan.Object {
	if !slices.ContainsFunc(f.Endpoints, hasIPv6) {
		return nil
	}
	var objs []plan.Object
	for _, name := range []string{"net/ipv6/conf/default/accept_ra", "net/ipv6/conf/default/autoconf"} {
		if _, ok := s.Sysctls[name]; !ok {
			objs = append(objs, plan.Sysctl{Netns: f.Netns, Name: name, Value: "0"})
		}
	}
	return objs
}

func endpoint(ep spec.Endpoint, f spec.Facts, n spec.Network) []plan.Object {
	objs := []plan.Object{plan.Link{
		Name: ep.HostInterface, Type: plan.Veth, MTU: ep.MTU, Master: n.Bridge, Mark: f.Mark,
		Peer: ep.Interface, PeerNetns: f.Netns, PeerMAC: ep.MAC,
		// Where Docker or Kubernetes has br_netfilter on, a sandbox's packet to its
		// own published port is translated on the bridge and turns round at its port.
		Isolated: n.NoICC, Hairpin: len(ep.Ports) > 0,
	}}
	if hasIPv6(ep) {
		// The kernel's own would have to wait for duplicate address detection.
		objs = append(objs, plan.Addr{Netns: f.Netns, Link: ep.Interface, Addr: spec.LinkLocal(ep.MAC)})
	}
	for _, a := range ep.Addresses {
		objs = append(objs, plan.Addr{Netns: f.Netns, Link: ep.Interface, Addr: a})
	}
	return objs
}

// defaultRoutes are the default route of each family.
func defaultRoutes(s spec.Sandbox, f spec.Facts) []plan.Object {
	var objs []plan.Object
	for _, ipv6 := range []bool{false, true} {
		i := spec.Gateway(s.Attach, f.Networks, ipv6)
		if i < 0 {
			continue
		}
		for _, gw := range f.Endpoints[i].Gateways {
			if gw.Is6() == ipv6 {
				objs = append(objs, plan.Route{Netns: f.Netns, Dst: defaultRoute(gw), Via: gw, Link: f.Endpoints[i].Interface})
			}
		}
	}
	return objs
}

func defaultRoute(gw netip.Addr) netip.Prefix {
	if gw.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// hosts plans /etc/hosts. Sandboxes of a user-defined network find each other
// in it; those with nothing of their own to say share one file per network, so
// that a newcomer changes one file however many there are.
func hosts(s spec.Sandbox, f spec.Facts) []plan.Object {
	path := f.EtcDir + "/hosts"
	var dirs []string
	var objs []plan.Object
	own := hostLines(s)
	for _, ep := range f.Endpoints {
		names := []string{s.Name, s.HostnameOrID()}
		if ep.Network == spec.DefaultNetwork {
			for _, a := range ep.Addresses {
				own += plan.HostsLine{Addr: a.Addr(), Names: unique(names)}.Line()
			}
			continue
		}
		dir := f.HostsDir + "/" + ep.Network
		dirs = append(dirs, dir)
		names = append(names, ep.Aliases...)
		if len(s.ID) >= 12 {
			names = append(names, s.ID[:12])
		}
		for _, a := range ep.Addresses {
			objs = append(objs, plan.HostsLine{Dir: dir, Addr: a.Addr(), Names: unique(names)})
		}
	}
	// Once changed, the file stays the sandbox's own: what runs has it mounted.
	switch {
	case len(dirs) == 0 && !f.Rewired:
		return []plan.Object{plan.File{Path: path, Content: plan.LocalHosts + own}}
	case len(dirs) == 1 && own == "" && !f.Rewired:
		return append(objs, plan.Symlink{Path: path, Target: dirs[0] + "/" + plan.SharedHosts})
	}
	// The links first: a neighbour that comes now is in the shared file, or
	// finds the links.
	for _, dir := range dirs {
		objs = append(objs, plan.Symlink{Path: dir + "/" + s.Name + ".hosts", Target: path})
	}
	return append(objs, plan.HostsFile{Path: path, Header: plan.LocalHosts + own, Dirs: dirs, Netns: f.Netns})
}

// unique drops repeated names and keeps the order: the first is the canonical one.
func unique(names []string) []string {
	var out []string
	for _, n := range names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// sysctls are the user's settings, after the links they may be about.
func sysctls(s spec.Sandbox, f spec.Facts) []plan.Object {
	var objs []plan.Object
	for _, name := range slices.Sorted(maps.Keys(s.Sysctls)) {
		if f.Rewired && ofGoneInterface(name, f.Endpoints) {
			continue
		}
		objs = append(objs, plan.Sysctl{Netns: f.Netns, Name: name, Value: s.Sysctls[name]})
	}
	return objs
}

// ofGoneInterface reports whether a setting is about an ethN that is not there:
// net/ipv4/conf/eth1/rp_filter.
func ofGoneInterface(name string, endpoints []spec.Endpoint) bool {
	for part := range strings.SplitSeq(name, "/") {
		number, ok := strings.CutPrefix(part, "eth")
		if _, err := strconv.ParseUint(number, 10, 16); !ok || err != nil {
			continue
		}
		return !slices.ContainsFunc(endpoints, func(ep spec.Endpoint) bool { return ep.Interface == part })
	}
	return false
}

// Network plans a bridge network itself: the bridge with the gateway addresses,
// and what the firewall has to know of it. On an isolated one the host has no
// address, and so nothing to be reached at.
func (br Bridge) Network(n spec.Network, mark uint32) plan.Plan {
	mac := spec.MAC(n.Gateways[0])
	in4, in6 := "net/ipv4/conf/"+n.Bridge+"/", "net/ipv6/conf/"+n.Bridge+"/"
	objs := []plan.Object{plan.Link{Name: n.Bridge, Type: plan.Bridge, MTU: n.MTU, MAC: mac, Mark: mark},
		// A sandbox must not give the host a default route, whatever the network's family.
		plan.Sysctl{Name: in6 + "accept_ra", Value: "0", Optional: true}}
	if n.GatewayMode != spec.GatewayIsolated {
		if n.HasIPv6() {
			objs = append(objs, plan.Sysctl{Name: in6 + "disable_ipv6", Value: "0"},
				// The source of the host's neighbour solicitations for what it forwards.
				plan.Addr{Link: n.Bridge, Addr: spec.LinkLocal(mac)})
		}
		for i, gw := range n.Gateways {
			objs = append(objs, plan.Addr{Link: n.Bridge, Addr: netip.PrefixFrom(gw, n.Subnets[i].Bits())})
		}
		if n.HasIPv4() {
			// Ports published on 127.0.0.1 are translated to a sandbox's address while
			// the source still is 127.0.0.1; the firewall closes what this opens.
			objs = append(objs, plan.Sysctl{Name: in4 + "route_localnet", Value: "1"})
		}
	}
	return plan.Plan{Owner: "network/" + n.Name, Objects: append(objs, br.Firewall.Network(mark, n)...)}
}

// Shared plans what all bridge networks of a host share, with its mark. restore is what
// ip_forward goes back to with the last network, empty to leave it; foreign is
// the chain of another firewall that has to let sandnet's packets pass, or
// empty.
func (br Bridge) Shared(mark uint32, restore, foreign string) plan.Plan {
	objs := append([]plan.Object{plan.Sysctl{Name: plan.IPForward, Value: "1", Restore: restore}}, br.Firewall.Host(mark, foreign)...)
	return plan.Plan{Owner: "host", Meta: FirewallMeta(br.Firewall.Name()), Objects: objs}
}

// FirewallMeta is what the host's record says of the firewall in use.
func FirewallMeta(name string) json.RawMessage {
	return json.RawMessage(`{"firewall":` + strconv.Quote(name) + `}`)
}

// Forward6 plans what all networks with IPv6 share: the host routes IPv6.
// restore is what forwarding goes back to with the last such network, empty to
// leave it. A router ignores router advertisements: the uplinks, which have had
// some, go on heeding them. They come first, since the kernel drops what it has
// learned of a router when it becomes one, save on these.
func (Bridge) Forward6(restore string, uplinks []string) plan.Plan {
	var objs []plan.Object
	for _, l := range uplinks {
		objs = append(objs, plan.Sysctl{Name: "net/ipv6/conf/" + l + "/accept_ra", Value: "2", Restore: "1", Optional: true})
	}
	return plan.Plan{Owner: "host/ipv6", Objects: append(objs, plan.Sysctl{Name: plan.IPv6Forward, Value: "1", Restore: restore})}
}
