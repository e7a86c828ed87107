package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

func hostPort(proto, ip string, port uint16) plan.HostPort {
	return plan.HostPort{Proto: proto, IP: netip.MustParseAddr(ip), Port: port}
}

// portNetns is a namespace with a few addresses to bind to.
func portNetns(t testing.TB) {
	ownNetns(t)
	output(t, "ip", "link", "set", "lo", "up")
	output(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	output(t, "ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
}

func mustEnsurePorts(t testing.TB, want int, ports ...plan.HostPort) {
	t.Helper()
	if changed, err := ensureHostPorts(ports); err != nil || changed != want {
		t.Fatalf("ensure: changed %d, %v; want %d", changed, err, want)
	}
}

func mustDeletePorts(t testing.TB, ports ...plan.HostPort) {
	t.Helper()
	if err := deleteHostPorts(ports); err != nil {
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
			portNetns(t)
			p := hostPort("tcp", c.reserved, 7001)
			mustEnsurePorts(t, 1, p)
			defer mustDeletePorts(t, p)
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
	portNetns(t)
	p := hostPort("tcp", "0.0.0.0", 7003)
	mustEnsurePorts(t, 1, p)
	defer mustDeletePorts(t, p)
	// Every Debian has this much of Perl.
	script := `socket(S, PF_INET, SOCK_STREAM, 0) && bind(S, sockaddr_in(7003, INADDR_ANY)) or die "$!\n"`
	out, err := exec.Command("perl", "-MSocket", "-e", script).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Address already in use") {
		t.Errorf("bind: %v: %s", err, out)
	}
	output(t, "unshare", "-n", "perl", "-MSocket", "-e", script)
}

func TestHostPortIdempotent(t *testing.T) {
	portNetns(t)
	ports := []plan.HostPort{
		hostPort("tcp", "0.0.0.0", 7004), hostPort("udp", "0.0.0.0", 7004), hostPort("sctp", "0.0.0.0", 7004),
		hostPort("tcp", "127.0.0.1", 7005), hostPort("tcp", "192.0.2.1", 7005), hostPort("tcp", "::1", 7005),
	}
	mustEnsurePorts(t, 6, ports...)
	mustEnsurePorts(t, 0, ports...)
	owned, err := ownedHostPorts()
	if err != nil || len(owned) != 6 {
		t.Errorf("owned %v, %v", owned, err)
	}
	for _, p := range ports {
		if !contains(owned, p) {
			t.Errorf("not owned: %s", p.Key())
		}
	}
	mustDeletePorts(t, ports[3], ports[0])
	mustDeletePorts(t, ports[3], ports[0])
	if owned, _ := ownedHostPorts(); len(owned) != 4 || !contains(owned, ports[4]) || !contains(owned, ports[5]) {
		t.Errorf("after deletion: %v", owned)
	}
	if err := bindable(t, ports[3]); err != nil {
		t.Errorf("bind of a released address: %v", err)
	}
	mustEnsurePorts(t, 2, ports...)
	mustDeletePorts(t, ports...)
	if owned, err := ownedHostPorts(); err != nil || len(owned) != 0 {
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

func TestHostPortTooManyAddresses(t *testing.T) {
	portNetns(t)
	var ports []plan.HostPort
	for i := range maxPortAddrs {
		ports = append(ports, hostPort("tcp", fmt.Sprintf("127.0.0.%d", i+1), 7006))
	}
	mustEnsurePorts(t, maxPortAddrs, ports...)
	defer mustDeletePorts(t, ports...)
	if err := bindable(t, ports[maxPortAddrs-1]); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("bind to the last address: %v", err)
	}
	if _, err := ensureHostPorts([]plan.HostPort{hostPort("tcp", "192.0.2.1", 7006)}); err == nil {
		t.Error("one address more was reserved")
	}
}

// TestHostPortHalfAttached mends what a crash between the two programs leaves.
func TestHostPortHalfAttached(t *testing.T) {
	portNetns(t)
	p := hostPort("tcp", "::", 7007)
	mustEnsurePorts(t, 1, p)
	h, err := openHooks()
	if err != nil {
		t.Fatal(err)
	}
	progs, err := h.programs(ebpf.AttachCGroupInet4Bind, bind4ProgName)
	if err != nil || len(progs) != 1 {
		t.Fatal(progs, err)
	}
	err = link.RawDetachProgram(link.RawDetachProgramOptions{
		Target: int(h.cgroup.Fd()), Program: progs[0], Attach: ebpf.AttachCGroupInet4Bind,
	})
	if err != nil {
		t.Fatal(err)
	}
	closeAll(progs)
	h.close()
	mustEnsurePorts(t, 1, p)
	if err := bindable(t, p); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("bind: %v", err)
	}
	mustDeletePorts(t, p)
	if err := bindable(t, p); err != nil {
		t.Errorf("bind after the deletion: %v", err)
	}
	if err := dropBindGuard(); err != nil {
		t.Fatal(err)
	}
	if h, err = openHooks(); err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if m, err := h.find(); err != nil || m != nil {
		return // other hosts on this machine have ports
	}
	if progs, err := h.programs(ebpf.AttachCGroupInet6Bind, bind6ProgName); err != nil || len(progs) != 0 {
		t.Errorf("left behind: %v, %v", progs, err)
	}
}

// TestHostPortOldKernel has the verifier read the programs for kernels that
// cannot choose the error.
func TestHostPortOldKernel(t *testing.T) {
	ownNetns(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 16, ValueSize: 136, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for at, code := range map[ebpf.AttachType]asm.Instructions{
		ebpf.AttachCGroupInet4Bind: bind4Program(m, false),
		ebpf.AttachCGroupInet6Bind: bind6Program(m, false),
	} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: at, Instructions: code})
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		p.Close()
	}
}

