package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestBadInput(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	used(t, h)
	create(t, h, "taken")
	long := strings.Repeat("n", 200)
	for _, args := range [][]string{
		{"--name", "../x"}, {"--name=-rf"}, {"--name", "a;b"}, {"--name", long}, {"--name", "a\nb"}, {"--name", "a/b"}, {"--name", "."},
		{"--name", "taken"},
		{"--net", "nosuch"}, {"--net", "../x"}, {"--net", "container:nosuch"},
		{"-p", "0:80"}, {"-p", "80:0"}, {"-p", "70000:80"}, {"-p", "80:70000"}, {"-p", "x:80"}, {"-p", "80/icmp"}, {"-p", ""},
		{"-p", "8000-8002:80-81"}, {"-p", "8002-8000:80-82"}, {"-p", "192.0.2.1:80:80"}, {"-p", "1.2.3:80:80"},
		{"-p", "8080:80", "-p", "8080:81"},
		{"--ip", "1.2.3"}, {"--mac-address", "zz"}, {"--mac-address", "01:00:5e:00:00:01"}, {"--hostname", "a b"}, {"--hostname", long},
		{"--dns", "x"}, {"--dns-search", "a b"}, {"--add-host", "nocolon"}, {"--add-host", "a b:1.2.3.4"}, {"--add-host", "a:1.2"},
		{"--network-alias", "a b"}, {"--label", ""}, {"--sysctl", "kernel.panic=1"}, {"--sysctl", "net.ipv4.x"}, {"--sysctl", "net.../../x=1"},
		{"--mtu", "1"}, {"--mtu", "x"},
		{"--no-such-flag"},
	} {
		// The message shows the value, shortened and on one line.
		value, _, _ := strings.Cut(strings.TrimPrefix(args[len(args)-1], "--name="), "\n")
		h.Refused(2, []string{value[:min(len(value), 16)]}, append([]string{"create"}, args...)...)
	}
	h.Refused(2, nil, "no-such-command")
	h.Refused(2, nil, "run")
	h.Refused(2, nil, "create", "surplus")
	h.Refused(1, []string{"nosuch"}, "rm", "nosuch")
	h.Refused(1, []string{"nosuch"}, "inspect", "nosuch")
}

// As another user nothing works that changes anything, and the message says
// why; what only tells works.
func TestWithoutRoot(t *testing.T) {
	h := lab.NewHost(t)
	used(t, h)
	as := func(args ...string) lab.Result {
		// The binary lies in root's temporary directory.
		prog := filepath.Join("/run/netns", fmt.Sprint("sandnet-", os.Getpid()))
		data, err := os.ReadFile(h.Program)
		if err == nil {
			err = os.WriteFile(prog, data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(prog)
		return h.Run("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", prog}, args...)...)
	}
	if r := as("create", "--name", "x"); r.Code != 2 || !strings.Contains(r.Stderr, "root") {
		t.Errorf("want exit 2 and a word on root: %s", r)
	}
	for _, args := range [][]string{{"plan", "--name", "x", "-p", "8080:80"}, {"version"}, {"--help"}} {
		if r := as(args...); r.Code != 0 || r.Stdout == "" {
			t.Error(r)
		}
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := h.Dump()
	out := h.OK("plan", "--name", "web", "-p", "8080:80")
	for _, want := range []string{"ip netns add web", "ip link add sandnet0", "172.30.0.", "peer name eth0", "nft ", "8080"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the plan:\n%s", want, out)
		}
	}
	var plan any
	if err := json.Unmarshal([]byte(h.OK("plan", "--format", "json", "--name", "web", "-p", "8080:80")), &plan); err != nil {
		t.Error(err)
	}
	h.Unchanged(before, "plan")
	h.Refused(2, []string{"70000"}, "plan", "-p", "70000:80")
}

func TestListing(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	used(t, h)
	if out := h.OK("ps", "-q"); out != "" {
		t.Errorf("ps -q: %q", out)
	}
	create(t, h, "a", "-p", "8080:80")
	create(t, h, "b", "--net", "none")
	a := inspect(t, h, "a")
	if out := h.OK("ps", "-q"); len(strings.Fields(out)) != 2 || !strings.Contains(out, a.ID[:12]) {
		t.Errorf("ps -q: %q", out)
	}
	if out := h.OK("ps"); strings.Count(out, "\n") != 2 || !strings.Contains(out, "8080") || !strings.Contains(out, " a  ") {
		t.Errorf("ps:\n%s", out)
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(h.OK("ps", "--format", "json")), &list); err != nil || len(list) != 2 {
		t.Errorf("ps --format json: %v %v", list, err)
	}
	var both []sandbox
	if err := json.Unmarshal([]byte(h.OK("inspect", "a", inspect(t, h, "b").ID[:12])), &both); err != nil || len(both) != 2 || both[1].Name != "b" {
		t.Errorf("inspect of two: %+v %v", both, err)
	}
	if got := h.OK("version"); !strings.Contains(got, "v0.0.0-test") {
		t.Errorf("version: %q", got)
	}
}

