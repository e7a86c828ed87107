package firewall

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

const (
	bridgeFamily = "bridge"
	tableName    = "sandnet"
	// prioBridge comes before ebtables and br_netfilter, and before the bridge
	// learns a frame's source.
	prioBridge = -300
)

var (
	setOwn = plan.Set{Name: "own", Type: "ifname . ether_addr . ipv4_addr",
		Comment: "bridge ports of sandboxes, each with the MAC and IP address it may use"}
	setOwn6 = plan.Set{Name: "own6", Type: "ifname . ether_addr . ipv6_addr", Comment: "the same for IPv6"}
)

// AntiSpoof plans the table that lets sandboxes use only their own addresses,
// towards their neighbours as towards the host. Bridge ports are known as ours
// by their link group, which is mark: what is not in the sets is closed. What
// the table says of neighbour advertisements keeps everybody's neighbour
// tables true: the option is checked where it is, so nothing may come before.
func AntiSpoof(mark uint32) plan.Object {
	const (
		target = "@th,64,128" // of a neighbour solicitation or advertisement
		option = "@th,192,16" // type and length of the first option
		mac    = "@th,208,48" // what that option says
		isMAC  = "0x201"      // target link-layer address, 8 bytes
	)
	return plan.Table{
		Family: bridgeFamily, Name: tableName, Mark: mark,
		Sets: []plan.Set{setOwn, setOwn6},
		Chains: []plan.Chain{
			{Name: "prerouting", Type: "filter", Hook: "prerouting", Priority: prioBridge, Rules: []string{
				fmt.Sprintf("iifgroup != %d accept", mark),
				"ether type ip goto from-ip",
				"ether type arp goto from-arp",
				"ether type ip6 goto from-ip6",
				"drop",
			}},
			{Name: "from-ip", Rules: []string{
				"iifname . ether saddr . ip saddr @own accept",
				"drop",
			}},
			{Name: "from-arp", Rules: []string{
				"arp htype 1 arp ptype ip arp hlen 6 arp plen 4 " +
					"iifname . ether saddr . arp saddr ip @own iifname . arp saddr ether . arp saddr ip @own accept",
				"drop",
			}},
			{Name: "from-ip6", Rules: []string{
				"meta l4proto ipv6-icmp goto icmp6",
				"iifname . ether saddr . ip6 saddr @own6 accept",
				"drop",
			}},
			{Name: "icmp6", Rules: []string{
				"icmpv6 type nd-router-advert drop",
				"icmpv6 type nd-redirect drop",
				"icmpv6 type nd-neighbor-advert goto advert",
				// The probe for a duplicate of its own address has no source.
				"icmpv6 type nd-neighbor-solicit ip6 saddr :: iifname . ether saddr . " + target + " @own6 accept",
				"iifname . ether saddr . ip6 saddr @own6 accept",
				"drop",
			}},
			{Name: "advert", Rules: []string{
				"ip6 nexthdr != ipv6-icmp drop",
				"iifname . ether saddr . ip6 saddr != @own6 drop",
				"iifname . ether saddr . " + target + " != @own6 drop",
				// The answer to a probe of reachability has no option.
				"ip6 length 24 accept",
				"ip6 length 32 " + option + " " + isMAC + " iifname . " + mac + " . " + target + " @own6 accept",
				"drop",
			}},
		},
	}
}

// Own plans what a sandbox may use: one element per address and, with IPv6,
// one for the link-local address that the kernel makes of the MAC.
func Own(ep spec.Endpoint) []plan.Object {
	var out []plan.Object
	add := func(s plan.Set, a netip.Addr) {
		s.Comment = ""
		out = append(out, plan.Element{Family: bridgeFamily, Table: tableName, Set: s,
			Entry: strconv.Quote(ep.HostInterface) + " . " + ep.MAC + " . " + a.String()})
	}
	six := false
	for _, a := range ep.Addresses {
		if a.Addr().Is4() {
			add(setOwn, a.Addr())
			continue
		}
		add(setOwn6, a.Addr())
		six = true
	}
	if six {
		add(setOwn6, spec.LinkLocal(ep.MAC).Addr())
	}
	return out
}
