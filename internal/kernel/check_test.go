package kernel

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/firewall/nftables"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// drifts has, for every kind of object, what can be done to one and what Check
// then says.
type driftCase struct {
	name string
	kind plan.Kind
	// harm damages what dir and the kernel hold.
	harm func(t *testing.T, k *Kernel, dir string)
	want string
}

func shell(line string) func(*testing.T, *Kernel, string) {
	return func(t *testing.T, _ *Kernel, dir string) {
		t.Helper()
		output(t, "sh", "-ec", strings.ReplaceAll(line, "DIR", dir))
	}
}

func inside(line string) func(*testing.T, *Kernel, string) {
	return shell("nsenter --net=DIR/netns/a " + line)
}

func driftCases() []driftCase {
	return []driftCase{
		{"unpinned", plan.KindNetns, shell("umount DIR/netns/a; rm DIR/netns/a"), "netns DIR/netns/a: missing"},
		{"loopback down", plan.KindNetns, inside("ip link set lo down"), "netns DIR/netns/a: loopback: want up, have down"},
		{"joined", plan.KindNetns, shell("umount DIR/netns/j; mount --bind /proc/self/ns/net DIR/netns/j"), "netns DIR/netns/j: namespace"},
		{"bridge deleted", plan.KindLink, shell("ip link del br0"), "link br0: missing"},
		{"veth deleted", plan.KindLink, shell("ip link del sva"), "link sva: missing"},
		{"mtu", plan.KindLink, shell("ip link set sva mtu 1300"), "link sva: mtu: want 1400, have 1300"},
		{"mtu of a bridge", plan.KindLink, shell("ip link set br0 mtu 1280"), "link br0: mtu: want 1400, have 1280"},
		{"down", plan.KindLink, shell("ip link set br0 down"), "link br0: state: want up, have down"},
		{"mac", plan.KindLink, shell("ip link set br0 address 02:00:00:00:00:01"), "link br0: mac: want 02:42:0a:01:00:01, have 02:00:00:00:00:01"},
		{"master", plan.KindLink, shell("ip link set sva nomaster"), "link sva: master: want br0, have none"},
		{"isolated", plan.KindLink, shell("bridge link set dev sva isolated off"), "link sva: isolated: want on, have off"},
		{"hairpin", plan.KindLink, shell("bridge link set dev sva hairpin on"), "link sva: hairpin: want off, have on"},
		{"addresses of its own", plan.KindLink, shell("ip link set br0 addrgenmode eui64"), "link br0: addrgenmode: want none, have on"},
		{"peer with addresses of its own", plan.KindLink, inside("ip link set eth0 addrgenmode eui64"), "link sva: addrgenmode of eth0: want none, have on"},
		{"peer down", plan.KindLink, inside("ip link set eth0 down"), "link sva: state of eth0: want up, have down"},
		{"peer renamed", plan.KindLink, inside("sh -c 'ip link set eth0 down; ip link set eth0 name lan0'"), "link sva: peer: want eth0 in DIR/netns/a, have none"},
		{"address", plan.KindAddr, shell("ip addr flush dev br0"), "addr  br0 10.1.0.1/24: missing"},
		{"address inside", plan.KindAddr, inside("ip addr del 10.1.0.2/24 dev eth0"), "addr DIR/netns/a eth0 10.1.0.2/24: missing"},
		{"address with another prefix", plan.KindAddr, inside("sh -c 'ip addr del 10.1.0.2/24 dev eth0; ip addr add 10.1.0.2/16 dev eth0; ip route add default via 10.1.0.1'"), "addr DIR/netns/a eth0 10.1.0.2/24: missing"},
		{"route", plan.KindRoute, inside("ip route del default"), "route DIR/netns/a 0.0.0.0/0: missing"},
		{"route elsewhere", plan.KindRoute, inside("ip route replace default via 10.1.0.9"), "path: want via 10.1.0.1 dev eth0, have via 10.1.0.9 dev eth0"},
		{"sysctl", plan.KindSysctl, shell("sysctl -qw net.ipv4.conf.br0.route_localnet=0"), "sysctl  net/ipv4/conf/br0/route_localnet: value: want 1, have 0"},
		{"sysctl inside", plan.KindSysctl, inside("sysctl -qw net.ipv4.tcp_syncookies=0"), "value: want 1, have 0"},
		{"ruleset flushed", plan.KindTable, shell("nft flush ruleset"), "table inet sandnet: missing"},
		{"rules flushed", plan.KindTable, shell("nft flush chain inet sandnet forward"), "table inet sandnet: rules: want "},
		{"foreign rule", plan.KindTable, shell("nft insert rule inet sandnet forward accept"), "table inet sandnet: rules: want "},
		{"policy", plan.KindTable, shell("nft 'chain inet sandnet forward { policy drop; }'"), "policy of forward: want accept, have drop"},
		{"dormant", plan.KindTable, shell("nft 'add table inet sandnet { flags dormant; }'"), "flags: want none, have dormant"},
		{"element", plan.KindElement, shell("nft delete element inet sandnet bridges '{ \"br0\" }'"), `element inet sandnet bridges "br0": missing`},
		{"element with other data", plan.KindElement, shell("nft delete element inet sandnet ports '{ tcp . 8080 }'; nft add element inet sandnet ports '{ tcp . 8080 : 10.1.0.9 . 81 }'"),
			"element inet sandnet ports tcp . 8080: data: want 10.1.0.2 . 80, have 10.1.0.9 . 81"},
		{"foreign chain", plan.KindRule, shell("iptables-nft -F FORWARD"), "rule ip filter FORWARD -m mark"},
		{"reservation", plan.KindHostPort, func(t *testing.T, _ *Kernel, _ string) {
			for _, o := range only[plan.HostPort](everything("")) {
				mustDeletePorts(t, machinePorts(), o)
			}
		},
			"hostport tcp 0.0.0.0:8080: missing"},
		{"egress policy", plan.KindTableChain, shell("nft flush chain inet sandnet 'egress/0123456789ab'"), "chain inet sandnet egress/0123456789ab: missing"},
		{"iptables chain", plan.KindChains, shell("iptables-nft -F SANDNET-T-sva"), "chains iptables-nft sva: rules: want as made"},
		{"file removed", plan.KindFile, shell("rm DIR/etc/hostname"), "file DIR/etc/hostname: missing"},
		{"file changed", plan.KindFile, shell("echo b >> DIR/etc/hostname"), "file DIR/etc/hostname: content: want 1 lines, 2 bytes, have 2 lines, 4 bytes"},
		{"link removed", plan.KindSymlink, shell("rm DIR/hosts/n/a.hosts"), "file DIR/hosts/n/a.hosts: missing"},
		{"link elsewhere", plan.KindSymlink, shell("ln -sfn /etc/hosts DIR/hosts/n/a.hosts"), "file DIR/hosts/n/a.hosts: target: want DIR/etc/hosts, have /etc/hosts"},
		{"rate", plan.KindQdisc, shell("tc qdisc replace dev sva root tbf rate 1mbit burst 10k limit 20k"), "qdisc"},
		{"rate gone", plan.KindQdisc, shell("tc qdisc del dev sva root"), "missing"},
		{"redirection", plan.KindRedirect, shell("tc filter del dev sva ingress"), "missing"},
		{"ifb deleted", plan.KindLink, shell("ip link del sia"), "link sia: missing"},
		{"line", plan.KindHostsLine, shell("sed -i /10.1.0.2/d DIR/hosts/n/shared"), "line in shared: want 10.1.0.2\ta, have none"},
		{"hosts directory", plan.KindHostsLine, shell("rm -r DIR/hosts/n"), "hosts DIR/hosts/n 10.1.0.2: missing"},
		{"hosts file removed", plan.KindHostsFile, shell("rm DIR/etc/hosts"), "file DIR/etc/hosts: missing"},
		{"hosts file changed", plan.KindHostsFile, shell("echo > DIR/etc/hosts"), "file DIR/etc/hosts: content"},
	}
}

