package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/tests/lab"
)

// damage is what an administrator, or another program, may do to a host with
// the sandboxes web (published on 8080) and db on the network n.
type damage struct {
	name string
	do   func(t *testing.T, h *lab.Host)
	// diff are words of a line that `sandnet diff` prints.
	diff []string
	// next says that the next create on the network mends it, too.
	next bool
}

func sh(line string) func(*testing.T, *lab.Host) {
	return func(t *testing.T, h *lab.Host) {
		t.Helper()
		web := inspect(t, h, "web")
		r := strings.NewReplacer("VETH", web.Endpoints[0].HostInterface, "NETNS", web.Netns, "ROOT", h.Root)
		h.Must("sh", "-ec", r.Replace(line))
	}
}

var damages = []damage{
	{"rules flushed", sh("nft flush ruleset"), []string{"host", "table inet sandnet", "missing"}, true},
	{"a chain flushed", sh("nft flush chain inet sandnet prerouting"), []string{"host", "table inet sandnet", "rules"}, true},
	{"a port taken out", sh("nft flush map inet sandnet ports"), []string{"sandbox/web", "element inet sandnet ports tcp . 8080", "missing"}, false},
	{"bridge deleted", sh("ip link del br-n"), []string{"network/n", "link br-n", "missing"}, true},
	{"bridge down", sh("ip link set br-n down"), []string{"network/n", "link br-n", "state: want up, have down"}, true},
	{"gateway deleted", sh("ip addr flush dev br-n"), []string{"network/n", "10.61.0.1/24", "missing"}, true},
	{"veth deleted", sh("ip link del VETH"), []string{"sandbox/web", "link sv", "missing"}, false},
	{"veth off the bridge", sh("ip link set VETH nomaster"), []string{"sandbox/web", "link sv", "master: want br-n, have none"}, false},
	{"ip_forward", sh("sysctl -qw net.ipv4.ip_forward=0"), []string{"host", "ip_forward", "want 1, have 0"}, true},
	{"route_localnet", sh("sysctl -qw net.ipv4.conf.br-n.route_localnet=0"), []string{"network/n", "route_localnet", "want 1, have 0"}, true},
	{"address inside", sh("nsenter --net=NETNS ip addr flush dev eth0"), []string{"sandbox/web", "eth0", "missing"}, false},
	{"files", sh("rm -r ROOT/run/etc/web"), []string{"sandbox/web", "etc/web/resolv.conf", "missing"}, false},
	{"hosts lines", sh("sed -i /web/d ROOT/run/hosts/n/shared"), []string{"sandbox/web", "line in shared"}, false},
	{"namespace gone", func(t *testing.T, h *lab.Host) { unpin(t, h, "web") }, []string{"sandbox/web", "netns", "missing"}, false},
}

// repairable is a host with the sandboxes of damages, and a way to see that all
// is well: the published port answers, and the sandboxes see each other.
func repairable(t *testing.T) (h *lab.Host, well func(when string)) {
	t.Helper()
	h = lab.NewHost(t)
	h.OK("network", "create", "n", "--subnet", "10.61.0.0/24", "--bridge", "br-n")
	create(t, h, "web", "--net", "n", "-p", "8080:80", "--ip", "10.61.0.2")
	create(t, h, "db", "--net", "n", "--ip", "10.61.0.3")
	return h, func(when string) {
		t.Helper()
		if r := h.Sandnet("diff"); r.Code != 0 || r.Stdout != "" || r.Stderr != "" {
			t.Errorf("%s: diff: %s", when, r)
		}
		// Made anew perhaps, the namespace has no server of before.
		h.Sandbox("web").ServeTCP("0.0.0.0:80")
		reach(t, h.NS, "10.61.0.2:80", when)
		reach(t, h.Sandbox("db"), "10.61.0.2:80", when)
		reach(t, h.NS, "127.0.0.1:8080", when)
		reach(t, h.Sandbox("db"), "10.61.0.1:8080", when)
	}
}

func reach(t *testing.T, from *lab.NS, to, when string) {
	t.Helper()
	if _, err := from.Ask("tcp", to, 3*time.Second); err != nil {
		t.Errorf("%s: %s does not reach %s: %v", when, from.Name, to, err)
	}
}

