package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

// address6 is a sandbox's IPv6 address on its first network, in brackets.
func address6(t *testing.T, h *lab.Host, name string) string {
	t.Helper()
	for _, a := range inspect(t, h, name).Endpoints[0].Addresses {
		if a.Addr().Is6() {
			return "[" + a.Addr().String() + "]"
		}
	}
	t.Fatalf("%s has no IPv6 address", name)
	return ""
}

// server6 is server, on IPv6 as well.
func server6(t *testing.T, h *lab.Host, name string, args ...string) *lab.NS {
	t.Helper()
	s := server(t, h, name, args...)
	s.ServeTCP("[::]:80")
	s.ServeUDP("[::]:80")
	return s
}

func setting(h *lab.Host, name string) string {
	return strings.TrimSpace(h.Must("cat", "/proc/sys/net/ipv6/conf/"+name))
}

func TestDualStack(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "--ipv6", "n")
	a, b := server6(t, h, "a", "--net", "n"), server6(t, h, "b", "--net", "n")
	e := inspect(t, h, "a").Endpoints[0]
	if len(e.Addresses) != 2 || !e.Addresses[0].Addr().Is4() || e.Addresses[1].Bits() != 64 ||
		!netip.MustParsePrefix("fd00::/8").Contains(e.Addresses[1].Addr()) || len(e.Gateways) != 2 {
		t.Fatalf("endpoint: %+v", e)
	}
	h.ServeTCP("[::]:7000")
	for _, proto := range []string{"tcp", "udp"} {
		b.Reaches(proto, address6(t, h, "a")+":80", a, e6(address6(t, h, "b")))
		b.Reaches(proto, address(t, h, "a")+":80", a, address(t, h, "b"))
		h.Reaches(proto, address6(t, h, "b")+":80", b, e.Gateways[1].String())
	}
	a.Reaches("tcp", "["+e.Gateways[1].String()+"]:7000", h.NS, e6(address6(t, h, "a")))
	for _, want := range e.Addresses {
		if got := h.OK("exec", "b", "--", "getent", "ahosts", "a"); !strings.Contains(got, want.Addr().String()+" ") {
			t.Errorf("b resolves a to\n%s, without %s", got, want)
		}
	}
	// Both families of all networks come from one prefix.
	h.OK("network", "create", "--ipv6", "m")
	create(t, h, "c", "--net", "m")
	mine, theirs := e.Addresses[1].Masked(), inspect(t, h, "c").Endpoints[0].Addresses[1].Masked()
	if site := netip.PrefixFrom(mine.Addr(), 48).Masked(); mine == theirs || !site.Contains(theirs.Addr()) {
		t.Errorf("subnets %s and %s", mine, theirs)
	}
	var nets []struct {
		IPv6    bool           `json:"ipv6"`
		Subnets []netip.Prefix `json:"subnets"`
	}
	if err := json.Unmarshal([]byte(h.OK("network", "inspect", "n", "bridge")), &nets); err != nil || !nets[0].IPv6 || nets[0].Subnets[1] != mine || nets[1].IPv6 {
		t.Errorf("networks: %+v, %v", nets, err)
	}
	if out := h.OK("network", "ls"); !strings.Contains(out, mine.String()) {
		t.Errorf("network ls:\n%s", out)
	}
	if out := h.OK("ps"); !strings.Contains(out, e.Addresses[0].Addr().String()+", "+e.Addresses[1].Addr().String()) {
		t.Errorf("ps:\n%s", out)
	}
	h.OK("rm", "a", "b", "c")
	h.OK("network", "rm", "n", "m")
	h.Unchanged(before, "network rm")
}

// e6 takes the brackets away.
func e6(addr string) string { return strings.Trim(addr, "[]") }

