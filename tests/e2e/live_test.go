package e2e

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

func routes(t *testing.T, n *lab.NS, want string) {
	t.Helper()
	if got := n.Must("ip", "-4", "route", "show", "default"); strings.TrimSpace(got) != want {
		t.Errorf("default route of %s is %q, want %q", n.Name, got, want)
	}
}

func TestConnectAndDisconnect(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h, lan := l.Host("host"), l.Host("neighbour")
	before := used(t, h)
	h.OK("network", "create", "a", "--subnet", "10.61.0.0/24")
	h.OK("network", "create", "b", "--subnet", "10.62.0.0/24")
	web := server(t, h, "web", "--net", "a", "--ip", "10.61.0.7", "-p", "8080:80")
	na, nb := create(t, h, "na", "--net", "a"), create(t, h, "nb", "--net", "b")
	web.ServeEcho("0.0.0.0:7")
	onA := na.Talk("10.61.0.7:7")
	// A command that runs has its network's shared hosts file. It starts no
	// others: the host's dump has them.
	watcher := h.StartSandnet("exec", "web", "--", "bash", "-c", `exec 3<> <(:); wait; echo ready
has() { while read -r line; do [[ " ${line//$'\t'/ } " == *" $1 "* ]] && return; done </etc/hosts; return 1; }
until has nb; do read -rt 0.02 -u 3; done; echo connected
while has na; do read -rt 0.02 -u 3; done; echo disconnected; has nb; echo "$line"`)
	watcher.Await("ready")

	h.OK("network", "connect", "b", "web", "--ip", "10.62.0.7", "--alias", "www", "--mac-address", "02:00:5e:00:00:07")
	watcher.Await("connected")
	onA.GoesOn("network connect")
	nb.Reaches("tcp", "10.62.0.7:80", web, address(t, h, "nb"))
	onB := nb.Talk("10.62.0.7:7")
	if got := h.OK("exec", "nb", "--", "getent", "hosts", "www"); !strings.HasPrefix(got, "10.62.0.7 ") {
		t.Errorf("nb resolves www to %q", got)
	}
	routes(t, web, "default via 10.61.0.1 dev eth0 proto static")
	e := inspect(t, h, "web").Endpoints
	if len(e) != 2 || e[1].Interface != "eth1" || e[1].MAC != "02:00:5e:00:00:07" || e[1].HostInterface == e[0].HostInterface || len(e[0].Ports) != 1 || len(e[1].Ports) != 0 {
		t.Fatalf("endpoints: %+v", e)
	}
	lan.Reaches("tcp", fmt.Sprintf("%s:8080", h.IP), web, lan.IP.String())
	h.Refused(1, []string{"web", "connected", "b"}, "network", "connect", "b", "web")

	// The gateway goes: the other network takes over, with the published port.
	h.OK("network", "disconnect", "a", "web")
	watcher.Await("disconnected")
	watcher.Await(address(t, h, "nb"))
	onB.GoesOn("network disconnect")
	routes(t, web, "default via 10.62.0.1 dev eth1 proto static")
	na.Barred("tcp", "10.61.0.7:80")
	lan.Reaches("tcp", fmt.Sprintf("%s:8080", h.IP), web, lan.IP.String())
	web.Reaches("tcp", fmt.Sprintf("%s:8080", h.IP), web, "") // hairpin
	if got := h.OK("exec", "na", "--", "cat", "/etc/hosts"); strings.Contains(got, "10.61.0.7") {
		t.Errorf("na still knows web:\n%s", got)
	}
	h.Refused(1, []string{"web", "not connected", "a"}, "network", "disconnect", "a", "web")
	h.OK("network", "disconnect", "-f", "a", "web")

	// The lowest free name again, and no gateway: b was there first.
	h.OK("network", "connect", "a", "web")
	routes(t, web, "default via 10.62.0.1 dev eth1 proto static")
	if e := inspect(t, h, "web").Endpoints; len(e) != 2 || e[1].Interface != "eth0" || e[1].Network != "a" {
		t.Errorf("endpoints: %+v", e)
	}
	onB.GoesOn("another connect")

	// On no network at all, and back.
	h.OK("network", "disconnect", "a", "web")
	h.OK("network", "disconnect", "b", "web")
	if s := inspect(t, h, "web"); s.Mode != "none" || len(s.Endpoints) != 0 {
		t.Errorf("on no network: %+v", s)
	}
	if err := h.Bind("tcp", "0.0.0.0:8080"); err != nil {
		t.Errorf("a port of a sandbox on no network is still taken: %v", err)
	}
	h.OK("network", "connect", "bridge", "web")
	lan.Reaches("tcp", fmt.Sprintf("%s:8080", h.IP), web, lan.IP.String())
	h.OK("rm", "-f", "web", "na", "nb")
	h.OK("network", "rm", "a", "b")
	h.Unchanged(before, "rm of everything")
}

