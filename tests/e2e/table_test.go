package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// TestIsolationTable has every cell of the table of who reaches whom, for both
// firewalls, whatever the policy of FORWARD. What the cells are in IPv6, and in
// either home of iptables rules, package kernel tests with the same rows.
func TestIsolationTable(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"nftables", "iptables"} {
		for _, policy := range []string{"ACCEPT", "DROP"} {
			t.Run(kind+", FORWARD "+policy, func(t *testing.T) {
				t.Parallel()
				newTable(t, kind, policy).run()
			})
		}
	}
}

// table is a host with a network of every kind.
type table struct {
	t                              *testing.T
	h, lan                         *lab.Host
	web, near, app, inner, outer   *lab.NS // on bridge, bridge, app, inner, inner
	quiet, still, routed, isolated *lab.NS // on quiet, quiet, routed, isolated
	lonely                         *lab.NS // on isolated
}

func newTable(t *testing.T, kind, policy string) *table {
	l := lab.New(t)
	x := &table{t: t, h: l.Host("host"), lan: l.Host("neighbour")}
	x.h.Must("iptables", "-P", "FORWARD", policy)
	x.lan.ServeTCP("0.0.0.0:80")
	x.h.ServeTCP("0.0.0.0:9000")
	for _, args := range [][]string{{"app"}, {"inner", "--internal"}, {"quiet", "--no-icc"},
		{"routed", "--gateway-mode", "routed"}, {"isolated", "--gateway-mode", "isolated"}} {
		with(x.h, kind, append([]string{"network", "create"}, args...)...)
	}
	x.web = server(t, x.h, "web", "-p", "8080:80", "-p", "127.0.0.1:8081:80")
	x.near = server(t, x.h, "near")
	x.app = server(t, x.h, "app", "--net", "app", "-p", "8082:80")
	x.inner, x.outer = server(t, x.h, "inner", "--net", "inner"), server(t, x.h, "outer", "--net", "inner")
	x.quiet, x.still = server(t, x.h, "quiet", "--net", "quiet", "-p", "8083:80"), server(t, x.h, "still", "--net", "quiet")
	x.routed = server(t, x.h, "routed", "--net", "routed", "-p", "8084:80")
	x.routed.ServeTCP("0.0.0.0:81")
	x.isolated, x.lonely = server(t, x.h, "isolated", "--net", "isolated"), server(t, x.h, "lonely", "--net", "isolated")
	x.lan.Must("ip", "route", "add", "172.16.0.0/12", "via", x.h.IP.String())
	return x
}

func (x *table) address(name string) string { return address(x.t, x.h, name) }

// gateway is what is at the end of the sandbox's bridge.
func (x *table) gateway(name string) string {
	return inspect(x.t, x.h, name).Endpoints[0].Gateways[0].String()
}

