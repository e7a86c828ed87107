package kernel

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/firewall/nftables"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// ownNetns moves the test to a network namespace of its own, which ends with
// it: its thread is never unlocked.
func ownNetns(t testing.TB) {
	t.Helper()
	if unix.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
}

// output runs a command in the test's namespace.
func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func mustEnsureNft(t testing.TB, want int, objs ...plan.Object) {
	t.Helper()
	changed, err := ensureNft(objs)
	if err != nil {
		t.Fatalf("ensure: %v", err)
	}
	if want >= 0 && changed != want {
		t.Errorf("ensure changed %d objects, want %d", changed, want)
	}
}

func elementsOf(objs []plan.Object) []plan.Object {
	return slices.DeleteFunc(slices.Clone(objs), func(o plan.Object) bool { _, ok := o.(plan.Element); return !ok })
}

func published(n int) []plan.Object {
	var objs []plan.Object
	for i := range n {
		p := spec.Port{HostIP: netip.IPv4Unspecified(), HostPort: uint16(8000 + i), Port: 80, Proto: spec.TCP}
		objs = append(objs, publish(p, "172.30.0.2")...)
	}
	return elementsOf(objs)
}

// example is the elements of two networks and three published ports, each once.
func example() []plan.Object {
	objs := fw.Network(testMark, spec.Network{Bridge: "sandnet0"})
	objs = append(objs, fw.Network(testMark, spec.Network{Bridge: "sn-0123456789ab", NoICC: true, Internal: true})...)
	for i, p := range []spec.Port{
		{HostIP: netip.IPv4Unspecified(), HostPort: 8080, Port: 80, Proto: spec.TCP},
		{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, Port: 53, Proto: spec.UDP},
		{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 9, Port: 65535, Proto: spec.SCTP},
	} {
		objs = append(objs, publish(p, fmt.Sprintf("172.30.0.%d", 2+i))...)
	}
	return elementsOf(objs)
}

// normal is a rule set as nft prints it, without what it says in other words.
func normal(s string) string {
	s = regexp.MustCompile(`(?m)^\s+|\s*$`).ReplaceAllString(s, "")
	s = strings.ReplaceAll(s, ";", "\n")
	return regexp.MustCompile(`\s*\n\s*`).ReplaceAllString(s, "\n")
}

// lines is a text with its lines sorted.
func lines(s string) string { return strings.Join(slices.Sorted(strings.Lines(s)), "") }

// TestNftListsAsWritten compares our compiler with nft's. What nft lists but
// cannot read, a concatenation with a field that it has no name for, is left
// out of the second half.
func TestNftListsAsWritten(t *testing.T) {
	for _, table := range []plan.Table{hostTable()[0].(plan.Table), spoofTable()} {
		t.Run(table.Family, func(t *testing.T) {
			ownNetns(t)
			mustEnsureNft(t, 1, table)
			ours := output(t, "nft", "list", "ruleset")
			var readable []plan.Chain
			for _, c := range table.Chains {
				for _, r := range c.Rules {
					if !strings.Contains(ours, "\t\t"+r+"\n") {
						t.Errorf("nft does not list %q", r)
					}
				}
				c.Rules = slices.DeleteFunc(slices.Clone(c.Rules), func(r string) bool { return strings.Contains(r, ". @th,") })
				readable = append(readable, c)
			}
			output(t, "nft", "flush", "ruleset")
			table.Chains = readable
			text := table.Commands()
			load := exec.Command("nft", "-f", "-")
			load.Stdin = strings.NewReader(strings.Join(text[1:len(text)-1], "\n"))
			if out, err := load.CombinedOutput(); err != nil {
				t.Fatalf("nft -f: %v: %s", err, out)
			}
			members := membersOf(table.Family)
			for _, o := range members {
				for _, cmd := range o.Commands() {
					output(t, "sh", "-c", cmd)
				}
			}
			theirs := output(t, "nft", "list", "ruleset")
			output(t, "nft", "flush", "ruleset")
			mustEnsureNft(t, 1, table)
			mustEnsureNft(t, len(members), members...)
			if ours := output(t, "nft", "list", "ruleset"); normal(ours) != normal(theirs) {
				t.Errorf("ours:\n%s\nnft's:\n%s", ours, theirs)
			}
		})
	}
}

func spoofTable() plan.Table { return firewall.AntiSpoof(testMark).(plan.Table) }

