package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// TestHostPortKernels plays kernels that lack something, one system call at a
// time: the error says what, and nothing is left attached.
func TestHostPortKernels(t *testing.T) {
	const other = -1
	for _, c := range []struct {
		name  string
		cmd   int
		at    uint32 // attach type for BPF_PROG_*, map type for BPF_MAP_CREATE; 0 for any
		errno unix.Errno
		want  string
	}{
		{"no BPF", other, 0, unix.ENOSYS, "CONFIG_BPF_SYSCALL"},
		{"not allowed", other, 0, unix.EPERM, "CAP_BPF"},
		{"no cgroup hooks", unix.BPF_PROG_QUERY, 0, unix.EINVAL, "CONFIG_CGROUP_BPF"},
		{"no getpeername hook", unix.BPF_PROG_QUERY, unix.BPF_CGROUP_INET6_GETPEERNAME, unix.EINVAL, "sandnet2_peer6"},
		{"no socket storage", unix.BPF_MAP_CREATE, unix.BPF_MAP_TYPE_SK_STORAGE, unix.EINVAL, "storage with sockets"},
		{"no BTF", unix.BPF_BTF_LOAD, 0, unix.EINVAL, "type information"},
		{"no helper", unix.BPF_PROG_LOAD, 0, unix.EINVAL, "Linux 5.14"},
		{"no memory", unix.BPF_MAP_CREATE, 0, unix.ENOMEM, "cannot allocate memory"},
		{"occupied", unix.BPF_PROG_ATTACH, 0, unix.EPERM, "BPF_F_ALLOW_MULTI"},
		{"occupied later", unix.BPF_PROG_ATTACH, unix.BPF_CGROUP_INET6_CONNECT, unix.EPERM, "sandnet2_conn6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := portNetns(t)
			whole := g
			g.bpf = func(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
				if (c.cmd == other || cmd == c.cmd) && (c.at == 0 || kindOf(cmd, attr) == c.at) {
					return -1, c.errno
				}
				return sysBPF(cmd, attr, size)
			}
			p := withTarget(hostPort("udp", "::", 7016), "[fd00::2]:80")
			_, err := g.ensure(t.Context(), []plan.HostPort{p})
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.errno) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v; want one with %q", err, c.want)
			}
			if left := attachedNames(t, whole); len(left) > 0 {
				t.Errorf("left behind: %s", left)
			}
			// Where nothing can be reserved, nothing stands in the way of giving it up.
			if errors.Is(err, errors.ErrUnsupported) {
				if err := g.delete(t.Context(), []plan.HostPort{p}); err != nil {
					t.Errorf("delete: %v", err)
				}
				if err := g.drop(t.Context()); err != nil {
					t.Errorf("drop: %v", err)
				}
				if owned, err := g.owned(); err != nil || len(owned) > 0 {
					t.Errorf("owned: %v, %v", owned, err)
				}
				if _, err := g.forgetDead(t.Context()); err != nil {
					t.Errorf("forget: %v", err)
				}
			}
			if _, err := g.check([]plan.HostPort{p}); err == nil && c.cmd == other {
				t.Error("check: no error")
			}
		})
	}
}

// kindOf is the first number in an attribute that says what it is about.
func kindOf(cmd int, attr unsafe.Pointer) uint32 {
	switch cmd {
	case unix.BPF_MAP_CREATE:
		return *(*uint32)(attr)
	case unix.BPF_PROG_QUERY:
		return *(*uint32)(unsafe.Add(attr, 4))
	case unix.BPF_PROG_ATTACH, unix.BPF_PROG_DETACH:
		return *(*uint32)(unsafe.Add(attr, 8))
	}
	return 0
}

// TestHostPortOldKernel falls back to programs that do not choose the error,
// for kernels before 5.18.
func TestHostPortOldKernel(t *testing.T) {
	g := portNetns(t)
	g.bpf = func(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
		if cmd == unix.BPF_PROG_LOAD {
			type load struct {
				_, count uint32
				code     *bpfInsn
			}
			l := (*load)(attr)
			for _, in := range unsafe.Slice(l.code, l.count) {
				if in.code == unix.BPF_JMP|unix.BPF_CALL && in.imm == fnSetRetval {
					return -1, unix.EINVAL
				}
			}
		}
		return sysBPF(cmd, attr, size)
	}
	p := hostPort("tcp", "::", 7017)
	mustEnsurePorts(t, g, 1, p)
	for _, ip := range []string{"::", "0.0.0.0"} {
		b := hostPort("tcp", ip, 7017)
		if err := bindable(t, b); ip == "::" && !errors.Is(err, unix.EPERM) || ip != "::" && err != nil {
			t.Errorf("bind to %s: %v", ip, err)
		}
	}
}

