package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"
)

// message is an error's text, or empty; it must be an *InputError on one line.
func message(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var input *InputError
	if !errors.As(err, &input) {
		t.Fatalf("%T is no *InputError: %v", err, err)
	}
	s := err.Error()
	if len(s) > 300 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("not a short printable line (%d bytes): %q", len(s), s)
	}
	return s
}

// cases maps what is read to what comes of it, or "! " and the error after
// `invalid WHAT "VALUE": `.
type cases map[string]string

func (c cases) run(t *testing.T, what string, parse func(string) (string, error)) {
	t.Helper()
	for in, want := range c {
		got, err := parse(in)
		if why, bad := strings.CutPrefix(want, "! "); bad {
			want = fmt.Sprintf("invalid %s %s: %s", what, quote(in, 64), why)
			got = message(t, err)
		} else if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got != want {
			t.Errorf("%q\n got: %s\nwant: %s", in, got, want)
		}
	}
}

func same(check func(string) error) func(string) (string, error) {
	return func(s string) (string, error) { return s, check(s) }
}

func show[T any](parse func(string) (T, error)) func(string) (string, error) {
	return func(s string) (string, error) {
		v, err := parse(s)
		return fmt.Sprint(v), err
	}
}

func pair(parse func(string) (string, string, error)) func(string) (string, error) {
	return func(s string) (string, error) {
		k, v, err := parse(s)
		return k + " = " + v, err
	}
}

func TestNames(t *testing.T) {
	const charset = "! only letters, digits, '_', '.' and '-' are allowed, and a letter or digit comes first"
	cases{
		"a": "a", "Web-1_x.y": "Web-1_x.y", "0": "0", strings.Repeat("x", 64): strings.Repeat("x", 64),
		"": "! it is empty", strings.Repeat("x", 200): "! 64 characters at most, this has 200",
		"../x": charset, ".x": charset, "-rf": charset, "a;b": charset, "a b": charset, "a\nb": charset, "a/b": charset,
		"é": charset, "a\x00": charset, "a:b": charset, "$(x)": charset, "\x1b[31m": charset,
	}.run(t, "sandbox name", same(func(s string) error { return CheckName("sandbox name", s) }))
	if got, want := CheckName("x", strings.Repeat("y", 200)).Error(), `invalid x "`+strings.Repeat("y", 64)+`…": 64 characters at most, this has 200`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	const device = "! only letters, digits, '_', '.' and '-' are allowed, and a letter, digit or '_' comes first"
	cases{
		"br0": "br0", "eth0.100": "eth0.100", "_x": "_x", "a-name-of-15-xx": "a-name-of-15-xx",
		"": "! it is empty", "a-name-of-20-letters": "! 15 characters at most, this has 20",
		".": device, "..": device, "a/b": device, "a b": device, "a:1": device, "br%d": device, "br*": device, "-x": device, `a"b`: device,
		"brücke": device, "a\tb": device, "all": "! the kernel keeps the name for its own settings", "default": "! the kernel keeps the name for its own settings",
	}.run(t, "interface name", same(CheckInterface))
	if got, want := BridgeName("web"), "sn-4b5e57f6eb2f"; got != want || CheckInterface(got) != nil {
		t.Errorf("bridge %s, want %s", got, want)
	}
}

func TestHostnames(t *testing.T) {
	long := strings.Repeat("x", 63)
	cases{
		"web": "web", "a.b-c.example": "a.b-c.example", "1": "1", long + "." + long: long + "." + long,
		"": "! it is empty", "a_b": "! only letters, digits, '-' and dots are allowed", "a b": "! only letters, digits, '-' and dots are allowed",
		"-a": `! "-a" begins or ends with '-'`, "a.b-": `! "b-" begins or ends with '-'`, "a..b": "! a part between dots is empty", ".": "! a part between dots is empty",
		long + "x":                     `! 63 characters at most between dots, "` + strings.Repeat("x", 32) + `…" has 64`,
		strings.Repeat("abcdefg.", 32): "! 253 characters at most, this has 256",
	}.run(t, "hostname", same(CheckHostname))
	cases{
		".": ".", "example.com": "example.com", "example.com.": "example.com", "_tcp.example": "_tcp.example",
		"": "! it is empty", "..": "! a part between dots is empty", "a\nnameserver 1.1.1.1": "! only letters, digits, '-', '_' and dots are allowed",
	}.run(t, "DNS search domain", ParseDNSSearch)
	cases{
		"db:10.0.0.5": "db:10.0.0.5", "db=10.0.0.5": "db:10.0.0.5", "my_db:fd00::5": "my_db:fd00::5", "db:[fd00::5]": "db:fd00::5",
		"db:::1": "db:::1", "x:0.0.0.0": "x:0.0.0.0", "x:::ffff:1.2.3.4": "x:1.2.3.4",
		"db": "! it should be NAME:IP", "db:": "! the IP address is missing", ":1.2.3.4": "! name: it is empty",
		"db:10.0.0": `! "10.0.0" is not an IP address`, "a b:1.2.3.4": "! name: only letters, digits, '-', '_' and dots are allowed",
		"db:host-gateway": "! host-gateway is not supported yet, give the gateway's address",
		"db:fe80::1%eth0": "! an address with a zone means nothing in a sandbox", "db:1.2.3.4\n": `! "1.2.3.4\n" is not an IP address`,
	}.run(t, "host entry", show(ParseAddHost))
}

