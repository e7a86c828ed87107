package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandnet/sandnet/tests/lab"
)

// change is what gets killed while the sandbox x is running: it has to have
// happened afterwards, or not, and x runs on.
type change struct {
	name string
	// setup makes x; run changes it.
	setup [][]string
	run   []string
}

// changes are those at a place, and what they need: the networks n and m.
func changes(p place) (stage [][]string, all []change) {
	stage = [][]string{p.network("n", "10.61.0.0/24", "fd00:61::/64"), p.network("m", "10.62.0.0/24", "fd00:62::/64")}
	address, loopback := []string{"--ip", "10.61.0.7"}, "127.0.0.1:8082:82/udp"
	connect := []string{"network", "connect", "--ip", "10.62.0.7", "--alias", "y", "--gw-priority", "1"}
	if p.dual {
		address = append(address, "--ip6", "fd00:61::7")
		connect = append(connect, "--ip6", "fd00:62::7")
		loopback = "[::1]:8082:82/udp"
	}
	connect = append(connect, "m", "x")
	run := func(options ...string) []string {
		return slices.Concat([]string{"run", "-d", "--name", "x", "--net", "n"}, address, options, []string{"--", "sleep", "1000"})
	}
	limits := []string{"-p", "8080:80", "--ingress-rate", "100mbit", "--egress-rate", "50mbit", "--egress", "deny 10.0.0.0/8"}
	return stage, []change{
		// The running command's hosts file is the network's shared one, and has
		// to become its own; gateway and port move, rates and policy are there, too.
		{"connect", [][]string{run(limits...)}, connect},
		{"disconnect", [][]string{run(limits...), connect}, []string{"network", "disconnect", "m", "x"}},
		// The published port has to wait for another network.
		{"disconnect from the last", [][]string{run("-p", "8080:80")}, []string{"network", "disconnect", "n", "x"}},
		{"connect to the first", [][]string{run("-p", "8080:80"), {"network", "disconnect", "n", "x"}}, connect},
		{"port add", [][]string{run("-p", "8080:80")}, []string{"port", "add", "x", "8081:81", loopback}},
		// The policy stays.
		{"port rm", [][]string{run("-p", "8080:80", "--egress", "deny 10.0.0.0/8")}, []string{"port", "rm", "x", "8080:80"}},
	}
}

// TestChanges is the matrix of changes to a living sandbox.
func TestChanges(t *testing.T) {
	t.Parallel()
	for _, p := range places {
		stage, all := changes(p)
		for _, c := range all {
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				changed(t, p, stage, c)
			})
		}
	}
}

