package kernel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/firewall/iptables"
	"github.com/sandnet/sandnet/internal/firewall/nftables"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// lab is a host, which is the test's own namespace, with three networks and a
// neighbour on its LAN:
//
//	lan   192.0.2.2                 host 192.0.2.1
//	a, b  172.30.0.2, .3            on sandnet0, an ordinary network
//	c, d  172.30.1.2, .3            on sn-apart, without ICC
//	e     172.30.2.2                on sn-inner, internal
//	f     172.30.3.2                on sn-routed, in gateway mode routed
//	g     172.30.0.4                on sandnet0, with an egress policy
//
// Everybody serves port 80, the host 9000 and, on its loopback, 9001. Servers
// answer with their name and the address that they see.
type lab struct {
	t    *testing.T
	tag  string
	self string
}

func newLab(t *testing.T, bridgeNF bool) *lab {
	ownNetns(t)
	l := &lab{t: t, tag: fmt.Sprintf("sntest-%d-", os.Getpid())}
	for _, name := range []string{"lan", "a", "b", "c", "d", "e", "f", "g"} {
		l.ip("netns", "add", l.tag+name)
		t.Cleanup(func() { output(t, "ip", "netns", "del", l.tag+name) })
	}
	l.self = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	l.ip("link", "set", "lo", "up")
	l.sysctl("net/ipv4/ip_forward", "1")
	l.sysctl("net/ipv6/conf/all/forwarding", "1")
	l.member("lan", "lan0", "192.0.2.2", "192.0.2.1", "")
	l.ip("addr", "add", "192.0.2.1/24", "dev", "lan0")
	l.ip("addr", "add", six("192.0.2.1")+"/64", "dev", "lan0", "nodad")
	for _, br := range [][2]string{{"sandnet0", "172.30.0.1"}, {"sn-apart", "172.30.1.1"}, {"sn-inner", "172.30.2.1"}, {"sn-routed", "172.30.3.1"}} {
		l.ip("link", "add", br[0], "type", "bridge")
		l.ip("addr", "add", br[1]+"/24", "dev", br[0])
		l.ip("addr", "add", six(br[1])+"/64", "dev", br[0], "nodad")
		l.ip("link", "set", br[0], "up")
		l.sysctl("net/ipv4/conf/"+br[0]+"/route_localnet", "1")
	}
	l.member("a", "sv-a", "172.30.0.2", "172.30.0.1", "sandnet0")
	l.member("b", "sv-b", "172.30.0.3", "172.30.0.1", "sandnet0")
	l.member("c", "sv-c", "172.30.1.2", "172.30.1.1", "sn-apart")
	l.member("d", "sv-d", "172.30.1.3", "172.30.1.1", "sn-apart")
	l.member("e", "sv-e", "172.30.2.2", "172.30.2.1", "sn-inner")
	l.member("f", "sv-f", "172.30.3.2", "172.30.3.1", "sn-routed")
	l.member("g", "sv-g", "172.30.0.4", "172.30.0.1", "sandnet0")
	l.serve("f", ":81")
	l.serve("lan", ":81")
	// br_netfilter has the IP rules see bridged packets, too. A packet whose
	// translated address is on its own bridge then stays on the bridge, which
	// gives it back to where it came from in hairpin mode only. Without
	// br_netfilter, no rule sees what neighbours send each other.
	if bridgeNF {
		l.sysctl("net/bridge/bridge-nf-call-iptables", "1")
		l.sysctl("net/bridge/bridge-nf-call-ip6tables", "1")
	} else if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		l.sysctl("net/bridge/bridge-nf-call-iptables", "0")
		l.sysctl("net/bridge/bridge-nf-call-ip6tables", "0")
	}
	for _, port := range []string{"sv-a", "sv-b", "sv-c", "sv-d"} {
		if bridgeNF {
			l.ip("link", "set", port, "type", "bridge_slave", "hairpin", "on")
		} else if port > "sv-b" {
			l.ip("link", "set", port, "type", "bridge_slave", "isolated", "on")
		}
	}
	// IPv6 waits for the carrier, and for its link-local address.
	for _, name := range []string{"lan", "a", "b", "c", "d", "e", "f", "g"} {
		for range 300 {
			if strings.Contains(output(t, "ip", "-n", l.tag+name, "-6", "addr", "show", "dev", "eth0", "scope", "link", "-tentative"), "fe80") {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	l.serve("host", ":9000")
	l.serve("host", "127.0.0.1:9001")
	return l
}

func (l *lab) ip(args ...string) { l.t.Helper(); output(l.t, "ip", args...) }

func (l *lab) sysctl(name, value string) {
	l.t.Helper()
	if err := os.WriteFile("/proc/thread-self/root/proc/sys/"+name, []byte(value), 0); err != nil {
		l.t.Fatal(err)
	}
}

// member wires a namespace to the host. It has no 127.0.0.1, so that it
// can send packets for that to its gateway.
func (l *lab) member(name, link, addr, gateway, bridge string) {
	l.t.Helper()
	ns := l.tag + name
	l.ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", ns)
	if bridge != "" {
		l.ip("link", "set", link, "master", bridge)
	}
	l.ip("link", "set", link, "up")
	// IPv6 wants a loopback.
	l.ip("-n", ns, "link", "set", "lo", "up")
	l.ip("-n", ns, "addr", "del", "127.0.0.1/8", "dev", "lo")
	l.ip("-n", ns, "addr", "add", addr+"/24", "dev", "eth0")
	l.ip("-n", ns, "addr", "add", six(addr)+"/64", "dev", "eth0", "nodad")
	l.ip("-n", ns, "link", "set", "eth0", "up")
	l.ip("-n", ns, "route", "add", "default", "via", gateway)
	l.ip("-n", ns, "route", "add", "default", "via", six(gateway))
	l.ip("-n", ns, "route", "add", "127.0.0.0/8", "via", gateway, "src", addr)
	err := inNetns(l.path(name), func() error {
		return os.WriteFile("/proc/thread-self/root/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.serve(name, ":80")
}

func (l *lab) path(name string) string {
	if name == "host" {
		return l.self
	}
	return "/run/netns/" + l.tag + name
}

// serve answers on TCP and UDP until the test ends.
func (l *lab) serve(name, addr string) {
	l.t.Helper()
	l.serveOn("4", name, addr)
	if strings.HasPrefix(addr, ":") {
		l.serveOn("6", name, addr)
	}
}

func (l *lab) serveOn(version, name, addr string) {
	l.t.Helper()
	err := inNetns(l.path(name), func() error {
		tcp, err := net.Listen("tcp"+version, addr)
		if err != nil {
			return err
		}
		l.t.Cleanup(func() { tcp.Close() })
		go func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, name, " sees ", host(c.RemoteAddr()))
				c.Close()
			}
		}()
		udp, err := net.ListenPacket("udp"+version, addr)
		if err != nil {
			return err
		}
		l.t.Cleanup(func() { udp.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				_, from, err := udp.ReadFrom(b)
				if err != nil {
					return
				}
				udp.WriteTo([]byte(name+" sees "+host(from)), from)
			}
		}()
		return nil
	})
	if err != nil {
		l.t.Fatalf("serve %s in %s: %v", addr, name, err)
	}
}

// six is a text with the IPv6 addresses of the lab for its IPv4 addresses.
func six(s string) string {
	s = regexp.MustCompile(`192\.0\.2\.(\d+)`).ReplaceAllString(s, "2001:db8::$1")
	return regexp.MustCompile(`172\.30\.(\d)\.(\d+)`).ReplaceAllString(s, "fd00:30:1$1::$2")
}

// sixPort is six of an address with a port.
func sixPort(to string) string {
	h, port, _ := net.SplitHostPort(to)
	return net.JoinHostPort(six(h), port)
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// ask connects and returns the answer, "" if there is none.
func (l *lab) ask(from, proto, to string) string {
	var c net.Conn
	err := inNetns(l.path(from), func() (err error) {
		c, err = net.DialTimeout(proto, to, 700*time.Millisecond)
		return err
	})
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(700 * time.Millisecond))
	fmt.Fprint(c, "?")
	b := make([]byte, 100)
	n, _ := c.Read(b)
	return string(b[:n])
}

// ruler is what the two firewalls have in common.
type ruler interface {
	Name() string
	Host(mark uint32, foreign string) []plan.Object
	Network(mark uint32, n spec.Network) []plan.Object
	Endpoint(mark uint32, s spec.Sandbox, ep spec.Endpoint, n spec.Network) []plan.Object
}

func labPlan(fw ruler) []plan.Object {
	objs := fw.Host(testMark, "")
	subnet := func(s string) []netip.Prefix {
		p := netip.MustParsePrefix(s)
		return []netip.Prefix{p, netip.PrefixFrom(netip.MustParseAddr(six(p.Addr().String())), 64)}
	}
	nets := []spec.Network{
		{Bridge: "sandnet0", Subnets: subnet("172.30.0.0/24")},
		{Bridge: "sn-apart", Subnets: subnet("172.30.1.0/24"), NoICC: true},
		{Bridge: "sn-inner", Subnets: subnet("172.30.2.0/24"), Internal: true},
		{Bridge: "sn-routed", Subnets: subnet("172.30.3.0/24"), GatewayMode: spec.GatewayRouted},
	}
	for _, n := range nets {
		objs = append(objs, fw.Network(testMark, n)...)
	}
	eps := map[string]*spec.Endpoint{}
	var order []string
	for _, proto := range []spec.Proto{spec.TCP, spec.UDP} {
		for _, p := range []struct {
			ip   string
			port uint16
			to   string
		}{
			{"0.0.0.0", 8080, "172.30.0.2"},
			{"127.0.0.1", 8081, "172.30.0.2"},
			{"192.0.2.1", 8082, "172.30.0.2"},
			{"0.0.0.0", 8090, "172.30.1.2"},
			{"0.0.0.0", 8091, "172.30.1.3"},
			{"0.0.0.0", 8095, "172.30.2.2"},
			{"0.0.0.0", 8100, "172.30.3.2"},
		} {
			if eps[p.to] == nil {
				a := netip.MustParseAddr(p.to)
				eps[p.to] = &spec.Endpoint{HostInterface: "sv-" + string(rune('a'+len(eps))), MAC: spec.MAC(a), Addresses: []netip.Prefix{netip.PrefixFrom(a, 24), netip.PrefixFrom(netip.MustParseAddr(six(p.to)), 64)}}
				order = append(order, p.to)
			}
			port := spec.Port{HostIP: netip.MustParseAddr(p.ip), HostPort: p.port, Port: 80, Proto: proto}
			eps[p.to].Ports = append(eps[p.to].Ports, port)
			if port.HostIP = netip.MustParseAddr(six(p.ip)); p.ip == "0.0.0.0" {
				port.HostIP = netip.IPv6Unspecified()
			} else if p.ip == "127.0.0.1" {
				port.HostIP = netip.IPv6Loopback() // for which there are no rules
			}
			eps[p.to].Ports = append(eps[p.to].Ports, port)
		}
	}
	for _, to := range order {
		i := slices.IndexFunc(nets, func(n spec.Network) bool { return n.Subnets[0].Contains(netip.MustParseAddr(to)) })
		objs = append(objs, fw.Endpoint(testMark, spec.Sandbox{}, *eps[to], nets[i])...)
	}
	g := netip.MustParseAddr("172.30.0.4")
	policy := spec.Sandbox{ID: "3f2a91c0d1e4b5a6"}
	for _, proto := range []spec.Proto{spec.TCP, spec.UDP} {
		for _, ip := range []string{"192.0.2.2", six("192.0.2.2")} {
			a := netip.MustParseAddr(ip)
			to := netip.PrefixFrom(a, a.BitLen())
			policy.Egress = append(policy.Egress, spec.EgressRule{To: to, Port: 81, Proto: proto}, spec.EgressRule{Allow: true, To: to, Proto: proto})
		}
	}
	for _, ip := range []string{"192.0.2.1", six("192.0.2.1")} {
		a := netip.MustParseAddr(ip)
		to := netip.PrefixFrom(a, a.BitLen())
		for _, proto := range []spec.Proto{spec.TCP, spec.UDP} {
			policy.Egress = append(policy.Egress, spec.EgressRule{Allow: true, To: to, Port: 8090, Proto: proto})
		}
	}
	return append(objs, fw.Endpoint(testMark, policy, spec.Endpoint{HostInterface: "sv-g", MAC: spec.MAC(g),
		Addresses: []netip.Prefix{netip.PrefixFrom(g, 24), netip.PrefixFrom(netip.MustParseAddr(six(g.String())), 64)}}, nets[0])...)
}

// rulesOnly leaves what is about packets of the lab: it has no link groups.
func rulesOnly(objs []plan.Object) []plan.Object {
	return slices.DeleteFunc(objs, func(o plan.Object) bool {
		e, isElement := o.(plan.Element)
		t, isTable := o.(plan.Table)
		return isElement && e.Family == "bridge" || isTable && t.Family == "bridge" || family(o) != familyNft && family(o) != familyChains
	})
}

func TestTraffic(t *testing.T) {
	for _, c := range []struct {
		fw       ruler
		policy   string
		bridgeNF bool
	}{
		{nftables.Firewall{}, "ACCEPT", false}, {nftables.Firewall{}, "ACCEPT", true},
		{nftables.Firewall{}, "DROP", false}, {nftables.Firewall{}, "DROP", true},
		{iptables.Firewall{}, "ACCEPT", false}, {iptables.Firewall{}, "ACCEPT", true},
		{iptables.Firewall{}, "DROP", false}, {iptables.Firewall{Legacy: true}, "DROP", true},
	} {
		policy := c.policy
		t.Run(fmt.Sprintf("%s, FORWARD %s, br_netfilter %t", c.fw.Name(), policy, c.bridgeNF), func(t *testing.T) {
			l := newLab(t, c.bridgeNF)
			output(t, "iptables", "-P", "FORWARD", policy)
			k := New(testMark, "")
			defer k.Close()
			if _, err := k.Ensure(context.Background(), rulesOnly(labPlan(c.fw))); err != nil {
				t.Fatal(err)
			}
			chain, err := ForeignForward()
			if err != nil {
				t.Fatal(err)
			}
			if (chain == "FORWARD") != (policy == "DROP") {
				t.Fatalf("ForeignForward says %q", chain)
			}
			if chain != "" {
				if _, err := ensureRules(only[plan.Rule](firewall.AcceptIn(chain))); err != nil {
					t.Fatal(err)
				}
			}
			l.check()
		})
	}
}

// row is one cell of the table of who reaches whom: what is heard, or nothing.
type row struct{ why, from, to, want string }

const none = ""

func labRows() []row {
	return []row{
		{"published, real source", "lan", "192.0.2.1:8080", "a sees 192.0.2.2"},
		{"published on the LAN address", "lan", "192.0.2.1:8082", "a sees 192.0.2.2"},
		{"published, without ICC", "lan", "192.0.2.1:8090", "c sees 192.0.2.2"},
		{"published, internal", "lan", "192.0.2.1:8095", none},
		{"sandbox's own address", "lan", "172.30.0.2:80", none},
		{"published at the sandbox's address", "lan", "172.30.0.2:8080", none},
		{"published on loopback only", "lan", "192.0.2.1:8081", none},
		{"martian to published on loopback", "lan", "127.0.0.1:8081", none},
		{"martian to published", "lan", "127.0.0.1:8080", none},
		{"martian to the host's loopback", "lan", "127.0.0.1:9001", none},

		{"outside, masqueraded", "a", "192.0.2.2:80", "lan sees 192.0.2.1"},
		{"outside, without ICC", "c", "192.0.2.2:80", "lan sees 192.0.2.1"},
		{"outside, internal", "e", "192.0.2.2:80", none},
		{"neighbour", "a", "172.30.0.3:80", "b sees 172.30.0.2"},
		{"neighbour without ICC", "c", "172.30.1.3:80", none},
		{"other network", "a", "172.30.1.2:80", none},
		{"other network", "c", "172.30.0.2:80", none},
		{"internal network", "a", "172.30.2.2:80", none},
		{"from an internal network", "e", "172.30.0.2:80", none},

		{"itself through the host", "a", "192.0.2.1:8080", "a sees 172.30.0.1"},
		{"itself through its gateway", "a", "172.30.0.1:8080", "a sees 172.30.0.1"},
		{"itself through the host, without ICC", "c", "192.0.2.1:8090", "c sees 172.30.1.1"},
		{"neighbour through the host", "b", "192.0.2.1:8080", "a sees 172.30.0.1"},
		{"neighbour through the host's one address", "b", "192.0.2.1:8082", "a sees 172.30.0.1"},
		{"neighbour through the host, without ICC", "c", "192.0.2.1:8091", none},
		{"neighbour through the gateway, without ICC", "d", "172.30.1.1:8090", none},
		{"other network through the host", "a", "192.0.2.1:8090", "c sees 172.30.1.1"},
		{"other network through the host", "c", "192.0.2.1:8080", "a sees 172.30.0.1"},
		{"other network through its gateway", "a", "172.30.1.1:8090", "c sees 172.30.1.1"},
		{"internal network through the host", "a", "192.0.2.1:8095", none},
		{"from an internal network through the host", "e", "192.0.2.1:8080", none},
		{"from an internal network through its gateway", "e", "172.30.2.1:8080", none},
	}
}

func moreRows() []row {
	return []row{
		{"the host's service", "a", "172.30.0.1:9000", "host sees 172.30.0.2"},
		{"the host's service, internal", "e", "172.30.2.1:9000", none},
		{"the host's service by another address, internal", "e", "192.0.2.1:9000", none},
		{"the host's loopback", "a", "127.0.0.1:9001", none},
		{"published on loopback", "b", "127.0.0.1:8081", none},
		{"published on loopback only", "b", "192.0.2.1:8081", none},

		{"published, by loopback", "host", "127.0.0.1:8080", "a sees 172.30.0.1"},
		{"published, by another loopback address", "host", "127.1.2.3:8080", "a sees 172.30.0.1"},
		{"published on loopback", "host", "127.0.0.1:8081", "a sees 172.30.0.1"},
		{"published, by an address", "host", "192.0.2.1:8080", "a sees 192.0.2.1"},
		{"published on another address", "host", "127.0.0.1:8082", none},
		{"published, without ICC", "host", "127.0.0.1:8090", "c sees 172.30.1.1"},
		{"published, internal", "host", "127.0.0.1:8095", "e sees 172.30.2.1"},
		{"sandbox's own address", "host", "172.30.0.2:80", "a sees 172.30.0.1"},
		{"internal sandbox's own address", "host", "172.30.2.2:80", "e sees 172.30.2.1"},
		{"open at its own address", "lan", "172.30.3.2:80", "f sees 192.0.2.2"},
		{"not published", "lan", "172.30.3.2:81", none},
		{"published at the host, routed", "lan", "192.0.2.1:8100", none},
		{"outside, routed", "f", "192.0.2.2:80", "lan sees 172.30.3.2"},
		{"open at its own address", "a", "172.30.3.2:80", "f sees 172.30.0.2"},
		{"open at its own address, internal", "e", "172.30.3.2:80", none},
		{"not published", "a", "172.30.3.2:81", none},
		{"other network, from a routed one", "f", "172.30.0.2:80", none},
		{"the host to a routed one", "host", "172.30.3.2:81", "f sees 172.30.3.1"},

		{"allowed", "g", "192.0.2.2:80", "lan sees 192.0.2.1"},
		{"denied before it is allowed", "g", "192.0.2.2:81", none},
		{"the control of that", "a", "192.0.2.2:81", "lan sees 192.0.2.1"},
		{"neighbour, whatever the policy", "g", "172.30.0.2:80", "a sees 172.30.0.4"},
		{"allowed as it was asked for", "g", "192.0.2.1:8090", "c sees 172.30.1.1"},
		{"not allowed as it was asked for", "g", "172.30.1.1:8090", none},
		{"the host's service, not allowed", "g", "172.30.0.1:9000", none},
		{"open at its own address, not allowed", "g", "172.30.3.2:80", none},

		{"published on [::1] only", "lan", "[2001:db8::1]:8081", none},
		{"published on [::1] only", "b", "[fd00:30:10::1]:8081", none},
		{"the host's own service", "host", "127.0.0.1:9001", "host sees 127.0.0.1"},
	}
}

// check tries every row at once.
func (l *lab) check() {
	var wg sync.WaitGroup
	for _, c := range append(labRows(), moreRows()...) {
		for _, proto := range []string{"tcp", "udp"} {
			both := []row{c, {c.why, c.from, sixPort(c.to), six(c.want)}}
			if strings.HasPrefix(c.to, "127.") {
				both = both[:1]
			}
			for _, c := range both {
				wg.Go(func() {
					if got := l.ask(c.from, proto, c.to); got != c.want {
						l.t.Errorf("%s: %s → %s/%s: %q, want %q", c.why, c.from, c.to, proto, got, c.want)
					}
				})
			}
		}
	}
	wg.Wait()
	if l.t.Failed() {
		l.t.Log(strings.TrimSpace(output(l.t, "nft", "list", "ruleset")))
	}
}
