package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

type finding struct{ Severity, Check, What, Cure string }

func doctor(t *testing.T, h *lab.Host) (findings []finding, code int) {
	t.Helper()
	r := h.Sandnet("doctor", "--format", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &findings); err != nil || r.Stderr != "" {
		t.Fatalf("%v: %s", err, r)
	}
	return findings, r.Code
}

// TestDoctor provokes what can be provoked in a namespace. An error is exit
// code 1; where the cure is a command, it is run, and cures.
func TestDoctor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		harm            string
		severity, check string
		what            string
		cure            bool
	}{
		{"ip_forward", "sysctl -qw net.ipv4.ip_forward=0", "error", "ip_forward", "off", true},
		{"iptables-nft", "iptables-nft -P FORWARD DROP", "error", "forward", "(nf_tables)", true},
		{"iptables-legacy", "iptables-legacy -P FORWARD DROP", "error", "forward", "(legacy)", true},
		{"another table", "nft 'add table inet fw; add chain inet fw forward { type filter hook forward priority 0; policy drop; }'", "warning", "forward", "inet fw forward", true},
		{"Docker", "iptables-nft -N DOCKER-USER", "note", "firewall", "Docker", false},
		{"ufw", "iptables-nft -N ufw-user-forward", "note", "firewall", "ufw", false},
		{"firewalld", "nft add table inet firewalld; nft add chain inet firewalld x", "note", "firewall", "firewalld", false},
		{"drift", "ip link set sandnet0 down", "error", "drift", "link sandnet0: state: want up, have down", true},
		{"overlap", "ip route add 172.30.0.128/25 dev eth0", "error", "overlap", "172.30.0.128/25 on eth0", false},
		{"larger overlap", "ip route add 172.16.0.0/12 dev eth0", "warning", "overlap", "172.16.0.0/12", false},
		{"MTU", "ip link set eth0 mtu 1400; ip route add default via 192.168.205.1", "warning", "mtu", "1400", false},
		{"rp_filter", "ip link add up1 type veth peer name up2; ip link set up1 up; ip link set up2 up; sysctl -qw net.ipv4.conf.eth0.rp_filter=1;" +
			"ip route add default via 192.168.205.1; ip route add default dev up1 metric 9", "warning", "rp_filter", "eth0", true},
		{"route_localnet", "sysctl -qw net.ipv4.conf.eth0.route_localnet=1", "warning", "route_localnet", "eth0", true},
		{"permissions", "chmod 755 ROOT/run", "warning", "permissions", "/run", true},
		{"leftover", "rm ROOT/run/records/sandbox/web.json", "warning", "leftover", "netns", true},
		{"interrupted", "printf 1 > ROOT/run/locks/sandbox:web", "warning", "interrupted", "sandbox/web", true},
		{"interrupted host", "printf 1 > ROOT/run/locks/host; nft flush chain inet sandnet prerouting", "warning", "interrupted", "host", false},
		{"bridge-nf", "sysctl -qw net.bridge.bridge-nf-call-iptables=1", "note", "br_netfilter", "is 1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t)
			create(t, h, "web", "-p", "8080:80")
			healthy, code := doctor(t, h)
			if code != 0 {
				t.Fatalf("a healthy host: exit %d, %+v", code, healthy)
			}
			h.Must("sh", "-ec", strings.ReplaceAll(c.harm, "ROOT", h.Root))
			before := h.Dump()
			findings, code := doctor(t, h)
			if want := map[bool]int{true: 1, false: 0}[c.severity == "error"]; code != want {
				t.Errorf("exit %d, want %d", code, want)
			}
			if d := lab.Diff(before, h.Dump()); d != "" {
				t.Errorf("doctor changes\n%s", d)
			}
			f := find(findings, c.check, c.what)
			if f == nil || f.Severity != c.severity {
				t.Fatalf("no %s of %s with %q: %+v", c.severity, c.check, c.what, findings)
			}
			if !c.cure {
				return
			}
			r := h.RunEnv([]string{"SANDNET_ROOT=" + h.Root, "PATH=" + strings.TrimSuffix(h.Program, "/sandnet") + ":" + os.Getenv("PATH")},
				"sh", "-ec", f.Cure)
			if r.Code != 0 {
				t.Errorf("the cure: %s", r)
			}
			findings, _ = doctor(t, h)
			// Whether the chain of another table accepts cannot be seen.
			if f := find(findings, c.check, c.what); f != nil && c.name != "another table" {
				t.Errorf("cured, and still %+v", f)
			}
		})
	}
}

func find(findings []finding, check, what string) *finding {
	for _, f := range findings {
		if f.Check == check && strings.Contains(f.What, what) {
			return &f
		}
	}
	return nil
}
