package e2e

import (
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestNames(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "n")
	create(t, h, "a", "--net", "n", "--network-alias", "db", "--network-alias", "store")
	create(t, h, "b", "--net", "n")
	create(t, h, "stranger")
	ipA, ipB := address(t, h, "a"), address(t, h, "b")
	for name, want := range map[string]string{"a": ipA, "db": ipA, "store": ipA, "b": ipB, "localhost": "::1"} {
		if got := h.OK("exec", "b", "--", "getent", "hosts", name); !strings.HasPrefix(got, want+" ") {
			t.Errorf("b resolves %s to %q, not %s", name, got, want)
		}
	}
	if got := h.OK("exec", "stranger", "--", "cat", "/etc/hosts"); strings.Contains(got, ipA) {
		t.Errorf("a sandbox of another network sees a:\n%s", got)
	}
	if got := inspect(t, h, "a").Endpoints[0].Aliases; strings.Join(got, " ") != "db store" {
		t.Errorf("aliases: %v", got)
	}
	h.OK("rm", "a", "b", "stranger")
	h.OK("network", "rm", "n")
	h.Unchanged(before, "rm of everything")
}

// A running command sees neighbours come and go.
func TestNamesStayCurrent(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "n")
	create(t, h, "one", "--net", "n")
	watch := func(name string, args ...string) *lab.Process {
		script := `echo ready
until grep -qw ` + name + ` /etc/hosts; do sleep 0.02; done; grep -w ` + name + ` /etc/hosts
while grep -qw ` + name + ` /etc/hosts; do sleep 0.02; done; echo gone`
		return h.StartSandnet(append(args, "--", "sh", "-c", script)...)
	}
	// One with nothing of its own in its hosts file, one with an --add-host, one
	// that runs in the foreground.
	create(t, h, "two", "--net", "n", "--add-host", "x:10.1.2.3")
	watchers := []*lab.Process{
		watch("late", "exec", "one"),
		watch("late", "exec", "two"),
		watch("late", "run", "--net", "n", "--name", "three"),
	}
	for _, w := range watchers {
		w.Await("ready")
	}
	create(t, h, "late", "--net", "n")
	ip := address(t, h, "late")
	for _, w := range watchers {
		w.Await(ip)
	}
	h.OK("rm", "late")
	for _, w := range watchers {
		w.Await("gone")
		if r := w.Result(); r.Code != 0 {
			t.Error(r)
		}
	}
	h.OK("rm", "one", "two")
	h.OK("network", "rm", "n")
	h.Unchanged(before, "rm of everything")
}

func TestHostname(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	ours := h.Must("hostname")
	hosts := h.Must("cat", "/etc/hosts")
	create(t, h, "web", "--hostname", "www", "--add-host", "db:10.1.2.3", "--dns", "192.0.2.53", "--dns-search", "example.org")
	for _, x := range []struct{ want, cmd string }{
		{"www", "hostname"},
		{"www", "cat /etc/hostname"},
		{address(t, h, "web"), "getent hosts www"},
		{"10.1.2.3", "getent hosts db"},
		{"nameserver 192.0.2.53", "cat /etc/resolv.conf"},
		{"search example.org", "cat /etc/resolv.conf"},
	} {
		if got := h.OK("exec", "web", "--", "sh", "-c", x.cmd); !strings.Contains(got, x.want) {
			t.Errorf("%s says %q, not %q", x.cmd, got, x.want)
		}
	}
	if got := h.OK("exec", "web", "--", "sh", "-c", "grep -c nameserver /etc/resolv.conf"); got != "1" {
		t.Errorf("%s nameservers", got)
	}
	// A name is a hostname too.
	create(t, h, "plain")
	if got := h.OK("exec", "plain", "--", "hostname"); got != "plain" && got != inspect(t, h, "plain").ID[:12] {
		t.Errorf("hostname %q", got)
	}
	// A change inside stays inside.
	h.OK("exec", "web", "--", "hostname", "changed")
	if got := h.Must("hostname"); got != ours {
		t.Errorf("the host is now called %q", got)
	}
	if got := h.Must("cat", "/etc/hosts"); got != hosts {
		t.Errorf("the host's /etc/hosts is now %q", got)
	}
	h.OK("rm", "web", "plain")
	h.Unchanged(before, "rm of both")
}

// With the default root, iproute2 sees sandboxes by name, and their files.
func TestIPNetns(t *testing.T) {
	h := lab.NewHost(t)
	h.Root = "" // where it then is, is the world's own
	h.OK("network", "create", "n")
	h.OK("create", "--name", "a", "--net", "n")
	h.OK("create", "--name", "b", "--net", "n", "--dns", "192.0.2.53")
	if got := inspect(t, h, "b").Netns; got != "/run/netns/b" {
		t.Errorf("netns is %s", got)
	}
	ip := address(t, h, "a")
	for want, cmd := range map[string]string{
		ip + "\ta":              "cat /etc/hosts",
		"nameserver 192.0.2.53": "cat /etc/resolv.conf",
		"eth0":                  "ip link",
	} {
		if got := h.Must("ip", "netns", "exec", "b", "sh", "-c", cmd); !strings.Contains(got, want) {
			t.Errorf("ip netns exec b %s: no %q in\n%s", cmd, want, got)
		}
	}
	h.OK("rm", "a", "b")
	h.OK("network", "rm", "n")
	if got := h.Must("sh", "-c", "ls /run/netns /etc/netns"); strings.Contains(got, "\na\n") || strings.Contains(got, "\nb\n") {
		t.Errorf("left behind: %s", got)
	}
}
