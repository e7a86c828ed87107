// Package crash kills sandnet at every instant between two of its changes, one
// after another, and checks that after the next command the operation has
// either happened or not: nothing in between is left, and nothing that belongs
// to nobody. It contains nothing but tests.
package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestMain(m *testing.M) { lab.Main(m, lab.Crashing) }

// limit is more kill points than any operation has.
const limit = 400

func newHost(t *testing.T, p place) *lab.Host {
	t.Helper()
	h := lab.NewHost(t)
	h.Program, h.Firewall = lab.Bin(lab.Crashing), p.firewall
	// It has heard of a router, which IPv6 networks must not make it forget.
	h.Must("ip", "-6", "route", "add", "default", "via", "fe80::99", "dev", "eth0", "proto", "ra")
	return h
}

// TestMatrix is every operation in every place where it differs.
func TestMatrix(t *testing.T) {
	t.Parallel()
	for i, p := range places {
		for _, op := range operations(p) {
			if op.alike && i > 0 {
				continue
			}
			t.Run(p.name+"/"+op.name, func(t *testing.T) {
				t.Parallel()
				matrix(t, p, op)
			})
		}
	}
}

func matrix(t *testing.T, p place, op operation) {
	h := newHost(t, p)
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
	remove(t, h, op)
	if i, d := h.Becomes(empty); i < 0 {
		t.Fatalf("%s and its removal change the host:\n%s", op.name, d)
	}
	try := func(n, then int) (more bool) {
		setup()
		point := crashAt(t, h, n, op.run...)
		if point == "" {
			remove(t, h, op)
			return false
		}
		what := fmt.Sprintf("%s, killed at %d (before %s), then %s", op.name, n, point, next(h, then))
		remove(t, h, op) // it has happened, or, a removal, it has not
		if i, d := h.Becomes(empty); i < 0 {
			t.Errorf("%s: the host differs from one where it never happened:\n%s", what, d)
			h.OK("gc")
			empty = h.Settled()
		}
		return true
	}
	points(t, p, 5, try)
}

// points tries every kill point, of which there are at least some, with some of
// what may come next after each.
func points(t *testing.T, p place, least int, try func(n, then int) (more bool)) {
	t.Helper()
	n := 1
	for n < limit {
		then := n + slices.Index(places, p)
		if !try(n, then) || p == places[0] && !try(n, then+1) {
			break
		}
		n++
	}
	if n <= least || n == limit {
		t.Fatalf("%d kill points", n-1)
	}
	t.Logf("killed at each of %d points", n-1)
}

// The first use of all makes the directories, the default network and what all
// networks share; undone, the host is as it was before it.
func TestFirstUse(t *testing.T) {
	t.Parallel()
	for _, p := range places {
		for _, args := range [][]string{
			{"create", "--name", "x", "-p", "8080:80"},
			p.network("n", "10.61.0.0/24"),
		} {
			if args[0] == "create" && p.dual {
				continue // the default network is not
			}
			t.Run(p.name+"/"+args[0], func(t *testing.T) {
				t.Parallel()
				firstUse(t, p, args)
			})
		}
	}
}

func firstUse(t *testing.T, p place, args []string) {
	h := newHost(t, p)
	op := operation{target: sandbox, run: args}
	if args[0] == "network" {
		op.target = network
	}
	// back removes the target and the default network, if they are there.
	back := func() {
		remove(t, h, op)
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
	points(t, p, 10, try)
}

// Cleaning up can be killed as well.
func TestKilledCleanup(t *testing.T) {
	t.Parallel()
	for _, p := range []place{places[0], places[3]} {
		for _, op := range operations(p) {
			if op.name == "create published" || op.name == "run" && !p.dual || op.name == "network create" {
				t.Run(p.name+"/"+op.name, func(t *testing.T) {
					t.Parallel()
					killedCleanup(t, p, op)
				})
			}
		}
	}
}

func killedCleanup(t *testing.T, p place, op operation) {
	h := newHost(t, p)
	next(h, 0)
	for _, cmd := range op.stage {
		h.OK(cmd...)
	}
	empty := h.Settled()
	tries := 0
	// The last points are those with the most to clean up.
	for at := 10; crashAt(t, h, at, op.run...) != ""; at += 11 {
		for n := 1; n < limit; n++ {
			point := crashAt(t, h, n, "gc")
			h.OK("gc")
			remove(t, h, op) // the crash may have come after the last change of all
			if i, d := h.Becomes(empty); i < 0 {
				t.Fatalf("killed at %d, gc killed at %d (before %s), gc: the host differs:\n%s", at, n, point, d)
			}
			if point == "" {
				break
			}
			tries++
			crashAt(t, h, at, op.run...)
		}
	}
	remove(t, h, op)
	if tries < 10 {
		t.Errorf("%d kill points", tries)
	}
	t.Logf("cleaning up killed %d times", tries)
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

// next is what comes after a crash: another command that changes things, gc, or
// one that only looks, each of which finishes what it finds.
func next(h *lab.Host, then int) string {
	switch then % 3 {
	case 1:
		h.OK("gc")
		return "gc"
	case 2:
		h.OK("ps")
		return "ps"
	}
	h.OK("create", "--name", "other", "-p", "9090:90")
	h.OK("rm", "other")
	return "another create and rm"
}

func exists(h *lab.Host, op operation) bool { return h.Sandnet(op.target...).Code == 0 }

// remove removes the target, if it is there.
func remove(t *testing.T, h *lab.Host, op operation) {
	t.Helper()
	if op.target[0] != "network" {
		h.OK("rm", "-f", "x")
		return
	}
	if r := h.Sandnet("network", "rm", "n"); r.Code != 0 && !strings.Contains(r.Stderr, "no such network") {
		t.Fatal(r)
	}
}