// TestHostPortFull says so when no port can be reserved any more, once those
// of dead namespaces are gone.
func TestHostPortFull(t *testing.T) {
	g := portNetns(t)
	full := true
	g.bpf = func(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
		if cmd == unix.BPF_MAP_UPDATE_ELEM && full {
			return -1, unix.E2BIG
		}
		return sysBPF(cmd, attr, size)
	}
	p := hostPort("tcp", "::", 7018)
	if _, err := g.ensure(t.Context(), []plan.HostPort{p}); !errors.Is(err, unix.E2BIG) || !strings.Contains(err.Error(), "65536 ports are reserved") {
		t.Errorf("full: %v", err)
	}
	full = false
	mustEnsurePorts(t, g, 1, p)
}

// TestHostPortMapOfAnotherVersion is refused, not misread.
func TestHostPortMapOfAnotherVersion(t *testing.T) {
	g := portNetns(t)
	m, err := g.bpf.createMap(bpfMapSpec{name: portMapName, kind: unix.BPF_MAP_TYPE_HASH, keySize: 16, valueSize: 8, maxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(m)
	a := newAsm()
	a.mapFD(r1, m)
	a.exit(1)
	k := portHooks()[0]
	fd, err := g.bpf.loadProgram(k.name, k.at, a.assemble(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	h, err := g.open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if err := g.bpf.attach(h.fd(), fd, k.at); err != nil {
		t.Fatal(err)
	}
	p := hostPort("tcp", "::", 7019)
	if _, err := g.ensure(t.Context(), []plan.HostPort{p}); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("ensure: %v", err)
	}
	if _, err := g.owned(); err == nil {
		t.Error("owned: no error")
	}
}

// TestHostPortVerifier shows what the verifier says to each program.
func TestHostPortVerifier(t *testing.T) {
	h := hooks{call: sysBPF, ports: portMap{sysBPF, -1}, peers: -1}
	defer h.closeMaps()
	if err := h.makeMaps(scopeDatagram); err != nil {
		t.Fatal(err)
	}
	for _, k := range portHooks() {
		for _, retval := range []bool{true, false} {
			log := make([]byte, 1<<20)
			code := k.code(programMaps{h.ports.fd, h.peers}, retval)
			fd, err := h.call.loadProgram(k.name, k.at, code, log)
			if err != nil {
				t.Errorf("%s: %v\n%s", k.name, err, unix.ByteSliceToString(log))
				continue
			}
			unix.Close(fd)
			t.Logf("%s: %d instructions", k.name, len(code))
		}
	}
}

// TestHostPortLayout holds what the programs rely on.
func TestHostPortLayout(t *testing.T) {
	wire := binary.BigEndian.AppendUint16(nil, 8080)
	if got := wirePort(8080); got != uint32(binary.NativeEndian.Uint16(wire)) || hostOrder(got) != 8080 {
		t.Errorf("port 8080 is %#x", got)
	}
	if size := unsafe.Sizeof(portValue{}); size != uintptr(valueAddrs)+maxPortAddrs*uintptr(valueSlotBytes) || valueSlotBytes != 40 {
		t.Errorf("an entry has %d bytes", size)
	}
	for _, c := range []struct {
		ports []plan.HostPort
		want  string
	}{
		{nil, "nowhere"},
		{[]plan.HostPort{hostPort("tcp", "::", 1)}, "nowhere"},
		{[]plan.HostPort{withTarget(hostPort("tcp", "0.0.0.0", 1), "10.0.0.2:80")}, "::ffff:10.0.0.2 flags 3"},
		{[]plan.HostPort{withTarget(hostPort("tcp", "0.0.0.0", 1), "10.0.0.2:80"), withTarget(hostPort("tcp", "::", 1), "[fd00::2]:80")}, "fd00::2 flags 0"},
		{[]plan.HostPort{withTarget(hostPort("tcp", "::", 1), "[fd00::2]:80"), withTarget(hostPort("tcp", "::1", 1), "10.0.0.2:80")}, "::ffff:10.0.0.2 flags 1"},
		{[]plan.HostPort{withTarget(hostPort("tcp", "0.0.0.0", 1), "10.0.0.2:80"), hostPort("tcp", "::1", 1)}, "nowhere"},
		{[]plan.HostPort{withTarget(hostPort("tcp", "127.0.0.1", 1), "10.0.0.2:80")}, "nowhere"},
	} {
		var v portValue
		for _, p := range c.ports {
			if _, err := v.put(slotOf(p)); err != nil {
				t.Fatal(err)
			}
		}
		got := "nowhere"
		if v.LoPort != 0 {
			got = fmt.Sprintf("%s flags %d", netip.AddrFrom16(v.LoAddr), v.LoFlags)
		}
		if got != c.want {
			t.Errorf("%v: ::1 goes to %s, want %s", c.ports, got, c.want)
		}
	}
}
