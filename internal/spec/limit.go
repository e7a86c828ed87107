package spec

import (
	"fmt"
	"math/big"
	"net/netip"
	"strconv"
	"strings"
)

// The rates that can be kept: a packet a second is the least that means
// something, and the kernel counts in 64 bits of bytes.
const (
	minRate = 8_000
	maxRate = 10_000_000_000_000
)

// rateUnits are tc's, of which there is one for bits and one for bytes each.
var rateUnits = map[string]int64{
	"": 1, "bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12,
	"kibit": 1 << 10, "mibit": 1 << 20, "gibit": 1 << 30, "tibit": 1 << 40,
	"bps": 8, "kbps": 8e3, "mbps": 8e6, "gbps": 8e9, "tbps": 8e12,
	"kibps": 8 << 10, "mibps": 8 << 20, "gibps": 8 << 30, "tibps": 8 << 40,
}

// ParseRate reads a bandwidth as tc(8) does: a number, which may have a point,
// and a unit in any case, where "bit" counts bits and "bps" bytes per second.
// Without a unit it is in bit/s. The result is in bit/s.
func ParseRate(s string) (uint64, error) {
	fault := func(why string) (uint64, error) {
		return 0, &InputError{What: "rate", Value: s, Why: why}
	}
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		end = len(s)
	}
	unit, ok := rateUnits[strings.ToLower(s[end:])]
	number, isNumber := new(big.Rat), false
	if n := s[:end]; len(n) <= 32 && strings.Trim(n, ".") != "" && !strings.HasPrefix(n, ".") {
		number, isNumber = number.SetString(n)
	}
	if !isNumber {
		return fault("it should be a number and a unit, like 10mbit")
	}
	if !ok {
		return fault("unknown unit " + quote(s[end:], 32) + ", it should be bit, kbit, mbit or gbit per second")
	}
	number.Mul(number, new(big.Rat).SetInt64(unit))
	whole := new(big.Int).Quo(number.Num(), number.Denom())
	if !whole.IsUint64() || whole.Uint64() < minRate || whole.Uint64() > maxRate {
		return fault("it should be from 8kbit to 10tbit")
	}
	return whole.Uint64(), nil
}

func rateFault(rate uint64) string {
	if rate != 0 && (rate < minRate || rate > maxRate) {
		return "it should be from 8kbit to 10tbit"
	}
	return ""
}

// ParseEgress reads one --egress: "allow" or "deny", a space, '=' or ':', and
// CIDR[:PORT[/PROTO]], with brackets around an IPv6 CIDR that has a port. A
// single address is a CIDR, too. A port without a protocol is that of TCP and
// of UDP: two rules.
func ParseEgress(s string) ([]EgressRule, error) {
	rules, why := parseEgress(s)
	if why != "" {
		return nil, &InputError{What: "egress rule", Value: s, Why: why}
	}
	return rules, nil
}

func parseEgress(s string) ([]EgressRule, string) {
	verb, rest := s, ""
	if i := strings.IndexAny(s, " =:"); i >= 0 {
		verb, rest = s[:i], s[i+1:]
	}
	if verb != "allow" && verb != "deny" {
		return nil, "it should start with allow or deny, like 'deny 10.0.0.0/8:443/tcp'"
	}
	cidr, port, hasPort := cutPort(strings.TrimSpace(rest))
	r := EgressRule{Allow: verb == "allow"}
	var why string
	if r.To, why = parseCIDR(cidr); why != "" {
		return nil, why
	}
	if !hasPort {
		return []EgressRule{r}, ""
	}
	port, name, hasProto := strings.Cut(port, "/")
	if r.Port, why = parsePort(port); why != "" {
		return nil, why
	}
	protos := []Proto{TCP, UDP}
	if hasProto {
		_, p, why := cutProto("/" + name)
		if why != "" {
			return nil, why
		}
		protos = []Proto{p}
	}
	rules := make([]EgressRule, len(protos))
	for i, p := range protos {
		rules[i] = r
		rules[i].Proto = p
	}
	return rules, ""
}

// cutPort cuts [CIDR]:PORT or, of IPv4, CIDR:PORT.
func cutPort(s string) (cidr, port string, ok bool) {
	if inner, bracket := strings.CutPrefix(s, "["); bracket {
		cidr, after, closed := strings.Cut(inner, "]")
		if !closed {
			return s, "", false // which no CIDR is
		}
		port, ok = strings.CutPrefix(after, ":")
		if !ok && after != "" {
			return s, "", false
		}
		return cidr, port, ok
	}
	if strings.Count(s, ":") == 1 {
		return strings.Cut(s, ":")
	}
	return s, "", false
}

func parseCIDR(s string) (netip.Prefix, string) {
	if !strings.Contains(s, "/") {
		a, why := parseAddr(s)
		if why != "" {
			return netip.Prefix{}, why
		}
		return netip.PrefixFrom(a, a.BitLen()), ""
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, quote(s, 64) + " is not a CIDR, like 10.0.0.0/8 or fd00::/8"
	}
	return p, cidrFault(p)
}

func cidrFault(p netip.Prefix) string {
	switch {
	case !p.IsValid() || p.Addr().Zone() != "":
		return "it has no usable CIDR"
	case p.Addr().Is4In6():
		return "it should be written as IPv4"
	case p != p.Masked():
		return fmt.Sprintf("%s should be %s", p, p.Masked())
	}
	return ""
}

// String is the spelling that ParseEgress reads.
func (r EgressRule) String() string {
	verb, to := "deny ", r.To.String()
	if r.Allow {
		verb = "allow "
	}
	if r.Port == 0 {
		return verb + to
	}
	if r.To.Addr().Is6() {
		to = "[" + to + "]"
	}
	return verb + to + ":" + strconv.Itoa(int(r.Port)) + "/" + string(r.Proto)
}

func egressFault(r EgressRule) string {
	if why := cidrFault(r.To); why != "" {
		return why
	}
	switch r.Proto {
	case "":
		if r.Port != 0 {
			return "a port needs a protocol"
		}
	case TCP, UDP, SCTP:
		if r.Port == 0 {
			return "a protocol needs a port"
		}
	default:
		return "unknown protocol, it should be tcp, udp or sctp"
	}
	return ""
}

// checkLimits checks rates and egress rules.
func (s Sandbox) checkLimits() error {
	for _, rate := range []uint64{s.IngressRate, s.EgressRate} {
		if why := rateFault(rate); why != "" {
			return &InputError{What: "rate", Value: strconv.FormatUint(rate, 10), Why: why}
		}
	}
	for _, r := range s.Egress {
		if why := egressFault(r); why != "" {
			return &InputError{What: "egress rule", Value: r.String(), Why: why}
		}
	}
	return nil
}

// parseLimits reads the rates and the egress rules.
func (o SandboxOptions) parseLimits(s *Sandbox) (err error) {
	for _, f := range []struct {
		value string
		to    *uint64
	}{{o.IngressRate, &s.IngressRate}, {o.EgressRate, &s.EgressRate}} {
		if f.value == "" {
			continue
		}
		if *f.to, err = ParseRate(f.value); err != nil {
			return err
		}
	}
	for _, v := range o.Egress {
		rules, err := ParseEgress(v)
		if err != nil {
			return err
		}
		s.Egress = append(s.Egress, rules...)
	}
	return nil
}
