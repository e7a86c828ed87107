package firewall_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/firewall/iptables"
	"github.com/sandnet/sandnet/internal/firewall/nftables"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files and docs/rules anew")

// rules is what the two firewalls have in common.
type rules interface {
	Name() string
	Host(mark uint32, foreign string) []plan.Object
	Network(mark uint32, n spec.Network) []plan.Object
	Endpoint(mark uint32, s spec.Sandbox, ep spec.Endpoint, n spec.Network) []plan.Object
}

const mark = 83

func firewalls() []rules { return []rules{nftables.Firewall{}, iptables.Firewall{}} }

// golden is one page: cases of one kind, each under its name.
type golden struct {
	name  string
	cases []goldenCase
}

type goldenCase struct {
	name string
	objs []plan.Object
}

// stacks are the address families that a network can have.
func stacks() []struct {
	name  string
	cidrs []string
} {
	const v4, v6 = "172.30.0.2/16", "fd00:30::2/64"
	return []struct {
		name  string
		cidrs []string
	}{{"IPv4", []string{v4}}, {"IPv6", []string{v6}}, {"IPv4 and IPv6", []string{v4, v6}}}
}

// networks are all combinations of a network's options.
func networks(cidrs []string) map[string]spec.Network {
	out := map[string]spec.Network{}
	for _, mode := range []spec.GatewayMode{spec.GatewayNAT, spec.GatewayRouted, spec.GatewayIsolated} {
		for bits := range 8 {
			n := spec.Network{Bridge: "sn-0123456789ab", GatewayMode: mode, NoICC: bits&1 != 0, Internal: bits&2 != 0, NoMasquerade: bits&4 != 0}
			name := "gateway mode " + string(mode)
			for i, option := range []string{"no-icc", "internal", "no-masquerade"} {
				if bits>>i&1 != 0 {
					name += ", " + option
				}
			}
			for _, c := range cidrs {
				n.Subnets = append(n.Subnets, netip.MustParsePrefix(c).Masked())
			}
			if valid(n) {
				out[name] = n
			}
		}
	}
	return out
}

// valid asks for the options alone.
func valid(n spec.Network) bool {
	n.Name, n.Subnets = "app", nil
	return n.Validate() == nil
}

func pages(fw rules) []golden {
	host := golden{"host", []goldenCase{{"without another firewall", fw.Host(mark, "")}, {"beside Docker", fw.Host(mark, "DOCKER-USER")}}}
	network, endpoint := golden{name: "network"}, golden{name: "endpoint"}
	for _, s := range stacks() {
		nets := networks(s.cidrs)
		for _, name := range sortedKeys(nets) {
			network.cases = append(network.cases, goldenCase{s.name + ", " + name, fw.Network(mark, nets[name])})
		}
		ep := spec.Endpoint{HostInterface: "sv3f2a91c0d1e0", MAC: "02:42:ac:1e:00:02"}
		for _, c := range s.cidrs {
			ep.Addresses = append(ep.Addresses, netip.MustParsePrefix(c))
		}
		for _, kind := range []spec.Network{{}, {NoICC: true}, {GatewayMode: spec.GatewayRouted}} {
			of := s.name + ", gateway mode " + string(kind.GatewayMode)
			if kind.GatewayMode == "" {
				of += string(spec.GatewayNAT)
			}
			if kind.NoICC {
				of += ", no-icc"
			}
			endpoint.cases = append(endpoint.cases, goldenCase{of, fw.Endpoint(mark, spec.Sandbox{}, ep, kind)})
			for _, ip := range []string{"0.0.0.0", "::", "127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"} {
				for _, proto := range []spec.Proto{spec.TCP, spec.UDP, spec.SCTP} {
					p := spec.Port{HostIP: netip.MustParseAddr(ip), HostPort: 8080, Port: 80, Proto: proto}
					with := ep
					with.Ports = []spec.Port{p}
					endpoint.cases = append(endpoint.cases, goldenCase{of + ", -p " + p.String(), fw.Endpoint(mark, spec.Sandbox{}, with, kind)})
				}
			}
		}
		for name, policy := range policies() {
			sb := spec.Sandbox{ID: "3f2a91c0d1e4b5a6", Egress: policy}
			endpoint.cases = append(endpoint.cases, goldenCase{s.name + ", egress " + name, fw.Endpoint(mark, sb, ep, spec.Network{})})
		}
	}
	slices.SortStableFunc(endpoint.cases, func(a, b goldenCase) int { return strings.Compare(a.name, b.name) })
	return []golden{host, network, endpoint}
}

