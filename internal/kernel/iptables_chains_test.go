package kernel

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/firewall/iptables"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// homes runs a test in each of the kernel's two homes of iptables rules.
func homes(t *testing.T, test func(t *testing.T, f iptables.Firewall)) {
	for _, f := range []iptables.Firewall{{}, {Legacy: true}} {
		t.Run(f.Name(), func(t *testing.T) {
			ownNetns(t)
			test(t, f)
		})
	}
}

// hostChains and memberChains are the chains of a host, and of two networks and
// a sandbox with everything.
func hostChains(f iptables.Firewall) []plan.Chains { return only[plan.Chains](f.Host(testMark, "")) }

func memberChains(f iptables.Firewall) []plan.Chains {
	two := []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("fd00:30::/64")}
	objs := f.Network(testMark, spec.Network{Bridge: "sandnet0", Subnets: two})
	objs = append(objs, f.Network(testMark, spec.Network{Bridge: "sn-0123456789ab", Subnets: two[:1], NoICC: true, Internal: true})...)
	objs = append(objs, f.Network(testMark, spec.Network{Bridge: "sn-routed", Subnets: two, GatewayMode: spec.GatewayRouted})...)
	ep := spec.Endpoint{HostInterface: "sv3f2a91c0d1e0", MAC: "02:42:ac:1e:00:02",
		Addresses: []netip.Prefix{netip.MustParsePrefix("172.30.0.2/16"), netip.MustParsePrefix("fd00:30::2/64")}}
	for i, ip := range []string{"0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "::1"} {
		proto := []spec.Proto{spec.TCP, spec.UDP, spec.SCTP, spec.TCP, spec.TCP}[i]
		ep.Ports = append(ep.Ports, spec.Port{HostIP: netip.MustParseAddr(ip), HostPort: 8080, Port: 80, Proto: proto})
	}
	s := spec.Sandbox{ID: "3f2a91c0d1e4b5a6", Egress: []spec.EgressRule{
		{Allow: true, To: netip.MustParsePrefix("192.0.2.0/24"), Port: 53, Proto: spec.UDP},
		{To: netip.MustParsePrefix("10.128.0.0/9")},
		{To: netip.MustParsePrefix("192.0.2.7/32"), Proto: spec.SCTP},
		{To: netip.MustParsePrefix("0.0.0.0/0"), Proto: spec.TCP},
		{Allow: true, To: netip.MustParsePrefix("2001:db8::/33"), Port: 443, Proto: spec.TCP},
		{To: netip.MustParsePrefix("2001:db8::7/128")},
		{To: netip.MustParsePrefix("::/0")},
	}}
	objs = append(objs, f.Endpoint(testMark, s, ep, spec.Network{NoICC: true})...)
	open := ep
	open.HostInterface = "sv3f2a91c0d1e1"
	objs = append(objs, f.Endpoint(testMark, spec.Sandbox{}, open, spec.Network{GatewayMode: spec.GatewayRouted})...)
	return only[plan.Chains](objs)
}

func mustEnsureChains(t testing.TB, want int, objs ...plan.Chains) {
	t.Helper()
	changed, err := ensureChains(objs)
	if err != nil {
		t.Fatalf("ensure: %v", err)
	}
	if want >= 0 && changed != want {
		t.Errorf("ensure changed %d objects, want %d", changed, want)
	}
}

