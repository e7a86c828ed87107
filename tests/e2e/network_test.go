package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/sandnet/sandnet/tests/lab"
)

func TestNetworkOptions(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "n", "--subnet", "10.61.0.0/24", "--ip-range", "10.61.0.128/25", "--gateway", "10.61.0.254",
		"--aux-address", "printer=10.61.0.130", "--mtu", "1400", "--bridge", "br-n", "--label", "k=v")
	seen := map[string]bool{}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		s := create(t, h, name, "--net", "n")
		ip := address(t, h, name)
		if !netip.MustParsePrefix("10.61.0.128/25").Contains(netip.MustParseAddr(ip)) || ip == "10.61.0.130" || ip == "10.61.0.254" || seen[ip] {
			t.Errorf("%s got %s", name, ip)
		}
		seen[ip] = true
		if out := s.Must("ip", "route"); !strings.Contains(out, "default via 10.61.0.254") {
			t.Errorf("routes: %s", out)
		}
	}
	if e := inspect(t, h, "a").Endpoints[0]; e.MTU != 1400 {
		t.Errorf("mtu %d", e.MTU)
	}
	if out := h.Must("ip", "addr", "show", "br-n"); !strings.Contains(out, "10.61.0.254/24") || !strings.Contains(out, "mtu 1400") {
		t.Errorf("bridge: %s", out)
	}
	var nets []map[string]any
	if err := json.Unmarshal([]byte(h.OK("network", "inspect", "n")), &nets); err != nil || len(nets) != 1 || nets[0]["name"] != "n" {
		t.Errorf("inspect: %v %v", nets, err)
	}
	if out := h.OK("network", "ls"); !strings.Contains(out, "bridge") || !strings.Contains(out, "10.61.0.0/24") {
		t.Errorf("ls:\n%s", out)
	}
	h.OK("rm", "a", "b", "c", "d", "e")
	h.OK("network", "rm", "n")
	h.Unchanged(before, "network rm")
}

func TestFixedAddresses(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	before := used(t, h)
	h.OK("network", "create", "n", "--subnet", "10.61.0.0/24")
	a := server(t, h, "a", "--net", "n", "--ip", "10.61.0.77", "--mac-address", "02:00:5e:00:00:01")
	b := create(t, h, "b", "--net", "n")
	if e := inspect(t, h, "a").Endpoints[0]; e.Addresses[0].String() != "10.61.0.77/24" || e.MAC != "02:00:5e:00:00:01" {
		t.Errorf("endpoint: %+v", e)
	}
	b.Reaches("tcp", "10.61.0.77:80", a, "")
	h.Refused(2, []string{"10.61.0.77"}, "create", "--net", "n", "--ip", "10.61.0.77")
	h.Refused(2, []string{"10.62.0.7"}, "create", "--net", "n", "--ip", "10.62.0.7")
	h.Refused(2, []string{"10.61.0.1"}, "create", "--net", "n", "--ip", "10.61.0.1")
	h.OK("rm", "a", "b")
	// Addresses rotate: the last holder of one may still be in caches.
	first := func() string {
		create(t, h, "x", "--net", "n")
		defer h.OK("rm", "x")
		return address(t, h, "x")
	}
	if one, two := first(), first(); one == two {
		t.Errorf("%s was handed out again at once", one)
	}
	h.OK("network", "rm", "n")
	h.Unchanged(before, "network rm")
}

func TestSubnetFull(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	used(t, h)
	h.OK("network", "create", "n", "--subnet", "10.61.0.0/29")
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		create(t, h, name, "--net", "n")
	}
	h.Refused(2, []string{"10.61.0.0/29"}, "create", "--net", "n")
	h.OK("rm", "c")
	create(t, h, "f", "--net", "n")
}

func TestSubnetChoice(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	// The default network's own place is taken.
	h.Must("ip", "route", "add", "172.30.5.0/24", "dev", "eth0")
	create(t, h, "a")
	if ip := address(t, h, "a"); strings.HasPrefix(ip, "172.30.") {
		t.Errorf("the default network took %s, which the host routes elsewhere", ip)
	}
	subnet := func(name string) netip.Prefix {
		h.OK("network", "create", name)
		create(t, h, "in-"+name, "--net", name)
		return inspect(t, h, "in-"+name).Endpoints[0].Addresses[0].Masked()
	}
	one, two := subnet("one"), subnet("two")
	if one.Bits() != 24 || two.Bits() != 24 || one.Overlaps(two) {
		t.Errorf("subnets %s and %s", one, two)
	}
	h.OK("rm", "in-one", "in-two")
	h.OK("network", "rm", "one", "two")
	h.Must("ip", "route", "add", one.String(), "dev", "eth0")
	if again := subnet("one"); again.Overlaps(one) {
		t.Errorf("%s was chosen although the host routes %s", again, one)
	}
}

