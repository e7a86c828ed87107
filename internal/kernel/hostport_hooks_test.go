package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// attachedNames are the programs of ours on a guard's cgroup, once for each time.
func attachedNames(t *testing.T, g portGuard) (names []string) {
	t.Helper()
	h, err := g.open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	for _, k := range portHooks() {
		progs, err := h.programs(k)
		if err != nil {
			t.Fatal(err)
		}
		for range progs {
			names = append(names, strings.TrimPrefix(k.name, "sandnet2_"))
		}
		closePrograms(progs)
	}
	return names
}

// detachHooks plays the administrator.
func detachHooks(t *testing.T, g portGuard, names ...string) {
	t.Helper()
	h, err := g.open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	for _, k := range portHooks() {
		for _, name := range names {
			if !strings.HasSuffix(k.name, name) {
				continue
			}
			progs, err := h.programs(k)
			if err != nil || len(progs) != 1 {
				t.Fatalf("%s: %d programs, %v", name, len(progs), err)
			}
			if err := h.call.detach(h.fd(), progs[0].fd, k.at); err != nil {
				t.Fatal(err)
			}
			closePrograms(progs)
		}
	}
}

func withTarget(p plan.HostPort, to string) plan.HostPort {
	p.To = netip.MustParseAddrPort(to)
	return p
}

// TestHostPortScopes attaches no more than the ports need, and nothing once
// the last is gone.
func TestHostPortScopes(t *testing.T) {
	g := portNetns(t)
	for _, c := range []struct {
		port plan.HostPort
		want string
	}{
		{hostPort("tcp", "0.0.0.0", 7010), "bind6 bind4"},
		{hostPort("udp", "127.0.0.1", 7010), "bind6 bind4"},
		{withTarget(hostPort("sctp", "::", 7010), "[fd00::2]:80"), "bind6 bind4"},
		{withTarget(hostPort("tcp", "::", 7011), "[fd00::2]:80"), "bind6 bind4 peer6 conn6"},
		{withTarget(hostPort("udp", "::", 7012), "[fd00::2]:80"), "bind6 bind4 peer6 conn6 recv6 send6"},
		{hostPort("tcp", "0.0.0.0", 7013), "bind6 bind4 peer6 conn6 recv6 send6"},
	} {
		mustEnsurePorts(t, g, 1, c.port)
		if got := strings.Join(attachedNames(t, g), " "); got != c.want {
			t.Errorf("%s: attached %s, want %s", c.port.Key(), got, c.want)
		}
	}
	owned, err := g.owned()
	if err != nil || len(owned) != 6 {
		t.Errorf("owned %v, %v", owned, err)
	}
	if err := g.drop(t.Context()); err != nil || len(attachedNames(t, g)) != 6 {
		t.Errorf("dropped with ports in use: %v", err)
	}
	mustDeletePorts(t, g, owned...)
	if err := g.drop(t.Context()); err != nil {
		t.Error(err)
	}
	if left := attachedNames(t, g); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
	if entries, err := os.ReadDir(filepath.Dir(g.lock)); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestHostPortHalfAttached mends what a crash, or an administrator, leaves of
// the programs, without losing what others have reserved.
func TestHostPortHalfAttached(t *testing.T) {
	g := portNetns(t)
	mine := withTarget(hostPort("udp", "::", 7007), "[fd00::2]:80")
	others := hostPort("tcp", "192.0.2.1", 7007)
	mustEnsurePorts(t, g, 2, mine, others)
	all := attachedNames(t, g)
	for _, lost := range [][]string{
		{"bind4"}, {"bind6"}, {"conn6"}, {"recv6"}, {"peer6", "send6"}, {"bind4", "bind6"}, {"conn6", "peer6", "recv6", "send6"},
		{"bind6", "bind4", "peer6", "conn6", "recv6"},
	} {
		detachHooks(t, g, lost...)
		if missing, err := g.check([]plan.HostPort{mine}); err != nil || len(missing) != 1 {
			t.Errorf("without %s: missing %v, %v", lost, missing, err)
		}
		mustEnsurePorts(t, g, 0, mine)
		if got := attachedNames(t, g); strings.Join(got, " ") != strings.Join(all, " ") {
			t.Errorf("without %s: attached again %s", lost, got)
		}
		for _, p := range []plan.HostPort{mine, others} {
			if err := bindable(t, p); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("without %s: bind of %s: %v", lost, p.Key(), err)
			}
		}
	}
	// With all programs the map is lost; each owner brings its ports back.
	detachHooks(t, g, all...)
	if missing, err := g.check([]plan.HostPort{others, mine}); err != nil || len(missing) != 2 {
		t.Errorf("without all: missing %v, %v", missing, err)
	}
	if owned, err := g.owned(); err != nil || len(owned) != 0 {
		t.Errorf("without all: owned %v, %v", owned, err)
	}
	mustDeletePorts(t, g, others)
	mustEnsurePorts(t, g, 1, mine)
	if missing, err := g.check([]plan.HostPort{others, mine}); err != nil || len(missing) != 1 || missing[0] != others {
		t.Errorf("without all, mended: missing %v, %v", missing, err)
	}
	mustEnsurePorts(t, g, 1, others)
	mustDeletePorts(t, g, mine, others)
	if err := bindable(t, mine); err != nil {
		t.Errorf("bind after the deletion: %v", err)
	}
	detachHooks(t, g, "bind4") // half gone when a crash came
	if err := g.drop(t.Context()); err != nil || len(attachedNames(t, g)) != 0 {
		t.Errorf("left behind: %v, %v", attachedNames(t, g), err)
	}
}

