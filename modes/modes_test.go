package modes_test

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandnet/sandnet/internal/firewall/nftables"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
	"github.com/sandnet/sandnet/modes"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var bridgeMode = modes.Bridge{Firewall: nftables.Firewall{}}

const id = "3f2a91c0d1e4b5a697887766554433221100ffeeddccbbaa9988776655443322"

func facts(eps []spec.Endpoint, nets []spec.Network) spec.Facts {
	return spec.Facts{
		Netns: "/run/netns/web", EtcDir: "/run/sandnet/etc/web", EtcLink: "/etc/netns/web", HostsDir: "/run/sandnet/hosts",
		IndexPath: "/run/sandnet/ids/" + id, Mark: 83, Endpoints: eps, Networks: nets,
		HostResolv: "nameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch example.org\noptions edns0\n",
	}
}

func network(name, bridge string, subnets ...string) spec.Network {
	n := spec.Network{Name: name, Bridge: bridge, MTU: 1500}
	for _, s := range subnets {
		p := netip.MustParsePrefix(s)
		n.Subnets, n.Gateways = append(n.Subnets, p), append(n.Gateways, p.Addr().Next())
	}
	return n
}

// endpoint takes one address for each of the network's subnets, with a space between.
func endpoint(n spec.Network, iface, hostIface, addrs string, ports ...spec.Port) spec.Endpoint {
	ep := spec.Endpoint{Network: n.Name, Interface: iface, HostInterface: hostIface, MTU: 1500, Gateways: n.Gateways, Ports: ports}
	for i, s := range strings.Fields(addrs) {
		ep.Addresses = append(ep.Addresses, netip.PrefixFrom(netip.MustParseAddr(s), n.Subnets[i].Bits()))
	}
	ep.MAC = spec.MAC(ep.Addresses[0].Addr())
	return ep
}

// TestGolden compares each mode's plan, as text, with a file.
func TestGolden(t *testing.T) {
	bridge, app, db := network("bridge", "sandnet0", "172.30.0.0/16"), network("app", "sn-a172cedcae47", "10.61.0.0/24"), network("db", "sn-3a9b1c2d4e5f", "10.62.0.0/24")
	quiet := db
	quiet.NoICC = true
	internal := db
	internal.Internal = true
	all, lo := netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.1")
	web := spec.Sandbox{Name: "web", ID: id}
	rich := web
	rich.Hosts = []spec.HostEntry{{Name: "db.example", Addr: netip.MustParseAddr("192.0.2.9")}}
	rich.DNS, rich.DNSSearch = []netip.Addr{netip.MustParseAddr("192.0.2.1")}, []string{"corp.example"}
	rich.Sysctls = map[string]string{"net/core/somaxconn": "1024", "net/ipv4/tcp_syncookies": "0"}
	dual, only6 := network("dual", "sn-d0a1d0a1d0a1", "10.63.0.0/24", "fd00:63::/64"), network("six", "sn-666666666666", "fd00:66::/64")
	forgiving := web
	forgiving.Sysctls = map[string]string{"net/ipv6/conf/default/accept_ra": "1"}
	limited := web
	limited.IngressRate, limited.EgressRate = 10_000_000, 1_000_000_000
	rewired := web // eth0 is gone, and its settings with it
	rewired.Sysctls = map[string]string{"net/ipv4/conf/eth0/rp_filter": "1", "net/ipv4/conf/eth1/rp_filter": "1"}
	second := web
	second.Attach = []spec.Attachment{{Network: "app"}, {Network: "db", GwPriority: 1}}
	named := endpoint(app, "eth0", "sv3f2a91c0d1e0", "10.61.0.2")
	named.Aliases = []string{"www"}

	for _, c := range []struct {
		name string
		mode interface {
			Plan(spec.Sandbox, spec.Facts) (plan.Plan, error)
		}
		s spec.Sandbox
		f spec.Facts
	}{
		{"none", modes.None{}, web, facts(nil, nil)},
		{"host", modes.Host{}, web, facts(nil, nil)},
		{"container-sandbox", modes.Container{}, web, func() spec.Facts {
			f := facts(nil, nil)
			f.JoinPath, f.JoinEtcDir, f.JoinedPath = "/run/netns/db", "/run/sandnet/etc/db", "/run/sandnet/joined/db/web"
			return f
		}()},
		{"container-pid", modes.Container{}, web, func() spec.Facts {
			f := facts(nil, nil)
			f.JoinPath = "/proc/42/ns/net"
			return f
		}()},
		{"bridge", bridgeMode, web, facts([]spec.Endpoint{endpoint(bridge, "eth0", "sv3f2a91c0d1e0", "172.30.0.2")}, []spec.Network{bridge})},
		{"bridge-published", bridgeMode, web, facts([]spec.Endpoint{endpoint(bridge, "eth0", "sv3f2a91c0d1e0", "172.30.0.2",
			spec.Port{HostIP: all, HostPort: 8080, Port: 80, Proto: spec.TCP},
			spec.Port{HostIP: lo, HostPort: 5353, Port: 53, Proto: spec.UDP})}, []spec.Network{bridge})},
		{"bridge-user-network", bridgeMode, web, facts([]spec.Endpoint{named}, []spec.Network{app})},
		{"bridge-two-networks", bridgeMode, rich, facts([]spec.Endpoint{named, endpoint(db, "eth1", "sv3f2a91c0d1e1", "10.62.0.2")}, []spec.Network{app, db})},
		{"bridge-gateway-priority", bridgeMode, second, facts([]spec.Endpoint{named, endpoint(db, "eth1", "sv3f2a91c0d1e1", "10.62.0.2")}, []spec.Network{app, db})},
		{"bridge-rates", bridgeMode, limited, facts([]spec.Endpoint{endpoint(bridge, "eth0", "sv3f2a91c0d1e0", "172.30.0.2")}, []spec.Network{bridge})},
		{"bridge-rewired", bridgeMode, rewired, func() spec.Facts {
			f := facts([]spec.Endpoint{endpoint(db, "eth1", "sv3f2a91c0d1e1", "10.62.0.2")}, []spec.Network{db})
			f.Rewired = true
			return f
		}()},
		{"bridge-no-icc", bridgeMode, web, facts([]spec.Endpoint{endpoint(quiet, "eth0", "sv3f2a91c0d1e0", "10.62.0.2")}, []spec.Network{quiet})},
		{"bridge-dual-stack", bridgeMode, web, facts([]spec.Endpoint{endpoint(dual, "eth0", "sv3f2a91c0d1e0", "10.63.0.2 fd00:63::2",
			spec.Port{HostIP: all, HostPort: 8080, Port: 80, Proto: spec.TCP},
			spec.Port{HostIP: netip.IPv6Unspecified(), HostPort: 8080, Port: 80, Proto: spec.TCP})}, []spec.Network{dual})},
		{"bridge-ipv6-only", bridgeMode, forgiving, facts([]spec.Endpoint{endpoint(only6, "eth0", "sv3f2a91c0d1e0", "fd00:66::2")}, []spec.Network{only6})},
		// Each family has its default route from the first network that has the family.
		{"bridge-mixed", bridgeMode, web, facts([]spec.Endpoint{endpoint(app, "eth0", "sv3f2a91c0d1e0", "10.61.0.2"),
			endpoint(dual, "eth1", "sv3f2a91c0d1e1", "10.63.0.2 fd00:63::2"), endpoint(only6, "eth2", "sv3f2a91c0d1e2", "fd00:66::2")}, []spec.Network{app, dual, only6})},
		{"bridge-internal", bridgeMode, web, facts([]spec.Endpoint{endpoint(internal, "eth0", "sv3f2a91c0d1e0", "10.62.0.2")}, []spec.Network{internal})},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := c.mode.Plan(c.s, c.f)
			if err != nil {
				t.Fatal(err)
			}
			p.Owner = "sandbox/web"
			golden(t, c.name, p)
		})
	}
}