// Every command may be repeated; all state is root's alone.
func TestRepeated(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	create(t, h, "a", "-p", "8080:80")
	for range 2 {
		h.OK("rm", "-f", "a")
		h.OK("gc")
	}
	h.Refused(1, []string{"a"}, "rm", "a")
	h.Unchanged(before, "rm -f twice")
	// Again under the same name.
	create(t, h, "a", "-p", "8080:80")
	h.OK("rm", inspect(t, h, "a").ID[:12])
	h.Unchanged(before, "rm by ID")

	for _, dir := range []string{"run", "lib"} {
		info, err := os.Stat(filepath.Join(h.Root, dir))
		if err != nil || info.Mode().Perm() != 0o700 && dir == "lib" {
			t.Errorf("%s: %v %v", dir, info.Mode(), err)
		}
	}
	_ = filepath.WalkDir(h.Root, func(path string, e fs.DirEntry, err error) error {
		if info, e := os.Lstat(path); err == nil && e == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s may be written by others: %s", path, info.Mode())
		}
		return err
	})
}

// What somebody deletes by hand is no reason to fail.
func TestDamaged(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	create(t, h, "a", "-p", "8080:80")
	h.Must("ip", "link", "del", inspect(t, h, "a").Endpoints[0].HostInterface)
	h.OK("rm", "-f", "a")
	create(t, h, "b", "-p", "8080:80")
	h.Must("umount", h.Netns("b"))
	h.OK("rm", "-f", "b")
	create(t, h, "c", "-p", "8080:80")
	h.Must("nft", "delete", "table", "inet", "sandnet")
	h.OK("rm", "-f", "c")
	h.OK("create", "--name", "d")
	h.OK("rm", "d")
	h.Unchanged(before, "damage and rm")
}

func TestGC(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	create(t, h, "a")
	with := h.Dump()
	if out := h.OK("gc", "--dry-run"); out != "" {
		t.Errorf("gc --dry-run would remove what is in use: %s", out)
	}
	h.OK("gc")
	h.Unchanged(with, "gc with a sandbox there")
	h.OK("rm", "a")
	h.Unchanged(before, "rm")
}

func TestConcurrency(t *testing.T) {
	t.Parallel()
	for _, first := range []bool{false, true} {
		l := lab.New(t)
		h, lan := l.Host("host"), l.Host("neighbour")
		if !first {
			used(t, h)
		}
		const n = 20
		each := func(f func(i int) lab.Result) {
			t.Helper()
			var wg sync.WaitGroup
			results := make([]lab.Result, n)
			for i := range n {
				wg.Go(func() { results[i] = f(i) })
			}
			wg.Wait()
			for _, r := range results {
				if r.Code != 0 {
					t.Error(r)
				}
			}
		}
		name := func(i int) string { return fmt.Sprint("s", i) }
		each(func(i int) lab.Result { return h.Sandnet("create", "--name", name(i), "-p", "80") })
		if t.Failed() {
			return
		}
		ips, ports := map[string]bool{}, map[int]bool{}
		for i := range n {
			s := inspect(t, h, name(i))
			ips[s.Endpoints[0].Addresses[0].String()] = true
			ports[s.Endpoints[0].Ports[0].HostPort] = true
			box := h.Sandbox(name(i))
			box.ServeTCP("0.0.0.0:80")
			lan.Reaches("tcp", fmt.Sprintf("%s:%d", h.IP, s.Endpoints[0].Ports[0].HostPort), box, lan.IP.String())
		}
		if len(ips) != n || len(ports) != n {
			t.Errorf("%d addresses and %d ports for %d sandboxes", len(ips), len(ports), n)
		}
		each(func(i int) lab.Result { return h.Sandnet("rm", name(i)) })
		if out := h.OK("ps", "-q"); out != "" {
			t.Errorf("left: %s", out)
		}
		after := used(t, h)
		h.OK("gc")
		h.Unchanged(after, "gc after everything")
	}
}

// Of many who want one name, or one port, one gets it.
func TestContention(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	for _, args := range [][]string{{"--name", "x"}, {"-p", "8080:80"}, {"--ip", "172.30.0.99"}} {
		var wg sync.WaitGroup
		results := make([]lab.Result, 10)
		for i := range results {
			wg.Go(func() { results[i] = h.Sandnet(append([]string{"create"}, args...)...) })
		}
		wg.Wait()
		won := 0
		for _, r := range results {
			if r.Code == 0 {
				won++
			} else if r.Code != 2 {
				t.Errorf("%s: want exit 2", r)
			}
		}
		if won != 1 {
			t.Errorf("%v: %d of %d got it", args, won, len(results))
		}
		h.OK(append([]string{"rm", "-f"}, strings.Fields(h.OK("ps", "-q"))...)...)
		h.Unchanged(before, "rm")
	}
}