func TestConnectRefusals(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	used(t, h)
	h.OK("network", "create", "a", "--subnet", "10.61.0.0/24")
	create(t, h, "web")
	create(t, h, "quiet", "--net", "none")
	create(t, h, "side", "--net", "container:web")
	h.OK("create", "--name", "onhost", "--net", "host")
	for _, name := range []string{"quiet", "side", "onhost"} {
		h.Refused(2, []string{name, "hint"}, "network", "connect", "a", name)
		h.Refused(2, []string{name, "hint"}, "network", "disconnect", "a", name)
		h.Refused(2, []string{name, "hint"}, "port", "add", name, "8080:80")
	}
	h.Refused(1, []string{"gone"}, "network", "connect", "a", "gone")
	h.Refused(1, []string{"gone"}, "network", "connect", "gone", "web")
	h.Refused(1, []string{"gone"}, "network", "disconnect", "gone", "web")
	h.Refused(2, []string{"10.62.0.7"}, "network", "connect", "--ip", "10.62.0.7", "a", "web")
	h.Refused(2, []string{"10.61.0.1"}, "network", "connect", "--ip", "10.61.0.1", "a", "web")
	h.Refused(2, []string{"x/y"}, "network", "connect", "--alias", "x/y", "a", "web")
	h.Refused(2, []string{"01:00:00:00:00:01"}, "network", "connect", "--mac-address", "01:00:00:00:00:01", "bridge", "web")
}

func TestGatewayPriority(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	for i, name := range []string{"z", "m", "a"} {
		h.OK("network", "create", name, "--subnet", fmt.Sprintf("10.6%d.0.0/24", i+1))
	}
	h.OK("network", "create", "in", "--subnet", "10.64.0.0/24", "--internal")
	// The first, not the first by name.
	first := create(t, h, "first", "--net", "z", "--net", "a")
	routes(t, first, "default via 10.61.0.1 dev eth0 proto static")
	flag := create(t, h, "flag", "--net", "name=z", "--net", "name=a,gw-priority=2,ip=10.63.0.9,alias=x", "--gw-priority", "1")
	routes(t, flag, "default via 10.63.0.1 dev eth1 proto static")
	if e := inspect(t, h, "flag").Endpoints[1]; e.Addresses[0].Addr().String() != "10.63.0.9" || len(e.Aliases) != 1 {
		t.Errorf("endpoint: %+v", e)
	}
	// An internal network leads nowhere, whatever its priority.
	internal := create(t, h, "internal", "--net", "name=in,gw-priority=9", "--net", "m")
	routes(t, internal, "default via 10.62.0.1 dev eth1 proto static")
	// A higher one takes over, and gives back.
	h.OK("network", "connect", "--gw-priority", "7", "m", "first")
	routes(t, first, "default via 10.62.0.1 dev eth2 proto static")
	h.OK("network", "disconnect", "m", "first")
	routes(t, first, "default via 10.61.0.1 dev eth0 proto static")
	h.OK("rm", "first", "flag", "internal")
	h.OK("network", "rm", "z", "m", "a", "in")
	h.Unchanged(before, "rm of everything")
}