func TestIPv6Only(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "six", "--subnet", "fd00:61::/64", "--gateway", "fd00:61::fe", "--ip-range", "fd00:61::1:0/112", "--aux-address", "printer=fd00:61::1:1")
	a, b := create(t, h, "a", "--net", "six", "--ip6", "fd00:61::7"), create(t, h, "b", "--net", "six")
	c := create(t, h, "c", "--net", "six")
	a.ServeTCP("[::]:80")
	for name, want := range map[string]string{"a": "fd00:61::7", "b": "fd00:61::1:0", "c": "fd00:61::1:2"} {
		if e := inspect(t, h, name).Endpoints[0]; len(e.Addresses) != 1 || e.Addresses[0].String() != want+"/64" || fmt.Sprint(e.Gateways) != "[fd00:61::fe]" {
			t.Errorf("%s: %+v", name, e)
		}
	}
	for _, s := range []*lab.NS{b, c, h.NS} {
		s.Reaches("tcp", "[fd00:61::7]:80", a, "")
	}
	if out := b.Must("ip", "-4", "addr", "show", "dev", "eth0"); out != "" {
		t.Errorf("an IPv4 address: %s", out)
	}
	if out := b.Must("ip", "-6", "route"); !strings.Contains(out, "default via fd00:61::fe dev eth0") {
		t.Errorf("routes:\n%s", out)
	}
	if got := h.OK("exec", "b", "--", "getent", "hosts", "a"); !strings.HasPrefix(got, "fd00:61::7 ") {
		t.Errorf("b resolves a to %q", got)
	}
	h.Refused(2, []string{"fd00:61::7", "sandbox a has it"}, "create", "--net", "six", "--ip6", "fd00:61::7")
	h.Refused(2, []string{"fd00:61::fe", "gateway"}, "create", "--net", "six", "--ip6", "fd00:61::fe")
	h.Refused(2, []string{"fd00:62::7", "fd00:61::/64"}, "create", "--net", "six", "--ip6", "fd00:62::7")
	h.Refused(2, []string{"10.1.2.3", "no IPv4"}, "create", "--net", "six", "--ip", "10.1.2.3")
	h.Refused(2, []string{"fd00:61::9", "no IPv6", "--ipv6"}, "create", "--ip6", "fd00:61::9")
	h.Refused(2, []string{"1000", "1280"}, "create", "--net", "six", "--mtu", "1000")
	h.Refused(2, []string{"fd00:61::/48", "six"}, "network", "create", "x", "--subnet", "fd00:61::/48")
	h.Must("ip", "-6", "route", "add", "fd00:99::/64", "dev", "eth0")
	h.Refused(2, []string{"fd00:99::/66", "fd00:99::/64"}, "network", "create", "x", "--subnet", "fd00:99::/66")
	h.Must("ip", "-6", "route", "del", "fd00:99::/64", "dev", "eth0")
	h.OK("rm", "a", "b", "c")
	h.OK("network", "rm", "six")
	h.Unchanged(before, "network rm")
}

// Addresses work from the first moment: nothing waits for duplicate address
// detection, which takes a second or two.
func TestNoDuplicateAddressDetection(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.ServeTCP("[::]:7000")
	h.OK("network", "create", "six", "--subnet", "fd00:61::/64", "--bridge", "br-six")
	a := create(t, h, "a", "--net", "six")
	if out := a.Must("ip", "-6", "addr", "show", "tentative") + h.Must("ip", "-6", "addr", "show", "dev", "br-six", "tentative"); out != "" {
		t.Errorf("addresses that cannot be used yet:\n%s", out)
	}
	a.Reaches("tcp", "[fd00:61::1]:7000", h.NS, "fd00:61::2")
}

