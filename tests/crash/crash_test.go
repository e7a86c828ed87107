// Package crash kills sandnet at every instant between two of its changes, one
// after another, and checks that after the next command the operation has
// either happened or not: nothing in between is left, and nothing that belongs
// to nobody. It contains nothing but tests.
package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestMain(m *testing.M) { lab.Main(m, lab.Crashing) }

// operation is what gets killed. It makes or removes one thing, the target: the
// sandbox x, or the network n.
type operation struct {
	name   string
	target []string
	// stage is done once; the host keeps it.
	stage [][]string
	// setup is done before each try: for a removal, what it removes.
	setup []string
	run   []string
}

var (
	sandbox = []string{"inspect", "x"}
	network = []string{"network", "inspect", "n"}
	newNet  = []string{"network", "create", "n", "--subnet", "10.61.0.0/24", "--bridge", "br-n"}
	newNet6 = append(newNet, "--ipv6")
	dual    = []string{"create", "--name", "x", "--net", "n", "--network-alias", "y", "-p", "8080:80"}
	named   = []string{"create", "--name", "x", "--net", "n", "--network-alias", "y", "--add-host", "z:10.1.2.3", "-p", "8080:80", "-p", "8080:80/udp"}
	limited = []string{"create", "--name", "x", "--ingress-rate", "10mbit", "--egress-rate", "1gbit"}
	// lingering is a command that leaves a process behind: it belongs to the
	// sandbox, and ends with it.
	lingering = []string{"--", "sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 &"}
	// byIptables moves the host to the other firewall, which it keeps.
	byIptables = []string{"--firewall", "iptables", "network", "create", "ipt"}
	joined     = []string{"create", "--name", "x", "--net", "container:y"}
)

var operations = []operation{
	{name: "create", target: sandbox, run: []string{"create", "--name", "x"}},
	{name: "create published", target: sandbox, run: []string{"create", "--name", "x", "-p", "8080:80", "-p", "127.0.0.1:8081:81/udp"}},
	{name: "create named", target: sandbox, stage: [][]string{newNet}, run: named},
	{name: "create on two", target: sandbox, stage: [][]string{newNet}, run: []string{"create", "--name", "x", "--net", "n", "--net", "bridge"}},
	{name: "create joined", target: sandbox, stage: [][]string{{"create", "--name", "y"}}, run: joined},
	{name: "create limited", target: sandbox, run: limited},
	{name: "create none", target: sandbox, run: []string{"create", "--name", "x", "--net", "none"}},
	{name: "run", target: sandbox, run: append([]string{"run", "--name", "x", "-p", "8080:80"}, lingering...)},
	{name: "run detached", target: sandbox, run: []string{"run", "-d", "--name", "x", "--", "sleep", "1000"}},
	{name: "run detached on the host", target: sandbox, run: []string{"run", "-d", "--net", "host", "--name", "x", "--", "sleep", "1000"}},
	{name: "run detached joined", target: sandbox, stage: [][]string{{"create", "--name", "y"}},
		run: []string{"run", "-d", "--net", "container:y", "--name", "x", "--", "sleep", "1000"}},
	{name: "rm", target: sandbox, setup: []string{"create", "--name", "x", "-p", "8080:80"}, run: []string{"rm", "x"}},
	{name: "rm named", target: sandbox, stage: [][]string{newNet}, setup: named, run: []string{"rm", "x"}},
	{name: "rm limited", target: sandbox, setup: limited, run: []string{"rm", "x"}},
	{name: "rm joined", target: sandbox, stage: [][]string{{"create", "--name", "y"}}, setup: joined, run: []string{"rm", "x"}},
	{name: "create dual-stack", target: sandbox, stage: [][]string{newNet6}, run: dual},
	{name: "rm dual-stack", target: sandbox, stage: [][]string{newNet6}, setup: dual, run: []string{"rm", "x"}},
	{name: "network create ipv6", target: network, run: newNet6},
	{name: "network rm ipv6", target: network, setup: newNet6, run: []string{"network", "rm", "n"}},
	{name: "network create", target: network, run: newNet},
	{name: "create published, iptables", target: sandbox, stage: [][]string{byIptables}, run: []string{"create", "--name", "x", "-p", "8080:80", "-p", "8081:81/udp"}},
	{name: "rm published, iptables", target: sandbox, stage: [][]string{byIptables},
		setup: []string{"create", "--name", "x", "-p", "8080:80", "-p", "8081:81/udp"}, run: []string{"rm", "x"}},
	{name: "network create, iptables", target: network, stage: [][]string{byIptables}, run: newNet},
	{name: "network rm, iptables", target: network, stage: [][]string{byIptables}, setup: newNet, run: []string{"network", "rm", "n"}},
	{name: "network rm", target: network, setup: newNet, run: []string{"network", "rm", "n"}},
}