// everything has an object of every kind.
func everything(dir string) []plan.Object {
	ns := filepath.Join(dir, "netns", "a")
	fw, n := nftables.Firewall{}, spec.Network{Bridge: "br0"}
	objs := append(bridgePlan(), fw.Host(testMark, "FORWARD")...)
	objs = append(objs, fw.Network(testMark, n)...)
	objs = append(objs, sandboxPlan(filepath.Join(dir, "netns"), "a", "10.1.0.2/24")...)
	ep := spec.Endpoint{HostInterface: "sva", MAC: "02:42:0a:01:00:02", Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24")},
		Ports: []spec.Port{{HostIP: netip.IPv4Unspecified(), HostPort: 8080, Port: 80, Proto: spec.TCP}}}
	policy := []spec.EgressRule{{To: netip.MustParsePrefix("10.9.0.0/16")}}
	objs = append(objs, fw.Endpoint(testMark, spec.Sandbox{ID: "0123456789abcdef", Egress: policy}, ep, n)...)
	objs = append(objs, plan.Chains{Family: "ip", Name: "sva", Mark: testMark, Tables: []plan.ChainsOf{{Table: "filter",
		Chains: []plan.RuleChain{{Name: "SANDNET-T-sva", Rules: []string{"-j RETURN"}}}}}})
	lines := plan.HostsLine{Dir: dir + "/hosts/n", Addr: netip.MustParseAddr("10.1.0.2"), Names: []string{"a"}}
	own := plan.HostsFile{Path: dir + "/etc/hosts", Header: plan.LocalHosts + "10.9.9.9 x\n", Dirs: []string{dir + "/hosts/n"}}
	return append(objs,
		plan.Sysctl{Netns: ns, Name: "net/ipv4/tcp_syncookies", Value: "1"},
		plan.Netns{Path: filepath.Join(dir, "netns", "j"), Join: ns},
		plan.File{Path: dir + "/etc/hostname", Content: "a\n"}, lines,
		plan.Symlink{Path: dir + "/hosts/n/a.hosts", Target: own.Path}, own,
		plan.Link{Name: "sia", Type: plan.IFB, MTU: 1400, Mark: testMark},
		plan.Qdisc{Link: "sva", Type: plan.TBF, Rate: 10_000_000, Burst: 12500, Limit: 75000},
		plan.Qdisc{Link: "sva", Type: plan.Ingress},
		plan.Redirect{Link: "sva", To: "sia"})
}