func unpin(t *testing.T, h *lab.Host, name string) {
	t.Helper()
	if err := unix.Unmount(h.Netns(name), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(h.Netns(name)); err != nil {
		t.Fatal(err)
	}
}

func TestDiffAndRepair(t *testing.T) {
	t.Parallel()
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			h, well := repairable(t)
			d.do(t, h)
			r := h.Sandnet("diff")
			if r.Code != 1 || r.Stderr != "" || !hasLine(r.Stdout, d.diff) {
				t.Errorf("no line with %q: %s", d.diff, r)
			}
			before := h.Settled()
			dry := h.OK("gc", "--repair", "--dry-run")
			if !hasLine(dry, append([]string{"repair"}, d.diff...)) {
				t.Errorf("dry run: no line with %q:\n%s", d.diff, dry)
			}
			if diff := lab.Diff(before, h.Dump()); diff != "" {
				t.Errorf("a dry run changes\n%s", diff)
			}
			if mended := h.OK("gc", "--repair"); !hasLine(mended, append([]string{"repair"}, d.diff...)) {
				t.Errorf("repair: no line with %q:\n%s", d.diff, mended)
			}
			well("after gc --repair")
			if again := h.OK("gc", "--repair"); again != "" {
				t.Errorf("the second repair mends\n%s", again)
			}
		})
	}
}

// TestNextCommandMends: what a create on the network comes across, it mends for
// everybody, and says so in one line.
func TestNextCommandMends(t *testing.T) {
	t.Parallel()
	for _, d := range damages {
		if !d.next {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			h, well := repairable(t)
			d.do(t, h)
			r := h.Sandnet("create", "--name", "x", "--net", "n")
			if r.Code != 0 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "mended") {
				t.Errorf("%s", r)
			}
			well("after a create")
		})
	}
}

// The next command in a sandbox mends its link.
func TestExecMends(t *testing.T) {
	t.Parallel()
	h, well := repairable(t)
	sh("ip link del VETH")(t, h)
	r := h.Sandnet("exec", "web", "--", "ip", "-o", "addr", "show", "eth0")
	if r.Code != 0 || !strings.Contains(r.Stdout, "10.61.0.2/24") || !strings.Contains(r.Stderr, "mended") {
		t.Error(r)
	}
	well("after exec")
}

// A namespace whose pin was removed while a process is inside is pinned again.
func TestPinRemoved(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	h.OK("run", "-d", "--name", "web", "--", "sleep", "1000")
	create(t, h, "joined", "--net", "container:web")
	ns := func() string { return h.Must("stat", "-Lc", "%i", h.Netns("web")) }
	before := ns()
	unpin(t, h, "web")
	if out := h.OK("gc", "--repair"); !strings.Contains(out, "pinned again") || ns() != before {
		t.Errorf("another namespace: %s", out)
	}
	if s := inspect(t, h, "web"); s.Status != "running" {
		t.Errorf("%+v", s)
	}
	h.OK("rm", "-f", "web", "joined")
}

// Who has joined a namespace that is lost moves to the new one.
func TestJoinedNamespaceMadeAnew(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	create(t, h, "web")
	create(t, h, "joined", "--net", "container:web")
	unpin(t, h, "joined")
	unpin(t, h, "web")
	out := h.OK("gc", "--repair")
	if !strings.Contains(out, "made anew") {
		t.Errorf("%s", out)
	}
	a, b := h.Must("stat", "-Lc", "%i", h.Netns("web")), h.Must("stat", "-Lc", "%i", h.Netns("joined"))
	if a != b {
		t.Errorf("namespaces %s and %s", a, b)
	}
	h.OK("diff")
	h.OK("rm", "joined", "web")
}

// What cannot be mended is said; the rest is mended all the same.
func TestRepairGoesOn(t *testing.T) {
	t.Parallel()
	h, well := repairable(t)
	sleep := h.Start(nil, "unshare", "--net", "sleep", "1000")
	create(t, h, "guest", "--net", fmt.Sprintf("container:%d", sleep.Process.Pid))
	unpin(t, h, "guest")
	sh("ip link del VETH")(t, h)
	r := h.Sandnet("gc", "--repair")
	if r.Code != 1 || !strings.Contains(r.Stderr, "guest") || !strings.Contains(r.Stdout, "link sv") {
		t.Error(r)
	}
	h.OK("rm", "guest")
	well("after a repair that fails in part")
}