// TestFirewallChange kills a change of the firewall at every point. The next
// command that makes something ends it, one way or the other, and a change
// back leaves what was there before.
func TestFirewallChange(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.OK("network", "create", "n", "--subnet", "10.61.0.0/24", "--bridge", "br-n")
	h.OK("create", "--name", "web", "--net", "n", "-p", "8080:80", "-p", "8080:80/udp")
	touch := func(kind string) {
		h.OK("--firewall", kind, "create", "--name", "touch")
		h.OK("rm", "touch")
	}
	touch("iptables")
	touch("nftables")
	empty := h.Settled()
	n := 1
	for ; n < limit; n++ {
		point := crashAt(t, h, n, "--firewall", "iptables", "create", "--name", "x")
		if point == "" {
			break
		}
		h.OK("create", "--name", "other")
		h.OK("rm", "-f", "other", "x")
		touch("nftables")
		if i, d := h.Becomes(empty); i < 0 {
			t.Fatalf("the change killed at %d (before %s), then back: the host differs:\n%s", n, point, d)
		}
	}
	if n < 20 || n == limit {
		t.Fatalf("%d kill points", n-1)
	}
	t.Logf("killed at each of %d points", n-1)
}

// limit is more kill points than any operation has.
const limit = 400

func newHost(t *testing.T) *lab.Host {
	t.Helper()
	h := lab.NewHost(t)
	h.Program = lab.Bin(lab.Crashing)
	// It has heard of a router, which IPv6 networks must not make it forget.
	h.Must("ip", "-6", "route", "add", "default", "via", "fe80::99", "dev", "eth0", "proto", "ra")
	return h
}

func TestMatrix(t *testing.T) {
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			matrix(t, op)
		})
	}
}

func matrix(t *testing.T, op operation) {
	h := newHost(t)
	next(h, 0) // the default network exists from here on
	for _, cmd := range op.stage {
		h.OK(cmd...)
	}
	empty := h.Settled()
	setup := func() {
		if op.setup != nil {
			h.OK(op.setup...)
		}
	}
	// The control: nobody is killed.
	setup()
	h.OK(op.run...)
	remove(h, op)
	if i, d := h.Becomes(empty); i < 0 {
		t.Fatalf("%s and its removal change the host:\n%s", op.name, d)
	}
	try := func(n, then int) (more bool) {
		setup()
		point := crashAt(t, h, n, op.run...)
		if point == "" {
			remove(h, op)
			return false
		}
		what := fmt.Sprintf("%s, killed at %d (before %s), then %s", op.name, n, point, next(h, then))
		if exists(h, op) { // it has happened, or, a removal, it has not
			remove(h, op)
			what += ", then removed"
		}
		if i, d := h.Becomes(empty); i < 0 {
			t.Errorf("%s: the host differs from one where it never happened:\n%s", what, d)
			h.OK("gc")
			empty = h.Settled()
		}
		return true
	}
	n := 1
	for n < limit && try(n, 0) && try(n, 1) {
		n++
	}
	if n < 5 || n == limit {
		t.Fatalf("%s has %d kill points", op.name, n-1)
	}
	t.Logf("%s: killed at each of %d points", op.name, n-1)
}

// The first use of all makes the directories, the default network and what all
// networks share; undone, the host is as it was before it.
func TestFirstUse(t *testing.T) {
	for _, args := range [][]string{
		{"create", "--name", "x", "-p", "8080:80"},
		{"network", "create", "n", "--subnet", "10.61.0.0/24"},
		{"network", "create", "n", "--subnet", "10.61.0.0/24", "--ipv6"},
	} {
		t.Run(strings.ReplaceAll(strings.Join(args, " "), "/", "_"), func(t *testing.T) {
			t.Parallel()
			firstUse(t, args)
		})
	}
}

