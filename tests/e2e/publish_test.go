package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// published is a host with a web server behind port 8080, another machine on
// the LAN, and other sandboxes.
type published struct {
	h, lan *lab.Host
	web    *lab.NS
	before lab.Dump
	webIP  string
}

func publish(t *testing.T, spec ...string) published {
	t.Helper()
	l := lab.New(t)
	p := published{h: l.Host("host"), lan: l.Host("neighbour")}
	p.before = used(t, p.h)
	p.web = server(t, p.h, "web", spec...)
	p.webIP = address(t, p.h, "web")
	return p
}

func (p published) at(port int) string { return fmt.Sprintf("%s:%d", p.h.IP, port) }

func TestPublished(t *testing.T) {
	t.Parallel()
	reachable(t, publish(t, "-p", "8080:80", "-p", "8080:80/udp"))
}

// Beside Docker or Kubernetes, frames between sandboxes meet the rules as well.
func TestPublishedWithBridgeNetfilter(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "8080:80", "-p", "8080:80/udp")
	if p.h.BridgeNetfilter(true) {
		p.before = slices.DeleteFunc(p.before, func(l string) bool { return strings.Contains(l, "bridge-nf-call") })
		for _, l := range p.h.Dump() {
			if strings.Contains(l, "bridge-nf-call") {
				p.before = append(p.before, l)
			}
		}
		reachable(t, p)
	}
}

// reachable tries a published port from everywhere.
func reachable(t *testing.T, p published) {
	t.Helper()
	p.h.OK("network", "create", "other")
	near, far := create(t, p.h, "near"), create(t, p.h, "far", "--net", "other")
	p.h.Must("ip", "addr", "add", "192.168.205.200/24", "dev", "eth0")

	for _, proto := range []string{"tcp", "udp"} {
		p.lan.Reaches(proto, p.at(8080), p.web, p.lan.IP.String())
		p.h.Reaches(proto, "127.0.0.1:8080", p.web, "")
		p.h.Reaches(proto, "127.0.0.5:8080", p.web, "")
		p.h.Reaches(proto, p.at(8080), p.web, "")
		p.h.Reaches(proto, "192.168.205.200:8080", p.web, "")
		p.h.Reaches(proto, "172.30.0.1:8080", p.web, "")
		p.lan.Reaches(proto, "192.168.205.200:8080", p.web, p.lan.IP.String())
		near.Reaches(proto, p.at(8080), p.web, "")
		near.Reaches(proto, "172.30.0.1:8080", p.web, "")
		far.Reaches(proto, p.at(8080), p.web, "")
		p.web.Reaches(proto, p.at(8080), p.web, "") // hairpin
		near.Barred(proto, "127.0.0.1:8080")
	}
	// No process holds the ports.
	for _, l := range p.h.Dump() {
		if strings.HasPrefix(l, "process: ") {
			t.Errorf("left running: %s", l)
		}
	}
	if got := p.h.OK("port", "web"); !strings.Contains(got, "80/tcp") || !strings.Contains(got, "0.0.0.0:8080") || !strings.Contains(got, "80/udp") {
		t.Errorf("port: %s", got)
	}
	p.h.Must("ip", "addr", "del", "192.168.205.200/24", "dev", "eth0")
	p.h.OK("rm", "web", "near", "far")
	p.h.OK("network", "rm", "other")
	p.lan.Barred("tcp", p.at(8080))
	p.h.Unchanged(p.before, "rm")
}

func TestPublishedHTTP(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "8080:8000")
	p.web.ServeHTTP("0.0.0.0:8000")
	a, err := p.lan.Get(p.at(8080), lab.Patience)
	if err != nil || a.Server != p.web.Name || a.Source != p.lan.IP {
		t.Errorf("got %+v, %v", a, err)
	}
}

// Nothing but the published port is open from outside, however the packets
// are routed.
func TestPublishedOnly(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "8080:80")
	p.web.ServeTCP("0.0.0.0:81")
	p.lan.Must("ip", "route", "add", "172.30.0.0/16", "via", p.h.IP.String())
	for _, port := range []int{80, 81, 8080} {
		p.lan.Barred("tcp", fmt.Sprintf("%s:%d", p.webIP, port))
		p.lan.Barred("udp", fmt.Sprintf("%s:%d", p.webIP, port))
	}
	p.lan.Barred("tcp", "172.30.0.1:80")
	p.lan.Reaches("tcp", p.at(8080), p.web, p.lan.IP.String())
}

