package spec

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"80", "8080:80/tcp", "127.0.0.1:8080:80", "127.0.0.1::80", "8000-8005:80-85", "8000-8010:80", "[::1]:8080:80", "[::]::80", "[fd00::5]:8000-8010:80/udp", "1-9/udp", "::", "0:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := ParsePublish(s)
		if message(t, err) != "" {
			if ports != nil {
				t.Errorf("ports with an error: %v", ports)
			}
			return
		}
		if len(ports) == 0 {
			t.Fatal("neither ports nor an error")
		}
		if err := ConflictingPorts(ports); err != nil {
			t.Errorf("conflict with itself: %v", err)
		}
		for _, p := range []Port{ports[0], ports[len(ports)-1]} {
			again, err := ParsePublish(p.String())
			if err != nil || !slices.Equal(again, []Port{p}) {
				t.Errorf("%s comes back as %v, %v", p, again, err)
			}
			if why := portFault(p); why != "" && !p.HostIP.Is6() {
				t.Errorf("%s: %s", p, why)
			}
		}
	})
}

func FuzzParseSubnet(f *testing.F) {
	for _, s := range []string{"10.61.0.0/24", "10.61.0.5/24", "0.0.0.0/0", "fd00::/64", "fd12:3456:789a:1::/126", "2000::/3", "::ffff:1.2.3.0/120", "10.0.0.0/99", "fe80::%1/64", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseSubnet(s)
		if message(t, err) != "" {
			// What the message offers instead is good, or wrong for another reason.
			if _, offer, ok := strings.Cut(err.Error(), `": it should be `); ok {
				if _, err := ParseSubnet(offer); strings.Contains(message(t, err), "it should be") {
					t.Errorf("%q: offered %q: %v", s, offer, err)
				}
			}
			return
		}
		if again, err := ParseSubnet(p.String()); err != nil || again != p {
			t.Errorf("%v comes back as %v, %v", p, again, err)
		}
		first, last := FirstHost(p), LastAddr(p)
		if !p.Contains(first) || !p.Contains(last) || p.Contains(last.Next()) || hostFault(first, p) != "" {
			t.Errorf("%v: first host %v, last address %v", p, first, last)
		}
	})
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"web", "../x", "-rf", "a;b", "eth0.5", "a_b.c", "a=b", "net.x.y=1", "02:42:00:00:00:01", "x:::1", ".", "\x1b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		fileName := func(s string) bool {
			return s != "" && s[0] != '.' && s[0] != '-' && len(s) <= 64 && !strings.ContainsAny(s, "/\\:;$`'\"*?& \t\n\x00")
		}
		if message(t, CheckName("name", s)) == "" && !fileName(s) {
			t.Errorf("name %q", s)
		}
		if message(t, CheckInterface(s)) == "" && (!fileName(s) || len(s) > 15) {
			t.Errorf("interface %q", s)
		}
		if message(t, CheckHostname(s)) == "" && (len(s) > 253 || strings.Contains("."+s+".", "..") || strings.ContainsAny(s, " \t\n#_:/")) {
			t.Errorf("hostname %q", s)
		}
		if mac, err := ParseMAC(s); message(t, err) == "" {
			if again, err := ParseMAC(mac); err != nil || again != mac || len(mac) != 17 {
				t.Errorf("MAC %q comes back as %q, %v", mac, again, err)
			}
		}
		if d, err := ParseDNSSearch(s); message(t, err) == "" {
			if again, err := ParseDNSSearch(d); err != nil || again != d || strings.ContainsAny(d, " \t\n") {
				t.Errorf("search domain %q comes back as %q, %v", d, again, err)
			}
		}
		if h, err := ParseAddHost(s); message(t, err) == "" {
			if again, err := ParseAddHost(h.String()); err != nil || again != h {
				t.Errorf("host entry %v comes back as %v, %v", h, again, err)
			}
		}
		if k, v, err := ParseLabel(s); message(t, err) == "" {
			if k2, v2, err := ParseLabel(k + "=" + v); err != nil || k2 != k || v2 != v || strings.ContainsAny(k+v, "\n\x00") {
				t.Errorf("label %q=%q comes back as %q=%q, %v", k, v, k2, v2, err)
			}
		}
		if k, v, err := ParseSysctl(s); message(t, err) == "" {
			if k2, v2, err := ParseSysctl(k + "=" + v); err != nil || k2 != k || v2 != v {
				t.Errorf("sysctl %q=%q comes back as %q=%q, %v", k, v, k2, v2, err)
			}
			if !strings.HasPrefix(k, "net/") || strings.Contains(k+"/", "/../") || strings.Contains(k, "//") || strings.Contains(v, "\n") {
				t.Errorf("sysctl %q=%q", k, v)
			}
		}
	})
}

// words splits a fuzzer's string into a repeated option.
func words(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "|")
}