func firstUse(t *testing.T, args []string) {
	h := newHost(t)
	op := operation{target: sandbox, run: args}
	if args[0] == "network" {
		op.target = network
	}
	// back removes the target and the default network, if they are there.
	back := func() {
		if exists(h, op) {
			remove(h, op)
		}
		if h.Sandnet("network", "inspect", "bridge").Code == 0 {
			h.OK("network", "rm", "bridge")
		}
	}
	h.OK(args...)
	back()
	unused := h.Settled()
	try := func(n, then int) (more bool) {
		if err := os.RemoveAll(h.Root); err != nil {
			t.Fatal(err)
		}
		point := crashAt(t, h, n, args...)
		if point == "" {
			back()
			return false
		}
		what := fmt.Sprintf("first use (%s) killed at %d (before %s), then %s", strings.Join(args, " "), n, point, next(h, then))
		back()
		if i, d := h.Becomes(unused); i < 0 {
			t.Errorf("%s: the host differs from an unused one:\n%s", what, d)
		}
		return true
	}
	n := 1
	for n < limit && try(n, 0) && try(n, 1) {
		n++
	}
	if n < 10 || n == limit {
		t.Fatalf("%d kill points", n-1)
	}
	t.Logf("first use (%s): killed at each of %d points", strings.Join(args, " "), n-1)
}

// Cleaning up can be killed as well.
func TestKilledCleanup(t *testing.T) {
	for _, args := range [][]string{
		{"create", "--name", "x", "-p", "8080:80"},
		append([]string{"run", "--name", "x", "-p", "8080:80"}, lingering...),
	} {
		t.Run(args[0], func(t *testing.T) {
			t.Parallel()
			killedCleanup(t, args)
		})
	}
}

func killedCleanup(t *testing.T, args []string) {
	h := newHost(t)
	next(h, 0)
	empty := h.Settled()
	tries := 0
	// The last points are those with the most to clean up.
	for at := 10; ; at += 5 {
		if crashAt(t, h, at, args...) == "" {
			break
		}
		for n := 1; n < limit; n++ {
			point := crashAt(t, h, n, "gc")
			h.OK("gc")
			if i, d := h.Becomes(empty); i < 0 {
				t.Fatalf("%s killed at %d, gc killed at %d (before %s), gc: the host differs:\n%s", args[0], at, n, point, d)
			}
			if point == "" {
				break
			}
			tries++
			crashAt(t, h, at, args...)
		}
		h.OK("gc")
	}
	h.OK("rm", "-f", "x")
	if tries < 10 {
		t.Errorf("%d kill points", tries)
	}
	t.Logf("%s: cleaning up killed %d times", args[0], tries)
}

// crashAt runs sandnet up to its nth kill point and returns what that point
// is before, or "" if the operation ended first.
func crashAt(t *testing.T, h *lab.Host, n int, args ...string) string {
	t.Helper()
	log := filepath.Join(filepath.Dir(h.Root), "points")
	defer os.Remove(log)
	r := h.SandnetEnv([]string{fmt.Sprint("SANDNET_CRASH_AT=", n), "SANDNET_CRASH_LOG=" + log}, args...)
	point, err := os.ReadFile(log)
	if err != nil { // nobody was killed
		if r.Code != 0 {
			t.Fatalf("%s", r)
		}
		return ""
	}
	if r.Signal != syscall.SIGKILL {
		t.Errorf("killed at %d (%s), yet %s", n, point, r)
	}
	return strings.TrimSpace(string(point))
}

// next is what comes after a crash: another command that changes things, or gc.
func next(h *lab.Host, then int) string {
	if then == 1 {
		h.OK("gc")
		return "gc"
	}
	h.OK("create", "--name", "other", "-p", "9090:90")
	h.OK("rm", "other")
	return "another create and rm"
}

func exists(h *lab.Host, op operation) bool { return h.Sandnet(op.target...).Code == 0 }

func remove(h *lab.Host, op operation) {
	if op.target[0] == "network" {
		if exists(h, op) {
			h.OK("network", "rm", "n")
		}
		return
	}
	h.OK("rm", "-f", "x")
}
