package sandbox

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/spec"
)

// healthy is a host on which doctor finds nothing but a note.
func healthy() exam {
	return exam{
		Health:   spec.Health{Forward4: true, Uplinks: []spec.Uplink{{Name: "eth0", MTU: 1500}}, Conntrack: 10, ConntrackMax: 100},
		networks: []spec.Network{{Name: "n", Bridge: "br-n", MTU: 1500, Subnets: []netip.Prefix{netip.MustParsePrefix("10.61.0.0/24")}}},
		inUse:    true, resolv: "nameserver 192.0.2.53\n",
	}
}

// judgement is one thing that may be wrong; want is what the finding besides
// the note on br_netfilter says.
type judgement struct {
	name string
	harm func(*exam)
	want string
}

func judgements() []judgement {
	route := func(p, link string) func(*exam) {
		return func(e *exam) { e.Routes = []spec.Route{{Prefix: netip.MustParsePrefix(p), Link: link}} }
	}
	policy := func(p spec.ForwardPolicy) func(*exam) {
		return func(e *exam) { e.Policies = []spec.ForwardPolicy{p} }
	}
	iptables := spec.ForwardPolicy{Family: "ip", Where: "iptables (nf_tables) chain FORWARD", Drops: true, Iptables: true}
	with := func(p spec.ForwardPolicy, change func(*spec.ForwardPolicy)) spec.ForwardPolicy {
		change(&p)
		return p
	}
	six := func(e *exam) {
		e.networks[0].Subnets, e.inUse6 = append(e.networks[0].Subnets, netip.MustParsePrefix("fd00:61::/64")), true
	}
	both := func(f ...func(*exam)) func(*exam) {
		return func(e *exam) {
			for _, g := range f {
				g(e)
			}
		}
	}
	return []judgement{
		{"healthy", func(*exam) {}, ""},
		{"ip_forward", func(e *exam) { e.Forward4 = false }, "error ip_forward: IPv4 forwarding is off"},
		{"ip_forward before the first network", func(e *exam) { e.Forward4, e.inUse = false, false }, ""},
		{"IPv6 forwarding", six, "error ip_forward: IPv6 forwarding is off"},
		{"IPv6 forwarding before its first network", both(six, func(e *exam) { e.inUse6 = false }), ""},
		{"IPv6 forwarding on", both(six, func(e *exam) { e.Forward6 = true }), ""},
		{"FORWARD drops", policy(iptables), "error forward: iptables (nf_tables) chain FORWARD drops"},
		{"FORWARD drops, with our rule", policy(with(iptables, func(p *spec.ForwardPolicy) { p.Accepts = true })), ""},
		{"FORWARD drops, no program", policy(with(iptables, func(p *spec.ForwardPolicy) { p.NoProgram = true })), "error forward: iptables (nf_tables) chain FORWARD drops forwarded packets by policy, and there is no iptables"},
		{"FORWARD accepts", policy(with(iptables, func(p *spec.ForwardPolicy) { p.Drops = false })), ""},
		{"FORWARD drops before the first network", both(policy(iptables), func(e *exam) { e.inUse = false }), "note forward: "},
		{"IPv6 FORWARD drops", policy(with(iptables, func(p *spec.ForwardPolicy) { p.Family = "ip6" })), ""},
		{"IPv6 FORWARD drops, with IPv6", both(six, func(e *exam) { e.Forward6 = true }, policy(with(iptables, func(p *spec.ForwardPolicy) { p.Family = "ip6" }))), "error forward: "},
		{"another table drops", policy(spec.ForwardPolicy{Family: "inet", Where: "nftables chain inet fw forward", Drops: true}), "warning forward: nftables chain inet fw forward drops forwarded packets by policy unless"},
		{"overlap", route("10.61.0.128/25", "tun0"), "error overlap: the route to 10.61.0.128/25 on tun0 takes addresses of network n"},
		{"the same subnet", route("10.61.0.0/24", "tun0"), "error overlap: "},
		{"a larger prefix", route("10.0.0.0/8", "tun0"), "warning overlap: network n (10.61.0.0/24) hides a part of 10.0.0.0/8"},
		{"its own route", route("10.61.0.0/24", "br-n"), ""},
		{"a route elsewhere", route("10.62.0.0/24", "tun0"), ""},
		{"MTU", func(e *exam) { e.Uplinks[0].MTU = 1400 }, "warning mtu: network n has an MTU of 1500, its way out, eth0, one of 1400"},
		{"MTU of an internal network", func(e *exam) { e.Uplinks[0].MTU, e.networks[0].Internal = 1400, true }, ""},
		{"rp_filter", func(e *exam) {
			e.Uplinks = []spec.Uplink{{Name: "eth0", MTU: 1500, RPFilter: 1}, {Name: "eth1", MTU: 1500, RPFilter: 2}}
		}, "warning rp_filter: strict reverse path filtering on eth0"},
		{"rp_filter with one way", func(e *exam) { e.Uplinks[0].RPFilter = 1 }, ""},
		{"conntrack", func(e *exam) { e.Conntrack = 90 }, "error conntrack: 90 of 100"},
		{"conntrack unknown", func(e *exam) { e.Conntrack, e.ConntrackMax = 0, 0 }, ""},
		{"kernel", func(e *exam) { e.Lacks = []spec.Lack{{What: "bridges", For: "bridge networks", Cure: "x"}} }, "error kernel: the kernel lacks bridges, for bridge networks"},
		{"kernel, optional", func(e *exam) { e.Lacks = []spec.Lack{{What: "ifb links", For: "limits", Cure: "x", Optional: true}} }, "warning kernel: "},
		{"Docker", func(e *exam) { e.Firewalls = []string{"Docker"} }, "note firewall: Docker filters"},
		{"leftover", func(e *exam) { e.leftovers = []string{"link sv1"} }, "warning leftover: link sv1 belongs to nobody"},
		{"interrupted", func(e *exam) { e.interrupted = []string{"sandbox/x, whose making or removal was killed"} }, "warning interrupted: sandbox/x"},
		{"drift", func(e *exam) { e.drift = []string{"host: sysctl x: missing"} }, "error drift: host: sysctl x: missing"},
		{"permissions", func(e *exam) { e.OpenDirs = []string{"/run/sandnet"} }, "warning permissions: /run/sandnet is open"},
		{"mounts", func(e *exam) { e.PrivateMounts = true }, "note mounts: "},
		{"resolv.conf", func(e *exam) { e.resolv = "nameserver 127.0.0.53\nnameserver ::1\n" }, "warning resolv.conf: "},
		{"no resolv.conf", func(e *exam) { e.resolv = "" }, "warning resolv.conf: "},
		{"route_localnet", func(e *exam) { e.LocalnetLinks = []string{"br-n", "eth0"} }, "warning route_localnet: route_localnet is on for eth0"},
	}
}

func TestDoctorJudges(t *testing.T) {
	for _, c := range judgements() {
		t.Run(c.name, func(t *testing.T) {
			e := healthy()
			c.harm(&e)
			var got []string
			for _, f := range e.judge() {
				if (f.Severity == Note) != (f.Cure == "") {
					t.Errorf("%+v: a cure is for what is no note", f)
				}
				if f.Check != "br_netfilter" {
					got = append(got, fmt.Sprintf("%s %s: %s", f.Severity, f.Check, f.What))
				}
			}
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], c.want)) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestDoctorSaysTheWorstFirst(t *testing.T) {
	e := healthy()
	e.Forward4, e.PrivateMounts, e.leftovers = false, true, []string{"x"}
	var order []string
	for _, f := range e.judge() {
		order = append(order, string(f.Severity))
	}
	if got := strings.Join(order, " "); got != "error warning note note" {
		t.Error(got)
	}
}