func TestPortsOfALivingSandbox(t *testing.T) {
	t.Parallel()
	p := publish(t, "-p", "7777:7")
	p.web.ServeEcho("0.0.0.0:7")
	conn := p.lan.Talk(p.at(7777))
	p.lan.Barred("tcp", p.at(8080))

	if got := p.h.OK("port", "add", "web", "8080:80", "8080:80/udp", "127.0.0.1:8081:80"); got != "80/tcp -> 0.0.0.0:8080\n80/udp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8081" {
		t.Errorf("port add prints %q", got)
	}
	conn.GoesOn("port add")
	for _, proto := range []string{"tcp", "udp"} {
		p.lan.Reaches(proto, p.at(8080), p.web, p.lan.IP.String())
		p.web.Reaches(proto, p.at(8080), p.web, "") // hairpin
	}
	p.h.Reaches("tcp", "127.0.0.1:8081", p.web, "")
	if p.h.Bind("tcp", "0.0.0.0:8080") == nil {
		t.Error("the port can be taken by others")
	}
	// Again, all of it or part of it: nothing changes.
	dump := p.h.Dump()
	p.h.OK("port", "add", "web", "8080:80/udp", "8080:80")
	p.h.OK("port", "rm", "web", "9999")
	if d := lab.Diff(dump, p.h.Dump()); d != "" {
		t.Errorf("what is so already changes the host:\n%s", d)
	}
	// All or none.
	create(t, p.h, "other", "-p", "9000:80")
	p.h.Refused(2, []string{"9000", "other"}, "port", "add", "web", "8082:80", "9000:80")
	p.h.Refused(2, []string{"8080"}, "port", "add", "web", "8082:80", "8080:90")
	p.h.Refused(2, []string{"70000"}, "port", "add", "web", "8082:80", "70000:80")
	p.h.Refused(2, []string{"x"}, "port", "rm", "web", "x")

	p.h.OK("port", "rm", "web", "8080:80")
	p.lan.Barred("tcp", p.at(8080))
	p.lan.Reaches("udp", p.at(8080), p.web, "")
	if err := p.h.Bind("tcp", "0.0.0.0:8080"); err != nil {
		t.Errorf("the port cannot be had again: %v", err)
	}
	p.h.OK("port", "rm", "web", "80/udp", "80/tcp")
	conn.GoesOn("port rm")
	if got := p.h.OK("port", "web"); got != "7/tcp -> 0.0.0.0:7777" {
		t.Errorf("port: %q", got)
	}
	p.h.OK("rm", "-f", "web", "other")
	p.h.Unchanged(p.before, "rm")
}

// The last port of a sandbox goes, and its other rules stay.
func TestLastPortBesidePolicy(t *testing.T) {
	t.Parallel()
	for _, firewall := range []string{"nftables", "iptables"} {
		l := lab.New(t)
		h, lan := l.Host("host"), l.Host("neighbour")
		h.Firewall = firewall
		before := used(t, h)
		lan.ServeTCP("0.0.0.0:80")
		h.OK("network", "create", "n", "--no-icc")
		web := server(t, h, "web", "--net", "n", "-p", "8080:80", "--egress", "deny "+lan.IP.String())
		at := h.IP.String() + ":8080"
		lan.Reaches("tcp", at, web, lan.IP.String())
		h.OK("port", "rm", "web", "8080:80")
		lan.Barred("tcp", at)
		web.Barred("tcp", lan.IP.String()+":80")
		h.OK("port", "add", "web", "8080:80")
		h.OK("network", "connect", "--gw-priority", "1", "bridge", "web") // which takes it over
		lan.Reaches("tcp", at, web, lan.IP.String())
		h.OK("network", "disconnect", "bridge", "web")
		lan.Reaches("tcp", at, web, lan.IP.String())
		if out := h.OK("diff"); out != "" {
			t.Errorf("%s: %s", firewall, out)
		}
		h.OK("rm", "-f", "web")
		h.OK("network", "rm", "n")
		h.Unchanged(before, "rm of everything")
	}
}

