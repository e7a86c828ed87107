package runtimes

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

// limit is more kill points than any command has.
const limit = 300

// killedAt runs a command that is to be killed at its nth kill point; false
// says that it has ended first.
func killedAt(t *testing.T, n int, run func(env ...string) lab.Result) bool {
	t.Helper()
	log := filepath.Join(t.TempDir(), "points")
	r := run(fmt.Sprint("SANDNET_CRASH_AT=", n), "SANDNET_CRASH_LOG="+log)
	if _, err := os.Stat(log); err == nil {
		if r.Signal != syscall.SIGKILL {
			t.Errorf("killed at %d, yet %s", n, r)
		}
		return true
	}
	if r.Code != 0 {
		t.Fatalf("%s", r)
	}
	return false
}

// matrix kills one command at each of its kill points. Whichever way its
// runtime goes on then, nothing is left in the end.
func matrix(t *testing.T, h *lab.Host, before lab.Dump, setup func(), run func(env ...string) lab.Result, ends ...func()) {
	t.Helper()
	n := 1
	for killed := true; killed && n < limit; n++ {
		for i, end := range ends {
			setup()
			killed = killedAt(t, n, run)
			end()
			if at, d := h.Becomes(before); at < 0 {
				t.Fatalf("killed at %d, then way %d of going on: the host differs:\n%s", n, i, d)
			}
		}
	}
	if n < 10 || n == limit {
		t.Errorf("%d kill points", n-1)
	}
	t.Logf("killed at each of %d points", n-2)
}

func TestKilledHook(t *testing.T) {
	l := lab.New(t)
	h := l.Host("host")
	h.Program = lab.Bin(lab.Crashing)
	before := used(t, h)
	pid, bundle := stranger(t, h, map[string]string{"io.sandnet.publish": "8080:80"})
	in := state(t, "c1", pid, bundle)
	call := func(stage string) func(env ...string) lab.Result {
		return func(env ...string) lab.Result { return hook(t, h, stage, in, env...) }
	}
	must := func(stage string) {
		if r := call(stage)(); r.Code != 0 {
			t.Fatal(r)
		}
	}
	poststop := func() { must("poststop") }
	retry := func() { must("createRuntime"); must("poststop") }
	forgotten := func() { // the runtime is gone, too
		h.OK("gc")
		if out := h.OK("ps", "-q"); out != "" {
			must("poststop")
		}
	}
	t.Run("createRuntime", func(t *testing.T) {
		matrix(t, h, before, func() {}, call("createRuntime"), poststop, retry, forgotten)
	})
	t.Run("poststop", func(t *testing.T) {
		matrix(t, h, before, func() { must("createRuntime") }, call("poststop"), poststop, retry, forgotten)
	})
}

func TestKilledCNI(t *testing.T) {
	c, l, _ := newCNI(t)
	c.Program = lab.Bin(lab.Crashing)
	before := used(t, c.Host)
	ns := l.Namespace("c1")
	call := func(command string) func(env ...string) lab.Result {
		return func(env ...string) lab.Result {
			return c.call(command, "c1", ns.Path, "eth0", conf("1.0.0", mapping), env...)
		}
	}
	must := func(command string) {
		if r := call(command)(); r.Code != 0 {
			t.Fatal(r)
		}
	}
	del := func() { must("DEL") }
	retry := func() { must("ADD"); must("DEL") }
	other := func() { c.OK("create", "--name", "other"); c.OK("rm", "other"); must("DEL") }
	t.Run("ADD", func(t *testing.T) { matrix(t, c.Host, before, func() {}, call("ADD"), del, retry, other) })
	t.Run("DEL", func(t *testing.T) { matrix(t, c.Host, before, func() { must("ADD") }, call("DEL"), del, retry, other) })
}

// A hundred containers, eight at a time, whose runtimes and processes are
// killed at random.
func TestStormOfContainers(t *testing.T) {
	l := lab.New(t)
	r := newRuntime(t, l.Host("host"), "crun")
	before := used(t, r.Host)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := r.bundle("storm", "sleep 30")
	r.OK("oci", "patch", "-p", "80", dir)
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			dice := rand.New(rand.NewPCG(seed, uint64(worker)))
			for i := range 13 {
				id := fmt.Sprintf("c%d-%d", worker, i)
				p := r.Start(nil, "crun", "--root", filepath.Join(r.dir, "state"), "run", "--bundle", dir, id)
				switch dice.IntN(3) {
				case 0: // the runtime, at any time
					unix.Nanosleep(&unix.Timespec{Nsec: dice.Int64N(40e6)}, nil)
					_ = p.Process.Kill()
				case 1: // the container
					unix.Nanosleep(&unix.Timespec{Nsec: 30e6 + dice.Int64N(40e6)}, nil)
					r.cmd("kill", id, "KILL")
				case 2: // both
					unix.Nanosleep(&unix.Timespec{Nsec: dice.Int64N(60e6)}, nil)
					_ = p.Process.Kill()
					r.cmd("kill", id, "KILL")
				}
				if dice.IntN(2) == 0 {
					r.cmd("delete", "--force", id)
				}
				_ = p.Process.Kill()
				_ = p.Cmd.Wait()
			}
		})
	}
	all.Wait()
	// Who was not deleted is killed with the rest, and nobody calls poststop.
	for _, id := range strings.Fields(r.Must("sh", "-c", fmt.Sprintf("ls %s/state 2>/dev/null; true", r.dir))) {
		r.cmd("kill", id, "KILL")
	}
	r.Run("pkill", "-KILL", "-f", "^sleep 30$")
	r.Run("pkill", "-KILL", "-f", "sleep 30")
	r.OK("gc")
	if out := r.OK("ps"); strings.Contains(out, "running") {
		t.Errorf("still running:\n%s", out)
	}
	if i, d := r.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}

// After a reboot nothing of the run directory is left, and the next container
// is networked as the first was.
func TestContainersAfterReboot(t *testing.T) {
	h := lab.NewHost(t)
	before := used(t, h)
	pid, bundle := stranger(t, h, map[string]string{"io.sandnet.network": "bridge"})
	in := state(t, "c1", pid, bundle)
	if r := hook(t, h, "createRuntime", in); r.Code != 0 {
		t.Fatal(r)
	}
	h.Must("sh", "-c", fmt.Sprintf("umount -l %[1]s/run/netns/*; rm -rf %[1]s/run; ip link del sandnet0; nft flush ruleset; sysctl -qw net.ipv4.ip_forward=0", h.Root))
	_ = unix.Kill(pid, unix.SIGKILL)
	pid, bundle = stranger(t, h, map[string]string{"io.sandnet.network": "bridge"})
	if r := hook(t, h, "createRuntime", state(t, "c1", pid, bundle)); r.Code != 0 {
		t.Fatal(r)
	}
	if c := inspect(t, h, "c1"); c.PID != pid || c.Status != "running" {
		t.Errorf("inspect says %+v", c)
	}
	if r := hook(t, h, "poststop", state(t, "c1", 0, bundle)); r.Code != 0 {
		t.Fatal(r)
	}
	if i, d := h.Becomes(before); i < 0 {
		t.Errorf("the host differs from before:\n%s", d)
	}
}