func TestSmallOptions(t *testing.T) {
	cases{
		"02:42:AC:1E:00:02": "02:42:ac:1e:00:02", "02-42-ac-1e-00-02": "02:42:ac:1e:00:02", "0242.ac1e.0002": "02:42:ac:1e:00:02",
		"": "! not six bytes in hex, like 02:42:ac:1e:00:02", "02:42:ac:1e:00": "! not six bytes in hex, like 02:42:ac:1e:00:02",
		"02:42:ac:1e:00:02:03:04": "! not six bytes in hex, like 02:42:ac:1e:00:02", "01:00:5e:00:00:01": "! it is a multicast address",
		"ff:ff:ff:ff:ff:ff": "! it is a multicast address", "00:00:00:00:00:00": "! it is all zeros",
	}.run(t, "MAC address", ParseMAC)
	cases{
		"1.1.1.1": "1.1.1.1", "2001:db8::1": "2001:db8::1", "127.0.0.53": "127.0.0.53",
		"": "! the IP address is missing", "dns": `! "dns" is not an IP address`, "1.1.1.1\nx": `! "1.1.1.1\nx" is not an IP address`,
		"0.0.0.0": "! it is not the address of an interface", "224.0.0.1": "! it is a multicast address", "010.0.0.1": `! "010.0.0.1" is not an IP address`,
	}.run(t, "DNS server", show(ParseDNS))
	cases{
		"a=b": "a = b", "a": "a = ", "a=": "a = ", "a=b=c d": "a = b=c d", "a=ü": "a = ü",
		"": "! the key is empty, it should be KEY=VALUE", "=b": "! the key is empty, it should be KEY=VALUE", "a b=c": "! the key has a space or '=' in it",
		"a=b\nc": "! it has a control character in it", "a=\xff": "! it is not UTF-8", "a=" + strings.Repeat("x", 5000): "! 4096 bytes at most, this has 5000",
	}.run(t, "label", pair(ParseLabel))
	const part, chars = "! a part of the key is empty", "! only letters, digits, '_', '-', dots and slashes are allowed in the key"
	cases{
		"net.core.somaxconn=1024": "net/core/somaxconn = 1024", "net/core/somaxconn=1024": "net/core/somaxconn = 1024",
		"net/ipv4/conf/eth0.5/forwarding=1": "net/ipv4/conf/eth0.5/forwarding = 1", "net.ipv4.conf.eth0/5.forwarding=1": "net/ipv4/conf/eth0.5/forwarding = 1",
		"net.ipv4.ip_local_port_range = 1024\t65000": "net/ipv4/ip_local_port_range = 1024\t65000",
		"": "! it should be KEY=VALUE", "net.x": "! it should be KEY=VALUE", "net.x=": "! the value is empty",
		"kernel.panic=1": "! only keys below net can be set for a sandbox", "net=1": "! only keys below net can be set for a sandbox",
		"network.x=1": "! only keys below net can be set for a sandbox", "net/../kernel/panic=1": part, "net/./x=1": part, "net..x=1": part, "net.=1": part, "net//x=1": part,
		"net.x y=1": chars, "net.*=1": chars, "net.x\x00=1": chars, "net.x=1\n2": "! it has a control character in it",
	}.run(t, "sysctl", pair(ParseSysctl))
	for mtu, want := range map[int]string{
		68: "", 1500: "", 65535: "", 67: `invalid MTU "67": it should be from 68 to 65535`, -1: `invalid MTU "-1": it should be from 68 to 65535`,
		65536: `invalid MTU "65536": it should be from 68 to 65535`,
	} {
		if got := message(t, CheckMTU(mtu, false)); got != want {
			t.Errorf("MTU %d: %s", mtu, got)
		}
	}
	if got := message(t, CheckMTU(1279, true)); got != `invalid MTU "1279": it should be from 1280 to 65535 with IPv6` {
		t.Error(got)
	}
}

