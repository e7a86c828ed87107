package storm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

// strangers puts objects on the host that look like sandnet's, and are not.
// One is an iptables chain; a sandnet that uses iptables itself cannot have one
// of the same name.
func strangers(h *lab.Host, chain string) {
	for line := range strings.Lines(strings.ReplaceAll(`
ip link add sandnet0x type bridge
ip link add sn-0123456789ab type bridge
ip addr add 10.99.0.1/24 dev sn-0123456789ab
ip link add svdeadbeef0000 master sandnet0x type veth peer name svdeadbeef0001
ip link add sn-another-root type bridge
ip link set sn-another-root group 1392508929 up
nft add table ip sandnet
nft add chain ip sandnet forward { type filter hook forward priority -10 ; }
nft add rule ip sandnet forward counter comment "sandnet"
nft add table inet sandnet-x { comment "sandnet" ; }
nft add map inet sandnet-x ports { type inet_proto . inet_service : ipv4_addr . inet_service ; }
nft add element inet sandnet-x ports { tcp . 20000 : 10.99.0.2 . 80 }
nft add table ip6 sandnet
nft add table netdev sandnet
iptables -N SANDNET-FORWARD
iptables -A SANDNET-FORWARD -m comment --comment sandnet -j RETURN
iptables -A FORWARD -m comment --comment sandnet-x -j SANDNET-FORWARD
iptables -t nat -N SANDNET
iptables -t nat -A SANDNET -p tcp --dport 20001 -j DNAT --to-destination 10.99.0.2:80
ip6tables -N SANDNET-FORWARD
ipset create sandnet hash:ip
ipset add sandnet 10.61.0.2
ipset create SANDNET-CLUSTER-IP hash:ip,port
`, "SANDNET-FORWARD", chain)) {
		if words := strings.Fields(line); len(words) > 0 {
			h.Must(words[0], words[1:]...)
		}
	}
}

// tables makes all tables and chains of iptables' own, with somebody's rule in
// each: iptables makes those that it lacks, and sandnet cannot tell whose they
// are once somebody else is in the table.
func tables(h *lab.Host) {
	for table, chains := range map[string]string{
		"filter": "INPUT FORWARD OUTPUT", "nat": "PREROUTING INPUT OUTPUT POSTROUTING", "raw": "PREROUTING OUTPUT",
	} {
		for _, chain := range strings.Fields(chains) {
			for _, program := range []string{"iptables", "ip6tables"} {
				h.Must(program, "-t", table, "-A", chain, "-m", "comment", "--comment", "somebody")
			}
		}
	}
}

