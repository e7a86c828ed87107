package kernel

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandnet/sandnet/internal/plan"
)

const testMark = 'S'<<24 | 0x7e57

// testKernel is a kernel in a network namespace of the test's own.
func testKernel(t *testing.T) (*Kernel, string) {
	t.Helper()
	ownNetns(t)
	dir := t.TempDir()
	k := New(testMark, dir)
	t.Cleanup(func() {
		k.Close()
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			_ = unpin(filepath.Join(dir, e.Name()))
		}
	})
	return k, dir
}

func sandboxPlan(dir, name, addr string) []plan.Object {
	ns := filepath.Join(dir, name)
	return []plan.Object{
		plan.Netns{Path: ns, Mark: testMark},
		plan.Link{Name: "sv" + name, Type: plan.Veth, MTU: 1400, Master: "br0", Mark: testMark, Peer: "eth0", PeerNetns: ns, PeerMAC: "02:42:0a:01:00:02", Isolated: true},
		plan.Addr{Netns: ns, Link: "eth0", Addr: netip.MustParsePrefix(addr)},
		plan.Route{Netns: ns, Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.1.0.1"), Link: "eth0"},
	}
}

func bridgePlan() []plan.Object {
	return []plan.Object{
		plan.Link{Name: "br0", Type: plan.Bridge, MTU: 1400, MAC: "02:42:0a:01:00:01", Mark: testMark},
		plan.Addr{Link: "br0", Addr: netip.MustParsePrefix("10.1.0.1/24")},
		plan.Sysctl{Name: "net/ipv4/conf/br0/route_localnet", Value: "1"},
	}
}

func mustEnsure(t *testing.T, k *Kernel, objs []plan.Object) int {
	t.Helper()
	n, err := k.Ensure(t.Context(), objs)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustDelete(t *testing.T, k *Kernel, objs []plan.Object) {
	t.Helper()
	if err := k.Delete(t.Context(), objs); err != nil {
		t.Fatal(err)
	}
}

func linkExists(t *testing.T, k *Kernel, name string) bool {
	t.Helper()
	exists, _, err := k.HasLink(name)
	if err != nil {
		t.Fatal(err)
	}
	return exists
}

func TestSandboxOnABridge(t *testing.T) {
	k, dir := testKernel(t)
	br, sb := bridgePlan(), sandboxPlan(dir, "a", "10.1.0.2/24")
	if n := mustEnsure(t, k, br); n != 3 {
		t.Errorf("the bridge: %d changes, want 3", n)
	}
	if n := mustEnsure(t, k, sb); n != 4 {
		t.Errorf("the sandbox: %d changes, want 4", n)
	}
	if n := mustEnsure(t, k, append(br, sb...)); n != 0 {
		t.Errorf("the second time: %d changes, want none", n)
	}
	inside := func(args ...string) string {
		t.Helper()
		return output(t, "nsenter", append([]string{"--net=" + filepath.Join(dir, "a")}, args...)...)
	}
	addr := inside("ip", "-d", "addr", "show", "eth0")
	for _, want := range []string{"mtu 1400", "02:42:0a:01:00:02", "inet 10.1.0.2/24 brd 10.1.0.255", "state UP"} {
		if !strings.Contains(addr, want) {
			t.Errorf("eth0 has no %q:\n%s", want, addr)
		}
	}
	if strings.Contains(addr, "inet6") {
		t.Errorf("eth0 has an IPv6 address:\n%s", addr)
	}
	if route := inside("ip", "route"); !strings.Contains(route, "default via 10.1.0.1 dev eth0") {
		t.Errorf("routes: %s", route)
	}
	if port := output(t, "bridge", "-d", "link", "show", "dev", "sva"); !strings.Contains(port, "isolated on") {
		t.Errorf("bridge port: %s", port)
	}
	mustDelete(t, k, sb)
	mustDelete(t, k, sb)
	deadline := time.Now().Add(5 * time.Second)
	for linkExists(t, k, "sva") {
		if time.Now().After(deadline) {
			t.Fatal("the veth is there 5 s after its namespace was unpinned")
		}
		time.Sleep(5 * time.Millisecond)
	}
	mustDelete(t, k, br)
	if linkExists(t, k, "br0") {
		t.Error("the bridge is left")
	}
}

func TestEnsureMendsDrift(t *testing.T) {
	k, dir := testKernel(t)
	objs := append(bridgePlan(), sandboxPlan(dir, "a", "10.1.0.2/24")...)
	mustEnsure(t, k, objs)
	for _, damage := range []string{
		"ip link set sva mtu 1300", "ip link set sva nomaster", "ip link set sva down", "ip link del sva",
		"ip link set br0 down", "ip addr flush dev br0", "sysctl -qw net.ipv4.conf.br0.route_localnet=0",
	} {
		f := strings.Fields(damage)
		output(t, f[0], f[1:]...)
		k.forget("")
		k.forget(filepath.Join(dir, "a"))
		if n := mustEnsure(t, k, objs); n == 0 {
			t.Errorf("after %q nothing was mended", damage)
		}
		if n := mustEnsure(t, k, objs); n != 0 {
			t.Errorf("after %q the second time changed %d", damage, n)
		}
	}
}

// TestHeldNamespace removes a sandbox while a process is inside: the link must
// go although the kernel keeps the namespace.
func TestHeldNamespace(t *testing.T) {
	k, dir := testKernel(t)
	mustEnsure(t, k, bridgePlan())
	sb := sandboxPlan(dir, "a", "10.1.0.2/24")
	mustEnsure(t, k, sb)
	cmd := exec.Command("nsenter", "--net="+filepath.Join(dir, "a"), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for range 200 {
		if len(k.Holders(filepath.Join(dir, "a"))) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	mustDelete(t, k, sb)
	if linkExists(t, k, "sva") {
		t.Error("the veth outlives its sandbox, held by a process")
	}
}

func TestForeignThingsAreLeftAlone(t *testing.T) {
	k, dir := testKernel(t)
	output(t, "ip", "link", "add", "br0", "type", "bridge")
	if _, err := k.Ensure(t.Context(), bridgePlan()); err == nil || !strings.Contains(err.Error(), "not sandnet's") {
		t.Errorf("Ensure over a foreign bridge: %v", err)
	}
	mustDelete(t, k, bridgePlan()[:1])
	if !linkExists(t, k, "br0") {
		t.Error("a foreign bridge was deleted")
	}
	foreign := filepath.Join(dir, "a")
	output(t, "unshare", "--net="+touch(t, foreign), "true")
	if _, err := k.Ensure(t.Context(), sandboxPlan(dir, "a", "10.1.0.2/24")[:1]); err == nil || !strings.Contains(err.Error(), "not sandnet's") {
		t.Errorf("Ensure over a foreign namespace: %v", err)
	}
	mustDelete(t, k, sandboxPlan(dir, "a", "10.1.0.2/24")[:1])
	if !pinned(foreign) {
		t.Error("a foreign namespace was unpinned")
	}
}

func touch(t *testing.T, path string) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOwnedFindsLinksAndNamespaces(t *testing.T) {
	k, dir := testKernel(t)
	mustEnsure(t, k, append(bridgePlan(), sandboxPlan(dir, "a", "10.1.0.2/24")...))
	output(t, "ip", "link", "add", "foreign0", "type", "bridge")
	var keys []string
	for o, err := range k.Owned(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key())
	}
	want := "netns " + filepath.Join(dir, "a") + "|link br0|link sva"
	if got := strings.Join(keys, "|"); got != want {
		t.Errorf("Owned = %s, want %s", got, want)
	}
}

func TestTakenAndHasAddr(t *testing.T) {
	k, _ := testKernel(t)
	mustEnsure(t, k, bridgePlan())
	output(t, "ip", "route", "add", "10.9.0.0/16", "dev", "br0")
	all, err := k.Taken(func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range all {
		found = found || p == netip.MustParsePrefix("10.9.0.0/16")
	}
	if !found {
		t.Errorf("Taken = %v, want 10.9.0.0/16 in it", all)
	}
	skipped, err := k.Taken(func(l string) bool { return l == "br0" })
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range skipped {
		if p.Overlaps(netip.MustParsePrefix("10.0.0.0/8")) {
			t.Errorf("Taken without br0 has %s", p)
		}
	}
	output(t, "ip", "-6", "addr", "add", "fd00:1::1/64", "dev", "br0", "nodad")
	for route, want := range map[string]bool{"fd00:9::/48": true, "2000::/3": false, "8000::/1": false, "2001:db8::/32": true} {
		output(t, "ip", "-6", "route", "add", route, "dev", "br0")
		all, err := k.Taken(func(string) bool { return false })
		if got := slices.Contains(all, netip.MustParsePrefix(route)); err != nil || got != want {
			t.Errorf("Taken has %s: %v, %v", route, got, err)
		}
	}
	for addr, want := range map[string]bool{"10.1.0.1": true, "127.0.0.7": true, "10.1.0.9": false, "fd00:1::1": true, "::1": true, "fd00:1::9": false} {
		if got, err := k.HasAddr(netip.MustParseAddr(addr)); got != want || err != nil {
			t.Errorf("HasAddr(%s) = %v, %v", addr, got, err)
		}
	}
}

func TestBothFamilies(t *testing.T) {
	k, dir := testKernel(t)
	ns := filepath.Join(dir, "a")
	br := append(bridgePlan(), plan.Addr{Link: "br0", Addr: netip.MustParsePrefix("fd00:1::1/64")})
	sb := sandboxPlan(dir, "a", "10.1.0.2/24")
	early := []plan.Object{
		plan.Sysctl{Netns: ns, Name: "net/ipv6/conf/default/accept_ra", Value: "0"},
		plan.Sysctl{Netns: ns, Name: "net/ipv6/conf/default/autoconf", Value: "0"},
		plan.Sysctl{Netns: ns, Name: "net/ipv6/conf/nosuch/autoconf", Value: "0", Optional: true},
	}
	late := []plan.Object{
		plan.Addr{Netns: ns, Link: "eth0", Addr: netip.MustParsePrefix("fe80::2/64")},
		plan.Addr{Netns: ns, Link: "eth0", Addr: netip.MustParsePrefix("fd00:1::2/64")},
		plan.Route{Netns: ns, Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00:1::1"), Link: "eth0"},
	}
	objs := slices.Concat(br, sb[:1], early, sb[1:], late)
	if n := mustEnsure(t, k, objs); n != len(objs)-1 {
		t.Errorf("%d changes, want all but one of %d", n, len(objs))
	}
	if n := mustEnsure(t, k, objs); n != 0 {
		t.Errorf("the second time: %d changes, want none", n)
	}
	for cmd, want := range map[string]string{
		"ip -6 addr show dev eth0": "inet6 fd00:1::2/64 scope global nodad", "ip -6 route": "default via fd00:1::1 dev eth0 proto static", "ip -4 route": "default via 10.1.0.1",
		"cat /proc/sys/net/ipv6/conf/eth0/accept_ra /proc/sys/net/ipv6/conf/eth0/autoconf": "0\n0",
	} {
		if out := output(t, "nsenter", append([]string{"--net=" + ns}, strings.Fields(cmd)...)...); !strings.Contains(out, want) {
			t.Errorf("%s: no %q in\n%s", cmd, want, out)
		}
	}
	if _, err := k.Ensure(t.Context(), []plan.Object{plan.Sysctl{Name: "net/ipv6/conf/nosuch/autoconf", Value: "0"}}); err == nil {
		t.Error("a setting that does not exist was set")
	}
	mustDelete(t, k, late)
	if out := output(t, "nsenter", "--net="+ns, "ip", "-6", "addr"); strings.Contains(out, "fd00:1::2") {
		t.Errorf("after deletion:\n%s", out)
	}
}

func TestRouterLinks(t *testing.T) {
	k, _ := testKernel(t)
	for _, name := range []string{"up1", "up2", "up3", "up4", "up5"} {
		output(t, "ip", "link", "add", name, "type", "bridge")
		output(t, "ip", "link", "set", name, "up")
		output(t, "ip", "-6", "addr", "add", "fe80::1/64", "dev", name, "nodad")
	}
	for _, cmd := range []string{
		"ip -6 route add default via fe80::2 dev up1 proto ra",
		"ip -6 route add default via fe80::2 dev up2 proto static metric 9", // an administrator's
		"ip -6 route add 2001:db8:3::/64 via fe80::2 dev up3 proto ra",
		"sysctl -qw net.ipv6.conf.up3.accept_ra=2", // listens in any case
		"ip -6 addr add 2001:db8:4::4/64 dev up4 nodad valid_lft 900 preferred_lft 900",
		"ip -6 route add 2001:db8:5::/64 proto ra nexthop via fe80::2 dev up1 nexthop via fe80::3 dev up5",
	} {
		f := strings.Fields(cmd)
		output(t, f[0], f[1:]...)
	}
	got, err := k.RouterLinks()
	if want := []string{"up1", "up4", "up5"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