// A change that fails half-way is undone.
func TestFailedChangeIsUndone(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "a")
	h.OK("network", "create", "b")
	web := server(t, h, "web", "--net", "a", "-p", "8080:80")
	// Somebody has what the second interface would be called.
	theirs := "sv" + inspect(t, h, "web").ID[:11] + "1"
	h.Must("ip", "link", "add", theirs, "type", "bridge")
	h.Refused(1, []string{theirs}, "network", "connect", "--gw-priority", "1", "b", "web")
	h.Reaches("tcp", "127.0.0.1:8080", web, "")
	h.Must("ip", "link", "del", theirs)
	h.OK("network", "connect", "--gw-priority", "1", "b", "web")
	h.Reaches("tcp", "127.0.0.1:8080", web, "")
	h.OK("rm", "web")
	h.OK("network", "rm", "a", "b")
	h.Unchanged(before, "rm of everything")
}

// Many change the same sandboxes at once, while others come and go.
func TestChangesAtOnce(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	for _, n := range []string{"a", "b", "c"} {
		h.OK("network", "create", n)
	}
	for _, name := range []string{"x", "y"} {
		create(t, h, name, "--net", "a", "-p", "80")
	}
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 6 {
				name, network := []string{"x", "y"}[(w+i)%2], []string{"b", "c"}[(w+i)/2%2]
				port := fmt.Sprintf("%d:80", 9000+w)
				for _, args := range [][]string{
					{"network", "connect", network, name},
					{"port", "add", name, port},
					{"run", "--net", network, "--", "true"},
					{"network", "disconnect", "-f", network, name},
					{"port", "rm", name, port},
				} {
					r := h.Sandnet(args...)
					if r.Code != 0 && !strings.Contains(r.Stderr, "connected to network") {
						t.Error(r)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"x", "y"} {
		s := inspect(t, h, name)
		if len(s.Endpoints) != 1 || len(s.Endpoints[0].Ports) != 1 {
			t.Errorf("%s: %+v", name, s)
		}
		if got := h.OK("exec", name, "--", "sh", "-c", "grep -c . /etc/hosts; ls /sys/class/net | wc -l"); got != "4\n2" {
			t.Errorf("%s: lines of its hosts file, and interfaces: %q", name, got)
		}
	}
	h.OK("rm", "x", "y")
	h.OK("network", "rm", "a", "b", "c")
	h.Unchanged(before, "rm of everything")
}

// TestRates measures the limits, since they are about nothing else. What is
// sent is large enough that the bucket and the queue do not count.
func TestRates(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "n", "--subnet", "10.61.0.0/24")
	const in, out = 20e6, 10e6
	web := create(t, h, "web", "--net", "n", "--ip", "10.61.0.7", "--ingress-rate", "20mbit", "--egress-rate", "10000kbit")
	peer := create(t, h, "peer", "--net", "n")
	measure(t, peer, web, "10.61.0.7", in)
	measure(t, web, peer, address(t, h, "peer"), out)
	// Nothing of it is where root in the sandbox could take it away.
	if got := web.Must("tc", "qdisc"); strings.Contains(got, "tbf") || strings.Contains(got, "ingress") {
		t.Errorf("inside: %s", got)
	}
	// A network that is connected later is limited, too.
	h.OK("network", "connect", "bridge", "web")
	h.OK("network", "connect", "bridge", "peer")
	bridge := inspect(t, h, "web").Endpoints[1].Addresses[0].Addr().String()
	measure(t, peer, web, bridge, in)
	h.OK("network", "disconnect", "n", "web")
	if got := strings.Count(h.Must("tc", "qdisc"), "tbf"); got != 2 {
		t.Errorf("%d limits on the host for one network, both ways", got)
	}
	h.OK("rm", "-f", "web", "peer")
	h.OK("network", "rm", "n")
	h.Unchanged(before, "rm of everything")
}

// measure sends for about two seconds at a limit of rate bit/s.
func measure(t *testing.T, from, to *lab.NS, addr string, rate float64) {
	t.Helper()
	var l net.Listener
	var err error
	to.Do(func() { l, err = net.Listen("tcp4", "0.0.0.0:5001") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	total := int64(rate / 8 * 2)
	var c net.Conn
	from.Do(func() { c, err = net.DialTimeout("tcp4", addr+":5001", 3*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		_, _ = io.CopyN(c, zeros{}, total)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	_ = in.SetDeadline(time.Now().Add(lab.Patience))
	start := time.Now()
	n, err := io.Copy(io.Discard, in)
	if err != nil || n != total {
		t.Fatalf("%d of %d bytes, %v", n, total, err)
	}
	got := float64(n) * 8 / time.Since(start).Seconds()
	if got < 0.85*rate || got > 1.15*rate {
		t.Errorf("%s → %s: %.1f Mbit/s, limit %.1f", from.Name, to.Name, got/1e6, rate/1e6)
	}
	t.Logf("%s → %s: %.2f Mbit/s, limit %.1f", from.Name, to.Name, got/1e6, rate/1e6)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A port that was published without an address is published in the families
// of the network that has the gateway, whichever that is by now; others wait.
func TestPortsFollowTheFamilies(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "six", "--ipv6")
	h.OK("network", "create", "iso", "--gateway-mode", "isolated")
	web := create(t, h, "web", "--net", "six", "-p", "8080:80", "-p", "[::]:8443:443", "-p", "127.0.0.1:8081:80")
	web.ServeTCP("0.0.0.0:80")
	web.ServeTCP("[::]:80")
	is := func(when string, want ...string) {
		t.Helper()
		if got := strings.Fields(strings.ReplaceAll(h.OK("port", "web"), " -> ", "->")); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
		h.OK("diff")
	}
	four, six, other, local := "80/tcp->0.0.0.0:8080", "80/tcp->[::]:8080", "443/tcp->[::]:8443", "80/tcp->127.0.0.1:8081"
	is("as made", four, six, other, local)
	h.OK("network", "connect", "bridge", "web")
	if r := h.Sandnet("network", "disconnect", "six", "web"); r.Code != 0 || !strings.Contains(r.Stderr, "8443") {
		t.Errorf("nothing said of the port that has to wait: %s", r)
	}
	is("on a network of IPv4", four, local)
	h.Refused(2, []string{"8443", "no IPv6"}, "port", "add", "web", "[::]:8443:443")
	// A server that has the port in the other family keeps it.
	h.Must("ip", "addr", "add", "fd00::9/64", "dev", "eth0", "nodad")
	for _, addr := range []string{"[fd00::9]:8080", "[fd00::9]:8443"} {
		var l net.Listener
		var err error
		h.Do(func() { l, err = net.Listen("tcp", addr) })
		if err != nil {
			t.Fatal(err)
		}
		h.Refused(2, []string{addr[len(addr)-4:], "in use", "port rm"}, "network", "connect", "--gw-priority", "1", "six", "web")
		_ = l.Close()
	}
	h.OK("network", "connect", "--gw-priority", "1", "six", "web")
	is("back", four, six, other, local)
	reach(t, h.NS, "[::1]:8080", "back")
	reach(t, h.NS, "127.0.0.1:8080", "back")

	// One family taken back stays so; on no network, and on one that lets nobody in.
	h.OK("port", "rm", "web", "[::]:8080:80")
	h.OK("network", "disconnect", "bridge", "web")
	is("one family", four, other, local)
	h.OK("network", "connect", "iso", "web")
	h.OK("network", "disconnect", "six", "web")
	is("isolated")
	h.Refused(2, []string{"iso", "isolated"}, "port", "add", "web", "9090:90")
	h.OK("network", "connect", "six", "web")
	is("after all that", four, other, local)

	h.OK("rm", "-f", "web")
	// The gateway's network counts, not the first.
	create(t, h, "two", "--net", "iso", "--net", "bridge", "-p", "9090:90")
	h.OK("rm", "two")
	h.OK("network", "rm", "six", "iso")
	h.Must("ip", "addr", "del", "fd00::9/64", "dev", "eth0")
	h.Unchanged(before, "rm of everything")
}