func TestParsePublish(t *testing.T) {
	cases{
		"80": "[80/tcp]", "80/udp": "[80/udp]", "80/UDP": "[80/udp]", "8080:80": "[8080:80/tcp]",
		"8080:80/tcp": "[8080:80/tcp]", "8080:80/sctp": "[8080:80/sctp]", "127.0.0.1:8080:80": "[127.0.0.1:8080:80/tcp]",
		"127.0.0.1::80": "[127.0.0.1::80/tcp]", "0.0.0.0:1:65535": "[0.0.0.0:1:65535/tcp]",
		"8000-8002:80-82": "[8000:80/tcp 8001:81/tcp 8002:82/tcp]",
		"8000-8010:80":    "[8000-8010:80/tcp]", "8000-8000:80": "[8000:80/tcp]",
		"7000-7001": "[7000/tcp 7001/tcp]", "[::1]:8080:80": "[[::1]:8080:80/tcp]", "[::]::80-81/udp": "[[::]::80/udp [::]::81/udp]",

		"": "! it is empty", "0": `! port "0" is not from 1 to 65535`, "0:80": `! port "0" is not from 1 to 65535`, "80:0": `! port "0" is not from 1 to 65535`,
		"70000": `! port "70000" is not from 1 to 65535`, "80:70000": `! port "70000" is not from 1 to 65535`, "70000:80": `! port "70000" is not from 1 to 65535`,
		"82-80": "! the range 82-80 is reversed", "8001-8000:80": "! the range 8001-8000 is reversed",
		"8000-8003:80-82": "! 8000-8003 and 80-82 are not equally many ports (4 and 3)", "8000:80-82": "! 8000 and 80-82 are not equally many ports (1 and 3)",
		":80": "! a port is missing", "8080:": "! a port is missing", ":8080:80": "! the host address before the first ':' is empty", "80-": "! a port is missing",
		"::80": "! the host address before the first ':' is empty", "-80": "! a port is missing", "1.2.3.4:8080:": "! a port is missing",
		"80/": `! unknown protocol "", it should be tcp, udp or sctp`, "80/icmp": `! unknown protocol "icmp", it should be tcp, udp or sctp`,
		"80/tcp/udp": `! unknown protocol "tcp/udp", it should be tcp, udp or sctp`, "/tcp": "! a port is missing",
		"http": `! "http" is not a port`, "+80": `! "+80" is not a port`, "80 ": `! "80 " is not a port`, "1-2-3": `! "2-3" is not a port`, "a:80": `! "a" is not a port`,
		"1.2.3:8080:80": `! "1.2.3" is not an IP address`, "::1:8080:80": "! an IPv6 address needs brackets, like [::1]:8080:80",
		"[::1:8080:80": `! "[::1" is not an IPv6 address in brackets`, "[1.2.3.4]:8080:80": `! "[1.2.3.4]" is not an IPv6 address in brackets`,
		"[x]:8080:80": `! "[x]" is not an IPv6 address in brackets`, "224.0.0.1:1:1": `! "224.0.0.1" is a multicast address`,
		"[fe80::1%eth0]:1:1": `! "[fe80::1%eth0]" is not an IPv6 address in brackets`, "80\n": `! "80\n" is not a port`,
	}.run(t, "published port", show(ParsePublish))
	start := time.Now()
	ports, err := ParsePublish("1-65535:1-65535")
	if err != nil || len(ports) != 65535 || ports[65534].HostPort != 65535 || ConflictingPorts(ports) != nil {
		t.Errorf("%d ports, %v", len(ports), err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("all ports took %v", d)
	}
}

func TestConflictingPorts(t *testing.T) {
	for in, want := range map[string]string{
		"80:80 81:80 80:80/udp":             "",
		"80 80":                             "",
		"127.0.0.1:80:80 127.0.0.2:80:80":   "",
		"[::]:80:80 0.0.0.0:80:80":          "",
		"[fd00::1]:80:80 [fd00::2]:80:80":   "",
		"[::]:80:80 127.0.0.1:80:80":        "",
		"[::]:80:80 80:80":                  `invalid published port "80:80/tcp": [::]:80:80/tcp takes the same host port`,
		"[::]:80:80 [fd00::1]:80:80":        `invalid published port "[fd00::1]:80:80/tcp": [::]:80:80/tcp takes the same host port`,
		"80:80 [fd00::1]:80:80":             `invalid published port "[fd00::1]:80:80/tcp": 80:80/tcp takes the same host port`,
		"8000-8010:80 8000-8010:81 8000:82": "",
		"80:80 80:80":                       `invalid published port "80:80/tcp": 80:80/tcp takes the same host port`,
		"80:80 80:81":                       `invalid published port "80:81/tcp": 80:80/tcp takes the same host port`,
		"127.0.0.1:80:80 80:81":             `invalid published port "80:81/tcp": 127.0.0.1:80:80/tcp takes the same host port`,
		"80:81/udp 127.0.0.1:80:80/udp":     `invalid published port "127.0.0.1:80:80/udp": 80:81/udp takes the same host port`,
		"8000-8002:1-3 8002:9":              `invalid published port "8002:9/tcp": 8002:3/tcp takes the same host port`,
	} {
		var all []Port
		for _, s := range strings.Fields(in) {
			ports, err := ParsePublish(s)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, ports...)
		}
		if got := message(t, ConflictingPorts(all)); got != want {
			t.Errorf("%s\n got: %s\nwant: %s", in, got, want)
		}
	}
}