func check(t *testing.T, k *Kernel, objs []plan.Object) []plan.Drift {
	t.Helper()
	drift, err := k.Check(t.Context(), objs)
	if err != nil {
		t.Fatal(err)
	}
	return drift
}

func describe(drift []plan.Drift) string {
	var b strings.Builder
	for _, d := range drift {
		b.WriteString(d.Object.Key() + ": " + d.String() + "\n")
	}
	return b.String()
}

// TestCheckAndMend damages everything that sandnet makes, in every way it
// knows: the damage is told, mended, and then there is nothing to tell.
func TestCheckAndMend(t *testing.T) {
	for _, c := range driftCases() {
		t.Run(string(c.kind)+" "+c.name, func(t *testing.T) {
			k, dir := driftKernel(t)
			objs := everything(dir)
			k.Close() // another command makes the damage good
			c.harm(t, k, dir)
			before := check(t, k, objs)
			want := strings.ReplaceAll(c.want, "DIR", dir)
			if !strings.Contains(describe(before), want) {
				t.Errorf("no %q in\n%s", want, describe(before))
			}
			for range 3 {
				drift := check(t, k, objs)
				if len(drift) == 0 {
					break
				}
				if _, err := k.Mend(t.Context(), objs, drift); err != nil {
					t.Error(err)
				}
			}
			if left := check(t, k, objs); len(left) > 0 {
				t.Errorf("mended, and still\n%s", describe(left))
			}
		})
	}
}

// driftKernel is a kernel with everything made and intact.
func driftKernel(t *testing.T) (*Kernel, string) {
	t.Helper()
	ownNetns(t)
	dir := t.TempDir()
	output(t, "iptables-nft", "-P", "FORWARD", "DROP")
	k := New(testMark, filepath.Join(dir, "netns"))
	objs := everything(dir)
	t.Cleanup(func() {
		if err := k.Delete(context.Background(), objs); err != nil {
			t.Error(err)
		}
		k.Close()
	})
	mustEnsure(t, k, objs)
	if drift := check(t, k, objs); len(drift) > 0 {
		t.Fatalf("just made, and\n%s", describe(drift))
	}
	return k, dir
}

// TestEveryKindIsChecked: a new kind of object joins the cases above.
func TestEveryKindIsChecked(t *testing.T) {
	// BindGuard is the whole machine's: TestBindGuardDrift has a control group
	// of its own.
	// A Flow is what a change forgets: it cannot be wrong afterwards.
	covered := map[string]bool{string(plan.KindBindGuard): true, string(plan.KindFlow): true}
	for _, c := range driftCases() {
		covered[string(c.kind)] = true
	}
	for _, kind := range planKinds(t) {
		if !covered[kind] {
			t.Errorf("objects of kind %q are checked and mended by no case", kind)
		}
	}
}

// planKinds are all constants of type plan.Kind.
func planKinds(t *testing.T) (kinds []string) {
	t.Helper()
	files, err := filepath.Glob("../plan/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("package plan: %v", err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Kind" && len(v.Values) == 1 {
				kind, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				kinds = append(kinds, kind)
			}
			return true
		})
	}
	if len(kinds) < 10 {
		t.Fatalf("only %v", kinds)
	}
	return kinds
}

