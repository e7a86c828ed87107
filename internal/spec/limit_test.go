package spec

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]uint64{
		"10mbit": 10_000_000, "1gbit": 1_000_000_000, "1000000": 1_000_000, "64Kbit": 64_000, "1.5mbit": 1_500_000,
		"1mbps": 8_000_000, "1mibit": 1 << 20, "2kibps": 2 << 13, "8000": 8000, "8kbit": 8000, "10tbit": 10_000_000_000_000,
		"0.1gbit": 100_000_000, "100000bit": 100_000,
	} {
		if got, err := ParseRate(in); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "mbit", "10 mbit", "-1mbit", "10mbits", "1e6", "7999", "7kbit", "11tbit", ".5mbit", "1..2mbit",
		"99999999999999999999999999999999", "1/2mbit", "0x10mbit", "10Mb", strings.Repeat("1", 99)} {
		if got, err := ParseRate(in); err == nil {
			t.Errorf("%q is %d", in, got)
		}
	}
}

func TestParseEgress(t *testing.T) {
	for in, want := range map[string]string{
		"allow 10.0.0.0/8":               "allow 10.0.0.0/8",
		"allow=10.0.0.0/8:443/tcp":       "allow 10.0.0.0/8:443/tcp",
		"deny:192.0.2.7":                 "deny 192.0.2.7/32",
		"deny 192.0.2.7:53":              "deny 192.0.2.7/32:53/tcp deny 192.0.2.7/32:53/udp",
		"deny 0.0.0.0/0":                 "deny 0.0.0.0/0",
		"allow:fd00::/8":                 "allow fd00::/8",
		"allow [fd00::/8]:443/TCP":       "allow [fd00::/8]:443/tcp",
		"allow:[fd00::1]":                "allow fd00::1/128",
		"deny ::1":                       "deny ::1/128",
		"deny  10.0.0.0/8:5000/sctp":     "deny 10.0.0.0/8:5000/sctp",
		"allow=[2001:db8::/32]:8080/udp": "allow [2001:db8::/32]:8080/udp",
	} {
		rules, err := ParseEgress(in)
		var got []string
		for _, r := range rules {
			got = append(got, r.String())
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v; want %s", in, got, err, want)
		}
	}
	for in, why := range map[string]string{
		"":                          "allow or deny",
		"10.0.0.0/8":                "allow or deny",
		"permit 10.0.0.0/8":         "allow or deny",
		"allow":                     "missing",
		"allow 10.0.0.5/8":          "10.0.0.0/8",
		"allow 10.0.0.0/33":         "not a CIDR",
		"allow 10.0.0.0/8:0":        "1 to 65535",
		"allow 10.0.0.0/8:80/icmp":  "icmp",
		"allow 10.0.0.0/8/tcp":      "not a CIDR",
		"allow fd00::/8:80":         "not a CIDR",
		"allow [fd00::/8":           "not a CIDR",
		"allow [fd00::/8]80":        "not a CIDR",
		"allow ::ffff:10.0.0.0/104": "IPv4",
		"allow fe80::1%eth0":        "zone",
		"allow 10.0.0.0/8:":         "port is missing",
	} {
		if rules, err := ParseEgress(in); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, %v; want an error with %q", in, rules, err, why)
		}
	}
}

func TestLimitsNeedANetwork(t *testing.T) {
	for _, o := range []SandboxOptions{{IngressRate: "10mbit"}, {EgressRate: "10mbit"}, {Egress: []string{"deny 10.0.0.0/8"}}, {GwPriority: 1}} {
		for _, mode := range []string{"none", "host", "container:x"} {
			o.Net = []string{mode}
			if s, err := o.Parse(); err == nil {
				t.Errorf("--net %s: %+v", mode, s)
			}
		}
		o.Net = nil
		if _, err := o.Parse(); err != nil {
			t.Error(err)
		}
	}
}