func policies() map[string][]spec.EgressRule {
	to := netip.MustParsePrefix
	return map[string][]spec.EgressRule{
		"deny 10.0.0.0/8":                     {{To: to("10.0.0.0/8")}},
		"deny fd00::/8":                       {{To: to("fd00::/8")}},
		"allow 192.0.2.0/24:443/tcp":          {{Allow: true, To: to("192.0.2.0/24"), Port: 443, Proto: spec.TCP}},
		"allow 192.0.2.1/32, deny everything": {{Allow: true, To: to("192.0.2.1/32")}, {To: to("0.0.0.0/0")}, {To: to("::/0")}},
	}
}

func sortedKeys(m map[string]spec.Network) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// TestGolden compares every rule set with a file, and docs/rules with both.
func TestGolden(t *testing.T) {
	for _, fw := range firewalls() {
		for _, g := range pages(fw) {
			t.Run(fw.Name()+"/"+g.name, func(t *testing.T) {
				var got strings.Builder
				for _, c := range g.cases {
					if err := (plan.Plan{Owner: c.name, Objects: c.objs}).WriteText(&got); err != nil {
						t.Fatal(err)
					}
					got.WriteString("\n")
				}
				compare(t, filepath.Join("testdata", fw.Name()+"-"+g.name+".golden"), got.String())
			})
		}
		t.Run(fw.Name()+"/docs", func(t *testing.T) {
			compare(t, filepath.Join("..", "..", "docs", "rules", fw.Name()+".md"), page(t, fw))
		})
	}
}

func compare(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got; if it is meant so, run with -update:\n%s", diff)
	}
}

// TestKeys checks that nothing in one host's plans hides something else: equal
// keys must mean equal objects.
func TestKeys(t *testing.T) {
	for _, fw := range firewalls() {
		objs := fw.Host(mark, "FORWARD")
		for i, br := range []string{"sandnet0", "sn-0123456789ab"} {
			n := spec.Network{Bridge: br, Subnets: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("fd00:30::/64")}}
			objs = append(objs, fw.Network(mark, n)...)
			ep := spec.Endpoint{HostInterface: fmt.Sprintf("sv3f2a91c0d1e%d", i), MAC: "02:42:ac:1e:00:02",
				Addresses: []netip.Prefix{netip.MustParsePrefix("172.30.0.2/16"), netip.MustParsePrefix("fd00:30::2/64")}}
			for _, ip := range []string{"0.0.0.0", "127.0.0.1", "::", "::1"} {
				for _, proto := range []spec.Proto{spec.TCP, spec.UDP, spec.SCTP} {
					ep.Ports = append(ep.Ports, spec.Port{HostIP: netip.MustParseAddr(ip), HostPort: uint16(80 + i), Port: 80, Proto: proto})
				}
			}
			objs = append(objs, fw.Endpoint(mark, spec.Sandbox{ID: "3f2a91c0d1e4b5a6", Egress: policies()["deny 10.0.0.0/8"]}, ep, n)...)
		}
		seen := map[string]plan.Object{}
		for _, o := range objs {
			if other, ok := seen[o.Key()]; ok && !plan.Equal(o, other) {
				t.Errorf("%s: two objects are %q", fw.Name(), o.Key())
			}
			seen[o.Key()] = o
		}
	}
}

// TestSameReservations: what one firewall publishes the other one does, too.
func TestSameReservations(t *testing.T) {
	reserved := func(fw rules) (out []string) {
		for _, c := range pages(fw)[2].cases {
			for _, o := range c.objs {
				if o.Kind() == plan.KindHostPort || o.Kind() == plan.KindFlow {
					out = append(out, c.name+": "+o.Key())
				}
			}
		}
		return out
	}
	if d := cmp.Diff(reserved(nftables.Firewall{}), reserved(iptables.Firewall{})); d != "" {
		t.Error(d)
	}
	if len(reserved(nftables.Firewall{})) == 0 {
		t.Error("nothing is reserved")
	}
	if firewall.AcceptMark&firewall.InsideMark != 0 {
		t.Error("the bits of the mark overlap")
	}
}