func (x *table) run() {
	host, lan := x.h.IP.String(), x.lan.IP.String()
	cell := func(name string, test func()) {
		x.t.Run(name, func(t *testing.T) { test() })
	}
	cell("LAN to published", func() { x.lan.Reaches("tcp", host+":8080", x.web, lan); x.lan.Reaches("tcp", host+":8082", x.app, lan) })
	cell("LAN to a sandbox's address", func() {
		x.lan.Barred("tcp", x.address("web")+":80")
		x.lan.Barred("tcp", x.address("near")+":80")
		x.lan.Barred("tcp", x.address("inner")+":80")
	})
	cell("LAN to a port published on 127.0.0.1", func() {
		x.lan.Barred("tcp", host+":8081")
		x.lan.Must("ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
		x.lan.Must("ip", "route", "add", "127.0.0.1/32", "via", host, "src", lan)
		x.lan.Must("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
		x.lan.Barred("tcp", "127.0.0.1:8081")
		x.lan.Barred("tcp", "127.0.0.1:8080")
	})
	cell("to another network", func() { x.web.Barred("tcp", x.address("app")+":80"); x.app.Barred("tcp", x.address("web")+":80") })
	cell("to the own published port", func() {
		x.web.Reaches("tcp", host+":8080", x.web, "")
		x.quiet.Reaches("tcp", host+":8083", x.quiet, "")
	})
	cell("host to 127.0.0.1", func() {
		x.h.Reaches("tcp", "127.0.0.1:8080", x.web, "")
		x.h.Reaches("tcp", "127.0.0.1:8081", x.web, "")
	})
	cell("internal to services of the host", func() {
		x.near.Reaches("tcp", host+":9000", x.h.NS, "")
		for _, at := range []string{x.gateway("inner"), host, x.gateway("web")} {
			x.inner.Barred("tcp", at+":9000")
			x.inner.Barred("tcp", at+":8080")
		}
		x.inner.Barred("tcp", lan+":80")
		x.inner.Reaches("tcp", x.address("outer")+":80", x.outer, x.address("inner"))
	})
	cell("no-icc to a neighbour's published port", func() {
		x.still.Barred("tcp", x.address("quiet")+":80")
		x.still.Barred("tcp", host+":8083")
		x.still.Barred("tcp", x.gateway("still")+":8083")
		x.near.Reaches("tcp", host+":8083", x.quiet, "")
	})
	cell("gateway mode routed", func() {
		x.lan.Reaches("tcp", x.address("routed")+":80", x.routed, lan)
		x.lan.Barred("tcp", x.address("routed")+":81")
		x.lan.Barred("tcp", host+":8084")
		x.routed.Reaches("tcp", lan+":80", x.lan.NS, x.address("routed"))
	})
	cell("gateway mode isolated", func() {
		x.isolated.Reaches("tcp", x.address("lonely")+":80", x.lonely, x.address("isolated"))
		x.h.Barred("tcp", x.address("isolated")+":80")
		// With a way to the host of its own making, it still gets nowhere.
		x.isolated.Must("ip", "route", "add", "default", "dev", "eth0")
		for _, at := range []string{host + ":9000", host + ":8080", x.gateway("isolated") + ":9000", lan + ":80"} {
			x.isolated.Barred("tcp", at)
		}
		if out := x.h.Must("ip", "-4", "addr"); strings.Contains(out, x.gateway("isolated")+"/") {
			x.t.Errorf("the host has an address on an isolated network:\n%s", out)
		}
	})
	// The last one: the liar loses its own address.
	cell("spoofing", func() { x.spoofing() })
}

// spoofing has near pretend to be web, to the host and to a neighbour.
func (x *table) spoofing() {
	victim, mac := x.address("web"), inspect(x.t, x.h, "web").Endpoints[0].MAC
	x.h.Reaches("tcp", victim+":80", x.web, "")
	neighbour := func() string { return x.h.Must("ip", "neigh", "show", victim, "dev", "sandnet0") }
	if !strings.Contains(neighbour(), mac) {
		x.t.Fatalf("the host does not know %s: %s", victim, neighbour())
	}
	x.near.Must("ip", "addr", "add", victim+"/32", "dev", "eth0")
	if a, err := x.near.AskFrom("tcp", victim, x.gateway("near")+":9000", lab.Patience/20); err == nil {
		x.t.Errorf("with the neighbour's IP address: %v", a)
	}
	x.near.Must("ip", "neigh", "flush", "dev", "eth0")
	x.near.Run("ping", "-c1", "-W1", "-I", victim, x.gateway("near"))
	if !strings.Contains(neighbour(), mac) {
		x.t.Errorf("the host was told a lie about %s: %s", victim, neighbour())
	}
	x.near.Must("ip", "addr", "del", victim+"/32", "dev", "eth0")
	x.near.Reaches("tcp", x.gateway("near")+":9000", x.h.NS, x.address("near"))
	x.near.Must("ip", "link", "set", "eth0", "address", mac)
	x.near.Barred("tcp", x.gateway("near")+":9000")
	x.h.Reaches("tcp", victim+":80", x.web, "")
}

// TestFlushedRules: whatever an administrator flushes is there again after the
// next command that makes something, of everybody.
func TestFlushedRules(t *testing.T) {
	t.Parallel()
	for kind, damages := range map[string][]string{
		"nftables": {"nft flush ruleset", "nft flush table inet sandnet", "nft delete table bridge sandnet"},
		"iptables": {"nft flush ruleset", "iptables -F", "iptables -t nat -F", "iptables -t nat -F SANDNET-PORTS"},
	} {
		l := lab.New(t)
		h, lan := l.Host("host"), l.Host("neighbour")
		with(h, kind, "network", "create", "app")
		web := server(t, h, "web", "--net", "app", "-p", "8080:80")
		for i, damage := range damages {
			before := rulesOf(h.Dump())
			h.Must("sh", "-c", damage)
			if lab.Diff(before, rulesOf(h.Dump())) == "" {
				t.Errorf("%s: nothing was damaged", damage)
			}
			name := fmt.Sprint("x", i)
			h.OK("create", "--name", name)
			lan.Reaches("tcp", h.IP.String()+":8080", web, lan.IP.String())
			h.OK("rm", name)
		}
	}
}