// Of a network alone little is asked, link by link.
func TestCheckOfFew(t *testing.T) {
	for line, want := range map[string]string{
		"ip link set br0 address 02:00:00:00:00:01": "link br0: mac",
		"ip link set br0 down":                      "link br0: state",
		"ip link del br0":                           "link br0: missing",
		"ip addr flush dev br0":                     "10.1.0.1/24: missing",
		"ip link add up1 type bridge; ip link add p1 type veth; ip link set p1 master up1; ip link del br0; ip link set p1 name br0": "type: want bridge, have veth",
	} {
		k, _ := testKernel(t)
		mustEnsure(t, k, bridgePlan())
		if drift := check(t, k, bridgePlan()); len(drift) > 0 {
			t.Fatalf("just made, and\n%s", describe(drift))
		}
		output(t, "sh", "-ec", line)
		if got := describe(check(t, k, bridgePlan())); !strings.Contains(got, want) {
			t.Errorf("%s: no %q in\n%s", line, want, got)
		}
		k.Close()
	}
}

// A bridge follows its smallest port: that is no drift.
func TestBridgeFollowsItsPorts(t *testing.T) {
	k, dir := testKernel(t)
	sb := sandboxPlan(dir, "a", "10.1.0.2/24")
	small := sb[1].(plan.Link)
	small.MTU = 1300
	sb[1] = small
	objs := append(bridgePlan(), sb...)
	mustEnsure(t, k, objs)
	for _, objs := range [][]plan.Object{objs, bridgePlan()} {
		if drift := check(t, k, objs); len(drift) > 0 {
			t.Errorf("drift\n%s", describe(drift))
		}
	}
}

type strange struct{}

func (strange) Kind() plan.Kind    { return "strange" }
func (strange) Key() string        { return "strange" }
func (strange) Commands() []string { return nil }

func TestUnknownKindIsNotIntact(t *testing.T) {
	k, _ := testKernel(t)
	if drift, err := k.Check(t.Context(), []plan.Object{strange{}}); err == nil {
		t.Errorf("an unknown kind passes: %v", drift)
	}
}

// A namespace that a process holds is pinned again; its links never notice.
func TestHeldNamespaceIsPinnedAgain(t *testing.T) {
	for _, mode := range []string{"bridge", "none"} {
		t.Run(mode, func(t *testing.T) {
			k, dir := testKernel(t)
			mustEnsure(t, k, bridgePlan())
			objs := sandboxPlan(dir, "a", "10.1.0.2/24")
			if mode == "none" {
				objs = objs[:1]
			}
			mustEnsure(t, k, objs)
			mustEnsure(t, k, sandboxPlan(dir, "b", "10.1.0.3/24")) // not to be mistaken for it
			pin := filepath.Join(dir, "a")
			want := inode(pin)
			cmd := exec.Command("nsenter", "--net="+pin, "sleep", "60")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			for inode("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/ns/net") != want {
			}
			k.Close()
			if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(pin); err != nil {
				t.Fatal(err)
			}
			notes, err := k.Mend(t.Context(), objs, check(t, k, objs)[:1])
			if err != nil || len(notes) != 1 || !strings.Contains(notes[0], "pinned again") {
				t.Errorf("%v, %v", notes, err)
			}
			if inode(pin) != want {
				t.Error("another namespace was pinned")
			}
			if left := check(t, k, objs); len(left) > 0 {
				t.Errorf("still\n%s", describe(left))
			}
		})
	}
}

// What has taken the place of an object of ours is reported, and stays.
func TestMendLeavesForeignThings(t *testing.T) {
	k, dir := testKernel(t)
	br := bridgePlan()
	link := plan.Symlink{Path: filepath.Join(dir, "link"), Target: "x"}
	objs := append(br, link)
	mustEnsure(t, k, objs)
	output(t, "ip", "link", "set", "br0", "group", "7")
	if err := os.Remove(link.Path); err != nil {
		t.Fatal(err)
	}
	touch(t, link.Path)
	drift := check(t, k, objs)
	if got := describe(drift); !strings.Contains(got, "group: want ") || !strings.Contains(got, "no symbolic link") {
		t.Errorf("drift\n%s", got)
	}
	_, err := k.Mend(t.Context(), objs, drift)
	if err == nil || strings.Count(err.Error(), "not sandnet's") != 2 {
		t.Errorf("mending foreign things: %v", err)
	}
}
