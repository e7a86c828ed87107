package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// with is sandnet with a choice of firewall.
func with(h *lab.Host, kind string, args ...string) string {
	return h.OK(append([]string{"--firewall", kind}, args...)...)
}

// TestSwitchFirewall changes the firewall under networks, sandboxes and their
// published ports, there and back: everything works all the time, and nothing
// of the other one is left.
func TestSwitchFirewall(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h, lan := l.Host("host"), l.Host("neighbour")
	lan.ServeTCP("0.0.0.0:80")
	with(h, "nftables", "network", "create", "app")
	web := server(t, h, "web", "--net", "app", "-p", "8080:80", "-p", "8080:80/udp")
	near := create(t, h, "near")
	works := func() {
		t.Helper()
		for _, proto := range []string{"tcp", "udp"} {
			lan.Reaches(proto, h.IP.String()+":8080", web, lan.IP.String())
			h.Reaches(proto, "127.0.0.1:8080", web, "")
		}
		near.Reaches("tcp", lan.IP.String()+":80", lan.NS, h.IP.String())
		near.Barred("tcp", address(t, h, "web")+":80")
		lan.Must("ip", "route", "replace", "172.16.0.0/12", "via", h.IP.String())
		lan.Barred("tcp", address(t, h, "web")+":80")
	}
	works()
	before := h.Dump()
	const chains, table = "SANDNET-FORWARD", "table inet sandnet"
	with(h, "iptables", "create", "--name", "x")
	if save, rules := h.Must("iptables-save"), h.Must("nft", "list", "ruleset"); !strings.Contains(save, chains) || strings.Contains(rules, table) {
		t.Errorf("after the change to iptables:\n%s\n%s", save, rules)
	}
	works()
	h.OK("create", "--name", "y", "-p", "8081:80") // auto keeps it
	if save := h.Must("iptables-save"); strings.Count(save, "--dport 8081 ") != 1 {
		t.Errorf("auto does not keep iptables:\n%s", save)
	}
	h.OK("rm", "x", "y")
	with(h, "nftables", "create", "--name", "x")
	if save, rules := h.Must("iptables-save"), h.Must("nft", "list", "ruleset"); strings.Contains(save, "SANDNET") || !strings.Contains(rules, table) {
		t.Errorf("after the change to nftables:\n%s\n%s", save, rules)
	}
	works()
	h.OK("rm", "x")
	// The servers in web go on; what is compared is the rules.
	if d := lab.Diff(rulesOf(before), rulesOf(h.Dump())); d != "" {
		t.Errorf("there and back, the rules differ:\n%s", d)
	}
	h.OK("rm", "web", "near")
	h.OK("network", "rm", "app", "bridge")
	if rules := h.Must("nft", "list", "ruleset"); strings.TrimSpace(rules) != "" {
		t.Errorf("left behind:\n%s", rules)
	}
}

// TestSwitchByChange changes the firewall with a change of a living sandbox.
func TestSwitchByChange(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	h, lan := l.Host("host"), l.Host("neighbour")
	with(h, "nftables", "network", "create", "app")
	web := server(t, h, "web", "--net", "app", "-p", "8080:80")
	for _, c := range []struct {
		kind, other, left string
		words             []string
	}{
		{"iptables", "nft list ruleset", "table inet sandnet", []string{"port", "add", "web", "8081:80"}},
		{"nftables", "iptables-save", "SANDNET", []string{"network", "connect", "bridge", "web"}},
	} {
		with(h, c.kind, c.words...)
		if rules := h.Must("sh", "-c", c.other); strings.Contains(rules, c.left) {
			t.Errorf("after the change to %s:\n%s", c.kind, rules)
		}
		for _, port := range []string{"8080", "8081"} {
			lan.Reaches("tcp", h.IP.String()+":"+port, web, "")
		}
		h.OK("diff")
	}
}