// countExecs puts programs into the PATH that count how often the real ones run.
func countExecs(t *testing.T) func() int {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, home := range []string{"", "-nft", "-legacy"} {
			for _, what := range []string{"", "-restore", "-save"} {
				path, err := exec.LookPath(name + home + what)
				if err != nil {
					continue
				}
				script := "#!/bin/sh\necho " + name + home + what + " >>" + log + "\nexec " + path + " \"$@\"\n"
				if err := os.WriteFile(filepath.Join(dir, name+home+what), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() int {
		b, _ := os.ReadFile(log)
		os.Remove(log)
		return strings.Count(string(b), "\n")
	}
}

// TestChainsListAsWritten: what is compared with iptables-save must be written
// as that prints it. A second Ensure finds nothing to do then.
func TestChainsListAsWritten(t *testing.T) {
	homes(t, func(t *testing.T, f iptables.Firewall) {
		mustEnsureChains(t, 2, hostChains(f)...)
		members := memberChains(f)
		mustEnsureChains(t, len(members), members...)
		for _, c := range append(hostChains(f), members...) {
			have, err := save(c.Program())
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range c.Tables {
				for _, ch := range part.Chains {
					for _, r := range ch.Rules {
						if !slices.Contains(have[part.Table][ch.Name], r) {
							t.Errorf("%s, %s: not listed: %s\n%s", c.Key(), ch.Name, r, strings.Join(have[part.Table][ch.Name], "\n"))
						}
					}
				}
				for _, r := range part.Rules {
					if !slices.Contains(have[part.Table][r.Chain], r.Rule) {
						t.Errorf("%s: %s: not listed: %s\n%s", c.Key(), r.Chain, r.Rule, strings.Join(have[part.Table][r.Chain], "\n"))
					}
				}
			}
		}
		mustEnsureChains(t, 0, append(hostChains(f), members...)...)
	})
}

func TestChainsComeAndGo(t *testing.T) {
	homes(t, func(t *testing.T, f iptables.Firewall) {
		mustEnsureChains(t, 2, hostChains(f)...)
		empty := rulesNow(t, f)
		execs := countExecs(t)
		for _, c := range memberChains(f) {
			execs()
			mustEnsureChains(t, 1, c)
			if n := execs(); n != 1 {
				t.Errorf("making %s ran %d programs", c.Key(), n)
			}
			mustEnsureChains(t, 0, c)
			execs()
			if err := deleteChains([]plan.Chains{c}); err != nil {
				t.Fatal(err)
			}
			if n := execs(); n != 1 {
				t.Errorf("deleting %s ran %d programs", c.Key(), n)
			}
			if err := deleteChains([]plan.Chains{c}); err != nil {
				t.Errorf("deleting %s again: %v", c.Key(), err)
			}
			if now := rulesNow(t, f); now != empty {
				t.Errorf("after %s:\n%s\nwant\n%s", c.Key(), now, empty)
			}
		}
		for range 2 {
			if err := deleteChains(hostChains(f)); err != nil {
				t.Fatal(err)
			}
		}
		if now := rulesNow(t, f); strings.Contains(now, plan.ChainPrefix) {
			t.Errorf("left behind:\n%s", now)
		}
	})
}

// rulesNow is both families' rules without counters and comments.
func rulesNow(t *testing.T, f iptables.Firewall) string {
	t.Helper()
	var out []string
	for _, c := range hostChains(f) {
		for line := range strings.Lines(output(t, c.Program()+"-save")) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " [")
			if !strings.HasPrefix(line, "#") {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "\n")
}

func TestChainsRepair(t *testing.T) {
	homes(t, func(t *testing.T, f iptables.Firewall) {
		all := append(hostChains(f), memberChains(f)...)
		mustEnsureChains(t, len(all), all...)
		before := rulesNow(t, f)
		ipt := hostChains(f)[0].Program()
		for _, damage := range [][]string{
			{"-F"}, {"-F", "FORWARD"}, {"-t", "nat", "-F"}, {"-F", "SANDNET-FORWARD"},
			{"-t", "nat", "-F", "SANDNET-P-sv3f2a91c0d1e0"}, {"-D", "SANDNET-FROM", "1"},
			{"-I", "SANDNET-FROM-sandnet0", "1", "-j", "ACCEPT"},
		} {
			output(t, ipt, damage...)
			mustEnsureChains(t, -1, hostChains(f)...)
			mustEnsureChains(t, -1, memberChains(f)...)
			if now := rulesNow(t, f); lines(now) != lines(before) {
				t.Errorf("after %q:\n%s\nwant\n%s", damage, now, before)
			}
			mustEnsureChains(t, 0, all...)
		}
		// Docker, ufw and firewalld put themselves first when they start.
		output(t, ipt, "-N", "DOCKER-USER")
		output(t, ipt, "-I", "FORWARD", "-j", "DOCKER-USER")
		mustEnsureChains(t, 1, hostChains(f)...)
		if rules := strings.Split(output(t, ipt, "-S", "FORWARD"), "\n"); !strings.Contains(rules[1], "-j SANDNET-FORWARD") || strings.Count(strings.Join(rules, "\n"), "SANDNET-FORWARD") != 1 {
			t.Errorf("ours is not first, once: %q", rules)
		}
		mustEnsureChains(t, 0, hostChains(f)...)
	})
}

// TestChainsOfOthers: another root's chains, and foreign ones with such names.
func TestChainsOfOthers(t *testing.T) {
	homes(t, func(t *testing.T, f iptables.Firewall) {
		ipt := hostChains(f)[0].Program()
		for _, cmd := range []string{"-N SANDNETX", "-A SANDNETX -j ACCEPT", "-N SANDNET-FOO", "-A SANDNET-FOO -j ACCEPT", "-A FORWARD -j SANDNET-FOO"} {
			output(t, ipt, strings.Fields(cmd)...)
		}
		theirs := rulesNow(t, f)
		all := append(hostChains(f), memberChains(f)...)
		mustEnsureChains(t, len(all), all...)
		owned, err := ownedChains(testMark)
		if err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, c := range all {
			want = append(want, c.Key())
		}
		for _, c := range owned {
			got = append(got, c.Key())
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Errorf("owned %q, want %q", got, want)
		}
		if other, err := ownedChains(testMark + 1); err != nil || len(other) != 0 {
			t.Errorf("another root owns %v, %v", other, err)
		}
		others := only[plan.Chains](f.Host(testMark+1, ""))
		if _, err := ensureChains(others); err == nil || !strings.Contains(err.Error(), "not made by sandnet, or by one with another --root") {
			t.Errorf("another root's chains: %v", err)
		}
		if err := deleteChains(others); err != nil {
			t.Errorf("deleting another root's chains: %v", err)
		}
		mustEnsureChains(t, 0, all...)
		// What gc deletes is what it found.
		if err := deleteChains(owned); err != nil {
			t.Fatal(err)
		}
		now, were := strings.Split(rulesNow(t, f), "\n"), strings.Split(theirs, "\n")
		for _, line := range were {
			if !slices.Contains(now, line) {
				t.Errorf("gone: %s", line)
			}
		}
		for _, line := range now {
			if strings.Contains(line, "SANDNET") && !slices.Contains(were, line) {
				t.Errorf("left behind: %s", line)
			}
		}
	})
}

func TestChainsUnescaped(t *testing.T) {
	ownNetns(t)
	for _, evil := range []string{"x\nCOMMIT", "x;y", "$(x)", "x`y`", "x\\y", "x\x00"} {
		c := plan.Chains{Family: "ip", Name: "x", Tables: []plan.ChainsOf{{Table: "filter", Rules: []plan.PlacedRule{{Chain: "SANDNET-FROM", Rule: "-i " + evil + " -j DROP"}}}}}
		if _, err := ensureChains([]plan.Chains{c}); err == nil || !strings.Contains(err.Error(), "does not belong into a rule") {
			t.Errorf("%q: %v", evil, err)
		}
	}
}
