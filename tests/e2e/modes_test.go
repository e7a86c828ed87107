package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestBridge(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	a := server(t, h, "a")
	b := create(t, h, "b", "--label", "tier=front")
	sa, sb := inspect(t, h, "a"), inspect(t, h, "b")
	ipA, ipB := address(t, h, "a"), address(t, h, "b")

	b.Reaches("tcp", ipA+":80", a, ipB)
	b.Reaches("udp", ipA+":80", a, ipB)
	h.Reaches("tcp", ipA+":80", a, "172.30.0.1")
	if ipA == ipB {
		t.Errorf("both sandboxes have %s", ipA)
	}

	e := sb.Endpoints[0]
	mac := fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", any4(netip.MustParseAddr(ipB))...)
	if e.Network != "bridge" || e.Interface != "eth0" || e.MTU != 1500 || e.MAC != mac || e.Addresses[0].Bits() != 16 ||
		len(e.Gateways) != 1 || e.Gateways[0].String() != "172.30.0.1" || len(e.Ports) != 0 {
		t.Errorf("endpoint: %+v", e)
	}
	if sb.Mode != "bridge" || sb.Netns != h.Netns("b") || sb.Labels["tier"] != "front" || !fullID.MatchString(sb.ID) || sa.ID == sb.ID {
		t.Errorf("inspect: %+v", sb)
	}
	if _, err := time.Parse(time.RFC3339, sb.Created); err != nil {
		t.Errorf("created %q: %v", sb.Created, err)
	}
	if len(e.HostInterface) > 15 || !strings.HasPrefix(e.HostInterface, "sv") {
		t.Errorf("host interface %q", e.HostInterface)
	}
	h.Must("ip", "link", "show", e.HostInterface, "up")
	for _, want := range []string{"inet " + ipB + "/16", mac, "mtu 1500", "state UP", "LOOPBACK,UP"} {
		if out := b.Must("ip", "addr"); !strings.Contains(out, want) {
			t.Errorf("no %q inside:\n%s", want, out)
		}
	}
	if out := b.Must("ip", "route"); !strings.Contains(out, "default via 172.30.0.1 dev eth0") {
		t.Errorf("routes inside:\n%s", out)
	}
	h.OK("rm", "a", "b")
	h.Unchanged(before, "rm of both")
}

func any4(a netip.Addr) []any {
	var out []any
	for _, b := range a.As4() {
		out = append(out, b)
	}
	return out
}

func TestUserNetwork(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "red")
	h.OK("network", "create", "blue", "--subnet", "10.61.0.0/24")
	a, b := server(t, h, "a", "--net", "red"), create(t, h, "b", "--net", "red")
	c := server(t, h, "c", "--net", "blue")
	d := server(t, h, "d")
	ipA, ipC, ipD := address(t, h, "a"), address(t, h, "c"), address(t, h, "d")

	b.Reaches("tcp", ipA+":80", a, address(t, h, "b"))
	if !strings.HasPrefix(ipC, "10.61.0.") {
		t.Errorf("c has %s", ipC)
	}
	for _, x := range []struct {
		from *lab.NS
		to   string
	}{{b, ipC}, {b, ipD}, {c, ipA}, {c, ipD}, {d, ipA}, {d, ipC}} {
		x.from.Barred("tcp", x.to+":80")
		x.from.Barred("udp", x.to+":80")
	}
	// The other network's gateway is an address of the host; it is not a way in.
	h.OK("rm", "a", "b", "c", "d")
	h.OK("network", "rm", "red", "blue")
	h.Unchanged(before, "rm of everything")
}

