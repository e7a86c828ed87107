package kernel

import (
	"os"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/plan"
)

func foreign(t *testing.T) string {
	t.Helper()
	chain, err := ForeignForward()
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func TestForeignForward(t *testing.T) {
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(program, func(t *testing.T) {
			ownNetns(t)
			if got := foreign(t); got != "" {
				t.Errorf("without iptables: %q", got)
			}
			output(t, program, "-P", "FORWARD", "ACCEPT")
			if got := foreign(t); got != "" {
				t.Errorf("policy ACCEPT: %q", got)
			}
			output(t, program, "-N", "DOCKER-USER")
			if got := foreign(t); got != "" {
				t.Errorf("policy ACCEPT with Docker: %q", got)
			}
			output(t, program, "-P", "FORWARD", "DROP")
			if got := foreign(t); got != "DOCKER-USER" {
				t.Errorf("policy DROP with Docker: %q", got)
			}
			output(t, program, "-X", "DOCKER-USER")
			if got := foreign(t); got != "FORWARD" {
				t.Errorf("policy DROP: %q", got)
			}
		})
	}
}

func TestForeignForwardWithoutIptables(t *testing.T) {
	ownNetns(t)
	output(t, "iptables-legacy", "-P", "FORWARD", "DROP")
	t.Setenv("PATH", t.TempDir())
	if got := foreign(t); got != "" {
		t.Errorf("legacy rules that nobody can read: %q", got)
	}
	if _, err := ensureRules(only[plan.Rule](firewall.AcceptIn("FORWARD"))); err != nil {
		t.Error(err)
	}
	if rules, err := ownedRules(); err != nil || len(rules) != 0 {
		t.Errorf("owned %v, %v", rules, err)
	}
}

func TestRules(t *testing.T) {
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(program, func(t *testing.T) {
			ownNetns(t)
			rules := []plan.Rule{firewall.AcceptIn("FORWARD")[0].(plan.Rule), firewall.AcceptIn("DOCKER-USER")[0].(plan.Rule)}
			for range 2 { // where there are no chains, rules are neither missed nor made
				if n, err := ensureRules(rules); n != 0 || err != nil {
					t.Fatalf("without chains: %d, %v", n, err)
				}
			}
			output(t, program, "-N", "DOCKER-USER")
			output(t, program, "-P", "FORWARD", "DROP")
			output(t, program, "-A", "FORWARD", "-j", "DROP")
			for _, want := range []int{2, 0} {
				if n, err := ensureRules(rules); n != want || err != nil {
					t.Fatalf("ensure: %d, %v; want %d", n, err, want)
				}
			}
			lines := strings.Split(output(t, program, "-S", "FORWARD"), "\n")
			if !strings.Contains(lines[1], "--comment sandnet") {
				t.Errorf("our rule is not the first: %q", lines)
			}
			owned, err := ownedRules()
			if err != nil || len(owned) != 2 {
				t.Fatalf("owned %v, %v", owned, err)
			}
			for i := range rules {
				if owned[i].Key() != rules[i].Key() {
					t.Errorf("owned %q, want %q", owned[i].Key(), rules[i].Key())
				}
			}
			for range 2 {
				if err := deleteRules(rules); err != nil {
					t.Fatal(err)
				}
			}
			if owned, err := ownedRules(); err != nil || len(owned) != 0 {
				t.Errorf("left behind: %v, %v", owned, err)
			}
			if got := output(t, program, "-S", "FORWARD"); !strings.Contains(got, "-A FORWARD -j DROP") {
				t.Errorf("a foreign rule is gone: %s", got)
			}
		})
	}
}

func BenchmarkForeignForward(b *testing.B) {
	ownNetns(b)
	if names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names"); err == nil && len(names) > 0 {
		b.Fatalf("legacy tables in a new namespace: %s", names)
	}
	for b.Loop() {
		if chain, err := ForeignForward(); chain != "" || err != nil {
			b.Fatal(chain, err)
		}
	}
}
