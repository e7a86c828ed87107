package e2e

import (
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

// rulesOf is the part of a dump that firewalls are made of.
func rulesOf(d lab.Dump) lab.Dump {
	return slices.DeleteFunc(slices.Clone(d), func(l string) bool {
		return !strings.HasPrefix(l, "nft: ") && !strings.HasPrefix(l, "iptables-save: ") && !strings.HasPrefix(l, "ip6tables-save: ")
	})
}
