package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

func hostPort(proto, ip string, port uint16) plan.HostPort {
	return plan.HostPort{Proto: proto, IP: netip.MustParseAddr(ip), Port: port}
}

// portNetns is a namespace with a few addresses to bind to, and a guard of its
// own: this process moves to a cgroup for the time of the test, so that nobody
// else on the machine has to do with it.
func portNetns(t testing.TB) portGuard {
	ownNetns(t)
	output(t, "ip", "link", "set", "lo", "up")
	output(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	output(t, "ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
	return portGuard{cgroup: ownCgroup(t), lock: filepath.Join(t.TempDir(), "lock"), bpf: sysBPF}
}

// ownCgroup moves this process, and the children it will have, to a new cgroup
// below its own, and back at the end.
func ownCgroup(t testing.TB) (dir string) {
	t.Helper()
	root, err := openCgroup("")
	if err != nil {
		t.Fatal(err)
	}
	base := fmt.Sprintf("/proc/self/fd/%d", root.Fd())
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, path, found := strings.Cut("\n"+string(self), "\n0::")
	if !found {
		t.Fatalf("this process is in no cgroup2: %s", self)
	}
	path, _, _ = strings.Cut(path, "\n")
	home := filepath.Join(base, path)
	move := func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Error(err)
		}
	}
	if dir, err = os.MkdirTemp(base, "sandnet-test-"); err != nil {
		t.Fatal(err)
	}
	move(dir)
	t.Cleanup(func() {
		move(home)
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
		root.Close()
	})
	return dir
}

func mustEnsurePorts(t testing.TB, g portGuard, want int, ports ...plan.HostPort) {
	t.Helper()
	if changed, err := g.ensure(context.Background(), ports); err != nil || changed != want {
		t.Fatalf("ensure: changed %d, %v; want %d", changed, err, want)
	}
}

func mustDeletePorts(t testing.TB, g portGuard, ports ...plan.HostPort) {
	t.Helper()
	if err := g.delete(context.Background(), ports); err != nil {
		t.Fatalf("delete: %v", err)
	}
}

// bindable tries a bind as a server would that does not know of IPV6_V6ONLY.
func bindable(t *testing.T, p plan.HostPort) error {
	t.Helper()
	family, sockType := unix.AF_INET, unix.SOCK_STREAM
	var addr unix.Sockaddr = nil
	if p.IP.Is4() {
		addr = &unix.SockaddrInet4{Port: int(p.Port), Addr: p.IP.As4()}
	} else {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(p.Port), Addr: p.IP.As16()}
	}
	if p.Proto == "udp" {
		sockType = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, sockType|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	return unix.Bind(fd, addr)
}

func TestHostPortConflicts(t *testing.T) {
	const taken, free = true, false
	for _, c := range []struct {
		reserved string
		bind     string
		want     bool
	}{
		{"0.0.0.0", "0.0.0.0", taken},
		{"0.0.0.0", "127.0.0.1", taken},
		{"0.0.0.0", "::", taken},
		{"0.0.0.0", "::1", free},
		{"0.0.0.0", "::ffff:127.0.0.1", taken},
		{"127.0.0.1", "127.0.0.1", taken},
		{"127.0.0.1", "192.0.2.1", free},
		{"127.0.0.1", "0.0.0.0", taken},
		{"127.0.0.1", "::", taken},
		{"127.0.0.1", "::1", free},
		{"127.0.0.1", "::ffff:192.0.2.1", free},
		{"127.0.0.1", "::ffff:0.0.0.0", taken},
		{"::", "::1", taken},
		{"::", "::", taken},
		{"::", "127.0.0.1", free},
		{"::1", "::1", taken},
		{"::1", "2001:db8::1", free},
		{"::1", "::", taken},
		{"::1", "0.0.0.0", free},
	} {
		t.Run(c.reserved+" "+c.bind, func(t *testing.T) {
			g := portNetns(t)
			p := hostPort("tcp", c.reserved, 7001)
			mustEnsurePorts(t, g, 1, p)
			defer mustDeletePorts(t, g, p)
			b := hostPort("tcp", "0.0.0.0", 7001)
			b.IP = netip.MustParseAddr(c.bind)
			err := bindable(t, b)
			if errors.Is(err, unix.EADDRINUSE) != c.want || !c.want && err != nil {
				t.Errorf("bind: %v", err)
			}
			b.Proto = "udp"
			if err := bindable(t, b); err != nil {
				t.Errorf("bind of another protocol: %v", err)
			}
			b.Proto, b.Port = "tcp", 7002
			if err := bindable(t, b); err != nil {
				t.Errorf("bind of another port: %v", err)
			}
			b.Port = 0
			if err := bindable(t, b); err != nil {
				t.Errorf("bind of any port: %v", err)
			}
		})
	}
}

// TestHostPortWithoutProcess sees a process refused that knows nothing of us,
// and one in another namespace served.
func TestHostPortWithoutProcess(t *testing.T) {
	g := portNetns(t)
	p := hostPort("tcp", "0.0.0.0", 7003)
	mustEnsurePorts(t, g, 1, p)
	defer mustDeletePorts(t, g, p)
	// Every Debian has this much of Perl.
	script := `socket(S, PF_INET, SOCK_STREAM, 0) && bind(S, sockaddr_in(7003, INADDR_ANY)) or die "$!\n"`
	out, err := exec.Command("perl", "-MSocket", "-e", script).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Address already in use") {
		t.Errorf("bind: %v: %s", err, out)
	}
	output(t, "unshare", "-n", "perl", "-MSocket", "-e", script)
}