func TestProbePort(t *testing.T) {
	portNetns(t)
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
		mustEnsurePorts(t, 1, p)
		release()
		if _, err := ProbePort(p.Proto, p.IP, p.Port); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("probe of a reserved port: %v", err)
		}
		mustDeletePorts(t, p)
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

// TestHostPortDetachedCgroup reserves where no cgroup2 is mounted.
func TestHostPortDetachedCgroup(t *testing.T) {
	portNetns(t)
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	p := hostPort("tcp", "127.0.0.1", 7009)
	mustEnsurePorts(t, 1, p)
	if err := unix.Mount("none", "/sys/fs/cgroup", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir("/sys/fs/cgroup"); err != nil || len(entries) != 0 {
		t.Fatal("the cgroups still show")
	}
	mustEnsurePorts(t, 0, p)
	mustDeletePorts(t, p)
	if err := bindable(t, p); err != nil {
		t.Error(err)
	}
}

func BenchmarkHostPorts(b *testing.B) {
	portNetns(b)
	keep := hostPort("tcp", "0.0.0.0", 6999) // another sandbox's: the programs are there
	mustEnsurePorts(b, 1, keep)
	for _, n := range []int{1, 100} {
		var ports []plan.HostPort
		for i := range n {
			ports = append(ports, hostPort("tcp", "0.0.0.0", uint16(7100+i)))
		}
		b.Run(fmt.Sprintf("ensure=%d", n), func(b *testing.B) {
			for b.Loop() {
				mustEnsurePorts(b, n, ports...)
				b.StopTimer()
				mustDeletePorts(b, ports...)
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("delete=%d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				mustEnsurePorts(b, n, ports...)
				b.StartTimer()
				mustDeletePorts(b, ports...)
			}
		})
	}
	mustDeletePorts(b, keep)
	b.Run("attach and detach", func(b *testing.B) {
		for b.Loop() {
			mustEnsurePorts(b, 1, keep)
			mustDeletePorts(b, keep)
			if err := dropBindGuard(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
