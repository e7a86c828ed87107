package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// The way out: the LAN sees the host's address, or the sandbox's own where
// the network says so, or nothing.
func TestOutwards(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h, lan := l.Host("host"), l.Host("neighbour")
	before := used(t, h)
	lan.ServeTCP("0.0.0.0:80")
	lan.ServeUDP("0.0.0.0:80")
	h.OK("network", "create", "plain", "--subnet", "10.61.1.0/24", "--no-masquerade")
	h.OK("network", "create", "inner", "--subnet", "10.61.2.0/24", "--internal")
	lan.Must("ip", "route", "add", "10.61.0.0/16", "via", h.IP.String())
	a, b, c := create(t, h, "a"), create(t, h, "b", "--net", "plain"), create(t, h, "c", "--net", "inner")

	for _, proto := range []string{"tcp", "udp"} {
		a.Reaches(proto, lan.IP.String()+":80", lan.NS, h.IP.String())
		b.Reaches(proto, lan.IP.String()+":80", lan.NS, address(t, h, "b"))
		c.Barred(proto, lan.IP.String()+":80")
	}
	h.OK("rm", "a", "b", "c")
	h.OK("network", "rm", "plain", "inner")
	h.Unchanged(before, "rm of everything")
}

func TestNoInterContainer(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "quiet", "--no-icc")
	a, b := server(t, h, "a", "--net", "quiet"), server(t, h, "b", "--net", "quiet")
	a.Barred("tcp", address(t, h, "b")+":80")
	b.Barred("udp", address(t, h, "a")+":80")
	h.Reaches("tcp", address(t, h, "a")+":80", a, "")
	h.OK("rm", "a", "b")
	h.OK("network", "rm", "quiet")
	h.Unchanged(before, "rm of everything")
}

// Sandboxes of an internal network talk among themselves and to nobody else.
func TestInternal(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h, lan := l.Host("host"), l.Host("neighbour")
	used(t, h)
	h.OK("network", "create", "inner", "--internal", "--subnet", "10.61.2.0/24")
	h.OK("network", "create", "other")
	a, b := server(t, h, "a", "--net", "inner"), create(t, h, "b", "--net", "inner")
	c := server(t, h, "c", "--net", "other")
	b.Reaches("tcp", address(t, h, "a")+":80", a, address(t, h, "b"))
	b.Barred("tcp", address(t, h, "c")+":80")
	c.Barred("tcp", address(t, h, "a")+":80")
	lan.Must("ip", "route", "add", "10.61.2.0/24", "via", h.IP.String())
	lan.Barred("tcp", address(t, h, "a")+":80")
}

// A bridge hands frames to reserved addresses, LLDP's above all, to the host on
// the port that they came in by, where no rule for bridges sees them.
func TestReservedMulticast(t *testing.T) {
	t.Parallel()
	for _, firewall := range []string{"nftables", "iptables"} {
		t.Run(firewall, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t)
			h.Firewall = firewall
			h.ServeUDP("0.0.0.0:9000")
			h.ServeUDP("[::]:9001")
			h.OK("network", "create", "inner", "--internal", "--ipv6")
			inner := create(t, h, "inner", "--net", "inner")
			gateways := inspect(t, h, "inner").Endpoints[0].Gateways
			for _, last := range []string{"00", "02", "03", "0e"} {
				for i, gw := range gateways {
					inner.Must("ip", "neigh", "replace", gw.String(), "lladdr", "01:80:c2:00:00:"+last, "dev", "eth0", "nud", "permanent")
					inner.Barred("udp", netip.AddrPortFrom(gw, uint16(9000+i)).String())
				}
			}
		})
	}
}

