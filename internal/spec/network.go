package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// DefaultBridge is the default network's device. Names that begin like it are
// for devices of sandnet's own.
const DefaultBridge = "sandnet0"

// reservedNetwork says why nobody can make a network of that name.
func reservedNetwork(name string) string {
	switch name {
	case DefaultNetwork, "default":
		return "it is the name of the default network"
	case string(ModeHost), string(ModeNone), string(ModeContainer):
		return "it is the name of a network mode"
	case "overlay":
		return "it is the name of the overlay's network"
	}
	return ""
}

// special has the prefixes that no network can overlap (RFC 6890, RFC 4291).
func special() []string {
	return []string{
		"0.0.0.0/8 (this host)", "127.0.0.0/8 (loopback)", "169.254.0.0/16 (link-local)",
		"224.0.0.0/4 (multicast)", "240.0.0.0/4 (reserved)",
		"::/8 (reserved)", "fe80::/10 (link-local)", "ff00::/8 (multicast)",
	}
}

// ParseSubnet reads the subnet of a network, its address without host bits:
// 10.61.0.0/24. It holds a gateway and a sandbox at least (/30, /126), and is
// a /8 at most, with IPv6 a /32.
func ParseSubnet(s string) (netip.Prefix, error) {
	p, why := parsePrefix(s)
	if why == "" {
		why = subnetFault(p)
	}
	if why != "" {
		return netip.Prefix{}, &InputError{What: "subnet", Value: s, Why: why}
	}
	return p, nil
}

func parsePrefix(s string) (netip.Prefix, string) {
	p, err := netip.ParsePrefix(s)
	addr, bits, _ := strings.Cut(s, "/")
	n, bitsErr := strconv.Atoi(bits)
	switch a, addrErr := netip.ParseAddr(addr); {
	case addrErr == nil && a.Zone() == "" && bitsErr == nil && n > a.BitLen():
		return p, fmt.Sprintf("the prefix length is not from 0 to %d", a.BitLen())
	case err != nil || p.Addr().Is4In6():
		return p, "not an address and prefix length, like 10.61.0.0/24"
	case p != p.Masked():
		return p, "it should be " + p.Masked().String()
	}
	return p, ""
}

func subnetFault(p netip.Prefix) string {
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
		return "not the address of a network and a prefix length"
	}
	for _, s := range special() {
		cidr, _, _ := strings.Cut(s, " ")
		if p.Overlaps(netip.MustParsePrefix(cidr)) {
			return "no network can have addresses of " + s
		}
	}
	switch host := p.Addr().BitLen() - p.Bits(); {
	case host < 2:
		return fmt.Sprintf("there is no room for a gateway and a sandbox, it takes a /%d at least", p.Addr().BitLen()-2)
	case p.Addr().Is4() && host > 24:
		return "it is too large, at most it can be a /8"
	case p.Addr().Is6() && host > 96:
		return "it is too large, at most it can be a /32"
	}
	return ""
}