func TestParseAttachment(t *testing.T) {
	a, err := ParseAttachment("name=app,ip=10.61.0.7,alias=db,alias=www,gw-priority=-5,mac-address=02:00:5E:00:00:01")
	if err != nil || a.Network != "app" || a.IP.String() != "10.61.0.7" || !slices.Equal(a.Aliases, []string{"db", "www"}) || a.GwPriority != -5 || a.MAC != "02:00:5e:00:00:01" {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := ParseAttachment("name=default"); err != nil || a.Network != DefaultNetwork {
		t.Errorf("%+v, %v", a, err)
	}
	for _, in := range []string{"ip=10.61.0.7", "name=", "name=a,name=b", "name=a,ip=x", "name=host", "name=a,gw-priority=x", "name=a,driver-opt=x", "name=a,", "name=a/b", "=a"} {
		if a, err := ParseAttachment(in); err == nil {
			t.Errorf("%q is %+v", in, a)
		}
	}
	if _, err := (SandboxOptions{Net: []string{"name=a,ip=10.61.0.7"}, IP: "10.61.0.8"}).Parse(); err == nil {
		t.Error("two addresses for one network")
	}
}

func TestGateway(t *testing.T) {
	four, six := Network{Gateways: gateways("10.61.0.1")}, Network{Gateways: gateways("10.62.0.1", "fd00::1")}
	internal, isolated := six, six
	internal.Internal = true
	isolated.GatewayMode = GatewayIsolated
	for _, c := range []struct {
		nets       []Network
		priorities []int
		v4, v6     int
	}{
		{nil, nil, -1, -1},
		{[]Network{four, six}, []int{0, 0}, 0, 1},
		{[]Network{four, six}, []int{0, 1}, 1, 1},
		{[]Network{four, six}, []int{-1, -2}, 0, 1},
		{[]Network{internal, four}, []int{9, 0}, 1, -1},
		{[]Network{isolated, internal}, []int{9, 0}, -1, -1},
		{[]Network{six, six, six}, []int{1, 3, 3}, 1, 1},
	} {
		var attach []Attachment
		for _, p := range c.priorities {
			attach = append(attach, Attachment{GwPriority: p})
		}
		if v4, v6 := Gateway(attach, c.nets, false), Gateway(attach, c.nets, true); v4 != c.v4 || v6 != c.v6 {
			t.Errorf("%+v: %d and %d, want %d and %d", c, v4, v6, c.v4, c.v6)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"10mbit", "1.5gbit", "8000", "1kibps", "", "1e9", "...", "10 mbit"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseRate(s)
		if message(t, err) == "" && rateFault(n) != "" || err != nil && n != 0 {
			t.Errorf("%q is %d, %v", s, n, err)
		}
	})
}

func FuzzParseEgress(f *testing.F) {
	for _, s := range []string{"allow 10.0.0.0/8", "deny:192.0.2.7:53", "allow=[fd00::/8]:443/tcp", "deny ::", "allow [::]:1", "deny"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rules, err := ParseEgress(s)
		if message(t, err) != "" {
			if rules != nil {
				t.Errorf("rules with an error: %v", rules)
			}
			return
		}
		if len(rules) == 0 {
			t.Fatal("neither rules nor an error")
		}
		for _, r := range rules {
			if why := egressFault(r); why != "" {
				t.Errorf("%s: %s", r, why)
			}
			if again, err := ParseEgress(r.String()); err != nil || !slices.Equal(again, []EgressRule{r}) {
				t.Errorf("%s comes back as %v, %v", r, again, err)
			}
		}
	})
}

func FuzzParseAttachment(f *testing.F) {
	for _, s := range []string{"app", "name=app,ip=10.1.2.3,alias=x", "name=a,gw-priority=1", "name=,", "a=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAttachment(s)
		if message(t, err) == "" && CheckName("network name", a.Network) != nil && a.Network != DefaultNetwork {
			t.Errorf("%q is %+v", s, a)
		}
	})
}

func gateways(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}
