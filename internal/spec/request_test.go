package spec

import (
	"encoding/json"
	"strings"
	"testing"
)

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNetworkOptions(t *testing.T) {
	lan := []string{"10.61.0.0/24"}
	for _, c := range []struct {
		in   NetworkOptions
		want string
	}{
		{NetworkOptions{Name: "lan"}, `"subnets":null,"gateways":null,"mtu":0`},
		{NetworkOptions{Name: "lan", Subnets: lan}, `"bridge":"","subnets":["10.61.0.0/24"],"gateways":["10.61.0.1"],"mtu":0`},
		{NetworkOptions{Name: "lan", Subnets: lan, Gateways: []string{"10.61.0.254"}, IPRange: "10.61.0.128/25", Aux: []string{"printer=10.61.0.130"},
			MTU: 1400, Bridge: "br-n", Labels: []string{"k=v"}, Internal: true, NoICC: true, NoMasquerade: true, GatewayMode: "nat"},
			`{"name":"lan","bridge":"br-n","subnets":["10.61.0.0/24"],"gateways":["10.61.0.254"],"range":"10.61.0.128/25","aux":{"printer":"10.61.0.130"},` +
				`"labels":{"k":"v"},"mtu":1400,"internal":true,"noICC":true,"noMasquerade":true,`},
		{NetworkOptions{Name: "lan", Subnets: lan, Aux: []string{"a=10.61.0.1", "b=10.61.0.2"}}, `"gateways":["10.61.0.3"]`},
		{NetworkOptions{Name: "lan", IPv6: true}, `"subnets":null,"ipv6":true,"gateways":null`},
		{NetworkOptions{Name: "lan", Subnets: []string{"fd00::/64"}}, `"subnets":["fd00::/64"],"gateways":["fd00::1"]`},
		{NetworkOptions{Name: "lan", Subnets: []string{"fd00::/64", "10.61.0.0/24"}, Gateways: []string{"fd00::9"}}, `"subnets":["10.61.0.0/24","fd00::/64"],"gateways":["10.61.0.1","fd00::9"]`},
		{NetworkOptions{Name: "lan", Subnets: []string{"10.61.0.0/24", "fd00::/64"}, Gateways: []string{"fd00::9", "10.61.0.7"}, IPRange: "fd00::1:0/112", Aux: []string{"a=fd00::2", "b=10.61.0.2"}},
			`"gateways":["10.61.0.7","fd00::9"],"range":"fd00::1:0/112","aux":{"a":"fd00::2","b":"10.61.0.2"}`},
	} {
		n, err := c.in.Parse()
		if got := asJSON(t, n); err != nil || !strings.Contains(got, c.want) {
			t.Errorf("%+v: %v\n got: %s\nwant: %s", c.in, err, got, c.want)
		}
	}
}