// TestFewPrograms counts the programs that sandnet starts, by programs of the
// same names in its PATH. With the iptables firewall they are two at most for
// a sandbox, with the nftables one none.
func TestFewPrograms(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	for _, pattern := range []string{"ip*tables*", "nft", "ip", "ipset", "conntrack", "tc"} {
		found, _ := filepath.Glob("/usr/sbin/" + pattern)
		for _, path := range found {
			script := fmt.Sprintf("#!/bin/sh\necho %[1]s $* >>%[2]s\nexec %[1]s \"$@\"\n", path, log)
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for kind, most := range map[string]int{"nftables": 0, "iptables": 2} {
		t.Run(kind, func(t *testing.T) {
			h := lab.NewHost(t)
			with(h, kind, "create", "--name", "first", "-p", "8080:80")
			for _, words := range [][]string{{"create", "--name", "web"}, {"create", "--name", "www", "-p", "8081:80", "-p", "8082:80/udp"}, {"rm", "web"}, {"rm", "www"}} {
				_ = os.Remove(log)
				if r := h.SandnetEnv([]string{"PATH=" + dir + ":" + os.Getenv("PATH")}, words...); r.Code != 0 {
					t.Fatal(r)
				}
				ran, _ := os.ReadFile(log)
				if n := strings.Count(string(ran), "\n"); n > most {
					t.Errorf("%v: %d programs, and %d at most should do:\n%s", words, n, most, ran)
				}
				if words[0] == "create" && most > 0 && len(ran) == 0 {
					t.Error("this does not count")
				}
			}
		})
	}
}

// TestProgramOutlives kills sandnet while a program works for it: what that does
// later changes nothing that the next command makes.
func TestProgramOutlives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	started, ended := filepath.Join(dir, "started"), filepath.Join(dir, "ended")
	found, _ := filepath.Glob("/usr/sbin/iptables*-restore")
	for _, path := range found {
		script := fmt.Sprintf("#!/bin/sh\ntouch %s\nsleep 0.5\n%s \"$@\"\ntouch %s\n", started, path, ended)
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	await := func(file string) {
		t.Helper()
		lab.Eventually(t, file, func() error { _, err := os.Stat(file); return err })
	}
	h := lab.NewHost(t)
	with(h, "iptables", "create", "--name", "web", "-p", "8080:80")
	slow := h.Start(append(h.Env(), "PATH="+dir+":"+os.Getenv("PATH")), h.Program, "port", "rm", "web", "8080:80")
	await(started)
	_ = slow.Process.Kill()
	slow.Result()
	h.OK("port", "add", "web", "8081:80")
	await(ended)
	h.OK("diff")
}

// rulesOf is the part of a dump that firewalls are made of.
func rulesOf(d lab.Dump) lab.Dump {
	return slices.DeleteFunc(slices.Clone(d), func(l string) bool {
		return !strings.HasPrefix(l, "nft: ") && !strings.HasPrefix(l, "iptables-save: ") && !strings.HasPrefix(l, "ip6tables-save: ")
	})
}

// What changes a sandbox changes the firewall first; what finishes the change
// of another command does not.
func TestOtherFirewallInAChange(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	with(h, "nftables", "network", "create", "app")
	web := server(t, h, "web", "-p", "8080:80")
	before := rulesOf(h.Dump())
	// A change that was killed before it had recorded anything.
	if err := os.WriteFile(h.Root+"/run/locks/sandbox:web", []byte("xx"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.Sandnet("--firewall", "iptables", "ps"); r.Code != 0 || r.Stderr != "" {
		t.Error(r)
	}
	if d := lab.Diff(before, rulesOf(h.Dump())); d != "" {
		t.Errorf("finished with another firewall:\n%s", d)
	}
	changes := [][]string{
		{"port", "add", "web", "9000:80"}, {"network", "connect", "app", "web"},
		{"network", "disconnect", "app", "web"}, {"port", "rm", "web", "9000:80"},
	}
	for i, kind := range []string{"iptables", "nftables", "iptables", "nftables"} {
		with(h, kind, changes[i]...)
		if got := strings.Contains(h.Must("iptables-save"), "SANDNET-FORWARD"); got != (kind == "iptables") {
			t.Errorf("change %d: iptables is in use: %v", i, got)
		}
		h.OK("diff")
		h.Reaches("tcp", "127.0.0.1:8080", web, "")
	}
	h.OK("rm", "-f", "web")
}
