package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// Addresses of the loopback tests: the host's end and the sandbox's.
var (
	bridge4 = netip.MustParseAddr("172.30.9.1")
	bridge6 = netip.MustParseAddr("fd00:9::1")
	box4    = netip.MustParseAddr("172.30.9.2")
	box6    = netip.MustParseAddr("fd00:9::2")
)

// loopbackNetns is portNetns with a sandbox on a veth pair, which on port 80
// of both families answers with the address it sees, by TCP and UDP.
func loopbackNetns(t *testing.T) portGuard {
	g := portNetns(t)
	ns := fmt.Sprintf("sntest-%d-box", os.Getpid())
	output(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { output(t, "ip", "netns", "del", ns) })
	output(t, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", ns)
	output(t, "ip", "link", "set", "veth0", "up")
	output(t, "ip", "-n", ns, "link", "set", "eth0", "up")
	for _, at := range []struct{ host, box netip.Addr }{{bridge4, box4}, {bridge6, box6}} {
		bits := "/24"
		if at.host.Is6() {
			bits = "/64"
		}
		args := []string{"addr", "add", at.host.String() + bits, "dev", "veth0"}
		box := []string{"-n", ns, "addr", "add", at.box.String() + bits, "dev", "eth0"}
		if at.host.Is6() {
			args, box = append(args, "nodad"), append(box, "nodad")
		}
		output(t, "ip", args...)
		output(t, "ip", box...)
	}
	answer(t, "/run/netns/"+ns, "4", "0.0.0.0:80", "box")
	answer(t, "/run/netns/"+ns, "6", "[::]:80", "box")
	// The kernel takes up to a second to notice that a new link works.
	for _, ip := range []netip.Addr{box4, box6} {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(ip, 80).String(), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	return g
}

// answer serves TCP and UDP over one family in a namespace until the test ends.
func answer(t *testing.T, path, family, addr, name string) {
	t.Helper()
	err := inNetns(path, func() error {
		tcp, err := net.Listen("tcp"+family, addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { tcp.Close() })
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
		udp, err := net.ListenPacket("udp"+family, addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { udp.Close() })
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
		t.Fatalf("serve %s: %v", addr, err)
	}
}

// client is a socket that waits no longer than a second.
func client(t *testing.T, family, sockType int) int {
	t.Helper()
	fd, err := unix.Socket(family, sockType|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	limit := unix.NsecToTimeval(int64(time.Second))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func sockaddr6(addr string) unix.Sockaddr {
	a := netip.MustParseAddrPort(addr)
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrOf(sa unix.Sockaddr) string {
	switch a := sa.(type) {
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	}
	return "none"
}

// connected connects, and returns the answer, or the error, and the peers that
// getpeername(2) and recvfrom(2) tell.
func connected(t *testing.T, fd int, to string) (answer, peer, from string) {
	t.Helper()
	if err := unix.Connect(fd, sockaddr6(to)); err != nil {
		return err.Error(), "", ""
	}
	if sa, err := unix.Getpeername(fd); err == nil {
		peer = addrOf(sa)
	}
	if _, err := unix.Write(fd, []byte("?")); err != nil {
		return err.Error(), peer, ""
	}
	answer, from = received(fd)
	return answer, peer, from
}

func received(fd int) (answer, from string) {
	b := make([]byte, 100)
	n, sa, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return err.Error(), ""
	}
	return string(b[:n]), addrOf(sa)
}

// TestLoopback6 reaches a sandbox at the host's [::1]:PORT.
func TestLoopback6(t *testing.T) {
	for _, c := range []struct {
		on        string
		to        netip.Addr
		sees      netip.Addr
		datagrams bool // without connect(2)
	}{
		{"::", box6, bridge6, true},
		{"::1", box6, bridge6, true},
		{"0.0.0.0", box4, bridge4, false},
		{"::", box4, bridge4, false},
	} {
		t.Run(c.on+" to "+c.to.String(), func(t *testing.T) {
			g := loopbackNetns(t)
			tcp, udp := hostPort("tcp", c.on, 7020), hostPort("udp", c.on, 7021)
			tcp.To, udp.To = netip.AddrPortFrom(c.to, 80), netip.AddrPortFrom(c.to, 80)
			mustEnsurePorts(t, g, 2, tcp, udp)
			want := "box sees " + c.sees.String()

			answer, peer, _ := connected(t, client(t, unix.AF_INET6, unix.SOCK_STREAM), "[::1]:7020")
			if answer != want || peer != "[::1]:7020" {
				t.Errorf("TCP: %q, peer %s", answer, peer)
			}
			fd := client(t, unix.AF_INET6, unix.SOCK_DGRAM)
			for range 2 { // the second time the socket has an address of its own
				answer, peer, from := connected(t, fd, "[::1]:7021")
				if answer != want || peer != "[::1]:7021" || from != "[::1]:7021" {
					t.Errorf("connected UDP: %q, peer %s, from %s", answer, peer, from)
				}
			}
			fd = client(t, unix.AF_INET6, unix.SOCK_DGRAM)
			for range 3 {
				if err := unix.Sendto(fd, []byte("?"), 0, sockaddr6("[::1]:7021")); err != nil {
					t.Errorf("UDP: %v", err)
				}
				answer, from := received(fd)
				if !c.datagrams && from == "" {
					break
				}
				if c.datagrams && (answer != want || from != "[::1]:7021") || !c.datagrams && from != "" {
					t.Errorf("UDP: %q from %s", answer, from)
				}
			}
		})
	}
}

// TestLoopback6Others sees that what is not for [::1]:PORT stays as it is.
func TestLoopback6Others(t *testing.T) {
	g := loopbackNetns(t)
	for i, proto := range []string{"tcp", "udp"} {
		sockType := []int{unix.SOCK_STREAM, unix.SOCK_DGRAM}[i]
		p := hostPort(proto, "::", 7022)
		p.To = netip.AddrPortFrom(box6, 80)
		mustEnsurePorts(t, g, 1, p)
		const refused = "connection refused"

		direct := netip.AddrPortFrom(box6, 80).String()
		answer, peer, _ := connected(t, client(t, unix.AF_INET6, sockType), direct)
		if answer != "box sees "+bridge6.String() || peer != direct {
			t.Errorf("%s to the sandbox itself: %q, peer %s", proto, answer, peer)
		}
		for _, to := range []string{"[::1]:7023", "[2001:db8::1]:7022", "[::ffff:127.0.0.1]:7022"} {
			if answer, _, _ := connected(t, client(t, unix.AF_INET6, sockType), to); answer != refused {
				t.Errorf("%s to %s: %q", proto, to, answer)
			}
		}
		fd := client(t, unix.AF_INET6, sockType)
		if err := unix.Bind(fd, sockaddr6("[::1]:0")); err != nil {
			t.Fatal(err)
		}
		if answer, _, _ := connected(t, fd, "[::1]:7022"); answer != refused {
			t.Errorf("%s from ::1 itself: %q", proto, answer)
		}
		fd = client(t, unix.AF_INET6, sockType)
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
			t.Fatal(err)
		}
		if answer, _, _ := connected(t, fd, "[::1]:7022"); answer != refused {
			t.Errorf("%s by way of lo: %q", proto, answer)
		}
		mustDeletePorts(t, g, p)
		if answer, _, _ := connected(t, client(t, unix.AF_INET6, sockType), "[::1]:7022"); answer != refused {
			t.Errorf("%s after the deletion: %q", proto, answer)
		}
	}
	// Another namespace has its own [::1]:PORT.
	p := hostPort("tcp", "::", 7024)
	p.To = netip.AddrPortFrom(box6, 80)
	mustEnsurePorts(t, g, 1, p)
	ns := fmt.Sprintf("/run/netns/sntest-%d-box", os.Getpid())
	output(t, "ip", "-n", ns[len("/run/netns/"):], "link", "set", "lo", "up")
	err := inNetns(ns, func() error {
		if answer, _, _ := connected(t, client(t, unix.AF_INET6, unix.SOCK_STREAM), "[::1]:7024"); answer != "connection refused" {
			return errors.New(answer)
		}
		return nil
	})
	if err != nil {
		t.Errorf("in the sandbox: %v", err)
	}
}

// TestLoopback6Mapped sees to it that a socket that cannot reach IPv4 is
// refused and not sent there.
func TestLoopback6Mapped(t *testing.T) {
	g := loopbackNetns(t)
	p := hostPort("tcp", "0.0.0.0", 7025)
	p.To = netip.AddrPortFrom(box4, 80)
	mustEnsurePorts(t, g, 1, p)
	fd := client(t, unix.AF_INET6, unix.SOCK_STREAM)
	if err := unix.Bind(fd, sockaddr6("[2001:db8::1]:0")); err != nil {
		t.Fatal(err)
	}
	if answer, _, _ := connected(t, fd, "[::1]:7025"); answer != "connection refused" {
		t.Errorf("from an IPv6 address: %q", answer)
	}
	fd = client(t, unix.AF_INET6, unix.SOCK_STREAM)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
		t.Fatal(err)
	}
	if answer, _, _ := connected(t, fd, "[::1]:7025"); answer != "network is unreachable" {
		t.Errorf("IPV6_V6ONLY: %q", answer)
	}
}

// TestLoopback6Server leaves a server of the host's alone that was on ::1
// before an IPv4 port was published, and lets none come after.
func TestLoopback6Server(t *testing.T) {
	g := loopbackNetns(t)
	answer(t, fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()), "6", "[::1]:7026", "host")
	for i, proto := range []string{"tcp", "udp"} {
		sockType := []int{unix.SOCK_STREAM, unix.SOCK_DGRAM}[i]
		var ports []plan.HostPort
		for _, port := range []uint16{7026, 7027} {
			p := hostPort(proto, "0.0.0.0", port)
			p.To = netip.AddrPortFrom(box4, 80)
			ports = append(ports, p)
		}
		mustEnsurePorts(t, g, 2, ports...)
		if answer, _, _ := connected(t, client(t, unix.AF_INET6, sockType), "[::1]:7026"); answer != "host sees ::1" {
			t.Errorf("%s: %q", proto, answer)
		}
		if err := bindable(t, hostPort(proto, "::1", 7027)); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s: bind to ::1 of a port that is answered there: %v", proto, err)
		}
		// A reservation of ::1 itself goes before.
		own := hostPort(proto, "::1", 7026)
		own.To = netip.AddrPortFrom(box6, 80)
		mustEnsurePorts(t, g, 1, own)
		if answer, _, _ := connected(t, client(t, unix.AF_INET6, sockType), "[::1]:7026"); answer != "box sees "+bridge6.String() {
			t.Errorf("%s: %q", proto, answer)
		}
		mustDeletePorts(t, g, own)
		if answer, _, _ := connected(t, client(t, unix.AF_INET6, sockType), "[::1]:7026"); answer != "host sees ::1" {
			t.Errorf("%s after the deletion: %q", proto, answer)
		}
	}
}

// TestLoopback6ManyPeers has one socket talk to more ports than are kept with it.
func TestLoopback6ManyPeers(t *testing.T) {
	g := loopbackNetns(t)
	var ports []plan.HostPort
	for i := range 2 * maxPeers {
		p := hostPort("udp", "::", uint16(7030+i))
		p.To = netip.AddrPortFrom(box6, 80)
		ports = append(ports, p)
	}
	mustEnsurePorts(t, g, len(ports), ports...)
	fd := client(t, unix.AF_INET6, unix.SOCK_DGRAM)
	for range 2 {
		for _, p := range ports {
			to := fmt.Sprintf("[::1]:%d", p.Port)
			if err := unix.Sendto(fd, []byte("?"), 0, sockaddr6(to)); err != nil {
				t.Fatal(err)
			}
			if answer, from := received(fd); from != to {
				t.Errorf("%q from %s, want %s", answer, from, to)
			}
		}
	}
}