func TestNetworkRefusals(t *testing.T) {
	lan := []string{"10.61.0.0/24"}
	const none = "no subnet is given for it"
	for _, c := range []struct {
		in   NetworkOptions
		want string
	}{
		{NetworkOptions{}, `network name "": it is empty`},
		{NetworkOptions{Name: "bridge"}, `network name "bridge": it is the name of the default network`},
		{NetworkOptions{Name: "default"}, `network name "default": it is the name of the default network`},
		{NetworkOptions{Name: "host"}, `network name "host": it is the name of a network mode`},
		{NetworkOptions{Name: "none"}, `network name "none": it is the name of a network mode`},
		{NetworkOptions{Name: "container"}, `network name "container": it is the name of a network mode`},
		{NetworkOptions{Name: "overlay"}, `network name "overlay": it is the name of the overlay's network`},
		{NetworkOptions{Name: "container:x"}, `network name "container:x": only letters, digits, '_', '.' and '-' are allowed, and a letter or digit comes first`},
		{NetworkOptions{Name: "x", Subnets: []string{"10.61.0.5/24"}}, `subnet "10.61.0.5/24": it should be 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: []string{"10.61.0.0/24", "10.61.0.0/24"}}, `subnet "10.61.0.0/24": it overlaps 10.61.0.0/24 of the same network`},
		{NetworkOptions{Name: "x", Subnets: []string{"10.61.0.0/24", "10.0.0.0/8"}}, `subnet "10.0.0.0/8": it overlaps 10.61.0.0/24 of the same network`},
		{NetworkOptions{Name: "x", Subnets: []string{"10.61.0.0/24", "10.62.0.0/24"}}, `subnet "10.62.0.0/24": a network has one IPv4 subnet, and 10.61.0.0/24 is this one's`},
		{NetworkOptions{Name: "x", Subnets: []string{"fd00::/64", "fd01::/64"}}, `subnet "fd01::/64": a network has one IPv6 subnet, and fd00::/64 is this one's`},
		{NetworkOptions{Name: "x", Subnets: []string{"fd00::/64", "10.61.0.0/24", "fd00::/48"}}, `subnet "fd00::/48": it overlaps fd00::/64 of the same network`},
		{NetworkOptions{Name: "x", Subnets: []string{"fd00::1/64"}}, `subnet "fd00::1/64": it should be fd00::/64`},
		{NetworkOptions{Name: "x", Subnets: []string{"fd00::/64"}, Gateways: []string{"fd01::1"}}, `gateway "fd01::1": it is not in fd00::/64`},
		{NetworkOptions{Name: "x", Subnets: []string{"fd00::/64"}, Gateways: []string{"fd00::"}}, `gateway "fd00::": it is the network address of fd00::/64`},
		{NetworkOptions{Name: "x", Subnets: lan, Gateways: []string{"fd00::1"}}, `gateway "fd00::1": no IPv6 subnet is given for it`},
		{NetworkOptions{Name: "x", Subnets: append(lan, "fd00::/64"), Gateways: []string{"fd00::1", "10.61.0.1", "fd00::2"}}, `gateway "fd00::2": each subnet has one gateway, and fd00::1 is given already`},
		{NetworkOptions{Name: "x", Subnets: lan, IPRange: "fd00::/80"}, `IP range "fd00::/80": no IPv6 subnet is given for it`},
		{NetworkOptions{Name: "x", Subnets: append(lan, "fd00::/64"), IPRange: "fd01::/80"}, `IP range "fd01::/80": it is not in fd00::/64`},
		{NetworkOptions{Name: "x", Subnets: []string{"fd00::/64"}, Aux: []string{"a=10.61.0.9"}}, `auxiliary address "a=10.61.0.9": no IPv4 subnet is given for it`},
		{NetworkOptions{Name: "x", Subnets: append(lan, "fd00::/64"), Aux: []string{"a=fd00:0:0:1::9"}}, `auxiliary address "a=fd00:0:0:1::9": it is not in fd00::/64`},
		{NetworkOptions{Name: "x", Subnets: []string{"fd00::/126"}, Aux: []string{"a=fd00::1", "b=fd00::2", "c=fd00::3"}}, `subnet "fd00::/126": the auxiliary addresses leave no room for a gateway`},
		{NetworkOptions{Name: "x", Subnets: []string{"fd00::/64"}, MTU: 1279}, `MTU "1279": it should be from 1280 to 65535 with IPv6`},
		{NetworkOptions{Name: "x", IPv6: true, MTU: 1279}, `MTU "1279": it should be from 1280 to 65535 with IPv6`},
		{NetworkOptions{Name: "x", GatewayMode: "magic"}, `gateway mode "magic": it should be nat, routed or isolated`},
		{NetworkOptions{Name: "x", GatewayMode: "routed", Internal: true}, `gateway mode "routed": an internal network has no way out, routed or not`},
		{NetworkOptions{Name: "x", GatewayMode: "routed", NoMasquerade: true}, `gateway mode "routed": it never masquerades; leave out --no-masquerade`},
		{NetworkOptions{Name: "x", GatewayMode: "isolated", NoMasquerade: true}, `gateway mode "isolated": nothing leaves it; leave out --no-masquerade`},
		{NetworkOptions{Name: "x", GatewayMode: "isolated", Subnets: []string{"10.61.0.0/24"}, Gateways: []string{"10.61.0.1"}}, `gateway "10.61.0.1": on an isolated network the host has no address`},
		{NetworkOptions{Name: "x", Subnets: lan, Gateways: []string{"10.63.0.1"}}, `gateway "10.63.0.1": it is not in 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: lan, Gateways: []string{"10.61.0.0"}}, `gateway "10.61.0.0": it is the network address of 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: lan, Gateways: []string{"10.61.0.255"}}, `gateway "10.61.0.255": it is the broadcast address of 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: lan, Gateways: []string{"gw"}}, `gateway "gw": "gw" is not an IP address`},
		{NetworkOptions{Name: "x", Subnets: lan, Gateways: []string{"10.61.0.1", "10.61.0.2"}}, `gateway "10.61.0.2": each subnet has one gateway, and 10.61.0.1 is given already`},
		{NetworkOptions{Name: "x", Gateways: []string{"10.61.0.1"}}, `gateway "10.61.0.1": ` + none},
		{NetworkOptions{Name: "x", IPRange: "10.61.0.0/24"}, `IP range "10.61.0.0/24": ` + none},
		{NetworkOptions{Name: "x", Aux: []string{"a=10.61.0.1"}}, `auxiliary address "a=10.61.0.1": ` + none},
		{NetworkOptions{Name: "x", Subnets: lan, IPRange: "10.63.0.0/25"}, `IP range "10.63.0.0/25": it is not in 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: lan, IPRange: "10.61.0.0/16"}, `IP range "10.61.0.0/16": it is not in 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: lan, IPRange: "10.60.0.0/15"}, `IP range "10.60.0.0/15": it is not in 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: lan, IPRange: "10.61.0.1/25"}, `IP range "10.61.0.1/25": it should be 10.61.0.0/25`},
		{NetworkOptions{Name: "x", Subnets: lan, IPRange: "some"}, `IP range "some": not an address and prefix length, like 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: lan, Aux: []string{"a=10.63.0.9"}}, `auxiliary address "a=10.63.0.9": it is not in 10.61.0.0/24`},
		{NetworkOptions{Name: "x", Subnets: lan, Aux: []string{"10.61.0.9"}}, `auxiliary address "10.61.0.9": it should be NAME=IP`},
		{NetworkOptions{Name: "x", Subnets: lan, Aux: []string{"a=9"}}, `auxiliary address "a=9": "9" is not an IP address`},
		{NetworkOptions{Name: "x", Subnets: lan, Aux: []string{"/=10.61.0.9"}}, `auxiliary address "/=10.61.0.9": name: only letters, digits, '_', '.' and '-' are allowed, and a letter or digit comes first`},
		{NetworkOptions{Name: "x", Subnets: lan, Aux: []string{"a=10.61.0.9", "a=10.61.0.8"}}, `auxiliary address "a=10.61.0.8": the name is given twice`},
		{NetworkOptions{Name: "x", Subnets: lan, Aux: []string{"b=10.61.0.9", "a=10.61.0.9"}}, `auxiliary address "b=10.61.0.9": the address is also given to a`},
		{NetworkOptions{Name: "x", Subnets: lan, Gateways: []string{"10.61.0.9"}, Aux: []string{"a=10.61.0.9"}}, `auxiliary address "a=10.61.0.9": it is the gateway`},
		{NetworkOptions{Name: "x", Subnets: []string{"10.61.0.0/30"}, Aux: []string{"a=10.61.0.1", "b=10.61.0.2"}}, `subnet "10.61.0.0/30": the auxiliary addresses leave no room for a gateway`},
		{NetworkOptions{Name: "x", Bridge: "a-name-too-long-for-linux"}, `interface name "a-name-too-long-for-linux": 15 characters at most, this has 25`},
		{NetworkOptions{Name: "x", Bridge: "sandnet0"}, `interface name "sandnet0": names that begin with sandnet are for sandnet's own devices`},
		{NetworkOptions{Name: "x", MTU: 40}, `MTU "40": it should be from 68 to 65535`},
		{NetworkOptions{Name: "x", Labels: []string{"=v"}}, `label "=v": the key is empty, it should be KEY=VALUE`},
	} {
		_, err := c.in.Parse()
		if got := message(t, err); got != "invalid "+c.want {
			t.Errorf("%+v\n got: %s\nwant: invalid %s", c.in, got, c.want)
		}
	}
}