func TestHostPortIdempotent(t *testing.T) {
	g := portNetns(t)
	ports := []plan.HostPort{
		hostPort("tcp", "0.0.0.0", 7004), hostPort("udp", "0.0.0.0", 7004), hostPort("sctp", "0.0.0.0", 7004),
		hostPort("tcp", "127.0.0.1", 7005), hostPort("tcp", "192.0.2.1", 7005), hostPort("tcp", "::1", 7005),
	}
	mustEnsurePorts(t, g, 6, ports...)
	mustEnsurePorts(t, g, 0, ports...)
	owned, err := g.owned()
	if err != nil || len(owned) != 6 {
		t.Errorf("owned %v, %v", owned, err)
	}
	for _, p := range ports {
		if !contains(owned, p) {
			t.Errorf("not owned: %s", p.Key())
		}
	}
	mustDeletePorts(t, g, ports[3], ports[0])
	mustDeletePorts(t, g, ports[3], ports[0])
	if owned, _ := g.owned(); len(owned) != 4 || !contains(owned, ports[4]) || !contains(owned, ports[5]) {
		t.Errorf("after deletion: %v", owned)
	}
	if err := bindable(t, ports[3]); err != nil {
		t.Errorf("bind of a released address: %v", err)
	}
	mustEnsurePorts(t, g, 2, ports...)
	mustDeletePorts(t, g, ports...)
	if owned, err := g.owned(); err != nil || len(owned) != 0 {
		t.Errorf("owned at last %v, %v", owned, err)
	}
}

func contains(ports []plan.HostPort, p plan.HostPort) bool {
	for _, have := range ports {
		if have == p {
			return true
		}
	}
	return false
}

// A port that one owner has is neither given to another nor taken away by one.
func TestHostPortOwners(t *testing.T) {
	g := portNetns(t)
	mine := hostPort("tcp", "0.0.0.0", 7008)
	mine.Owner = 1
	theirs := mine
	theirs.Owner = 2
	mustEnsurePorts(t, g, 1, mine)
	mustEnsurePorts(t, g, 0, mine)
	if _, err := g.ensure(t.Context(), []plan.HostPort{theirs}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("another owner's reservation: %v", err)
	}
	mustDeletePorts(t, g, theirs)
	if owned, err := g.owned(); err != nil || !contains(owned, mine) {
		t.Errorf("after another owner's deletion: %v, %v", owned, err)
	}
	mustDeletePorts(t, g, mine)
	mustEnsurePorts(t, g, 1, theirs)
	mustDeletePorts(t, g, theirs)
}

func TestHostPortTooManyAddresses(t *testing.T) {
	g := portNetns(t)
	var ports []plan.HostPort
	for i := range maxPortAddrs {
		ports = append(ports, hostPort("tcp", fmt.Sprintf("127.0.0.%d", i+1), 7006))
	}
	mustEnsurePorts(t, g, maxPortAddrs, ports...)
	defer mustDeletePorts(t, g, ports...)
	if err := bindable(t, ports[maxPortAddrs-1]); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("bind to the last address: %v", err)
	}
	if _, err := g.ensure(t.Context(), []plan.HostPort{hostPort("tcp", "192.0.2.1", 7006)}); err == nil {
		t.Error("one address more was reserved")
	}
}

func TestProbePort(t *testing.T) {
	g := portNetns(t)
	for _, proto := range []string{"tcp", "udp"} {
		p := hostPort(proto, "0.0.0.0", 7008)
		release, err := ProbePort(p.Proto, p.IP, p.Port)
		if err != nil {
			t.Fatal(err)
		}
		if err := bindable(t, p); !errors.Is(err, unix.EADDRINUSE) && proto == "tcp" {
			t.Errorf("bind while probed: %v", err)
		}
		if _, err := ProbePort(p.Proto, p.IP, p.Port); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("second probe: %v", err)
		}
		mustEnsurePorts(t, g, 1, p)
		release()
		if _, err := ProbePort(p.Proto, p.IP, p.Port); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("probe of a reserved port: %v", err)
		}
		mustDeletePorts(t, g, p)
		release, err = ProbePort(p.Proto, p.IP, p.Port)
		if err != nil {
			t.Errorf("probe after the reservation: %v", err)
		} else {
			release()
		}
	}
	if _, err := ProbePort("tcp", netip.MustParseAddr("198.51.100.7"), 7008); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("probe of another host's address: %v", err)
	}
	release, err := ProbePort("sctp", netip.IPv4Unspecified(), 7008)
	if err != nil {
		t.Errorf("sctp: %v", err)
	} else {
		release()
	}
}

func BenchmarkHostPorts(b *testing.B) {
	g := portNetns(b)
	keep := hostPort("tcp", "0.0.0.0", 6999) // another sandbox's: the programs are there
	mustEnsurePorts(b, g, 1, keep)
	for _, n := range []int{1, 100} {
		var ports []plan.HostPort
		for i := range n {
			ports = append(ports, hostPort("tcp", "0.0.0.0", uint16(7100+i)))
		}
		b.Run(fmt.Sprintf("ensure=%d", n), func(b *testing.B) {
			for b.Loop() {
				mustEnsurePorts(b, g, n, ports...)
				b.StopTimer()
				mustDeletePorts(b, g, ports...)
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("delete=%d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				mustEnsurePorts(b, g, n, ports...)
				b.StartTimer()
				mustDeletePorts(b, g, ports...)
			}
		})
	}
	mustDeletePorts(b, g, keep)
	b.Run("attach and detach", func(b *testing.B) {
		for b.Loop() {
			mustEnsurePorts(b, g, 1, keep)
			mustDeletePorts(b, g, keep)
			if err := g.drop(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
