package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText is the longest key or value of a label or sysctl, in bytes.
const maxText = 4096

// Limits of an MTU in bytes: RFC 791's least, RFC 8200's least for IPv6, and
// what a veth or bridge takes at most (ETH_MAX_MTU).
const (
	minMTU     = 68
	minMTUIPv6 = 1280
	maxMTU     = 65535
)

// ParseLabel reads KEY=VALUE; KEY alone has an empty value, as with docker.
func ParseLabel(s string) (key, value string, err error) {
	key, value, _ = strings.Cut(s, "=")
	if why := labelFault(key, value); why != "" {
		return "", "", &InputError{What: "label", Value: s, Why: why}
	}
	return key, value, nil
}

func labelFault(key, value string) string {
	switch {
	case key == "":
		return "the key is empty, it should be KEY=VALUE"
	case strings.ContainsFunc(key, unicode.IsSpace) || strings.Contains(key, "="):
		return "the key has a space or '=' in it"
	}
	return textFault(key, value)
}

// textFault keeps what is shown and written to files on one line.
func textFault(texts ...string) string {
	for _, s := range texts {
		switch {
		case len(s) > maxText:
			return fmt.Sprintf("%d bytes at most, this has %d", maxText, len(s))
		case !utf8.ValidString(s):
			return "it is not UTF-8"
		case strings.ContainsFunc(s, unicode.IsControl):
			return "it has a control character in it"
		}
	}
	return ""
}

func checkLabels(labels map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if why := labelFault(k, labels[k]); why != "" {
			return &InputError{What: "label", Value: k + "=" + labels[k], Why: why}
		}
	}
	return nil
}

func checkSysctls(sysctls map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(sysctls)) {
		if why := sysctlFault(k, sysctls[k]); why != "" {
			return &InputError{What: "sysctl", Value: k + "=" + sysctls[k], Why: why}
		}
	}
	return nil
}

// parseMap collects KEY=VALUE options; of two with one key the last counts.
func parseMap(list []string, parse func(string) (string, string, error)) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(list))
	for _, s := range list {
		k, v, err := parse(s)
		if err != nil {
			return nil, err
		}
		out[k] = v
	}
	return out, nil
}

// ParseSysctl reads KEY=VALUE for a key below net, the ones that a namespace
// has for itself. Keys are spelled as sysctl(8) has them: the first separator,
// dot or slash, is the separator, the other one then stands for a dot in a
// name (net/ipv4/conf/eth0.5/forwarding = net.ipv4.conf.eth0/5.forwarding).
// The key is returned with slashes as separators.
func ParseSysctl(s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		key = strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	why := "it should be KEY=VALUE"
	if ok {
		why = sysctlFault(key, value)
	}
	if why != "" {
		return "", "", &InputError{What: "sysctl", Value: s, Why: why}
	}
	return key, value, nil
}

func sysctlFault(key, value string) string {
	below, ok := strings.CutPrefix(key, "net/")
	if !ok {
		return "only keys below net can be set for a sandbox"
	}
	for part := range strings.SplitSeq(below, "/") {
		if part == "" || strings.Trim(part, ".") == "" {
			return "a part of the key is empty"
		}
		for i := range len(part) {
			if !alnum(part[i]) && !strings.ContainsRune("_.-", rune(part[i])) {
				return "only letters, digits, '_', '-', dots and slashes are allowed in the key"
			}
		}
	}
	if value == "" {
		return "the value is empty"
	}
	return textFault(key, strings.ReplaceAll(value, "\t", " "))
}

// ParseAddHost reads NAME:IP or NAME=IP, with or without brackets around an
// IPv6 address.
func ParseAddHost(s string) (HostEntry, error) {
	fault := func(why string) (HostEntry, error) {
		return HostEntry{}, &InputError{What: "host entry", Value: s, Why: why}
	}
	i := strings.IndexAny(s, ":=")
	if i < 0 {
		return fault("it should be NAME:IP")
	}
	name, ip := s[:i], s[i+1:]
	if why := domainFault(name, true); why != "" {
		return fault("name: " + why)
	}
	if ip == "host-gateway" {
		return fault("host-gateway is not supported yet, give the gateway's address")
	}
	if inner, ok := strings.CutPrefix(ip, "["); ok && strings.HasSuffix(inner, "]") {
		ip = strings.TrimSuffix(inner, "]")
	}
	addr, why := parseAddr(ip)
	if why != "" {
		return fault(why)
	}
	return HostEntry{Name: name, Addr: addr}, nil
}

// parseAddr reads an IP address without a zone; why says what is wrong with it.
func parseAddr(s string) (a netip.Addr, why string) {
	a, err := netip.ParseAddr(s)
	switch {
	case s == "":
		return a, "the IP address is missing"
	case err != nil:
		return a, quote(s, 32) + " is not an IP address"
	case a.Zone() != "":
		return a, "an address with a zone means nothing in a sandbox"
	}
	return a.Unmap(), ""
}

// unicastFault says why an interface cannot have the address.
func unicastFault(a netip.Addr) string {
	switch {
	case !a.IsValid() || a.IsUnspecified():
		return "it is not the address of an interface"
	case a.IsLoopback():
		return "it is a loopback address"
	case a.IsMulticast():
		return "it is a multicast address"
	}
	return ""
}

// CheckMTU checks an MTU in bytes: 68 to 65535, with IPv6 1280 at least.
func CheckMTU(mtu int, ipv6 bool) error {
	least, of := minMTU, ""
	if ipv6 {
		least, of = minMTUIPv6, " with IPv6"
	}
	if mtu < least || mtu > maxMTU {
		return &InputError{What: "MTU", Value: fmt.Sprint(mtu), Why: fmt.Sprintf("it should be from %d to %d%s", least, maxMTU, of)}
	}
	return nil
}

// ParseDNS reads the address of a name server.
func ParseDNS(s string) (netip.Addr, error) {
	a, why := parseAddr(s)
	if why == "" {
		why = dnsFault(a)
	}
	if why != "" {
		return netip.Addr{}, &InputError{What: "DNS server", Value: s, Why: why}
	}
	return a, nil
}

// dnsFault allows loopback addresses: a sandbox may have its own name server.
func dnsFault(a netip.Addr) string {
	if why := unicastFault(a); why != "" && !a.IsLoopback() {
		return why
	}
	return ""
}

// ParseDNSSearch reads a search domain; "." alone means none, not even the
// host's. A final dot is dropped.
func ParseDNSSearch(s string) (string, error) {
	if s == "." {
		return s, nil
	}
	domain := strings.TrimSuffix(s, ".")
	if why := domainFault(domain, true); why != "" {
		return "", &InputError{What: "DNS search domain", Value: s, Why: why}
	}
	return domain, nil
}