func TestSandboxOptions(t *testing.T) {
	for _, c := range []struct {
		in   SandboxOptions
		want string
	}{
		{SandboxOptions{}, `{"name":"","id":"","mode":"bridge","attach":[{"network":"bridge"}]}`},
		{SandboxOptions{Net: []string{"default"}, IP: "172.30.0.9", MAC: "02:42:00:00:00:0A"}, `{"name":"","id":"","mode":"bridge","attach":[{"network":"bridge","ip":"172.30.0.9","mac":"02:42:00:00:00:0a"}]}`},
		{SandboxOptions{Net: []string{"a", "bridge", "b"}, IP: "10.0.0.9", NetworkAlias: []string{"db"}},
			`{"name":"","id":"","mode":"bridge","attach":[{"network":"a","ip":"10.0.0.9","aliases":["db"]},{"network":"bridge"},{"network":"b","aliases":["db"]}]}`},
		{SandboxOptions{Net: []string{"host"}, Name: "x", Hostname: "h", Labels: []string{"a=1", "a=2"}}, `{"name":"x","id":"","mode":"host","hostname":"h","labels":{"a":"2"}}`},
		{SandboxOptions{Net: []string{"none"}, DNS: []string{"1.1.1.1"}, AddHost: []string{"a:1.2.3.4"}, Sysctls: []string{"net.core.somaxconn=9"}},
			`{"name":"","id":"","mode":"none","dns":["1.1.1.1"],"hosts":[{"name":"a","addr":"1.2.3.4"}],"sysctls":{"net/core/somaxconn":"9"}}`},
		{SandboxOptions{Net: []string{"lan"}, IP: "10.0.0.9", IP6: "fd00::9", Publish: []string{"[fd00::5]:80:80"}},
			`{"name":"","id":"","mode":"bridge","attach":[{"network":"lan","ip":"10.0.0.9","ip6":"fd00::9"}],"ports":[{"hostIP":"fd00::5","hostPort":80,"port":80,"protocol":"tcp"}]}`},
		{SandboxOptions{Net: []string{"container:web"}}, `{"name":"","id":"","mode":"container","join":"web"}`},
		{SandboxOptions{Net: []string{"container:4711"}, Name: "y"}, `{"name":"y","id":"","mode":"container","join":"4711"}`},
		{SandboxOptions{Publish: []string{"8080:80", "9000-9009:90/udp"}, MTU: 1400, DNSSearch: []string{"example.com."}},
			`{"name":"","id":"","mode":"bridge","attach":[{"network":"bridge"}],"ports":[{"hostIP":"","hostPort":8080,"port":80,"protocol":"tcp"},` +
				`{"hostIP":"","hostPort":9000,"hostPortEnd":9009,"port":90,"protocol":"udp"}],"dnsSearch":["example.com"],"mtu":1400}`},
	} {
		s, err := c.in.Parse()
		if got := asJSON(t, s); err != nil || got != c.want {
			t.Errorf("%+v: %v\n got: %s\nwant: %s", c.in, err, got, c.want)
		}
	}
}