func TestParseSubnet(t *testing.T) {
	const form = "! not an address and prefix length, like 10.61.0.0/24"
	cases{
		"10.61.0.0/24": "10.61.0.0/24", "10.0.0.0/8": "10.0.0.0/8", "10.61.0.4/30": "10.61.0.4/30", "fd00:1::/64": "fd00:1::/64",
		"10.61.0.5/24": "! it should be 10.61.0.0/24", "10.61.0.0/31": "! there is no room for a gateway and a sandbox, it takes a /30 at least",
		"10.61.0.1/32": "! there is no room for a gateway and a sandbox, it takes a /30 at least", "fd00::/127": "! there is no room for a gateway and a sandbox, it takes a /126 at least",
		"": form, "10.61.0.0": form, "10.61.0.0/": form, "300.1.1.0/24": form, "10.61.0.0/24 ": form, "10.61.0.0/+24": form, "lan": form, "::ffff:10.0.0.0/120": form, "10.61.0.0/024": form,
		"10.0.0.0/99": "! the prefix length is not from 0 to 32", "fd00::/129": "! the prefix length is not from 0 to 128",
		"0.0.0.0/0": "! no network can have addresses of 0.0.0.0/8 (this host)", "127.0.0.0/24": "! no network can have addresses of 127.0.0.0/8 (loopback)",
		"64.0.0.0/2": "! no network can have addresses of 127.0.0.0/8 (loopback)", "169.254.1.0/24": "! no network can have addresses of 169.254.0.0/16 (link-local)",
		"224.0.0.0/24": "! no network can have addresses of 224.0.0.0/4 (multicast)", "255.255.255.0/24": "! no network can have addresses of 240.0.0.0/4 (reserved)",
		"8.0.0.0/7": "! it is too large, at most it can be a /8", "2000::/31": "! it is too large, at most it can be a /32", "2001:db8::/32": "2001:db8::/32", "::/0": "! no network can have addresses of ::/8 (reserved)",
		"fe80::/64": "! no network can have addresses of fe80::/10 (link-local)", "ff02::/64": "! no network can have addresses of ff00::/8 (multicast)",
	}.run(t, "subnet", show(ParseSubnet))
	for in, want := range map[string]string{"10.61.0.0/24": "10.61.0.255", "10.0.0.0/30": "10.0.0.3", "10.0.0.128/25": "10.0.0.255", "fd00::/64": "fd00::ffff:ffff:ffff:ffff", "1.2.3.4/32": "1.2.3.4"} {
		if got := LastAddr(netip.MustParsePrefix(in)).String(); got != want {
			t.Errorf("last address of %s: %s", in, got)
		}
	}
}

func TestDerivedAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"172.30.1.254": "02:42:ac:1e:01:fe", "fd00::2": "02:42:00:00:00:02", "fd00::1:0:2": "02:42:00:00:00:03", "fd00:1:2:3:4:5:6:7": "02:42:00:02:00:02",
	} {
		if got := MAC(netip.MustParseAddr(in)); got != want {
			t.Errorf("MAC of %s: %s, want %s", in, got, want)
		}
	}
	if got := LinkLocal("02:42:ac:1e:01:fe").String(); got != "fe80::42:acff:fe1e:1fe/64" {
		t.Errorf("link-local address: %s", got)
	}
}