func TestPublishedOnLoopback(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "127.0.0.1:8081:80")
	near := create(t, p.h, "near")
	p.h.Reaches("tcp", "127.0.0.1:8081", p.web, "")
	p.h.Barred("tcp", "127.0.0.5:8081")
	p.h.Barred("tcp", p.at(8081))
	p.lan.Barred("tcp", p.at(8081))
	near.Barred("tcp", p.at(8081))
	near.Barred("tcp", "172.30.0.1:8081")

	// A neighbour that routes 127.0.0.1 to the host, and a host that takes such
	// packets from the LAN, as kube-proxy sets it: a plain listener is open
	// then, which shows that the packets arrive; the published port is not.
	p.h.ServeTCP("127.0.0.1:9999")
	p.h.Must("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
	martian(p.lan.NS, "eth0", p.h.IP.String())
	if _, err := p.lan.AskFrom("tcp", p.lan.IP.String(), "127.0.0.1:9999", lab.Patience/10); err != nil {
		t.Errorf("control: a packet to 127.0.0.1 does not arrive: %v", err)
	}
	if a, err := p.lan.AskFrom("tcp", p.lan.IP.String(), "127.0.0.1:8081", lab.Patience/60); err == nil {
		t.Errorf("LAN → 127.0.0.1:8081 is open, answered by %s", a.Server)
	}
	// A sandbox that does the same reaches nothing on the host's loopback.
	nearIP := address(t, p.h, "near")
	martian(near, "eth0", "172.30.0.1")
	for _, addr := range []string{"127.0.0.1:9999", "127.0.0.1:8081"} {
		if a, err := near.AskFrom("tcp", nearIP, addr, lab.Patience/60); err == nil {
			t.Errorf("sandbox → host's %s is open, answered by %s", addr, a.Server)
		}
	}
}

// martian makes a namespace send packets for 127.0.0.1 to a gateway.
func martian(n *lab.NS, dev, gateway string) {
	n.Must("sysctl", "-qw", "net.ipv4.conf."+dev+".route_localnet=1")
	n.Must("ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
	n.Must("ip", "route", "add", "127.0.0.1", "via", gateway, "dev", dev)
}

func TestPublishedOnAddress(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h, lan := l.Host("host"), l.Host("neighbour")
	h.Must("ip", "addr", "add", "192.168.205.200/24", "dev", "eth0")
	before := used(t, h)
	one := server(t, h, "one", "-p", h.IP.String()+":8080:80")
	two := server(t, h, "two", "-p", "192.168.205.200:8080:80")
	lan.Reaches("tcp", h.IP.String()+":8080", one, lan.IP.String())
	lan.Reaches("tcp", "192.168.205.200:8080", two, lan.IP.String())
	h.Reaches("tcp", h.IP.String()+":8080", one, "")
	h.Barred("tcp", "127.0.0.1:8080")
	taken(t, h.NS, "tcp", "0.0.0.0:8080")
	taken(t, h.NS, "tcp", h.IP.String()+":8080")
	free(t, h.NS, "tcp", "127.0.0.1:8080")
	// The wildcard overlaps both.
	h.Refused(2, []string{"8080"}, "create", "-p", "8080:80")
	h.OK("rm", "one", "two")
	h.Unchanged(before, "rm")
	h.Refused(2, []string{"192.0.2.77"}, "create", "-p", "192.0.2.77:8080:80")
}

func taken(t *testing.T, n *lab.NS, network, addr string) {
	t.Helper()
	if err := n.Bind(network, addr); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%s: bind %s %s: %v, want EADDRINUSE", n.Name, network, addr, err)
	}
}

func free(t *testing.T, n *lab.NS, network, addr string) {
	t.Helper()
	if err := n.Bind(network, addr); err != nil {
		t.Errorf("%s: bind %s %s: %v", n.Name, network, addr, err)
	}
}

