package spec

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// portRange is a range of ports, first ≤ last.
type portRange struct{ first, last uint16 }

func (r portRange) size() int { return int(r.last) - int(r.first) + 1 }

func (r portRange) String() string {
	if r.first == r.last {
		return strconv.Itoa(int(r.first))
	}
	return fmt.Sprintf("%d-%d", r.first, r.last)
}

// ParsePublish reads a published port in docker's spelling,
// [IP:][HOSTPORT[-END]:]PORT[-END][/tcp|udp|sctp], with brackets around an
// IPv6 address. Two ranges go together one by one and must be of the same
// length; a range of host ports for one port asks for any free one of it and
// gives one Port with HostPortEnd. Without a host port it is ephemeral; without
// a host address it is published on all, of every family the sandbox has.
func ParsePublish(s string) ([]Port, error) {
	ports, why := parsePublish(s)
	if why != "" {
		return nil, &InputError{What: "published port", Value: s, Why: why}
	}
	return ports, nil
}

func parsePublish(s string) ([]Port, string) {
	if s == "" {
		return nil, "it is empty"
	}
	rest, proto, why := cutProto(s)
	if why != "" {
		return nil, why
	}
	parts := splitPublish(rest)
	inside, why := parsePortRange(parts[len(parts)-1])
	if why != "" {
		return nil, why
	}
	p := Port{Port: inside.first, Proto: proto}
	if len(parts) == 3 {
		if p.HostIP, why = parseHostIP(parts[0]); why != "" {
			return nil, why
		}
	}
	if len(parts) == 1 || len(parts) == 3 && parts[1] == "" { // IP::PORT
		return expand(p, inside, portRange{}), ""
	}
	outside, why := parsePortRange(parts[len(parts)-2])
	switch {
	case why != "":
		return nil, why
	case outside.size() == inside.size():
		return expand(p, inside, outside), ""
	case inside.size() == 1:
		p.HostPort, p.HostPortEnd = outside.first, outside.last
		return []Port{p}, ""
	}
	return nil, fmt.Sprintf("%s and %s are not equally many ports (%d and %d)", outside, inside, outside.size(), inside.size())
}

// expand makes one Port for each port of the range, from host ports that go
// along or, for a zero range, are ephemeral.
func expand(p Port, ports, from portRange) []Port {
	out := make([]Port, ports.size())
	for i := range out {
		p.Port = ports.first + uint16(i)
		if from.first != 0 {
			p.HostPort = from.first + uint16(i)
		}
		out[i] = p
	}
	return out
}

// splitPublish splits [[IP:]HOSTPORTS:]PORTS, from the right, since an IPv6
// address has colons too.
func splitPublish(s string) []string {
	parts := strings.Split(s, ":")
	if n := len(parts) - 2; n > 1 {
		parts = append([]string{strings.Join(parts[:n], ":")}, parts[n:]...)
	}
	return parts
}

func cutProto(s string) (rest string, p Proto, why string) {
	rest, name, ok := strings.Cut(s, "/")
	if !ok {
		return rest, TCP, ""
	}
	p = Proto(strings.ToLower(name))
	switch p {
	case TCP, UDP, SCTP:
		return rest, p, ""
	}
	return "", "", fmt.Sprintf("unknown protocol %s, it should be tcp, udp or sctp", quote(name, 32))
}

func parseHostIP(s string) (netip.Addr, string) {
	inner, bracket := strings.CutPrefix(s, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	a, why := parseAddr(inner)
	switch {
	case s == "":
		return a, "the host address before the first ':' is empty"
	case bracket != closed || bracket && (why != "" || a.Is4()):
		return a, quote(s, 32) + " is not an IPv6 address in brackets"
	case why != "":
		return a, why
	case a.Is6() && !bracket:
		return a, "an IPv6 address needs brackets, like [::1]:8080:80"
	case a.IsMulticast():
		return a, quote(s, 32) + " is a multicast address"
	}
	return a, ""
}

func parsePortRange(s string) (portRange, string) {
	low, high, isRange := strings.Cut(s, "-")
	first, why := parsePort(low)
	if why != "" || !isRange {
		return portRange{first, first}, why
	}
	last, why := parsePort(high)
	if why == "" && last < first {
		why = fmt.Sprintf("the range %d-%d is reversed", first, last)
	}
	return portRange{first, last}, why
}

func parsePort(s string) (uint16, string) {
	n, err := strconv.ParseUint(s, 10, 16)
	switch {
	case s == "":
		return 0, "a port is missing"
	case strings.Trim(s, "0123456789") != "":
		return 0, quote(s, 32) + " is not a port"
	case err != nil || n == 0:
		return 0, fmt.Sprintf("port %s is not from 1 to 65535", quote(s, 32))
	}
	return uint16(n), ""
}

// Overlaps reports whether both ports take the same port of a host address. An
// unspecified host address is all of its family, none at all every address.
func (p Port) Overlaps(o Port) bool {
	return p.HostPort == o.HostPort && p.Proto == o.Proto &&
		(p.HostIP == o.HostIP || !p.HostIP.IsValid() || !o.HostIP.IsValid() ||
			p.HostIP.Is4() == o.HostIP.Is4() && (p.HostIP.IsUnspecified() || o.HostIP.IsUnspecified()))
}

// ConflictingPorts returns an *InputError if two of the ports ask for the same
// host port. Ephemeral ports and ranges conflict with nothing.
func ConflictingPorts(ports []Port) error {
	type key struct {
		port  uint16
		proto Proto
	}
	seen := make(map[key][]Port, len(ports))
	for _, p := range ports {
		if p.HostPort == 0 || p.HostPortEnd != 0 {
			continue
		}
		k := key{p.HostPort, p.Proto}
		for _, o := range seen[k] {
			if p.Overlaps(o) {
				return &InputError{What: "published port", Value: p.String(), Why: fmt.Sprintf("%s takes the same host port", o)}
			}
		}
		seen[k] = append(seen[k], p)
	}
	return nil
}

// portFault checks one Port of a request.
func portFault(p Port) string {
	switch {
	case p.HostIP.Zone() != "" || p.HostIP.IsMulticast() || p.HostIP.Is6() && p.HostIP.IsLinkLocalUnicast():
		return "it is not an address that a port can be published on"
	case p.HostIP == netip.IPv6Loopback() && p.Proto == SCTP:
		return "nothing can lead SCTP from ::1 into a sandbox"
	case p.Port == 0:
		return "the sandbox's port is missing"
	case p.HostPortEnd != 0 && (p.HostPort == 0 || p.HostPortEnd <= p.HostPort):
		return "the range of host ports is reversed"
	case p.Proto != TCP && p.Proto != UDP && p.Proto != SCTP:
		return "unknown protocol, it should be tcp, udp or sctp"
	}
	return ""
}