// stored is what is left of a value after it was written and read as JSON.
func stored[T any](t *testing.T, v T) T {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out T
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func FuzzSandboxOptions(f *testing.F) {
	f.Add("bridge", "web", "8080:80|90", "172.30.0.9", "fd00::9", "02:42:00:00:00:01", "h", "1.1.1.1", "example.com.", "db:1.2.3.4", "", "a=b|c", "net.core.somaxconn=9", 1400)
	f.Add("lan|other", "", "1-3:1-3|[fd00::5]:7:7", "10.0.0.2", "", "", "", "", ".", "", "db|x_y", "", "", 0)
	f.Add("host", "x", "", "", "", "", "h", "", "", "", "", "a", "", 0)
	f.Add("container:web", "x", "", "", "", "", "", "", "", "", "", "", "", 0)
	f.Add("none", "-rf", "80\n", "::1", "1.2.3.4", "ff", "..", "x", "\x00", "a", "b", "=", "net", -1)
	f.Fuzz(func(t *testing.T, net, name, publish, ip, ip6, mac, hostname, dns, search, hosts, alias, labels, sysctls string, mtu int) {
		o := SandboxOptions{Net: words(net), Name: name, Publish: words(publish), IP: ip, IP6: ip6, MAC: mac, Hostname: hostname, DNS: words(dns), DNSSearch: words(search),
			AddHost: words(hosts), NetworkAlias: words(alias), Labels: words(labels), Sysctls: words(sysctls), MTU: mtu}
		s, err := o.Parse()
		if message(t, err) != "" {
			return
		}
		if err := s.Validate(); err != nil {
			t.Errorf("parsed, but not valid: %v", err)
		}
		if len(s.Ports) > 1000 {
			return // the same again, slowly
		}
		again := stored(t, s)
		if err := again.Validate(); err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("stored: %v\n got %+v\nwant %+v", err, again, s)
		}
		if s.Mode != ModeBridge && (len(s.Ports) > 0 || len(s.Attach) > 0 || ip != "" || ip6 != "" || mac != "" || mtu != 0) {
			t.Errorf("mode %s ignores something: %+v", s.Mode, o)
		}
	})
}

func FuzzNetworkOptions(f *testing.F) {
	f.Add("lan", "10.61.0.0/24", "10.61.0.254", "10.61.0.128/25", "printer=10.61.0.9|b=10.61.0.1", "br-n", 1400, "k=v", "nat", false)
	f.Add("lan", "10.61.0.0/24|10.62.0.0/24", "", "", "", "", 0, "", "", true)
	f.Add("bridge", "10.61.0.5/24", "1", "/", "=", "sandnet0", -1, "=", "routed", false)
	f.Add("x", "", "10.0.0.1", "10.0.0.0/24", "a=b", "", 0, "", "", true)
	f.Add("x", "10.0.0.0/30", "", "10.0.0.3/32", "a=10.0.0.1", "", 0, "", "", false)
	f.Add("x", "fd00::/64|10.61.0.0/24", "10.61.0.7|fd00::9", "fd00::1:0/112", "a=fd00::2|b=10.61.0.1", "", 1280, "", "", false)
	f.Add("x", "fd00::/126", "", "", "a=fd00::1", "", 0, "", "", true)
	f.Fuzz(func(t *testing.T, name, subnets, gateways, ipRange, aux, bridge string, mtu int, labels, mode string, ipv6 bool) {
		o := NetworkOptions{Name: name, Subnets: words(subnets), Gateways: words(gateways), IPRange: ipRange, Aux: words(aux),
			Bridge: bridge, MTU: mtu, Labels: words(labels), GatewayMode: mode, IPv6: ipv6}
		n, err := o.Parse()
		if message(t, err) != "" {
			return
		}
		if err := n.Validate(); err != nil || len(n.Gateways) != len(n.Subnets) {
			t.Errorf("parsed, but not valid: %v: %+v", err, n)
		}
		again := stored(t, n)
		if err := again.Validate(); err != nil || !reflect.DeepEqual(again, n) {
			t.Errorf("stored: %v\n got %+v\nwant %+v", err, again, n)
		}
		for i, s := range n.Subnets {
			if gw := n.Gateways[i]; hostFault(gw, s) != "" || i > 0 && !(n.Subnets[0].Addr().Is4() && s.Addr().Is6()) {
				t.Errorf("gateway %v of subnet %v in %+v", gw, s, n)
			}
		}
		for _, a := range append(slices.Clone(n.Gateways), broadcasts(n)...) {
			if n.CheckAddress(a) == nil {
				t.Errorf("%v can be handed out in %+v", a, n)
			}
		}
	})
}

func broadcasts(n Network) (out []netip.Addr) {
	for _, s := range n.Subnets {
		if s.Addr().Is4() {
			out = append(out, LastAddr(s))
		}
	}
	return out
}