// Whoever sends router advertisements on a network, sandboxes do not listen,
// unless they are told to; nor does the host.
func TestRouterAdvertisementsAreIgnored(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("network", "create", "six", "--subnet", "fd00:61::/64", "--bridge", "br-six")
	h.OK("network", "create", "four", "--bridge", "br-four")
	deaf := create(t, h, "deaf", "--net", "six")
	keen := create(t, h, "keen", "--net", "six", "--sysctl", "net.ipv6.conf.eth0.accept_ra=1", "--sysctl", "net.ipv6.conf.eth0.autoconf=1")
	rogue := netip.MustParsePrefix("2001:db8:bad::/64")
	learned := func(n *lab.NS) string {
		var out string
		for line := range strings.Lines(n.Must("ip", "-6", "route") + "\n" + n.Must("ip", "-o", "-6", "addr")) {
			if strings.Contains(line, "proto ra") || strings.Contains(line, "2001:db8:bad") {
				out += line
			}
		}
		return out
	}
	lab.Eventually(t, "router in the sandbox that listens", func() error {
		h.Advertise("br-six", rogue)
		if out := learned(keen); !strings.Contains(out, "default via fe80::") || !strings.Contains(out, "2001:db8:bad:") {
			return errors.New(out)
		}
		return nil
	})
	if out := learned(deaf); out != "" {
		t.Errorf("a sandbox has learned from a router advertisement:\n%s", out)
	}
	// On a network without IPv6 a sandbox can make itself an address to send from.
	loud := create(t, h, "loud", "--net", "four")
	loud.Must("ip", "-6", "addr", "add", "fe80::bad/64", "dev", "eth0", "nodad")
	for _, from := range []*lab.NS{deaf, loud} {
		for range 3 {
			from.Advertise("eth0", rogue)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if out := learned(h.NS); out != "" {
		t.Errorf("the host has learned from a sandbox's router advertisement:\n%s", out)
	}
}

// A host that becomes a router goes on listening to its own, and is as it was
// with the last network of IPv6.
func TestForwarding6(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	router := l.Namespace("router")
	h := l.Host("host")
	before := used(t, h)
	// A router behind an uplink of its own.
	h.Must("ip", "link", "add", "up0", "type", "veth", "peer", "name", "lan0", "netns", router.Path)
	router.Must("ip", "link", "set", "lan0", "up")
	router.Must("ip", "-6", "addr", "add", "fe80::99/64", "dev", "lan0", "nodad")
	h.Must("sysctl", "-qw", "net.ipv6.conf.up0.accept_dad=0")
	h.Must("ip", "link", "set", "up0", "up")
	hears := func(prefix string) {
		t.Helper()
		lab.Eventually(t, "address of the router's prefix "+prefix, func() error {
			router.Advertise("lan0", netip.MustParsePrefix(prefix))
			out := h.Must("ip", "-6", "addr", "show", "dev", "up0") + h.Must("ip", "-6", "route")
			if !strings.Contains(out, "inet6 "+strings.TrimSuffix(prefix, ":/64")) || !strings.Contains(out, "default via fe80::99 dev up0") {
				return errors.New(out)
			}
			return nil
		})
	}
	hears("2001:db8:1::/64")
	h.OK("network", "create", "one", "--ipv6")
	if got := setting(h, "all/forwarding") + setting(h, "up0/accept_ra") + setting(h, "eth0/accept_ra"); got != "121" {
		t.Errorf("forwarding, accept_ra of the uplink, and of another link: %s", got)
	}
	if out := h.Must("ip", "-6", "route"); !strings.Contains(out, "default via fe80::99 dev up0") {
		t.Errorf("the default route is lost:\n%s", out)
	}
	hears("2001:db8:2::/64")
	h.OK("network", "create", "two", "--ipv6")
	h.OK("network", "rm", "one")
	if got := setting(h, "all/forwarding"); got != "1" {
		t.Errorf("forwarding is %s with a network of IPv6 left", got)
	}
	h.OK("network", "rm", "two")
	if got := setting(h, "all/forwarding") + setting(h, "up0/accept_ra"); got != "01" {
		t.Errorf("after the last network: forwarding, accept_ra of the uplink: %s", got)
	}
	if out := h.Must("ip", "-6", "route"); !strings.Contains(out, "default via fe80::99 dev up0") {
		t.Errorf("the default route is lost at the end:\n%s", out)
	}
	// An uplink that is gone does not stand in the way.
	h.OK("network", "create", "three", "--ipv6")
	h.Must("ip", "link", "del", "up0")
	create(t, h, "a", "--net", "three")
	h.OK("rm", "a")
	h.OK("network", "rm", "three")
	h.Unchanged(before, "network rm")

	// A host that routed before goes on.
	h.Must("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	routing := h.Settled()
	h.OK("network", "create", "four", "--ipv6")
	h.OK("network", "rm", "four")
	h.Unchanged(routing, "network rm on a router")
}

// A port is published in every family that the network has, under one number,
// and kept from others in each.
func TestPublishedInBothFamilies(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "n", "--ipv6")
	h.OK("network", "create", "six", "--subnet", "fd00:61::/64")
	h.Must("ip", "-6", "addr", "add", "fd00:205::1/64", "dev", "eth0", "nodad")
	web := server(t, h, "web", "--net", "n", "-p", "8080:80", "-p", "80", "-p", "[fd00:205::1]:8081:81/udp", "-p", "127.0.0.1:8082:82")
	create(t, h, "only", "--net", "six", "-p", "9090:90")
	h.Reaches("tcp", "127.0.0.1:8080", web, "")
	got := map[string]string{}
	for line := range strings.Lines(h.OK("port", "web")) {
		inside, outside, _ := strings.Cut(strings.TrimSpace(line), " -> ")
		got[outside] = inside
	}
	ephemeral := strings.TrimPrefix(strings.Fields(h.OK("port", "web", "80"))[2], "0.0.0.0:")
	for outside, inside := range map[string]string{
		"0.0.0.0:8080": "80/tcp", "[::]:8080": "80/tcp", "0.0.0.0:" + ephemeral: "80/tcp", "[::]:" + ephemeral: "80/tcp",
		"[fd00:205::1]:8081": "81/udp", "127.0.0.1:8082": "82/tcp",
	} {
		if got[outside] != inside {
			t.Errorf("%s is not on %s: %v", inside, outside, got)
		}
	}
	if len(got) != 6 {
		t.Errorf("ports: %v", got)
	}
	if out := h.OK("port", "only"); out != "90/tcp -> [::]:9090" {
		t.Errorf("port of a sandbox of IPv6 alone: %s", out)
	}
	for _, x := range []struct {
		network, addr string
		err           error
	}{
		{"tcp4", "0.0.0.0:8080", syscall.EADDRINUSE}, {"tcp6", "[::]:8080", syscall.EADDRINUSE}, {"tcp6", "[::1]:8080", syscall.EADDRINUSE},
		{"tcp6", "[::]:" + ephemeral, syscall.EADDRINUSE}, {"udp6", "[fd00:205::1]:8081", syscall.EADDRINUSE}, {"udp6", "[::1]:8081", nil},
		{"tcp6", "[::]:9090", syscall.EADDRINUSE}, {"tcp4", "0.0.0.0:9090", nil},
	} {
		if err := h.Bind(x.network, x.addr); !errors.Is(err, x.err) {
			t.Errorf("bind %s %s: %v, not %v", x.network, x.addr, err, x.err)
		}
	}
	// What one family has not, is refused; a port that is taken in one family, too.
	h.Refused(2, []string{"[::]:7070:80/tcp", "network bridge has no IPv6", "--ipv6"}, "create", "-p", "[::]:7070:80")
	h.Refused(2, []string{"127.0.0.1:7070:80/tcp", "network six has no IPv4"}, "create", "--net", "six", "-p", "127.0.0.1:7070:80")
	h.Refused(2, []string{"[fd00:205::2]:7070:80/tcp", "fd00:205::2"}, "create", "--net", "n", "-p", "[fd00:205::2]:7070:80")
	h.ServeTCP("[::]:7071")
	h.Refused(2, []string{"7071:80/tcp", "in use"}, "create", "--net", "n", "-p", "7071:80")
	h.Refused(2, []string{"8080:80/tcp", "by sandbox web"}, "create", "--net", "n", "-p", "8080:80")
	create(t, h, "range", "--net", "n", "-p", "7070-7072:80")
	create(t, h, "ranged", "--net", "n", "-p", "7070-7072:80")
	if out := h.OK("port", "range") + "\n" + h.OK("port", "ranged"); out != "80/tcp -> 0.0.0.0:7070\n80/tcp -> [::]:7070\n80/tcp -> 0.0.0.0:7072\n80/tcp -> [::]:7072" {
		t.Errorf("ports of a range:\n%s", out)
	}
	h.OK("rm", "web", "only", "range", "ranged")
	h.OK("network", "rm", "n", "six")
	h.Must("ip", "-6", "addr", "del", "fd00:205::1/64", "dev", "eth0")
	h.Unchanged(before, "network rm")
}

// A sandbox on several networks has each family's default route from the first
// network of the family.
func TestMixedNetworks(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "four", "--subnet", "10.61.0.0/24")
	h.OK("network", "create", "dual", "--subnet", "fd00:62::/64", "--subnet", "10.62.0.0/24", "--gateway", "fd00:62::fe", "--gateway", "10.62.0.254")
	h.OK("network", "create", "six", "--subnet", "fd00:63::/64")
	a := create(t, h, "a", "--net", "four", "--net", "dual", "--net", "six", "--sysctl", "net.ipv6.conf.all.use_tempaddr=2")
	for want, args := range map[string][]string{
		"default via 10.61.0.1 dev eth0":   {"-4", "route", "show", "default"},
		"default via fd00:62::fe dev eth1": {"-6", "route", "show", "default"},
	} {
		if out := a.Must("ip", args...); !strings.HasPrefix(out, want) || strings.Contains(out, "\n") {
			t.Errorf("want %s:\n%s", want, out)
		}
	}
	if out := a.Must("ip", "-6", "addr", "show", "dev", "eth0"); out != "" {
		t.Errorf("IPv6 on a network without: %s", out)
	}
	if out := a.Must("cat", "/proc/sys/net/ipv6/conf/all/use_tempaddr"); out != "2" {
		t.Errorf("--sysctl net.ipv6: %s", out)
	}
	for _, mode := range []string{"container:a", "none"} {
		if out := h.OK("run", "--net", mode, "--", "ip", "-6", "-o", "addr"); strings.Contains(out, "fd00:63::2/64") != (mode == "container:a") {
			t.Errorf("%s:\n%s", mode, out)
		}
	}
	h.OK("rm", "a")
	h.OK("network", "rm", "four", "dual", "six")
	h.Unchanged(before, "network rm")
}

// The way out and what is closed, as with IPv4: the LAN sees the host's
// address, and reaches no sandbox; networks do not reach each other.
func TestIsolation6(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h, lan := l.Host("host"), l.Host("neighbour")
	used(t, h)
	for i, s := range []*lab.Host{h, lan} {
		s.Must("ip", "-6", "addr", "add", fmt.Sprintf("fd00:205::%d/64", i+1), "dev", "eth0", "nodad")
		s.Must("ip", "-6", "addr", "add", fmt.Sprintf("fe80::%d/64", i+1), "dev", "eth0", "nodad")
	}
	lan.ServeTCP("[::]:80")
	lan.ServeUDP("[::]:80")
	lan.Must("ip", "-6", "route", "add", "fd00:61::/32", "via", "fd00:205::1")
	h.OK("network", "create", "n", "--subnet", "fd00:61:0:1::/64")
	h.OK("network", "create", "other", "--subnet", "fd00:61:0:2::/64")
	h.OK("network", "create", "plain", "--subnet", "fd00:61:0:3::/64", "--no-masquerade")
	h.OK("network", "create", "inner", "--subnet", "fd00:61:0:4::/64", "--internal")
	h.OK("network", "create", "quiet", "--subnet", "fd00:61:0:5::/64", "--no-icc")
	box := map[string]*lab.NS{}
	for _, n := range []string{"n", "other", "plain", "inner", "quiet"} {
		box[n] = server6(t, h, "in-"+n, "--net", n)
	}
	create(t, h, "quiet2", "--net", "quiet").Barred("tcp", address6(t, h, "in-quiet")+":80")
	for _, proto := range []string{"tcp", "udp"} {
		box["n"].Reaches(proto, "[fd00:205::2]:80", lan.NS, "fd00:205::1")
		box["plain"].Reaches(proto, "[fd00:205::2]:80", lan.NS, e6(address6(t, h, "in-plain")))
		box["inner"].Barred(proto, "[fd00:205::2]:80")
		for _, n := range []string{"n", "plain", "inner"} {
			lan.Barred(proto, address6(t, h, "in-"+n)+":80")
			box["other"].Barred(proto, address6(t, h, "in-"+n)+":80")
		}
	}
}