func TestNetworkRefusals(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	used(t, h)
	h.OK("network", "create", "n", "--subnet", "10.61.0.0/24")
	h.Refused(2, []string{"10.61.0.5/24", "10.61.0.0/24"}, "network", "create", "x", "--subnet", "10.61.0.5/24")
	h.Refused(2, []string{"10.61.0.0/16", "n"}, "network", "create", "x", "--subnet", "10.61.0.0/16")
	h.Refused(2, []string{"192.168.205.0/25"}, "network", "create", "x", "--subnet", "192.168.205.0/25")
	h.Refused(2, []string{"300.1.1.0/24"}, "network", "create", "x", "--subnet", "300.1.1.0/24")
	h.Refused(2, []string{"10.0.0.0/99"}, "network", "create", "x", "--subnet", "10.0.0.0/99")
	h.Refused(2, []string{"10.63.0.1"}, "network", "create", "x", "--subnet", "10.62.0.0/24", "--gateway", "10.63.0.1")
	h.Refused(2, []string{"10.63.0.0/25"}, "network", "create", "x", "--subnet", "10.62.0.0/24", "--ip-range", "10.63.0.0/25")
	h.Refused(2, []string{"10.63.0.9"}, "network", "create", "x", "--subnet", "10.62.0.0/24", "--aux-address", "a=10.63.0.9")
	h.Refused(2, []string{"a-name-too-long-for-linux"}, "network", "create", "x", "--bridge", "a-name-too-long-for-linux")
	h.Refused(2, []string{"eth0"}, "network", "create", "x", "--bridge", "eth0")
	h.Refused(2, []string{"n"}, "network", "create", "n")
	for _, name := range []string{"bridge", "host", "none", "../x", "a;b", "a b", "", "a\nb", strings.Repeat("x", 200)} {
		h.Refused(2, nil, "network", "create", name)
	}
	create(t, h, "a", "--net", "n")
	if r := h.Sandnet("network", "rm", "n"); r.Code == 0 || !strings.Contains(r.Stderr, "n") {
		t.Errorf("a network with a sandbox on it was removed: %s", r)
	}
	h.OK("rm", "a")
	h.OK("network", "rm", "n")
	if r := h.Sandnet("network", "rm", "n"); r.Code == 0 {
		t.Errorf("a network that does not exist was removed: %s", r)
	}
}

// With the last network, the default one too, everything that sandnet has
// changed on the host is as it was before its first use.
func TestLastNetwork(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t)
	foreign(h, true)
	kernel := func() lab.Dump {
		var d lab.Dump
		for _, l := range h.Dump() {
			if !strings.HasPrefix(l, "file: ") {
				d = append(d, l)
			}
		}
		return d
	}
	before := kernel()
	create(t, h, "a", "-p", "8080:80")
	h.OK("network", "create", "n")
	h.OK("rm", "a")
	h.OK("network", "rm", "n")
	h.OK("network", "rm", "bridge")
	lab.Eventually(t, "host as before", func() error {
		if d := lab.Diff(before, kernel()); d != "" {
			return constError(d)
		}
		return nil
	})
	// It comes back with its next use.
	create(t, h, "a", "-p", "8080:80")
	h.OK("rm", "a")
}

// After a reboot sandboxes are gone and networks are there.
func TestReboot(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	old := l.Host("before")
	old.OK("network", "create", "n", "--subnet", "10.61.0.0/24")
	create(t, old, "web", "--net", "n", "-p", "8080:80")
	ip := address(t, old, "web")

	h := l.Host("after")
	h.Root = old.Root
	old.Must("umount", old.Netns("web"))
	old.Must("sh", "-c", "echo of-an-earlier-boot > "+old.Root+"/run/boot-id")
	// The first commands after it come all at once.
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if r := h.Sandnet("create", "--name", fmt.Sprint("early", i), "--net", "n"); r.Code != 0 {
				t.Error(r)
			}
		})
	}
	wg.Wait()
	if out := h.OK("ps", "-q"); len(strings.Fields(out)) != 10 || h.Sandnet("inspect", "web").Code == 0 {
		t.Errorf("sandboxes after the reboot: %s", out)
	}
	if out := h.OK("network", "ls"); !strings.Contains(out, "10.61.0.0/24") {
		t.Errorf("networks after the reboot:\n%s", out)
	}
	a := server(t, h, "web", "--net", "n", "-p", "8080:80")
	if now := address(t, h, "web"); !strings.HasPrefix(now, "10.61.0.") {
		t.Errorf("web had %s and now has %s", ip, now)
	}
	h.Reaches("tcp", "127.0.0.1:8080", a, "")
	h.OK(append([]string{"rm", "-f"}, strings.Fields(h.OK("ps", "-q"))...)...)
	h.OK("network", "rm", "n")
}
