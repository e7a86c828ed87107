package kernel

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/plan"
)

// rated is a sandbox whose link is limited both ways.
func rated(dir string, in uint64) []plan.Object {
	return append(sandboxPlan(dir, "a", "10.1.0.2/24"),
		plan.Qdisc{Link: "sva", Type: plan.TBF, Rate: in, Burst: 12_500, Limit: 75_000},
		plan.Link{Name: "sia", Type: plan.IFB, MTU: 1400, Mark: testMark},
		plan.Qdisc{Link: "sia", Type: plan.TBF, Rate: 40_000_000_000, Burst: 50_000_000, Limit: 300_000_000}, // beyond 32 bits of bytes
		plan.Qdisc{Link: "sva", Type: plan.Ingress},
		plan.Redirect{Link: "sva", To: "sia"})
}

func TestRatesAreMadeOnce(t *testing.T) {
	k, dir := testKernel(t)
	mustEnsure(t, k, bridgePlan())
	mustEnsure(t, k, rated(dir, 10_000_000))
	if n := mustEnsure(t, k, rated(dir, 10_000_000)); n != 0 {
		t.Errorf("%d changes to what is right", n)
	}
	qdiscs, filters := run(t, "tc", "qdisc"), run(t, "tc", "filter", "show", "dev", "sva", "ingress")
	for _, want := range []string{"tbf 1: dev sva root", "rate 10Mbit burst 12500b", "tbf 1: dev sia root", "rate 40Gbit", "ingress ffff: dev sva"} {
		if !strings.Contains(qdiscs, want) {
			t.Errorf("no %q in\n%s", want, qdiscs)
		}
	}
	if !strings.Contains(filters, "Egress Redirect to device sia") || !strings.Contains(filters, "fh 800::800") {
		t.Errorf("filters:\n%s", filters)
	}
	// Another rate, and a redirection that somebody took away.
	run(t, "tc", "filter", "del", "dev", "sva", "ingress")
	if n := mustEnsure(t, k, rated(dir, 20_000_000)); n != 2 {
		t.Errorf("%d changes, want the rate and the redirection", n)
	}
	if got := run(t, "tc", "qdisc"); !strings.Contains(got, "rate 20Mbit") {
		t.Errorf("qdiscs:\n%s", got)
	}
	// The limits alone can go, and what is gone already is no error.
	objs := rated(dir, 20_000_000)
	limits := objs[len(objs)-2:]
	mustDelete(t, k, limits)
	mustDelete(t, k, append(limits, objs[len(objs)-5]))
	if got := run(t, "tc", "qdisc"); strings.Contains(got, "ingress") || strings.Contains(got, "dev sva root refcnt 3 rate") {
		t.Errorf("qdiscs:\n%s", got)
	}
	mustDelete(t, k, objs)
	if linkExists(t, k, "sia") {
		t.Error("the ifb is left")
	}
	mustDelete(t, k, objs)
}

func TestCommandsDoWhatTheyStandFor(t *testing.T) {
	k, dir := testKernel(t)
	mustEnsure(t, k, bridgePlan())
	objs := rated(dir, 10_000_000)
	mustEnsure(t, k, objs[:4])
	for _, o := range objs[4:] {
		for _, c := range o.Commands() {
			run(t, "sh", "-c", c)
		}
	}
	if n := mustEnsure(t, k, objs[4:]); n != 0 {
		t.Errorf("%d differences between what the commands and what the kernel package make", n)
	}
}

func TestGatewayIsReplaced(t *testing.T) {
	k, dir := testKernel(t)
	mustEnsure(t, k, bridgePlan())
	objs := sandboxPlan(dir, "a", "10.1.0.2/24")
	mustEnsure(t, k, objs)
	route := objs[3].(plan.Route)
	if n := mustEnsure(t, k, []plan.Object{route}); n != 0 {
		t.Errorf("%d changes to the same route", n)
	}
	route.Via = netip.MustParseAddr("10.1.0.254")
	if n := mustEnsure(t, k, []plan.Object{route}); n != 1 {
		t.Errorf("%d changes", n)
	}
	got := run(t, "nsenter", "--net="+filepath.Join(dir, "a"), "ip", "route", "show", "default")
	if got != "default via 10.1.0.254 dev eth0 proto static \n" {
		t.Errorf("routes: %q", got)
	}
}

func TestPortFlagsAreAdjusted(t *testing.T) {
	k, dir := testKernel(t)
	mustEnsure(t, k, bridgePlan())
	objs := sandboxPlan(dir, "a", "10.1.0.2/24")
	mustEnsure(t, k, objs)
	link := objs[1].(plan.Link)
	for _, hairpin := range []bool{true, false} {
		link.Hairpin, link.Isolated = hairpin, !hairpin
		for _, want := range []int{1, 0} {
			if n := mustEnsure(t, k, []plan.Object{link}); n != want {
				t.Errorf("hairpin %v: %d changes, want %d", hairpin, n, want)
			}
		}
		c, err := k.host()
		if err != nil {
			t.Fatal(err)
		}
		if have, err := c.link("sva"); err != nil || have.hairpin != hairpin || have.isolated == hairpin {
			t.Errorf("port %+v, %v", have, err)
		}
	}
}

// A link that a killed command made, but did not bring up, comes up.
func TestHalfMadeLinkIsFinished(t *testing.T) {
	k, dir := testKernel(t)
	mustEnsure(t, k, bridgePlan())
	objs := sandboxPlan(dir, "a", "10.1.0.2/24")
	mustEnsure(t, k, objs)
	run(t, "ip", "link", "set", "sva", "down")
	run(t, "nsenter", "--net="+filepath.Join(dir, "a"), "ip", "link", "set", "eth0", "down")
	if n := mustEnsure(t, k, objs[1:2]); n != 2 {
		t.Errorf("%d changes, want one for each end", n)
	}
	if n := mustEnsure(t, k, objs[1:2]); n != 0 {
		t.Errorf("%d more changes", n)
	}
}

// run runs a command in the calling thread's namespace, the test's own.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