func TestSeveralNetworks(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "red")
	h.OK("network", "create", "blue")
	m := server(t, h, "m", "--net", "red", "--net", "blue")
	r, b := server(t, h, "r", "--net", "red"), server(t, h, "b", "--net", "blue")
	s := inspect(t, h, "m")
	if len(s.Endpoints) != 2 || s.Endpoints[0].Network != "red" || s.Endpoints[0].Interface != "eth0" ||
		s.Endpoints[1].Network != "blue" || s.Endpoints[1].Interface != "eth1" {
		t.Fatalf("endpoints: %+v", s.Endpoints)
	}
	onRed, onBlue := s.Endpoints[0].Addresses[0].Addr().String(), s.Endpoints[1].Addresses[0].Addr().String()
	r.Reaches("tcp", onRed+":80", m, address(t, h, "r"))
	b.Reaches("tcp", onBlue+":80", m, address(t, h, "b"))
	m.Reaches("tcp", address(t, h, "r")+":80", r, onRed)
	m.Reaches("tcp", address(t, h, "b")+":80", b, onBlue)
	// The first network has the default route.
	if out := m.Must("ip", "route"); !strings.Contains(out, "default via "+s.Endpoints[0].Gateways[0].String()+" dev eth0") ||
		strings.Count(out, "default") != 1 {
		t.Errorf("routes:\n%s", out)
	}
	// It is no bridge between them.
	r.Barred("tcp", address(t, h, "b")+":80")
	h.OK("rm", "m", "r", "b")
	h.OK("network", "rm", "red", "blue")
	h.Unchanged(before, "rm of everything")
}

// netnsOf is the identity of the namespace that a command runs in.
const netnsOf = "readlink /proc/self/ns/net"

func TestHostMode(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	want := h.Must("sh", "-c", netnsOf)
	if got := h.OK("run", "--net", "host", "--", "sh", "-c", netnsOf); got != want {
		t.Errorf("run --net host is in %s, the host is %s", got, want)
	}
	h.OK("create", "--name", "x", "--net", "host")
	if got := h.OK("exec", "x", "--", "sh", "-c", netnsOf); got != want {
		t.Errorf("exec is in %s, the host is %s", got, want)
	}
	if s := inspect(t, h, "x"); s.Mode != "host" || len(s.Endpoints) != 0 {
		t.Errorf("inspect: %+v", s)
	}
	h.OK("rm", "x")
	h.Unchanged(before, "host mode")
	h.Refused(2, []string{"host"}, "create", "--net", "host", "-p", "80:80")
}

func TestNoneMode(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	x := create(t, h, "x", "--net", "none")
	if out := x.Must("ip", "-o", "link"); strings.Count(out, "\n") != 0 || !strings.Contains(out, "lo:") || !strings.Contains(out, "UP") {
		t.Errorf("links: %s", out)
	}
	x.ServeTCP("127.0.0.1:80")
	x.Reaches("tcp", "127.0.0.1:80", x, "127.0.0.1")
	h.OK("rm", "x")
	h.Unchanged(before, "none mode")
	h.Refused(2, []string{"none"}, "create", "--net", "none", "-p", "80:80")
}

func TestContainerMode(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("create", "--name", "web", "--hostname", "www")
	id := inspect(t, h, "web").ID
	want := h.OK("exec", "web", "--", "sh", "-c", netnsOf)
	for _, ref := range []string{"web", id, id[:12]} {
		if got := h.OK("run", "--net", "container:"+ref, "--", "sh", "-c", netnsOf); got != want {
			t.Errorf("container:%s is in %s, want %s", ref, got, want)
		}
	}
	if got := h.OK("run", "--net", "container:web", "--", "hostname"); got != "www" {
		t.Errorf("hostname is %q, not the other's", got)
	}
	h.OK("create", "--name", "side", "--net", "container:web")
	if got := h.OK("exec", "side", "--", "sh", "-c", netnsOf); got != want {
		t.Errorf("exec is in %s, want %s", got, want)
	}
	if s := inspect(t, h, "side"); s.Mode != "container:web" {
		t.Errorf("inspect: %+v", s)
	}
	h.OK("rm", "side")
	h.OK("rm", "web")
	h.Unchanged(before, "container mode")

	for _, args := range [][]string{{"--net", "container:web"}, {"--net", "container:999999"}, {"--net", "container:"}} {
		h.Refused(2, nil, append([]string{"create"}, args...)...)
	}
}