func TestSandboxRefusals(t *testing.T) {
	host, join, none := []string{"host"}, []string{"container:web"}, []string{"none"}
	const (
		asHost   = "with network mode host the sandbox has what the host has"
		asOther  = "with network mode container the sandbox has what the other one has"
		nothing  = "with network mode none the sandbox has no network"
		badChars = "only letters, digits, '_', '.' and '-' are allowed, and a letter or digit comes first"
	)
	for _, c := range []struct {
		in   SandboxOptions
		want string
	}{
		{SandboxOptions{Net: host, Publish: []string{"80"}}, `published port "80/tcp": ` + asHost},
		{SandboxOptions{Net: none, Publish: []string{"80:80"}}, `published port "80:80/tcp": ` + nothing},
		{SandboxOptions{Net: join, Publish: []string{"80:80"}}, `published port "80:80/tcp": ` + asOther},
		{SandboxOptions{Net: host, IP: "10.0.0.1"}, `IP address "10.0.0.1": ` + asHost},
		{SandboxOptions{Net: none, IP: "junk"}, `IP address "junk": ` + nothing},
		{SandboxOptions{Net: join, IP: "10.0.0.1"}, `IP address "10.0.0.1": ` + asOther},
		{SandboxOptions{Net: join, IP6: "fd00::1"}, `IPv6 address "fd00::1": ` + asOther},
		{SandboxOptions{Net: join, MAC: "02:42:00:00:00:01"}, `MAC address "02:42:00:00:00:01": ` + asOther},
		{SandboxOptions{Net: host, MAC: "02:42:00:00:00:01"}, `MAC address "02:42:00:00:00:01": ` + asHost},
		{SandboxOptions{Net: none, NetworkAlias: []string{"db"}}, `network alias "db": ` + nothing},
		{SandboxOptions{Net: join, Hostname: "h"}, `hostname "h": ` + asOther},
		{SandboxOptions{Net: join, DNS: []string{"1.1.1.1"}}, `DNS server "1.1.1.1": ` + asOther},
		{SandboxOptions{Net: join, DNSSearch: []string{"x"}}, `DNS search domain "x": ` + asOther},
		{SandboxOptions{Net: join, AddHost: []string{"a:1.2.3.4"}}, `host entry "a:1.2.3.4": ` + asOther},
		{SandboxOptions{Net: host, AddHost: []string{"a:1.2.3.4"}}, `host entry "a:1.2.3.4": ` + asHost},
		{SandboxOptions{Net: host, Sysctls: []string{"net.core.somaxconn=1"}}, `sysctl "net/core/somaxconn": ` + asHost},
		{SandboxOptions{Net: none, MTU: 1400}, `MTU "1400": ` + nothing},
		{SandboxOptions{Net: []string{"host", "lan"}}, `network mode "host": mode host does not go with another network`},
		{SandboxOptions{Net: []string{"lan", "none"}}, `network mode "none": mode none does not go with another network`},
		{SandboxOptions{Net: []string{"lan", "container:x"}}, `network mode "container:x": mode container does not go with another network`},
		{SandboxOptions{Net: []string{"lan", "lan"}}, `network mode "lan": it is given twice`},
		{SandboxOptions{Net: []string{"bridge", "default"}}, `network mode "bridge": it is given twice`},
		{SandboxOptions{Net: []string{"container"}}, `network mode "container": it should be container:NAME, container:ID or container:PID`},
		{SandboxOptions{Net: []string{"container:"}}, `network mode "container:": it should be container:NAME, container:ID or container:PID`},
		{SandboxOptions{Net: []string{"container:../x"}}, `network mode "container:../x": sandbox name: ` + badChars},
		{SandboxOptions{Net: []string{""}}, `network mode "": network name: it is empty`},
		{SandboxOptions{Net: []string{"../x"}}, `network mode "../x": network name: ` + badChars},
		{SandboxOptions{Name: "a b"}, `sandbox name "a b": ` + badChars},
		{SandboxOptions{IP: "10.0.0"}, `IP address "10.0.0": "10.0.0" is not an IP address`},
		{SandboxOptions{IP: "fd00::1"}, `IP address "fd00::1": it is not an IPv4 address`},
		{SandboxOptions{IP: "127.0.0.1"}, `IP address "127.0.0.1": it is a loopback address`},
		{SandboxOptions{IP: "0.0.0.0"}, `IP address "0.0.0.0": it is not the address of an interface`},
		{SandboxOptions{IP6: "10.0.0.1"}, `IPv6 address "10.0.0.1": it is not an IPv6 address`},
		{SandboxOptions{IP6: "::ffff:10.0.0.1"}, `IPv6 address "10.0.0.1": it is not an IPv6 address`},
		{SandboxOptions{IP6: "ff02::1"}, `IPv6 address "ff02::1": it is a multicast address`},
		{SandboxOptions{IP6: "::1"}, `IPv6 address "::1": it is a loopback address`},
		{SandboxOptions{MAC: "01:00:5e:00:00:01"}, `MAC address "01:00:5e:00:00:01": it is a multicast address`},
		{SandboxOptions{NetworkAlias: []string{"db"}}, `network alias "db": only user-defined networks have aliases`},
		{SandboxOptions{Net: []string{"lan"}, NetworkAlias: []string{"d b"}}, `network alias "d b": only letters, digits, '-', '_' and dots are allowed`},
		{SandboxOptions{Publish: []string{"[::1]:80:80/sctp"}}, `published port "[::1]:80:80/sctp": nothing can lead SCTP from ::1 into a sandbox`},
		{SandboxOptions{Publish: []string{"[fe80::1]:80:80"}}, `published port "[fe80::1]:80:80/tcp": it is not an address that a port can be published on`},
		{SandboxOptions{Publish: []string{"[::]:80:80", "80:81"}}, `published port "80:81/tcp": [::]:80:80/tcp takes the same host port`},
		{SandboxOptions{Publish: []string{"80:80", "80:81"}}, `published port "80:81/tcp": 80:80/tcp takes the same host port`},
		{SandboxOptions{Publish: []string{"80x"}}, `published port "80x": "80x" is not a port`},
		{SandboxOptions{Hostname: "a_b"}, `hostname "a_b": only letters, digits, '-' and dots are allowed`},
		{SandboxOptions{Hostname: strings.Repeat("a.", 40) + "a"}, `hostname "` + strings.Repeat("a.", 32) + `…": the kernel takes 64 characters at most, this has 81`},
		{SandboxOptions{MTU: 12}, `MTU "12": it should be from 68 to 65535`},
		{SandboxOptions{Labels: []string{"="}}, `label "=": the key is empty, it should be KEY=VALUE`},
		{SandboxOptions{Sysctls: []string{"vm.x=1"}}, `sysctl "vm.x=1": only keys below net can be set for a sandbox`},
	} {
		_, err := c.in.Parse()
		if got := message(t, err); got != "invalid "+c.want {
			t.Errorf("%+v\n got: %s\nwant: invalid %s", c.in, got, c.want)
		}
	}
}