// TestBindGuard finds the programs that are missing, and mends them with the
// map that is left.
func TestBindGuard(t *testing.T) {
	g := portNetns(t)
	expect := func(attached, missing string) {
		t.Helper()
		a, m, err := g.programs()
		got := strings.ReplaceAll(fmt.Sprint(a, m), "sandnet2_", "")
		if want := "[" + attached + "] [" + missing + "]"; err != nil || got != want {
			t.Errorf("programs %s, %v; want %s", got, err, want)
		}
	}
	expect("", "")
	if err := g.mend(t.Context()); err != nil {
		t.Error(err)
	}
	expect("", "")
	plain, target := hostPort("tcp", "127.0.0.1", 7024), withTarget(hostPort("tcp", "::", 7025), "[fd00::2]:80")
	mustEnsurePorts(t, g, 1, plain)
	expect("bind6 bind4", "")
	mustEnsurePorts(t, g, 1, target)
	detachHooks(t, g, "bind6", "conn6")
	expect("bind4 peer6", "bind6 conn6")
	if err := g.mend(t.Context()); err != nil {
		t.Error(err)
	}
	expect("bind6 bind4 peer6 conn6", "")
	if missing, err := g.check([]plan.HostPort{plain, target}); err != nil || len(missing) > 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
	mustDeletePorts(t, g, target)
	detachHooks(t, g, "conn6")
	expect("bind6 bind4 peer6", "") // nobody needs it
}