// A PID is any process's, one that sandnet knows nothing of.

// What others have joined ends with its own command, too: its address and its
// links go, also where the command that was to remove it is killed.
func TestJoinedEnds(t *testing.T) {
	t.Parallel()
	for _, how := range []syscall.Signal{0, syscall.SIGKILL} {
		h := lab.NewHost(t)
		before := used(t, h)
		h.OK("network", "create", "n", "--subnet", "10.61.0.0/24")
		run := h.StartSandnet("run", "--name", "x", "--net", "n", "--ip", "10.61.0.9", "--", "sh", "-c", "echo ready; sleep 2")
		run.Await("ready")
		h.OK("create", "--name", "y", "--net", "container:x")
		if how != 0 {
			if err := run.Process.Signal(how); err != nil {
				t.Fatal(err)
			}
		}
		run.Result()
		h.OK("create", "--name", "z", "--net", "n", "--ip", "10.61.0.9")
		if got := h.OK("exec", "y", "--", "ip", "-4", "addr"); strings.Contains(got, "10.61.0.9") {
			t.Errorf("after %v both y and z have the address:\n%s", how, got)
		}
		h.OK("rm", "y", "z")
		h.OK("network", "rm", "n")
		h.Unchanged(before, "rm of everything")
	}
}

func TestContainerPID(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	p := h.Start(nil, "unshare", "--net", "sleep", "1000")
	ns := func() string {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.Process.Pid))
		return to
	}
	host := h.Must("sh", "-c", netnsOf)
	lab.Eventually(t, "namespace of the process", func() error {
		if n := ns(); n == "" || n == host {
			return fmt.Errorf("it is %q", n)
		}
		return nil
	})
	mode := fmt.Sprintf("container:%d", p.Process.Pid)
	if got := h.OK("run", "--net", mode, "--", "sh", "-c", netnsOf); got != ns() {
		t.Errorf("run --net %s is in %s, not in %s", mode, got, ns())
	}
	h.OK("create", "--name", "join", "--net", mode)
	if got := h.OK("exec", "join", "--", "sh", "-c", netnsOf); got != ns() {
		t.Errorf("exec is in %s, not in %s", got, ns())
	}
	h.OK("rm", "join")
	h.Unchanged(before, "container:PID")
}

func TestContainerConflicts(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("create", "--name", "web")
	for _, args := range [][]string{
		{"-p", "80:80"}, {"--ip", "172.30.0.9"}, {"--mac-address", "02:00:00:00:00:09"}, {"--hostname", "x"},
		{"--dns", "1.1.1.1"}, {"--add-host", "a:1.2.3.4"},
	} {
		h.Refused(2, nil, append([]string{"create", "--net", "container:web"}, args...)...)
	}
}

// TestRmEndsConnections: a connection that nobody has any more, and whose peer
// does not answer, does not keep a removed sandbox's links alive.
func TestRmEndsConnections(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "six", "--ipv6")
	for _, name := range []string{"web", "client"} {
		h.OK("create", "--name", name, "--net", "six")
	}
	web, client := h.Sandbox("web"), h.Sandbox("client")
	var open []io.Closer
	for _, a := range inspect(t, h, "web").Endpoints[0].Addresses {
		at := net.JoinHostPort(a.Addr().String(), "80")
		var l net.Listener
		var there, here net.Conn
		var err error
		web.Do(func() { l, err = net.Listen("tcp", at) })
		if err == nil {
			client.Do(func() { there, err = net.DialTimeout("tcp", at, time.Second) })
		}
		if err == nil {
			here, err = l.Accept()
		}
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, l, there, here)
	}
	client.Must("ip", "link", "set", "eth0", "down")
	for _, c := range open {
		c.Close()
	}
	h.OK("rm", "web", "client")
	h.OK("network", "rm", "six")
	h.Unchanged(before, "rm of everything")
}