// A front door that fills in a Sandbox itself gets the same checks.
func TestSandboxValidate(t *testing.T) {
	lan := []Attachment{{Network: "lan"}}
	for want, s := range map[string]Sandbox{
		`network mode "": it should be bridge, host, container:REF, none or a network's name`: {},
		`network mode "bridge": there is no network`:                                          {Mode: ModeBridge},
		`network mode "host": there is a network, which only mode bridge has`:                 {Mode: ModeHost, Attach: lan},
		`network mode "container": sandbox name: it is empty`:                                 {Mode: ModeContainer},
		`network mode "none": there is a sandbox to join, which only mode container does`:     {Mode: ModeNone, Join: "x"},
		`published port "0/": the sandbox's port is missing`:                                  {Mode: ModeBridge, Attach: lan, Ports: []Port{{}}},
		`MAC address "02:42:AC:00:00:01": it should be 02:42:ac:00:00:01`:                     {Mode: ModeBridge, Attach: []Attachment{{Network: "lan", MAC: "02:42:AC:00:00:01"}}},
		`host entry "a:invalid IP": it has no usable IP address`:                              {Mode: ModeBridge, Attach: lan, Hosts: []HostEntry{{Name: "a"}}},
		`sysctl "net.core.x=1": only keys below net can be set for a sandbox`:                 {Mode: ModeBridge, Attach: lan, Sysctls: map[string]string{"net.core.x": "1"}},
		`label "a=\n": it has a control character in it`:                                      {Mode: ModeBridge, Attach: lan, Labels: map[string]string{"a": "\n"}},
	} {
		if got := message(t, s.Validate()); got != "invalid "+want {
			t.Errorf("%+v\n got: %s\nwant: invalid %s", s, got, want)
		}
	}
}