func TestDiffJSON(t *testing.T) {
	t.Parallel()
	h, _ := repairable(t)
	if out := h.OK("diff", "--format", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("nothing differs: %s", out)
	}
	sh("ip link set VETH mtu 1400; sysctl -qw net.ipv4.ip_forward=0; ip addr flush dev br-n")(t, h)
	r := h.Sandnet("diff", "--format", "json")
	var got []map[string]any
	if err := json.Unmarshal([]byte(r.Stdout), &got); err != nil || r.Code != 1 {
		t.Fatalf("%v: %s", err, r)
	}
	var lines []string
	for _, d := range got {
		lines = append(lines, fmt.Sprint(d["owner"], " ", d["kind"], " ", d["missing"], " ", d["property"], " ", d["want"], " ", d["have"]))
	}
	want := "host sysctl false value 1 0|network/n addr true <nil> <nil> <nil>|sandbox/web link false mtu 1500 1400"
	if strings.Join(lines, "|") != want {
		t.Errorf("got %s\nwant %s", strings.Join(lines, "|"), want)
	}
}

func hasLine(text string, words []string) bool {
	for line := range strings.Lines(text) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}

// What the kernel shows in other words than it was told, and what went with a
// link that is not sandnet's, is no difference.
func TestNoFalseDifference(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	// An uplink that has heard of a router: sandnet has it go on listening.
	h.Must("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan1")
	h.Must("ip", "link", "set", "wan0", "up")
	h.Must("ip", "addr", "add", "2001:db8::5/64", "dev", "wan0", "valid_lft", "3600", "preferred_lft", "3600")
	h.OK("network", "create", "n", "--ipv6")
	if got := h.Must("cat", "/proc/sys/net/ipv6/conf/wan0/accept_ra"); got != "2" {
		t.Fatalf("accept_ra of the uplink: %s", got)
	}
	h.Must("ip", "link", "del", "wan0")
	web := create(t, h, "web", "--net", "n", "--sysctl", "net.ipv4.ip_local_port_range=1024 65000",
		"--sysctl", "net.ipv4.ping_group_range=0\t0x7fffffff", "--sysctl", "net.ipv4.conf.eth0.forwarding=1")
	if got := web.Must("cat", "/proc/sys/net/ipv4/ping_group_range"); got != "0\t2147483647" {
		t.Fatalf("ping_group_range: %q", got)
	}
	for _, args := range [][]string{{"diff"}, {"gc", "--repair"}} {
		if out := h.OK(args...); out != "" {
			t.Errorf("%s: %s", args[0], out)
		}
	}
	web.Must("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 60000")
	if r := h.Sandnet("diff"); r.Code != 1 || !hasLine(r.Stdout, []string{"ip_local_port_range", "want 1024 65000, have 1024 60000"}) {
		t.Error(r)
	}
	h.OK("gc", "--repair")
	h.OK("diff")
}

// A dry run leaves alone even what killed commands have left.
func TestDryRunOnly(t *testing.T) {
	t.Parallel()
	h, _ := repairable(t)
	sh("nft flush chain inet sandnet prerouting; ip link set VETH down")(t, h)
	for _, owner := range []string{"host", "sandbox:db"} {
		if err := os.WriteFile(h.Root+"/run/locks/"+owner, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := h.Dump()
	out := h.OK("gc", "--dry-run", "--repair")
	for _, words := range [][]string{{"sandbox/db", "killed"}, {"host", "killed"}, {"repair sandbox/web", "state"}} {
		if !hasLine(out, words) {
			t.Errorf("no line with %q:\n%s", words, out)
		}
	}
	if d := lab.Diff(before, h.Dump()); d != "" {
		t.Errorf("a dry run changes\n%s", d)
	}
	h.OK("gc", "--repair")
	h.OK("diff")
}

// What is being removed is not put back: restoring waits for the removal's end.
func TestMendedWhileRemoved(t *testing.T) {
	t.Parallel()
	h, _ := repairable(t)
	// A removal that is past the rules and not yet at the record.
	records := h.Root + "/run/records"
	removal, err := os.Open(records)
	if err != nil {
		t.Fatal(err)
	}
	defer removal.Close()
	if err := unix.Flock(int(removal.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	h.Must("nft", "flush", "ruleset")
	other := h.StartSandnet("create", "--name", "x")
	ports := func() string { return h.Run("nft", "list", "map", "inet", "sandnet", "ports").Stdout }
	lab.Eventually(t, "the host's rules", func() error {
		if !strings.Contains(ports(), "map ports") {
			return errors.New(ports())
		}
		return nil
	})
	if err := os.Remove(records + "/sandbox/web.json"); err != nil {
		t.Fatal(err)
	}
	_ = removal.Close()
	if r := other.Result(); r.Code != 0 {
		t.Error(r)
	}
	if got := ports(); strings.Contains(got, "8080") {
		t.Errorf("put back: %s", got)
	}
}