// TestGoldenNetworks does the same for what belongs to no sandbox.
func TestGoldenNetworks(t *testing.T) {
	app, internal := network("app", "sn-a172cedcae47", "10.61.0.0/24"), network("db", "sn-3a9b1c2d4e5f", "10.62.0.0/24")
	internal.Internal = true
	dual, only6 := network("dual", "sn-d0a1d0a1d0a1", "10.63.0.0/24", "fd00:63::/64"), network("six", "sn-666666666666", "fd00:66::/64")
	golden(t, "network", bridgeMode.Network(app, 83))
	golden(t, "network-internal", bridgeMode.Network(internal, 83))
	golden(t, "network-dual-stack", bridgeMode.Network(dual, 83))
	golden(t, "network-ipv6-only", bridgeMode.Network(only6, 83))
	golden(t, "forward6", bridgeMode.Forward6("0", []string{"eth0", "wlan0"}))
	golden(t, "hostplan-docker", bridgeMode.Shared(83, "0", "DOCKER-USER"))
}

func golden(t *testing.T, name string, p plan.Plan) {
	t.Helper()
	var b bytes.Buffer
	if err := p.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("%s (-want +got; -update to accept):\n%s", file, d)
	}
}

func TestIncompleteFactsAreRefused(t *testing.T) {
	if _, err := bridgeMode.Plan(spec.Sandbox{}, spec.Facts{}); err == nil {
		t.Error("bridge planned without an endpoint")
	}
	if _, err := (modes.Container{}).Plan(spec.Sandbox{}, spec.Facts{}); err == nil {
		t.Error("container planned without a namespace to join")
	}
}

func TestMAC(t *testing.T) {
	if got := spec.MAC(netip.MustParseAddr("172.30.1.254")); got != "02:42:ac:1e:01:fe" {
		t.Errorf("MAC = %s", got)
	}
}