func changed(t *testing.T, p place, stage [][]string, c change) {
	h := newHost(t, p)
	next(h, 0)
	for _, cmd := range stage {
		h.OK(cmd...)
	}
	empty := h.Settled()
	setup := func() {
		for _, cmd := range c.setup {
			h.OK(cmd...)
		}
	}
	// The control: nobody is killed.
	setup()
	before := living(t, h)
	h.OK(c.run...)
	after := living(t, h)
	if lab.Diff(before, after) == "" {
		t.Fatal("nothing changes")
	}
	h.OK("rm", "-f", "x")
	if i, d := h.Becomes(empty); i < 0 {
		t.Fatalf("%s and rm change the host:\n%s", c.name, d)
	}
	try := func(n, then int) (more bool) {
		if t.Failed() {
			return false // one is enough to look at
		}
		setup()
		point := crashAt(t, h, n, c.run...)
		what := fmt.Sprintf("%s, killed at %d (before %s), then %s", c.name, n, point, next(h, then))
		got := living(t, h)
		for deadline := time.Now().Add(3 * time.Second); lab.Diff(before, got) != "" && lab.Diff(after, got) != ""; got = living(t, h) {
			if time.Now().After(deadline) {
				t.Errorf("%s: the host is neither as before:\n%s\nnor as after:\n%s", what, lab.Diff(before, got), lab.Diff(after, got))
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		h.OK("rm", "-f", "x")
		if i, d := h.Becomes(empty); i < 0 {
			t.Errorf("%s, then removed: the host differs from one where it never happened:\n%s", what, d)
			h.OK("gc")
			empty = h.Settled()
		}
		return point != ""
	}
	points(t, p, 5, try)
}

// Finishing a change can be killed as well.
func TestKilledFinish(t *testing.T) {
	t.Parallel()
	for _, p := range []place{places[0], places[3]} {
		stage, all := changes(p)
		for _, c := range all {
			if c.name == "connect" || c.name == "port add" {
				t.Run(p.name+"/"+c.name, func(t *testing.T) {
					t.Parallel()
					killedFinish(t, p, stage, c)
				})
			}
		}
	}
}

func killedFinish(t *testing.T, p place, stage [][]string, c change) {
	h := newHost(t, p)
	next(h, 0)
	for _, cmd := range stage {
		h.OK(cmd...)
	}
	h.OK(c.setup[0]...)
	h.OK(c.run...)
	after := living(t, h)
	h.OK("rm", "-f", "x")
	tries := 0
	for n := 1; n < limit; n++ {
		h.OK(c.setup[0]...)
		// Late enough to be recorded, early enough to leave most to do.
		at := 12
		if c.name == "port add" {
			at = 6
		}
		if crashAt(t, h, at, c.run...) == "" {
			t.Fatal("the change ends before it is killed")
		}
		point := crashAt(t, h, n, "gc")
		h.OK("gc")
		if d := lab.Diff(after, living(t, h)); d != "" {
			t.Fatalf("gc killed at %d (before %s), gc: the change is not finished:\n%s", n, point, d)
		}
		h.OK("rm", "-f", "x")
		if point == "" {
			break
		}
		tries++
	}
	if tries < 10 {
		t.Errorf("%d kill points", tries)
	}
	t.Logf("finishing killed %d times", tries)
}

var (
	peerIndex = regexp.MustCompile(`@if\d+`)
	passing   = regexp.MustCompile(`\\"(sum|pid|start)\\":(\\"[0-9a-f]*\\"|\d+)`)
)

// living is the dump of a host on which x runs, with the inside of x, and
// without what differs from one x to the next.
func living(t *testing.T, h *lab.Host) lab.Dump {
	t.Helper()
	var x []struct {
		ID  string `json:"id"`
		PID int    `json:"pid"`
	}
	out := h.OK("inspect", "x")
	if err := json.Unmarshal([]byte(out), &x); err != nil || len(x) != 1 || x[0].PID == 0 {
		t.Fatalf("x does not run: %v: %s", err, out)
	}
	d := h.Dump()
	in := h.Sandbox("x")
	for section, text := range map[string]string{
		"addr":   in.Must("ip", "-br", "addr"),
		"route":  in.Must("ip", "route"),
		"route6": in.Must("ip", "-6", "route", "show", "root", "::/0", "proto", "static"),
	} {
		for l := range strings.Lines(text) {
			// The peer's index and the columns' widths say nothing.
			words := strings.Join(strings.Fields(peerIndex.ReplaceAllString(l, "")), " ")
			d = append(d, "inside "+section+": "+words)
		}
	}
	hosts, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/etc/hosts", x[0].PID))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(hosts)) {
		d = append(d, "inside hosts: "+l)
	}
	for _, qdisc := range strings.Split(h.Must("tc", "qdisc"), "\n") {
		if strings.Contains(qdisc, "tbf") || strings.Contains(qdisc, "ingress") {
			d = append(d, "qdisc: "+qdisc)
		}
	}
	for i, l := range d {
		l = passing.ReplaceAllString(l, "$1")
		id := x[0].ID
		d[i] = strings.NewReplacer("sv"+id[:11], "svID", "si"+id[:11], "siID", id, "ID64", id[:12], "ID12").Replace(l)
	}
	return d
}
