package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Lab is a LAN with hosts on it: 192.168.205.0/24, as in the Vagrantfile.
type Lab struct {
	t     testing.TB
	id    int
	lan   *NS
	hosts int
}

var labs atomic.Int64

// New makes an empty LAN. All goes again when the test ends.
func New(t testing.TB) *Lab {
	t.Helper()
	l := &Lab{t: t, id: int(labs.Add(1))}
	l.lan = l.Namespace("lan")
	l.lan.Must("ip", "link", "add", "lan", "type", "bridge")
	l.lan.Must("ip", "link", "set", "lan", "up")
	return l
}

// NewHost is a lab with one host.
func NewHost(t testing.TB) *Host {
	t.Helper()
	return New(t).Host("host")
}

// Namespace makes a namespace, pinned where `ip netns` looks.
func (l *Lab) Namespace(name string) *NS {
	l.t.Helper()
	full := fmt.Sprintf("lab%d-%s", l.id, name)
	path := filepath.Join("/run/netns", full)
	if err := pin(path); err != nil {
		l.t.Fatalf("namespace %s: %v", full, err)
	}
	l.t.Cleanup(func() {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	})
	n := &NS{t: l.t, Name: name, Path: path}
	n.Must("ip", "link", "set", "lo", "up")
	return n
}

// pin makes a network namespace and binds it to path.
func pin(path string) error {
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
	}()
	<-done
	return err
}

// Host is a machine: a network namespace with one interface, eth0, on the LAN,
// and a root directory for sandnet.
type Host struct {
	*NS
	// IP is the host's address on the LAN.
	IP netip.Addr
	// Root is what `--root` gets; a test may empty it, for the default.
	Root string
	// Program is the sandnet binary.
	Program string
	// Firewall is what SANDNET_FIREWALL says; empty: nothing.
	Firewall string
	// ipLists is the file with what a dump asks ip(8).
	ipLists string
	// servers ends those that run in sandboxes: a socket keeps its namespace,
	// and the links in it, alive.
	servers *[]func()
}

// Host adds a host to the LAN.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	l.hosts++
	h := &Host{
		NS:      l.Namespace(name),
		IP:      netip.AddrFrom4([4]byte{192, 168, 205, byte(10 + l.hosts)}),
		Root:    filepath.Join(l.t.TempDir(), name),
		Program: Bin(Plain),
		servers: new([]func()),
	}
	h.ipLists = filepath.Join(l.t.TempDir(), "lists")
	if err := os.WriteFile(h.ipLists, []byte(ipLists), 0o600); err != nil {
		l.t.Fatal(err)
	}
	port := "p-" + name
	l.lan.Must("ip", "link", "add", port, "master", "lan", "type", "veth", "peer", "name", "eth0", "netns", filepath.Base(h.Path))
	l.lan.Must("ip", "link", "set", port, "up")
	h.Must("ip", "addr", "add", h.IP.String()+"/24", "dev", "eth0")
	h.Must("ip", "link", "set", "eth0", "up")
	// What a freshly installed machine has, whatever this one is set to.
	h.Must("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
	h.BridgeNetfilter(false)
	l.t.Cleanup(h.clear)
	return h
}

// BridgeNetfilter says whether bridged frames pass through the host's IP rules,
// as they do on a host with Docker or Kubernetes. It returns false on kernels
// that cannot do it.
func (h *Host) BridgeNetfilter(on bool) bool {
	h.t.Helper()
	if !exists("/proc/sys/net/bridge/bridge-nf-call-iptables") {
		return false
	}
	value := "0"
	if on {
		value = "1"
	}
	h.Must("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables="+value, "net.bridge.bridge-nf-call-ip6tables="+value)
	return true
}

// clear takes away what a test has left on the host, so that the root
// directory can be removed and nothing stays in parts of the kernel that know
// no namespaces.
func (h *Host) clear() {
	if (h.Root == "" || exists(filepath.Join(h.Root, "run"))) && exists(h.Program) {
		if ids := strings.Fields(h.Sandnet("ps", "-q").Stdout); len(ids) > 0 {
			h.Sandnet(append([]string{"rm", "-f"}, ids...)...)
		}
		h.Sandnet("gc")
	}
	for _, m := range mountsBelow(h.Root) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// mountsBelow lists mount points below dir, the deepest first.
func mountsBelow(dir string) []string {
	if dir == "" { // the default root: it goes with the world
		return nil
	}
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(out)))
	return out
}

// Sandnet runs sandnet on the host.
func (h *Host) Sandnet(args ...string) Result {
	h.t.Helper()
	return h.SandnetEnv(nil, args...)
}

// SandnetEnv is Sandnet with variables added to the environment.
func (h *Host) SandnetEnv(env []string, args ...string) Result {
	h.t.Helper()
	return h.RunEnv(append(h.Env(), env...), h.Program, args...)
}

// Env are the variables that tell sandnet where it is.
func (h *Host) Env() []string {
	env := []string{"SANDNET_ROOT=" + h.Root}
	if h.Firewall != "" {
		env = append(env, "SANDNET_FIREWALL="+h.Firewall)
	}
	return env
}

// OK is Sandnet for a command that succeeds; it returns its output.
func (h *Host) OK(args ...string) string {
	h.t.Helper()
	r := h.Sandnet(args...)
	if r.Code != 0 {
		h.t.Fatalf("%s: %s", h.Name, r)
	}
	return r.Out()
}

// Refused is Sandnet for a command that fails with this code, with one line
// `sandnet: …` on stderr that names each of the words, and changes nothing.
func (h *Host) Refused(code int, words []string, args ...string) {
	h.t.Helper()
	before := h.Dump()
	r := h.Sandnet(args...)
	if r.Code != code {
		h.t.Errorf("%s: want exit %d", r, code)
		return
	}
	line, rest, _ := strings.Cut(r.Stderr, "\n")
	if !strings.HasPrefix(line, "sandnet: ") || rest != "" && !strings.HasPrefix(rest, "hint: ") {
		h.t.Errorf("%s: stderr is not one line `sandnet: WHAT: WHY` and a hint", r)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			h.t.Errorf("%s: stderr does not name %q", r, w)
		}
	}
	if d := Diff(before, h.Dump()); d != "" {
		h.t.Errorf("%s: it changed the host:\n%s", r, d)
	}
}

// StartSandnet starts sandnet and leaves it running.
func (h *Host) StartSandnet(args ...string) *Process {
	h.t.Helper()
	return h.Start(h.Env(), h.Program, args...)
}

// Netns is the path a sandbox's namespace is pinned at.
func (h *Host) Netns(sandbox string) string { return filepath.Join(h.Root, "run/netns", sandbox) }

// Sandbox is the inside of a sandbox.
func (h *Host) Sandbox(name string) *NS {
	return &NS{t: h.t, Name: h.Name + "/" + name, Path: h.Netns(name), servers: h.servers}
}

// stopServers ends the servers in the host's sandboxes.
func (h *Host) stopServers() {
	for _, stop := range *h.servers {
		stop()
	}
	*h.servers = nil
}