// membersOf are chains and elements of every kind in the family's table.
func membersOf(table string) []plan.Object {
	ep := spec.Endpoint{HostInterface: "sv3f2a91c0d1e0", MAC: "02:42:ac:1e:00:02",
		Addresses: []netip.Prefix{netip.MustParsePrefix("172.30.0.2/16"), netip.MustParsePrefix("fd00:30::2/64")}}
	if table == "bridge" {
		return firewall.Own(ep)
	}
	for _, ip := range []string{"0.0.0.0", "::", "192.0.2.1", "2001:db8::1"} {
		ep.Ports = append(ep.Ports, spec.Port{HostIP: netip.MustParseAddr(ip), HostPort: 8080, Port: 80, Proto: spec.TCP})
	}
	s := spec.Sandbox{ID: "3f2a91c0d1e4b5a6", Egress: []spec.EgressRule{
		{Allow: true, To: netip.MustParsePrefix("192.0.2.0/24"), Port: 53, Proto: spec.UDP},
		{To: netip.MustParsePrefix("10.128.0.0/9")},
		{To: netip.MustParsePrefix("0.0.0.0/0"), Proto: spec.TCP},
		{Allow: true, To: netip.MustParsePrefix("2001:db8::/33"), Port: 443, Proto: spec.TCP},
		{To: netip.MustParsePrefix("2001:db8::7/128")},
	}}
	var out []plan.Object
	seen := map[string]bool{}
	for _, o := range append(fw.Network(testMark, spec.Network{Bridge: "sandnet0"}), fw.Endpoint(testMark, s, ep, spec.Network{})...) {
		if seen[o.Key()] {
			continue
		}
		seen[o.Key()] = true
		if e, ok := o.(plan.Element); family(o) == familyNft && !(ok && e.Family == "bridge") {
			out = append(out, o)
		}
	}
	return out
}

