package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

// hold takes an owner's lock as another sandnet would, begun or not, until
// release is called.
func hold(t *testing.T, h *lab.Host, owner string, begun bool) (release func()) {
	t.Helper()
	path := filepath.Join(h.Root, "run/locks", strings.ReplaceAll(owner, "/", ":"))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil && begun {
		err = f.Truncate(1)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = os.Remove(path)
		_ = f.Close()
	}
}

// waits starts sandnet and fails the test if it does not wait.
func waits(t *testing.T, h *lab.Host, args ...string) *lab.Process {
	t.Helper()
	p := h.StartSandnet(args...)
	time.Sleep(300 * time.Millisecond)
	if err := p.Process.Signal(unix.Signal(0)); err != nil {
		t.Fatalf("%v did not wait: %v", args, err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid)); err != nil || strings.Contains(string(b), ") Z ") {
		t.Fatalf("%v did not wait", args)
	}
	return p
}

// TestSharedRecovery: a network's recovery waits for who is recovering the
// host, so that what networks share does not stay because each took the other
// for alive.
func TestSharedRecovery(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("network", "create", "n")
	if err := os.Remove(filepath.Join(h.Root, "lib/networks/n.json")); err != nil {
		t.Fatal(err)
	}
	// A killed `network rm`, half of which another command has found.
	if err := os.WriteFile(filepath.Join(h.Root, "run/locks/network:n"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	release := hold(t, h, "host", true)
	p := waits(t, h, "ps")
	release()
	if r := p.Result(); r.Code != 0 || r.Stderr != "" {
		t.Error(r)
	}
	if r := h.Run("nft", "list", "table", "inet", "sandnet"); r.Code == 0 {
		t.Errorf("what networks share is left: %s", r)
	}
}

// TestCorruptRecord: one unreadable record costs its sandbox, and nobody else.
func TestCorruptRecord(t *testing.T) {
	for _, firewall := range []string{"nftables", "iptables"} {
		t.Run(firewall, func(t *testing.T) {
			t.Parallel()
			corruptRecord(t, firewall)
		})
	}
}

func corruptRecord(t *testing.T, firewall string) {
	h := lab.NewHost(t)
	h.Firewall = firewall
	h.OK("network", "create", "n", "--ipv6")
	create(t, h, "good", "--net", "n", "-p", "8080:80")
	before := h.Settled()
	create(t, h, "bad", "--net", "n", "--add-host", "x:10.1.2.3", "-p", "9090:90", "--egress", "deny 10.0.0.0/8", "--egress-rate", "1gbit")
	record := filepath.Join(h.Root, "run/records/sandbox/bad.json")
	if err := os.WriteFile(record, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.Sandnet("ps", "-q")
	aside, _ := filepath.Glob(filepath.Join(h.Root, "run/corrupt/*"))
	if r.Code != 0 || strings.Count(r.Stdout, "\n") != 1 || len(aside) != 1 || !strings.Contains(r.Stderr, aside[0]) {
		t.Fatalf("set aside %v: %s", aside, r)
	}
	if r := h.Sandnet("ps", "-q"); r.Code != 0 || r.Stderr != "" {
		t.Errorf("told twice: %s", r)
	}
	h.Refused(2, []string{"bad", "sandnet gc"}, "create", "--name", "bad")
	h.OK("gc")
	if err := os.RemoveAll(filepath.Join(h.Root, "run/corrupt")); err != nil {
		t.Fatal(err)
	}
	h.Unchanged(before, "gc of what a corrupt record named")
	h.OK("diff")
	create(t, h, "bad", "--net", "n", "-p", "9090:90")
	h.OK("rm", "bad")
	// A network's definition.
	if err := os.WriteFile(filepath.Join(h.Root, "lib/networks/n.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.Sandnet("network", "ls", "-q"); r.Code != 0 || strings.Contains(r.Stdout, "n\n") || !strings.Contains(r.Stderr, "run/corrupt/networks:n.json") {
		t.Errorf("%s", r)
	}
	h.OK("gc") // the sandbox on it keeps the network
	h.OK("exec", "good", "--", "true")
	h.OK("rm", "good")
	if out := h.OK("gc"); !strings.Contains(out, "network/n") {
		t.Errorf("gc: %s", out)
	}
	h.OK("network", "create", "n")
}

// TestJoinWaitsForRemoval: who joins a sandbox that is being removed, or joined
// by somebody else, waits for that; rm waits for who joins.
func TestJoinWaitsForRemoval(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	create(t, h, "web")
	release := hold(t, h, "sandbox/web", false)
	p := waits(t, h, "create", "--name", "guest", "--net", "container:web")
	release()
	if r := p.Result(); r.Code != 0 {
		t.Error(r)
	}
	h.Refused(1, []string{"joined by guest"}, "rm", "web")
	h.OK("rm", "guest", "web")
}

// TestJoinsAndRemovals has them meet: a joiner either is refused, or has the
// namespace, and then web is still there.
func TestJoinsAndRemovals(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	for range 15 {
		create(t, h, "web")
		join := h.StartSandnet("create", "--name", "guest", "--net", "container:web")
		rm := h.Sandnet("rm", "web")
		joined := join.Result()
		if (rm.Code == 0) == (joined.Code == 0) {
			t.Fatalf("both or neither: %s\n%s", rm, joined)
		}
		h.OK("rm", "-f", "guest", "web")
	}
	h.Unchanged(before, "joins and removals")
}

// TestSweepRechecks: what gc has found without an owner may have one when it
// comes to deleting it.
func TestSweepRechecks(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	create(t, h, "web", "-p", "8080:80")
	record := filepath.Join(h.Root, "run/records/sandbox/web.json")
	saved, err := os.ReadFile(record)
	if err == nil {
		err = os.Remove(record)
	}
	if err != nil {
		t.Fatal(err)
	}
	// While it waits for the lock of the namespace's sandbox, that is made again.
	release := hold(t, h, "sandbox/web", false)
	p := waits(t, h, "gc")
	if err := os.WriteFile(record, saved, 0o600); err != nil {
		t.Fatal(err)
	}
	release()
	if r := p.Result(); r.Code != 0 {
		t.Error(r)
	}
	h.OK("diff")
	h.OK("rm", "web")
}

// TestRemadeWhileSweeping makes and removes sandboxes of one name while gc runs
// all the time: none is lost.
func TestRemadeWhileSweeping(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	gc := h.Start([]string{"SANDNET_ROOT=" + h.Root}, "sh", "-c", "while :; do "+h.Program+" gc; done")
	for range 15 {
		create(t, h, "web", "-p", "8080:80")
		h.OK("diff")
		h.OK("rm", "web")
	}
	_ = gc.Process.Kill()
	gc.Result()
	h.Unchanged(before, "making and sweeping")
}

// TestFullDisk: on a full disk a create is refused in one line and leaves
// nothing; what is there can be removed.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	h, fill, free := smallDisk(t)
	create(t, h, "web", "-p", "8080:80")
	before := h.Settled()
	refused := 0
	for spare := int64(0); spare <= 8; spare++ {
		fill(spare * 4096)
		r := h.Sandnet("create", "--name", "x", "-p", "9090:90")
		if r.Code == 0 {
			free()
			h.OK("rm", "x")
			break
		}
		refused++
		if line, rest, _ := strings.Cut(r.Stderr, "\n"); r.Code != 1 || !strings.Contains(line, "no space left on device") || rest != "" {
			t.Errorf("with %d pages left: %s", spare, r)
		}
		free()
		h.Unchanged(before, fmt.Sprintf("create with %d pages left", spare))
	}
	if refused < 2 {
		t.Errorf("the disk was full for %d creates", refused)
	}
	fill(0)
	h.OK("rm", "web")
	free()
	h.OK("create", "--name", "web")
	h.OK("rm", "web")
}

// smallDisk is a host whose root is a file system of its own.
func smallDisk(t *testing.T) (h *lab.Host, fill func(spare int64), free func()) {
	t.Helper()
	h = lab.NewHost(t)
	if err := os.Mkdir(h.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", h.Root, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(h.Root, unix.MNT_DETACH) })
	filler := filepath.Join(h.Root, "filler")
	free = func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	return h, func(spare int64) {
		var st unix.Statfs_t
		if err := unix.Statfs(h.Root, &st); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filler, make([]byte, int64(st.Bfree)*st.Bsize-spare), 0o600); err != nil {
			t.Fatal(err)
		}
	}, free
}

// TestReadOnlyState: nothing is changed, and the reason is told in one line.
func TestReadOnlyState(t *testing.T) {
	t.Parallel()
	h, _, _ := smallDisk(t)
	create(t, h, "web")
	h.OK("network", "create", "n")
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", h.Root, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	for _, args := range [][]string{
		{"create", "--name", "x"}, {"rm", "web"}, {"network", "create", "m"}, {"network", "rm", "n"}, {"network", "prune"},
	} {
		h.Refused(1, []string{"read-only file system"}, args...)
	}
	h.Refused(125, []string{"read-only file system"}, "run", "--", "true")
	for _, args := range [][]string{{"ps"}, {"inspect", "web"}, {"network", "ls"}, {"exec", "web", "--", "true"}, {"diff"}} {
		h.OK(args...)
	}
	remount(0)
	h.OK("rm", "web")
}

// TestReusedPID: a process that got the number of a sandbox's command is not
// that command, is not killed, and does not keep the sandbox from being removed.
func TestReusedPID(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("run", "-d", "--name", "web", "--net", "host", "--", "true")
	// A start is known to a hundredth of a second, in which no number comes again.
	time.Sleep(50 * time.Millisecond)
	stranger := h.Start(nil, "sleep", "1000")
	record := filepath.Join(h.Root, "run/records/sandbox/web.json")
	edit(t, record, func(meta map[string]any) { meta["pid"] = stranger.Process.Pid })
	if s := inspect(t, h, "web"); s.Status != "exited" || s.PID != 0 {
		t.Errorf("%+v", s)
	}
	h.OK("rm", "-f", "web")
	if err := stranger.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the stranger was killed: %v", err)
	}
}

func edit(t *testing.T, record string, change func(meta map[string]any)) {
	t.Helper()
	b, err := os.ReadFile(record)
	var p map[string]any
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		t.Fatal(err)
	}
	change(p["meta"].(map[string]any))
	if b, err = json.Marshal(p); err == nil {
		err = os.WriteFile(record, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestClockSetBack: what was made "in the future" is shown, used and removed.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	create(t, h, "web")
	edit(t, filepath.Join(h.Root, "run/records/sandbox/web.json"), func(meta map[string]any) { meta["created"] = "2999-01-01T00:00:00Z" })
	future := time.Now().Add(1000 * time.Hour)
	for _, dir := range []string{"run", "run/locks", "run/records", "run/ipam/bridge"} {
		if err := os.Chtimes(filepath.Join(h.Root, dir), future, future); err != nil {
			t.Fatal(err)
		}
	}
	if out := h.OK("ps"); !strings.Contains(out, "Less than a second ago") {
		t.Error(out)
	}
	create(t, h, "db")
	h.OK("gc")
	h.OK("rm", "web", "db")
}

// TestHostnameOfHostSandbox: as with docker, it is the command's own.
func TestHostnameOfHostSandbox(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := h.Must("uname", "-n")
	if got := h.OK("run", "--net", "host", "--hostname", "other", "--", "uname", "-n"); got != "other" {
		t.Errorf("got %q", got)
	}
	if got := h.OK("run", "--net", "host", "--", "uname", "-n"); got != before {
		t.Errorf("without --hostname %q, want the host's %q", got, before)
	}
	if got := h.Must("uname", "-n"); got != before {
		t.Errorf("the host is now called %q", got)
	}
}

// A detached command on the host is told from sandnet only by its record: it
// starts as what it is, with its arguments, or says why it cannot.
func TestDetachedOnHost(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("run", "-d", "--net", "host", "--name", "x", "-e", "A=b", "--", "sh", "-c", "exec sleep 1000", "zero")
	pid := inspect(t, h, "x").PID
	lab.Eventually(t, "command", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && string(b) != "sleep\x001000\x00" {
			err = constError(b)
		}
		return err
	})
	for _, fd := range []string{"3", "4"} {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); err == nil {
			t.Errorf("file %s is open: %s", fd, to)
		}
	}
	h.OK("rm", "-f", "x")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("\x7fELF broken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if r := h.Sandnet("run", "-d", "--net", "host", "--name", "x", "--", script); r.Code != 126 {
		t.Errorf("%s", r)
	}
	if out := h.OK("ps", "-q"); out != "" {
		t.Errorf("left: %s", out)
	}
}