// FirstHost is the address after the network's own: the gateway's, unless the
// user says otherwise.
func FirstHost(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// LastAddr is the last address of the prefix: with IPv4, the broadcast
// address (RFC 919).
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// hostFault says why nothing in the subnet can have the address.
func hostFault(a netip.Addr, subnet netip.Prefix) string {
	switch {
	case !subnet.Contains(a):
		return "it is not in " + subnet.String()
	case a == subnet.Addr():
		return "it is the network address of " + subnet.String()
	case a.Is4() && a == LastAddr(subnet):
		return "it is the broadcast address of " + subnet.String()
	}
	return ""
}

// HasIPv4 and HasIPv6 report whether sandboxes get an address of the family.
func (n Network) HasIPv4() bool { return n.subnetOf(netip.IPv4Unspecified()) >= 0 }
func (n Network) HasIPv6() bool { return n.subnetOf(netip.IPv6Unspecified()) >= 0 }

// subnetOf is the index of the subnet of the address's family, or -1.
func (n Network) subnetOf(a netip.Addr) int {
	return slices.IndexFunc(n.Subnets, func(s netip.Prefix) bool { return s.Addr().Is4() == a.Is4() })
}

// family is the name of the address's family.
func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// withoutSubnet says that nothing can be in a family that has no subnet.
func (n Network) withoutSubnet(a netip.Addr) string {
	if len(n.Subnets) == 0 {
		return "no subnet is given for it"
	}
	return "no " + family(a) + " subnet is given for it"
}

// addressFault says why no host of the network can have the address.
func (n Network) addressFault(a netip.Addr) string {
	i := n.subnetOf(a)
	if i < 0 {
		return n.withoutSubnet(a)
	}
	return hostFault(a, n.Subnets[i])
}

// CheckAddress returns an *InputError if no sandbox on the network can have
// the address: it is outside the subnet, the gateway's, an auxiliary one, or
// no host's at all. Whether a sandbox has it already is not looked at.
func (n Network) CheckAddress(a netip.Addr) error {
	e := &InputError{What: "IP address", Value: a.String()}
	if a.Is6() {
		e.What = "IPv6 address"
	}
	if n.subnetOf(a) < 0 {
		e.Why, e.Hint = n.WithoutFamily(a)
		return e
	}
	if e.Why = n.addressFault(a); e.Why == "" {
		e.Why = n.reserved(a)
	}
	if e.Why != "" {
		return e
	}
	return nil
}

// WithoutFamily says that the network has no addresses of a's family, and the
// cure.
func (n Network) WithoutFamily(a netip.Addr) (why, hint string) {
	why = "network " + n.Name + " has no " + family(a) + " addresses"
	if a.Is6() {
		hint = "make a network with 'sandnet network create --ipv6 NAME' and use --net NAME"
	}
	return why, hint
}

// reserved says what the address is kept for, if anything.
func (n Network) reserved(a netip.Addr) string {
	for _, gw := range n.Gateways {
		if a == gw {
			return "it is the gateway of network " + n.Name
		}
	}
	for name, aux := range n.Aux {
		if a == aux {
			return "it is reserved in network " + n.Name + " as " + quote(name, 64)
		}
	}
	return ""
}

// Reserved reports whether the address is the gateway's or an auxiliary one,
// which no sandbox gets.
func (n Network) Reserved(a netip.Addr) bool { return n.reserved(a) != "" }

// Validate checks the definition as far as it goes without the host; what is
// zero is left to be filled in. It returns an *InputError.
func (n Network) Validate() error {
	if err := CheckName("network name", n.Name); err != nil {
		return err
	}
	if n.Bridge != "" {
		if err := CheckInterface(n.Bridge); err != nil {
			return err
		}
	}
	if n.MTU != 0 {
		if err := CheckMTU(n.MTU, n.IPv6 || n.HasIPv6()); err != nil {
			return err
		}
	}
	for _, check := range []func() error{n.checkSubnets, n.checkRange, n.checkGateways, n.checkAux, n.checkGatewayMode} {
		if err := check(); err != nil {
			return err
		}
	}
	return checkLabels(n.Labels)
}

func (n Network) checkSubnets() error {
	for i, s := range n.Subnets {
		if why := subnetFault(s); why != "" {
			return &InputError{What: "subnet", Value: s.String(), Why: why}
		}
		for _, o := range n.Subnets[:i] {
			why := "a network has one " + family(s.Addr()) + " subnet, and " + o.String() + " is this one's"
			switch {
			case s.Overlaps(o):
				why = "it overlaps " + o.String() + " of the same network"
			case s.Addr().Is4() != o.Addr().Is4():
				continue
			}
			return &InputError{What: "subnet", Value: s.String(), Why: why}
		}
	}
	return nil
}

func (n Network) checkRange() error {
	if n.Range == (netip.Prefix{}) {
		return nil
	}
	why := ""
	switch i := n.subnetOf(n.Range.Addr()); {
	case i < 0:
		why = n.withoutSubnet(n.Range.Addr())
	case !n.InRange(n.Subnets[i]):
		why = "it is not in " + n.Subnets[i].String()
	case n.Range != n.Range.Masked():
		why = "it should be " + n.Range.Masked().String()
	}
	if why != "" {
		return &InputError{What: "IP range", Value: n.Range.String(), Why: why}
	}
	return nil
}

// InRange reports whether the network's range is a part of the subnet.
func (n Network) InRange(subnet netip.Prefix) bool {
	return n.Range.IsValid() && subnet.Bits() <= n.Range.Bits() && subnet.Contains(n.Range.Addr())
}

// checkGateways checks those that are there; an invalid one is to be filled in.
func (n Network) checkGateways() error {
	for i, gw := range n.Gateways {
		if i < len(n.Subnets) && !gw.IsValid() {
			continue
		}
		why := "it belongs to no subnet"
		if i < len(n.Subnets) {
			why = hostFault(gw, n.Subnets[i])
		}
		if why != "" {
			return &InputError{What: "gateway", Value: gw.String(), Why: why}
		}
	}
	return nil
}

func (n Network) checkAux() error {
	seen := make(map[netip.Addr]string, len(n.Aux))
	for _, name := range slices.Sorted(maps.Keys(n.Aux)) {
		a := n.Aux[name]
		why := n.addressFault(a)
		switch {
		case nameFault(name) != "":
			why = "name: " + nameFault(name)
		case why != "":
		case slices.Contains(n.Gateways, a):
			why = "it is the gateway"
		case seen[a] != "":
			why = "the address is also given to " + seen[a]
		}
		if why != "" {
			return &InputError{What: "auxiliary address", Value: name + "=" + a.String(), Why: why}
		}
		seen[a] = name
	}
	return nil
}

// checkGatewayMode refuses options that a gateway mode leaves no meaning.
func (n Network) checkGatewayMode() error {
	why := ""
	switch n.GatewayMode {
	case "", GatewayNAT:
	case GatewayRouted:
		switch {
		case n.Internal:
			why = "an internal network has no way out, routed or not"
		case n.NoMasquerade:
			why = "it never masquerades; leave out --no-masquerade"
		}
	case GatewayIsolated:
		switch {
		case !n.Internal:
			why = "it is an internal network"
		case n.NoMasquerade:
			why = "nothing leaves it; leave out --no-masquerade"
		}
	default:
		why = "it should be nat, routed or isolated"
	}
	if why != "" {
		return &InputError{What: "gateway mode", Value: string(n.GatewayMode), Why: why}
	}
	return nil
}

// NetworkOptions are the options of `network create` as they were given.
type NetworkOptions struct {
	Name              string
	Subnets, Gateways []string
	IPRange           string
	// Aux are NAME=IP.
	Aux    []string
	Bridge string
	// MTU in bytes; 0 is not given.
	MTU                                 int
	Internal, NoICC, NoMasquerade, IPv6 bool
	// Labels are KEY=VALUE.
	Labels []string
	// GatewayMode is nat, or empty for it, routed or isolated; the last implies
	// Internal, and the host has no address on it.
	GatewayMode string
}

// Parse returns the network that the options ask for. Without a subnet it has
// none, and without a bridge name no device: both depend on the host. The IPv4
// subnet comes first, however they were given. A subnet's gateway is its first
// address that is not an auxiliary one. The error is an *InputError.
func (o NetworkOptions) Parse() (Network, error) {
	n := Network{Name: o.Name, Bridge: o.Bridge, MTU: o.MTU, Internal: o.Internal, NoICC: o.NoICC, NoMasquerade: o.NoMasquerade, IPv6: o.IPv6}
	if n.GatewayMode = GatewayMode(o.GatewayMode); n.GatewayMode == GatewayNAT {
		n.GatewayMode = "" // as a network without the option
	}
	if n.GatewayMode == GatewayIsolated {
		if len(o.Gateways) > 0 {
			return Network{}, &InputError{What: "gateway", Value: o.Gateways[0], Why: "on an isolated network the host has no address"}
		}
		n.Internal = true
	}
	if why := reservedNetwork(o.Name); why != "" {
		return Network{}, &InputError{What: "network name", Value: o.Name, Why: why}
	}
	if strings.HasPrefix(o.Bridge, "sandnet") {
		return Network{}, &InputError{What: "interface name", Value: o.Bridge, Why: "names that begin with sandnet are for sandnet's own devices"}
	}
	if err := o.parseAddresses(&n); err != nil {
		return Network{}, err
	}
	var err error
	if n.Labels, err = parseMap(o.Labels, ParseLabel); err != nil {
		return Network{}, err
	}
	if err := n.Validate(); err != nil {
		return Network{}, err
	}
	for i, s := range n.Subnets {
		if n.Gateways[i].IsValid() {
			continue
		}
		gw := FirstHost(s)
		for n.Reserved(gw) {
			gw = gw.Next()
		}
		if why := hostFault(gw, s); why != "" {
			return Network{}, &InputError{What: "subnet", Value: s.String(), Why: "the auxiliary addresses leave no room for a gateway"}
		}
		n.Gateways[i] = gw
	}
	return n, nil
}

// parseGateways gives each gateway to the subnet of its family.
func (o NetworkOptions) parseGateways(n *Network) error {
	if len(n.Subnets) > 0 {
		n.Gateways = make([]netip.Addr, len(n.Subnets))
	}
	for _, s := range o.Gateways {
		a, why := parseAddr(s)
		if why == "" {
			switch i := n.subnetOf(a); {
			case i < 0:
				why = n.withoutSubnet(a)
			case n.Gateways[i].IsValid():
				why = "each subnet has one gateway, and " + n.Gateways[i].String() + " is given already"
			default:
				n.Gateways[i] = a
			}
		}
		if why != "" {
			return &InputError{What: "gateway", Value: s, Why: why}
		}
	}
	return nil
}

func (o NetworkOptions) parseAddresses(n *Network) error {
	for _, s := range o.Subnets {
		p, err := ParseSubnet(s)
		if err != nil {
			return err
		}
		n.Subnets = append(n.Subnets, p)
	}
	slices.SortStableFunc(n.Subnets, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	if err := o.parseGateways(n); err != nil {
		return err
	}
	if o.IPRange != "" {
		p, why := parsePrefix(o.IPRange)
		if why != "" {
			return &InputError{What: "IP range", Value: o.IPRange, Why: why}
		}
		n.Range = p
	}
	for _, s := range o.Aux {
		name, ip, ok := strings.Cut(s, "=")
		a, why := parseAddr(ip)
		if !ok {
			why = "it should be NAME=IP"
		} else if _, dup := n.Aux[name]; dup {
			why = "the name is given twice"
		}
		if why != "" {
			return &InputError{What: "auxiliary address", Value: s, Why: why}
		}
		if n.Aux == nil {
			n.Aux = map[string]netip.Addr{}
		}
		n.Aux[name] = a
	}
	return nil
}
