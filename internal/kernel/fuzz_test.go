package kernel

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandnet/sandnet/internal/firewall/nftables"
	"github.com/sandnet/sandnet/internal/plan"
)

// What the kernel and other programs hand over is read without trust: nothing
// of it may make sandnet panic, or believe what is not there.

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("36 35 0:29 / /sys rw,relatime shared:1 - sysfs web rw\n"))
	f.Add([]byte("36 35 0:29 / /sys rw - sysfs sysfs rw\n37 36 0:30 / /proc rw - proc proc rw"))
	f.Add([]byte(" /sys  - sysfs"))
	f.Add([]byte("1 2 3 4 /sys - sysfs ../../etc"))
	f.Add([]byte("36 35 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup rw"))
	file := filepath.Join(f.TempDir(), "mountinfo")
	f.Fuzz(func(t *testing.T, info []byte) {
		if err := os.WriteFile(file, info, 0o600); err != nil {
			t.Fatal(err)
		}
		if dir := cgroup2Mount(file); dir != "" && (!isCgroup2(dir) || !bytes.Contains(info, []byte(dir))) {
			t.Errorf("cgroup2 at %q", dir)
		}
		names := netnsOnSys(info)
		if len(names) > bytes.Count(info, []byte("sysfs")) {
			t.Errorf("%d names: %q", len(names), names)
		}
		for _, n := range names {
			if n == "" || strings.ContainsAny(n, "/ \n") {
				t.Errorf("name %q", n)
			}
		}
	})
}

func FuzzProcess(f *testing.F) {
	f.Add([]byte("1 (a) b) S 1 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 4711 1 1"))
	f.Add([]byte("Name:\tx\nPPid:\t17\n"))
	f.Add([]byte("1 (x) Z 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 0 0 9"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if pid := parentIn(data); pid < 0 {
			t.Errorf("parent %d", pid)
		}
		if start := startIn(data); start != 0 && !bytes.Contains(data, fmt.Append(nil, start)) {
			t.Errorf("start %d is not in %q", start, data)
		}
	})
}

func FuzzHosts(f *testing.F) {
	f.Add("127.0.0.1\tlocalhost\n172.30.0.2\tweb\n172.30.0.22\tdb\n", []byte{172, 30, 0, 2})
	f.Add("172.30.0.2 mine\n\n#", []byte{172, 30, 0, 2})
	f.Add("\t", []byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, text string, addr []byte) {
		a, ok := netip.AddrFromSlice(addr)
		if !ok {
			return
		}
		h := plan.HostsLine{Dir: "/d", Addr: a, Names: []string{"x"}}
		got := withoutAddr(text, h)
		if withoutAddr(got, h) != got || withoutAddr(got+"\n"+h.Line(), h) != got+"\n" {
			t.Errorf("%q without %v: %q", text, a, got)
		}
		// Every other line stays as it is.
		var want []string
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, a.String()+"\t") {
				want = append(want, line)
			}
		}
		if got != strings.Join(want, "") {
			t.Errorf("%q without %v: %q", text, a, got)
		}
	})
}

func FuzzIptablesRule(f *testing.F) {
	f.Add(`-m mark --mark 0x1000000/0x1000000 -m comment --comment sandnet -j ACCEPT`)
	f.Add(`-m comment --comment "sandnet" -j ACCEPT`)
	f.Add(`-m comment --comment "not sandnet" -j DROP`)
	f.Add(`--comment`)
	f.Fuzz(func(t *testing.T, rule string) {
		words := strings.Fields(rule)
		if hasComment(words) && !strings.Contains(rule, ruleComment) {
			t.Errorf("%q is not ours", rule)
		}
		if i := slices.Index(words, "--comment"); i < 0 && hasComment(words) {
			t.Errorf("%q has no comment", rule)
		}
	})
}

func FuzzCompileRule(f *testing.F) {
	var table plan.Table
	for _, o := range (nftables.Firewall{}).Host(0x5300, "") {
		if t, ok := o.(plan.Table); ok {
			if t.Family == "inet" {
				table = t
			}
			for _, c := range t.Chains {
				for _, r := range c.Rules {
					f.Add(r)
				}
			}
		}
	}
	for _, s := range []string{"ip saddr ::/0 drop", "ip saddr 10.0.0.0/99", "ct state established,", "th dport 99999", `iifname "`, "meta mark & 1 == 2 goto forward", "dnat ip to", "ip saddr . ip"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		exprs, err := compileRule(table, text)
		if err != nil {
			return
		}
		if len(exprs) == 0 && strings.TrimSpace(text) != "" {
			t.Errorf("%q compiles to nothing", text)
		}
		again, err := compileRule(table, strings.Join(strings.Fields(text), " "))
		if err != nil || len(again) != len(exprs) {
			t.Errorf("%q, written otherwise: %d expressions, not %d: %v", text, len(again), len(exprs), err)
		}
	})
}

func FuzzElement(f *testing.F) {
	f.Add("inet_proto . inet_service", "tcp . 8080")
	f.Add("ipv4_addr . inet_proto . inet_service", "192.0.2.1 . udp . 53")
	f.Add("ifname", `"sandnet0"`)
	f.Add("ifname . ifname", `"a" . "b"`)
	f.Add("ipv4_addr", "::ffff:1.2.3.4")
	f.Fuzz(func(t *testing.T, types, text string) {
		known, err := typesNamed(types)
		if err != nil {
			return
		}
		b, err := known.encode(text)
		if err != nil {
			_, _ = known.decode([]byte(text)) // from the kernel anything may come
			return
		}
		out, err := known.decode(b)
		if err != nil {
			t.Fatalf("%s %q: %v", types, text, err)
		}
		if again, err := known.encode(out); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s %q comes back as %q: %x, not %x, %v", types, text, out, again, b, err)
		}
	})
}

func FuzzNetlink(f *testing.F) {
	f.Add(attrString(nil, 1, "sandnet"))
	f.Add(nest(nil, 3, func(b []byte) []byte { return nest(b, 1, func(b []byte) []byte { return attr(b, 1, []byte{1, 2, 3}) }) }))
	f.Add([]byte{4, 0, 1, 0, 3, 0, 0, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		for _, b := range attrs(data) {
			total += 4 + len(b)
		}
		if total > len(data) {
			t.Errorf("%d bytes of attributes in %d", total, len(data))
		}
		for key, value := range listed(data) {
			if len(key)+len(value) > len(data) {
				t.Errorf("%d and %d bytes in %d", len(key), len(value), len(data))
			}
		}
		if name, _ := tableNamed(nfMsg{attrs: data}); strings.ContainsRune(name, 0) {
			t.Errorf("name %q", name)
		}
	})
}