// From outside nothing is open but published ports, even on a host that
// already forwarded and whose neighbours know the way.
func TestDirectAccess(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h, lan := l.Host("host"), l.Host("neighbour")
	h.Must("sysctl", "-qw", "net.ipv4.ip_forward=1")
	used(t, h)
	h.OK("network", "create", "net", "--subnet", "10.61.3.0/24")
	server(t, h, "a")
	server(t, h, "b", "--net", "net", "-p", "8080:80")
	lan.Must("ip", "route", "add", "172.30.0.0/16", "via", h.IP.String())
	lan.Must("ip", "route", "add", "10.61.3.0/24", "via", h.IP.String())
	for _, name := range []string{"a", "b"} {
		lan.Barred("tcp", address(t, h, name)+":80")
		lan.Barred("udp", address(t, h, name)+":80")
	}
	if r := lan.Run("ping", "-c1", "-W1", address(t, h, "a")); r.Code == 0 {
		t.Errorf("the sandbox answers pings from the LAN")
	}
}

// foreign sets up what Docker leaves on a host.
func foreign(h *lab.Host, dockerUser bool) {
	h.Must("iptables", "-P", "FORWARD", "DROP")
	if dockerUser {
		h.Must("iptables", "-N", "DOCKER-USER")
		h.Must("iptables", "-A", "DOCKER-USER", "-j", "RETURN")
		h.Must("iptables", "-A", "FORWARD", "-j", "DOCKER-USER")
	}
}

func TestBesideDocker(t *testing.T) {
	t.Parallel()
	for _, dockerUser := range []bool{false, true} {
		l := lab.New(t)
		h, lan := l.Host("host"), l.Host("neighbour")
		foreign(h, dockerUser)
		theirs := h.Must("iptables-save")
		// The control: without sandnet's rule the policy drops everything.
		if !strings.Contains(theirs, ":FORWARD DROP") {
			t.Fatalf("no DROP policy: %s", theirs)
		}
		lan.ServeTCP("0.0.0.0:80")
		web := server(t, h, "web", "-p", "8080:80")
		near := create(t, h, "near")
		lan.Reaches("tcp", h.IP.String()+":8080", web, lan.IP.String())
		near.Reaches("tcp", lan.IP.String()+":80", lan.NS, h.IP.String())
		near.Reaches("tcp", address(t, h, "web")+":80", web, "")
		near.Reaches("tcp", h.IP.String()+":8080", web, "")
		lan.Must("ip", "route", "add", "172.30.0.0/16", "via", h.IP.String())
		lan.Barred("tcp", address(t, h, "web")+":80")

		// Their rules stand as they were; ours is one of its own.
		var left []string
		for line := range strings.Lines(h.Must("iptables-save") + "\n") {
			if !strings.Contains(line, "sandnet") {
				left = append(left, line)
			}
		}
		if a, b := squash(strings.Join(left, "")), squash(theirs); a != b {
			t.Errorf("foreign rules were changed from\n%s\nto\n%s", b, a)
		}
		h.OK("rm", "web", "near")
	}
}

// squash drops comments and counters from iptables-save's output.
func squash(save string) string {
	var out []string
	for line := range strings.Lines(save) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " [")
		if line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// Foreign rules, links, addresses and namespaces survive sandnet's clean-up.
func TestForeignSurvives(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	used(t, h)
	for _, cmd := range [][]string{
		{"ip", "link", "add", "sv0000000000000", "type", "bridge"},
		{"ip", "link", "add", "sn-0123456789ab", "type", "bridge"},
		{"ip", "addr", "add", "172.29.0.1/24", "dev", "sn-0123456789ab"},
		{"nft", "add", "table", "inet", "sandnet-theirs"},
		{"nft", "add", "table", "ip", "sandnet"},
		{"iptables", "-N", "SANDNET"},
		{"sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1"},
	} {
		h.Must(cmd[0], cmd[1:]...)
	}
	before := h.Dump()
	h.OK("network", "create", "n")
	create(t, h, "a", "--net", "n", "-p", "8080:80")
	h.OK("rm", "a")
	h.OK("network", "rm", "n")
	h.OK("gc")
	h.Unchanged(before, "a network and a sandbox")
}