func TestNftIdempotent(t *testing.T) {
	ownNetns(t)
	objs := append(hostTable(), example()...)
	mustEnsureNft(t, len(objs), objs...)
	mustEnsureNft(t, 0, objs...)
	mustEnsureNft(t, 0, append(example(), example()...)...)

	owned, err := ownedNft(testMark)
	if err != nil {
		t.Fatal(err)
	}
	if len(owned) != len(objs) || owned[0].Key() != objs[0].Key() {
		t.Errorf("owned %d objects, want %d", len(owned), len(objs))
	}
	for _, want := range objs[1:] {
		if !slices.ContainsFunc(owned, func(o plan.Object) bool { return plan.Equal(o, want) }) {
			t.Errorf("not owned: %#v", want)
		}
	}
	for range 2 {
		if err := deleteNft(objs[2:]); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	if owned, err = ownedNft(testMark); err != nil || len(owned) != 2 {
		t.Errorf("after deletion: %v, %v", owned, err)
	}
	for range 2 {
		if err := deleteNft(objs); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	if left := output(t, "nft", "list", "ruleset"); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

func TestNftRepair(t *testing.T) {
	table := hostTable()[0]
	for _, damage := range []string{
		"flush table inet sandnet",
		"flush chain inet sandnet forward",
		"flush ruleset",
		"insert rule inet sandnet forward accept",
		"add rule inet sandnet accepted drop",
		"add chain inet sandnet x; add rule inet sandnet x accept",
	} {
		t.Run(damage, func(t *testing.T) {
			ownNetns(t)
			mustEnsureNft(t, 1, table)
			mustEnsureNft(t, -1, example()...)
			before := output(t, "nft", "-s", "list", "ruleset")
			output(t, "nft", damage)
			mustEnsureNft(t, 1, table)
			mustEnsureNft(t, -1, example()...)
			// Verdict maps are made anew, after the others.
			if after := output(t, "nft", "-s", "list", "ruleset"); lines(after) != lines(before) {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
	t.Run("delete rule", func(t *testing.T) {
		ownNetns(t)
		mustEnsureNft(t, 1, table)
		list := output(t, "nft", "-a", "list", "chain", "inet", "sandnet", "forward")
		handle := regexp.MustCompile(`drop # handle (\d+)`).FindStringSubmatch(list)[1]
		output(t, "nft", "delete", "rule", "inet", "sandnet", "forward", "handle", handle)
		mustEnsureNft(t, 1, table)
		mustEnsureNft(t, 0, table)
	})
}

// TestNftTableChain has a chain of one sandbox in the table of all.
func TestNftTableChain(t *testing.T) {
	ownNetns(t)
	table, members := hostTable()[0], membersOf("inet")
	mustEnsureNft(t, 1, table)
	mustEnsureNft(t, len(members), members...)
	mustEnsureNft(t, 0, append([]plan.Object{table}, members...)...)
	for _, damage := range []string{
		"flush table inet sandnet", "flush ruleset", "flush chain inet sandnet forward",
		"flush chain inet sandnet egress/3f2a91c0d1e4", "insert rule inet sandnet egress/3f2a91c0d1e4 accept",
	} {
		output(t, "nft", damage)
		mustEnsureNft(t, 1, table)
		mustEnsureNft(t, -1, members...)
		mustEnsureNft(t, 0, append([]plan.Object{table}, members...)...)
	}
	owned, err := ownedNft(testMark)
	if err != nil || len(owned) != 1+len(members) {
		t.Errorf("owned %d objects, want %d; %v", len(owned), 1+len(members), err)
	}
	for _, m := range members {
		if !slices.ContainsFunc(owned, func(o plan.Object) bool { return o.Key() == m.Key() }) {
			t.Errorf("not owned: %s", m.Key())
		}
	}
	for range 2 {
		if err := deleteNft(members); err != nil {
			t.Fatal(err)
		}
	}
	if owned, err := ownedNft(testMark); err != nil || len(owned) != 1 {
		t.Errorf("left behind: %v, %v", owned, err)
	}
}

// TestNftChangedTable replaces the skeleton under elements.
func TestNftChangedTable(t *testing.T) {
	ownNetns(t)
	mustEnsureNft(t, -1, append(hostTable(), example()...)...)
	table := hostTable()[0].(plan.Table)
	table.Sets = append(slices.Clone(table.Sets), plan.Set{Name: "more", Type: "ipv4_addr"})
	table.Chains = slices.Clone(table.Chains)
	table.Chains[0].Priority = -299
	table.Chains = append(table.Chains, plan.Chain{Name: "extra", Rules: []string{"ip saddr @more drop"}})
	mustEnsureNft(t, 1, table)
	mustEnsureNft(t, 0, append(example(), table)...)
	mustEnsureNft(t, 1, hostTable()...)
	mustEnsureNft(t, 0, append(example(), hostTable()...)...)
	if list := output(t, "nft", "list", "ruleset"); strings.Contains(list, "more") || strings.Contains(list, "extra") {
		t.Errorf("left behind:\n%s", list)
	}
}

func TestNftForeignTable(t *testing.T) {
	ownNetns(t)
	output(t, "nft", "add", "table", "inet", "sandnet")
	if _, err := ensureNft(hostTable()); err == nil || !strings.Contains(err.Error(), "not made by sandnet") {
		t.Errorf("ensure over a foreign table: %v", err)
	}
	if err := deleteNft(hostTable()); err != nil {
		t.Errorf("delete: %v", err)
	}
	if owned, err := ownedNft(testMark); err != nil || len(owned) != 0 {
		t.Errorf("owned %v, %v", owned, err)
	}
	if list := output(t, "nft", "list", "ruleset"); !strings.Contains(list, "table inet sandnet") {
		t.Error("the foreign table is gone")
	}
}

func TestNftElementWithOtherData(t *testing.T) {
	ownNetns(t)
	mustEnsureNft(t, 1, hostTable()...)
	port := published(3)
	mustEnsureNft(t, -1, port...)
	moved := port[2].(plan.Element)
	moved.Data = "172.30.0.9 . 81"
	if err := deleteNft([]plan.Object{moved}); err != nil {
		t.Fatal(err)
	}
	mustEnsureNft(t, 0, port...)
	mustEnsureNft(t, 1, moved)
	mustEnsureNft(t, 0, moved)
	if list := output(t, "nft", "list", "map", "inet", "sandnet", "ports"); !strings.Contains(list, moved.Data) {
		t.Errorf("not replaced:\n%s", list)
	}
}

func TestNftManyElements(t *testing.T) {
	ownNetns(t)
	mustEnsureNft(t, 1, hostTable()...)
	objs := published(5000)
	mustEnsureNft(t, 5001, objs...)
	mustEnsureNft(t, 0, objs...)
	if err := deleteNft(objs[:1]); err != nil {
		t.Fatal(err)
	}
	mustEnsureNft(t, 1, objs...)
	if err := deleteNft(objs); err != nil {
		t.Fatal(err)
	}
	if owned, err := ownedNft(testMark); err != nil || len(owned) != 1 {
		t.Errorf("owned %d, %v", len(owned), err)
	}
}

func TestNftErrors(t *testing.T) {
	ownNetns(t)
	if _, err := ensureNft(published(1)); err == nil || !strings.Contains(err.Error(), "sandnet") {
		t.Errorf("element without its table: %v", err)
	}
	if err := deleteNft(published(1)); err != nil {
		t.Errorf("delete without a table: %v", err)
	}
	table := plan.Table{Family: "inet", Name: "sandnet", Sets: []plan.Set{{Name: "s", Type: "ipv4_addr"}}}
	for _, rule := range []string{"frobnicate", "goto nowhere", "iifname @s", "ip saddr @t", "ct state odd drop", "ip saddr 1.2.3.4/33 drop"} {
		table.Chains = []plan.Chain{{Name: "c", Rules: []string{rule}}}
		if _, err := ensureNft([]plan.Object{table}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("rule %q", rule)) {
			t.Errorf("rule %q: %v", rule, err)
		}
	}
	for _, entry := range []string{"tcp", "tcp . 99999", "icmp . 1", `"x" . 1`} {
		bad := published(1)[0].(plan.Element)
		bad.Entry = entry
		if _, err := ensureNft([]plan.Object{bad}); err == nil || !strings.Contains(err.Error(), entry) {
			t.Errorf("entry %q: %v", entry, err)
		}
	}
}

func TestNftExplain(t *testing.T) {
	ownNetns(t)
	if err := explainNft(unix.ENOENT); err != unix.ENOENT {
		t.Errorf("nothing is missing here, yet: %v", err)
	}
	if list := output(t, "nft", "list", "ruleset"); list != "" {
		t.Errorf("left behind:\n%s", list)
	}
}

func BenchmarkNftTableIntact(b *testing.B) {
	ownNetns(b)
	mustEnsureNft(b, -1, hostTable()...)
	for b.Loop() {
		mustEnsureNft(b, 0, hostTable()...)
	}
}

func BenchmarkNftTableCreate(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		done := make(chan bool)
		go func() {
			defer close(done)
			ownNetns(b)
			b.StartTimer()
			mustEnsureNft(b, 1, hostTable()...)
			b.StopTimer()
		}()
		<-done
		b.StartTimer()
	}
}

func BenchmarkNftElements(b *testing.B) {
	for _, n := range []int{1, 100} {
		objs := published(n)
		b.Run(fmt.Sprintf("add=%d", n), func(b *testing.B) {
			ownNetns(b)
			mustEnsureNft(b, -1, hostTable()...)
			// New ones every time: deletions would leave the kernel work to wait for.
			fresh, ip := slices.Clone(elementsOf(objs))[:n], netip.MustParseAddr("127.0.0.0")
			for b.Loop() {
				b.StopTimer()
				ip = ip.Next()
				for i := range fresh {
					p := spec.Port{HostIP: ip, HostPort: uint16(8000 + i), Port: 80, Proto: spec.TCP}
					fresh[i] = elementsOf(publish(p, "172.30.0.2"))[0]
				}
				b.StartTimer()
				mustEnsureNft(b, n, fresh...)
			}
		})
		b.Run(fmt.Sprintf("again=%d", n), func(b *testing.B) {
			ownNetns(b)
			mustEnsureNft(b, -1, append(hostTable(), objs...)...)
			for b.Loop() {
				mustEnsureNft(b, 0, objs...)
			}
		})
		b.Run(fmt.Sprintf("delete=%d", n), func(b *testing.B) {
			ownNetns(b)
			mustEnsureNft(b, -1, hostTable()...)
			for b.Loop() {
				b.StopTimer()
				mustEnsureNft(b, n+1, objs...)
				b.StartTimer()
				if err := deleteNft(objs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// hostTable is the table alone of what a host needs.
func hostTable() []plan.Object { return fw.Host(testMark, "")[:1:1] }

var fw nftables.Firewall

// publish is what a sandbox with this address, and nothing else, adds for a port.
func publish(p spec.Port, to string) []plan.Object {
	ep := spec.Endpoint{HostInterface: "sv3f2a91c0d1e0", MAC: "02:42:ac:1e:00:02", Ports: []spec.Port{p}}
	if p.HostIP.IsValid() {
		ep.Addresses = []netip.Prefix{netip.MustParsePrefix(to + "/16")}
	}
	return slices.DeleteFunc(fw.Endpoint(testMark, spec.Sandbox{}, ep, spec.Network{}), func(o plan.Object) bool {
		e, ok := o.(plan.Element)
		return ok && e.Family == "bridge"
	})
}

func ensureNft(objs []plan.Object) (int, error) { return (*verified)(nil).ensureNft(objs) }
func deleteNft(objs []plan.Object) error        { return (*verified)(nil).deleteNft(objs) }