// A published port is reserved, against whoever comes later, without a
// process; only on this host, and only that port.
func TestReserved(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "8080:80")
	for _, addr := range []string{"0.0.0.0:8080", "127.0.0.1:8080", p.at(8080), "172.30.0.1:8080"} {
		taken(t, p.h.NS, "tcp4", addr)
	}
	taken(t, p.h.NS, "tcp", ":8080") // both families in one socket
	free(t, p.h.NS, "udp4", "0.0.0.0:8080")
	free(t, p.h.NS, "tcp4", "0.0.0.0:8081")
	free(t, p.web, "tcp4", "0.0.0.0:8080")
	free(t, p.lan.NS, "tcp4", "0.0.0.0:8080")
	p.h.Refused(2, []string{"8080"}, "create", "-p", "8080:81")
	p.h.OK("create", "--name", "udp", "-p", "8080:80/udp")
	taken(t, p.h.NS, "udp4", "0.0.0.0:8080")
	p.h.OK("rm", "web", "udp")
	free(t, p.h.NS, "tcp", ":8080")
	free(t, p.h.NS, "udp", ":8080")
}

func TestTakenBefore(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	used(t, h)
	h.ServeTCP("0.0.0.0:8080")
	h.ServeTCP("127.0.0.1:8081")
	h.ServeUDP("0.0.0.0:8082")
	h.Refused(2, []string{"8080"}, "create", "-p", "8080:80")
	h.Refused(2, []string{"8080"}, "create", "-p", "127.0.0.1:8080:80")
	h.Refused(2, []string{"8081"}, "create", "-p", "8081:80")
	h.Refused(2, []string{"8082"}, "create", "-p", "8082:80/udp")
	h.Refused(2, []string{"8080"}, "create", "-p", "8079-8080:79-80")
	h.OK("create", "--name", "x", "-p", "8082:80", "-p", h.IP.String()+":8081:80")
	h.OK("rm", "x")
}

func TestRanges(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "9000-9002:80-82", "-p", "80", "-p", "127.0.0.1::80")
	p.web.ServeTCP("0.0.0.0:82")
	p.lan.Reaches("tcp", p.at(9000), p.web, p.lan.IP.String())
	p.lan.Reaches("tcp", p.at(9002), p.web, p.lan.IP.String())
	p.lan.Barred("tcp", p.at(9003))
	ports := inspect(t, p.h, "web").Endpoints[0].Ports
	if len(ports) != 5 {
		t.Fatalf("ports: %+v", ports)
	}
	for _, q := range ports[3:] {
		if q.HostPort < 1024 || q.Port != 80 || q.Protocol != "tcp" {
			t.Errorf("ephemeral port: %+v", q)
		}
		p.h.Reaches("tcp", fmt.Sprintf("127.0.0.1:%d", q.HostPort), p.web, "")
	}
	if ports[3].HostIP != "0.0.0.0" || ports[4].HostIP != "127.0.0.1" || ports[3].HostPort == ports[4].HostPort {
		t.Errorf("ports: %+v", ports)
	}
	p.lan.Reaches("tcp", p.at(ports[3].HostPort), p.web, p.lan.IP.String())
	p.lan.Barred("tcp", p.at(ports[4].HostPort))
	p.h.OK("rm", "web")
	p.h.Unchanged(p.before, "rm")
}

func TestHundredPorts(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "8080:80")
	rules := func() (n int) {
		for line := range strings.Lines(p.h.Must("nft", "list", "ruleset")) {
			if strings.Contains(line, " drop") || strings.Contains(line, " goto ") || strings.Contains(line, "dnat") || strings.Contains(line, "masquerade") {
				n++
			}
		}
		return n
	}
	was := rules()
	many := create(t, p.h, "many", "-p", "20000-20099:20000-20099")
	many.ServeTCP("0.0.0.0:20000")
	many.ServeTCP("0.0.0.0:20099")
	p.lan.Reaches("tcp", p.at(20000), many, p.lan.IP.String())
	p.lan.Reaches("tcp", p.at(20099), many, p.lan.IP.String())
	taken(t, p.h.NS, "tcp", ":20050")
	if now := rules(); now != was {
		t.Errorf("%d rules with one port, %d with a hundred more", was, now)
	}
	p.h.OK("rm", "many", "web")
	free(t, p.h.NS, "tcp", ":20050")
	p.h.Unchanged(p.before, "rm")
}

func TestSCTP(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "8080:80/sctp")
	if ports := inspect(t, p.h, "web").Endpoints[0].Ports; len(ports) != 1 || ports[0].Protocol != "sctp" {
		t.Errorf("ports: %+v", ports)
	}
	p.h.OK("rm", "web")
	p.h.Unchanged(p.before, "rm")
}