// The machine's own guard, without changing anything.
func TestBindGuardOfTheMachine(t *testing.T) {
	ownNetns(t)
	if _, _, err := checkBindGuard(); err != nil {
		t.Error(err)
	}
	if err := mendBindGuard(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestHostPortCheck(t *testing.T) {
	g := portNetns(t)
	p := withTarget(hostPort("tcp", "::", 7014), "[fd00::2]:80")
	check := func(want ...plan.HostPort) {
		t.Helper()
		missing, err := g.check([]plan.HostPort{p})
		if err != nil || len(missing) != len(want) {
			t.Errorf("missing %v, %v; want %v", missing, err, want)
		}
	}
	if missing, err := g.check(nil); err != nil || len(missing) != 0 {
		t.Errorf("missing of nothing: %v, %v", missing, err)
	}
	check(p)
	mustEnsurePorts(t, g, 1, withTarget(p, "[fd00::3]:80"))
	check(p)
	mustEnsurePorts(t, g, 1, p) // another target is a change
	check()
	mustEnsurePorts(t, g, 1, hostPort("tcp", "::1", 7014))
	check()
	mustDeletePorts(t, g, p)
	check(p)
}

// TestHostPortLock waits for the lock no longer than it is told to, and leaves
// no file.
func TestHostPortLock(t *testing.T) {
	g := portGuard{lock: filepath.Join(t.TempDir(), "lock")}
	unlock, err := g.hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(g.lock); err != nil || st.Mode() != 0o600 {
		t.Errorf("lock file: %v, %v", st.Mode(), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.hold(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second holder: %v", err)
	}
	const waiters = 8
	var held, holders atomic.Int32
	done := make(chan error)
	for range waiters {
		go func() {
			unlock, err := g.hold(t.Context())
			if err == nil {
				held.Add(1)
				if holders.Add(1) > 1 {
					err = errors.New("two hold the lock")
				}
				time.Sleep(time.Millisecond)
				holders.Add(-1)
				unlock()
			}
			done <- err
		}()
	}
	unlock()
	for range waiters {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(g.lock); held.Load() != waiters || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%d of %d had the lock, file: %v", held.Load(), waiters, err)
	}
}

// TestHostPortDeadNamespace forgets the ports of namespaces that are gone, and
// of no other.
func TestHostPortDeadNamespace(t *testing.T) {
	g := portNetns(t)
	reserve := func(n int) (alive *os.File) {
		t.Helper()
		var err error
		onOwnThread(func() {
			if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
				alive, err = os.Open("/proc/thread-self/ns/net")
			}
			for i := 0; i < n && err == nil; i++ {
				_, err = g.ensure(t.Context(), []plan.HostPort{hostPort("tcp", "::", uint16(7100+i))})
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return alive
	}
	live := reserve(2)
	defer live.Close()
	reserve(3).Close()
	mine := hostPort("tcp", "::", 7015)
	mustEnsurePorts(t, g, 1, mine)
	// The kernel frees namespaces in the background.
	removed := 0
	for end := time.Now().Add(5 * time.Second); removed < 3 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		n, err := g.forgetDead(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		removed += n
	}
	left := len(reservations(t, g))
	if old := !seesAllNamespaces(); old && (removed != 0 || left != 6) || !old && (removed != 3 || left != 3) {
		t.Errorf("removed %d, left %d; kernel can tell: %v", removed, left, !old)
	}
	mustDeletePorts(t, g, mine)
	if err := g.drop(t.Context()); err != nil || len(attachedNames(t, g)) == 0 {
		t.Errorf("dropped while another host has ports: %v", err)
	}
}

func reservations(t *testing.T, g portGuard) []portKey {
	t.Helper()
	h, err := g.open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if found, err := h.find(); !found {
		t.Fatal("no map", err)
	}
	keys, err := h.ports.keys()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestHostPortDetachedCgroup reserves on the machine's root, where no cgroup2
// is mounted.
func TestHostPortDetachedCgroup(t *testing.T) {
	portNetns(t)
	g := machinePorts()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	p := hostPort("tcp", "127.0.0.1", 7009)
	mustEnsurePorts(t, g, 1, p)
	if err := unix.Mount("none", "/sys/fs/cgroup", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir("/sys/fs/cgroup"); err != nil || len(entries) != 0 {
		t.Fatal("the cgroups still show")
	}
	mustEnsurePorts(t, g, 0, p)
	if missing, err := checkHostPorts([]plan.HostPort{p}); err != nil || len(missing) != 0 {
		t.Errorf("missing: %v, %v", missing, err)
	}
	mustDeletePorts(t, g, p)
	if err := bindable(t, p); err != nil {
		t.Error(err)
	}
	if err := g.drop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCgroup2Mount(t *testing.T) {
	ownNetns(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	// What is mounted elsewhere is somebody's: ours comes first in the file.
	mountinfo := filepath.Join(t.TempDir(), "mountinfo")
	write := func(lines ...string) {
		if err := os.WriteFile(mountinfo, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const tmpfs = "22 1 0:20 / /run rw,nosuid - tmpfs tmpfs rw"
	part := "23 1 0:21 /user.slice " + dir + " rw - cgroup2 cgroup2 rw"
	write(tmpfs, part)
	if got := cgroup2Mount(mountinfo); got != "" {
		t.Errorf("found %q", got)
	}
	write(tmpfs, part, "24 1 0:21 / /nowhere rw - cgroup2 cgroup2 rw", "25 1 0:21 / "+dir+" rw shared:9 - cgroup2 cgroup2 rw")
	if got := cgroup2Mount(mountinfo); got != dir {
		t.Errorf("found %q, want %q", got, dir)
	}
	if got := cgroup2Mount("/proc/thread-self/mountinfo"); !isCgroup2(got) {
		t.Errorf("found %q on this machine", got)
	}
}