// Strangers live through everything that sandnet does, on a host whose
// sandboxes are where ip-netns(8) looks: making, removing, cleaning up after a
// lost state directory.
func TestStrangers(t *testing.T) {
	h := lab.NewHost(t)
	h.Root = "" // the defaults: /run/netns and /etc/netns are shared with others
	strangers(h, "SANDNET-FORWARD")
	for line := range strings.Lines(`
ip netns add s1
ip netns exec s1 ip link add eth0 type bridge
mkdir -p /etc/netns/s1 /etc/netns/s2
touch /etc/netns/s1/resolv.conf /etc/netns/s2/hosts
mkdir -p /run/netns/sandnet
`) {
		if words := strings.Fields(line); len(words) > 0 {
			h.Must(words[0], words[1:]...)
		}
	}
	h.OK("gc")
	before := h.Settled()
	inside := h.Must("ip", "netns", "exec", "s1", "ip", "-d", "link")

	// Whose name is taken cannot be made, and is not removed either.
	h.Refused(2, []string{"/run/netns/s1 exists and is not sandnet's"}, "create", "--name", "s1")
	h.Refused(2, []string{"/run/netns/s1 exists and is not sandnet's"}, "run", "--name", "s1", "--", "true")
	h.Refused(2, []string{"/run/netns/sandnet exists and is not sandnet's"}, "create", "--name", "sandnet")
	h.Refused(2, []string{"/etc/netns/s2 exists and is not sandnet's"}, "create", "--name", "s2")
	h.Refused(2, []string{"sn-0123456789ab", "the host has a link of that name"}, "network", "create", "--bridge", "sn-0123456789ab", "n")
	h.Refused(2, []string{"overlaps 10.99.0.0/24"}, "network", "create", "--subnet", "10.99.0.0/16", "n")
	h.Refused(1, []string{"no such sandbox: s1"}, "rm", "s1")
	h.OK("rm", "-f", "s1", "s2", "sandnet")
	h.Refused(125, []string{"no such sandbox: s1"}, "exec", "s1", "--", "true")

	h.OK("network", "create", "n", "--subnet", "10.61.0.0/24")
	h.OK("create", "--name", "a", "-p", "20000:80", "-p", "20001:80")
	h.OK("create", "--name", "b", "--net", "n", "--ip", "10.61.0.2", "--dns", "192.0.2.53")
	h.OK("run", "--", "true")
	h.OK("gc")
	h.OK("rm", "-f", "a", "b")
	h.OK("network", "prune")
	h.OK("network", "rm", "bridge")
	h.Unchanged(before, "rm of everything")

	// Without records only marks tell what is ours.
	h.OK("create", "--name", "a", "-p", "20000:80")
	h.OK("create", "--name", "b", "-p", "20001:80")
	for _, lost := range []string{"/run/sandnet", "/var/lib/sandnet"} {
		entries, err := filepath.Glob(lost + "/*")
		if err != nil || len(entries) == 0 {
			t.Fatalf("%s: %v", lost, err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.OK("gc")
	// The former value was in the lost record alone.
	h.Must("sysctl", "-qw", "net.ipv4.ip_forward=0")
	h.Unchanged(before, "gc of a lost state directory")
	if got := h.Must("ip", "netns", "exec", "s1", "ip", "-d", "link"); got != inside {
		t.Errorf("inside s1 it was\n%s\nand is\n%s", inside, got)
	}
}

// A table or a bridge that has the very name of sandnet's is somebody else's
// without its mark: sandnet says so and does nothing, and works once it is gone.
func TestTaken(t *testing.T) {
	for _, c := range []struct {
		name       string
		make, undo []string
		words      []string
	}{
		{"table", []string{"nft", "add table inet sandnet; add chain inet sandnet forward { type filter hook forward priority -10; }; add set inet sandnet bridges { type ifname; }"},
			[]string{"nft", "delete table inet sandnet"}, []string{"table inet sandnet", "was not made by sandnet"}},
		{"table with another's comment", []string{"nft", `add table inet sandnet { comment "sandnet"; }`},
			[]string{"nft", "delete table inet sandnet"}, []string{"table inet sandnet", "was not made by sandnet"}},
		{"bridge", []string{"ip", "link", "add", "sandnet0", "type", "bridge"},
			[]string{"ip", "link", "delete", "sandnet0"}, []string{"sandnet0", "the host has a link of that name"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t)
			h.OK("gc")
			untaken := h.Settled()
			h.Must(c.make[0], c.make[1:]...)
			before := h.Settled()
			for _, args := range [][]string{{"create", "--name", "x", "-p", "8080:80"}, {"run", "--", "true"}} {
				r := h.Sandnet(args...)
				if r.Code == 0 {
					t.Errorf("not refused: %s", r)
				}
				for _, w := range c.words {
					if !strings.Contains(r.Stderr, w) {
						t.Errorf("%s: stderr does not name %q", r, w)
					}
				}
				h.Unchanged(before, strings.Join(args, " "))
			}
			for _, args := range [][]string{{"gc"}, {"rm", "-f", "x"}, {"network", "prune"}} {
				h.OK(args...)
			}
			h.Unchanged(before, "gc, rm -f and prune")
			h.Must(c.undo[0], c.undo[1:]...)
			h.OK("create", "--name", "x", "-p", "8080:80")
			h.OK("rm", "x")
			h.OK("network", "rm", "bridge")
			h.Unchanged(untaken, "rm of everything")
		})
	}
}
