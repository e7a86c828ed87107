// Package spec holds what users ask for, as plain validated data: a Sandbox
// and its published ports, a Network. It parses docker's spellings of them
// and refuses what cannot be meant, with the offending value in the error.
//
// It reads nothing from the host and decides nothing that depends on it: which
// address or port is free is package sandbox's business.
package spec

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// InputError says that what the user gave is wrong; nothing was changed. The
// CLI exits 2 on it.
type InputError struct {
	// What names the input ("subnet", "--publish"), Value is it, Why the reason.
	What, Value, Why string
	// Hint is a known cure, or empty.
	Hint string
	// Err is what callers look for with errors.Is, or nil. It is not printed.
	Err error
}

// Error is one line, however long or odd the value is.
func (e *InputError) Error() string {
	return fmt.Sprintf("invalid %s %s: %s", e.What, quote(e.Value, 64), e.Why)
}

func (e *InputError) Unwrap() error { return e.Err }

// quote is strconv.Quote of the beginning of s, with limit bytes between the
// quotes at most, not counting the … for the rest.
func quote(s string, limit int) string {
	n := 0
	for i := 0; i < len(s); {
		_, size := utf8.DecodeRuneInString(s[i:])
		n += len(strconv.Quote(s[i:i+size])) - 2
		if n > limit {
			return strconv.Quote(s[:i] + "…")
		}
		i += size
	}
	return strconv.Quote(s)
}

// Mode is how a sandbox is networked.
type Mode string

// The modes. A user-defined network is ModeBridge with another network name.
const (
	ModeBridge    Mode = "bridge"
	ModeHost      Mode = "host"
	ModeContainer Mode = "container"
	ModeNone      Mode = "none"
)

// DefaultNetwork is the network of `--net bridge`; it exists from its first use.
const DefaultNetwork = "bridge"

// Proto is a transport protocol that can be published.
type Proto string

// The transport protocols.
const (
	TCP  Proto = "tcp"
	UDP  Proto = "udp"
	SCTP Proto = "sctp"
)

// Port is one published port: host address and port to sandbox port.
type Port struct {
	// HostIP is unspecified (0.0.0.0, ::) for every address of the host of that
	// family, and in a request invalid for both; an Endpoint has a Port for each.
	HostIP netip.Addr `json:"hostIP"`
	// HostPort 0 asks for an ephemeral port; in an Endpoint it is the real one.
	HostPort uint16 `json:"hostPort"`
	// HostPortEnd, if set, asks for any free port from HostPort to it; in an
	// Endpoint it is 0.
	HostPortEnd uint16 `json:"hostPortEnd,omitempty"`

	Port  uint16 `json:"port"`
	Proto Proto  `json:"protocol"`
}

// String is docker's spelling, which ParsePublish reads: 8080:80/tcp,
// 0.0.0.0:8000-8010:80/tcp or, for an ephemeral port, [::]::80/tcp.
func (p Port) String() string {
	host := ""
	if p.HostPort != 0 {
		host = strconv.Itoa(int(p.HostPort))
	}
	if p.HostPortEnd != 0 {
		host += "-" + strconv.Itoa(int(p.HostPortEnd))
	}
	ip := ""
	switch {
	case p.HostIP.Is6():
		ip = "[" + p.HostIP.String() + "]:"
	case p.HostIP.IsValid():
		ip = p.HostIP.String() + ":"
	}
	if ip != "" || host != "" {
		host += ":"
	}
	return fmt.Sprintf("%s%s%d/%s", ip, host, p.Port, p.Proto)
}

// HostEntry is one --add-host NAME:IP.
type HostEntry struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
}

// String is docker's spelling, NAME:IP.
func (h HostEntry) String() string { return h.Name + ":" + h.Addr.String() }

// Attachment asks for one endpoint on one network.
type Attachment struct {
	Network string `json:"network"`
	// IP and IP6 are fixed addresses; invalid means the next free one.
	IP  netip.Addr `json:"ip,omitzero"`
	IP6 netip.Addr `json:"ip6,omitzero"`
	// MAC is the fixed MAC; empty means derived from the address.
	MAC     string   `json:"mac,omitempty"`
	Aliases []string `json:"aliases,omitempty"`
	// Interface is the device's name inside; empty is eth and the number of the
	// attachment.
	Interface string `json:"interface,omitempty"`
	// GwPriority elects the network with the default gateway: the highest, and
	// of equals the first.
	GwPriority int `json:"gwPriority,omitempty"`
}

// Source is who asked for a sandbox, and so who ends it.
type Source string

// The sources. The namespace of all but the first belongs to a container runtime.
const (
	SourceRun Source = "run"
	SourceOCI Source = "oci"
	SourceCNI Source = "cni"
)

// Sandbox is a request for a sandbox.
type Sandbox struct {
	// Name is unique on the host; the manager fills in the first 12 digits of
	// the ID where the user gave none.
	Name string `json:"name"`
	// ID is 64 hex digits, the manager's choice.
	ID   string `json:"id"`
	Mode Mode   `json:"mode"`
	// Join is the sandbox (name or ID) or PID of ModeContainer.
	Join string `json:"join,omitempty"`
	// Source is who asked for it; empty is sandnet itself.
	Source Source `json:"source,omitempty"`
	// Container is, for another Source, the runtime's ID of the container, and
	// Adopt the path of the namespace that it has made. PID is the container's
	// first process, where the namespace is known by it.
	Container string `json:"container,omitempty"`
	Adopt     string `json:"adopt,omitempty"`
	PID       int    `json:"pid,omitempty"`
	// Config is the name of the CNI network configuration.
	Config string `json:"config,omitempty"`
	// Attach is the networks of ModeBridge; Gateway says which has the default
	// gateway and the published ports.
	Attach    []Attachment      `json:"attach,omitempty"`
	Ports     []Port            `json:"ports,omitempty"`
	Hostname  string            `json:"hostname,omitempty"`
	DNS       []netip.Addr      `json:"dns,omitempty"`
	DNSSearch []string          `json:"dnsSearch,omitempty"`
	Hosts     []HostEntry       `json:"hosts,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	// Sysctls are values below net/ set inside the namespace; the keys have slashes.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// MTU in bytes of the sandbox's interfaces; 0 takes the network's.
	MTU int `json:"mtu,omitempty"`
	// IngressRate and EgressRate limit what each interface receives and sends,
	// in bit/s; 0 is no limit.
	IngressRate uint64 `json:"ingressRate,omitempty"`
	EgressRate  uint64 `json:"egressRate,omitempty"`
	// Egress says what the sandbox may reach beyond its networks: the first rule
	// that matches decides. What none matches is allowed, unless one allows.
	Egress []EgressRule `json:"egress,omitempty"`
}

// Gateway is the index of the network that has the default gateway of one
// family: the one whose attachment has the highest priority, of equals the
// first, and never an internal one. It is -1 if there is none.
func Gateway(attach []Attachment, nets []Network, ipv6 bool) int {
	best, most := -1, 0
	for i, n := range nets {
		leads := slices.ContainsFunc(n.Gateways, func(gw netip.Addr) bool { return gw.Is6() == ipv6 })
		if n.Internal || n.GatewayMode == GatewayIsolated || !leads {
			continue
		}
		priority := 0
		if i < len(attach) {
			priority = attach[i].GwPriority
		}
		if best < 0 || priority > most {
			best, most = i, priority
		}
	}
	return best
}

// EgressRule is one --egress allow|deny CIDR[:PORT[/PROTO]].
type EgressRule struct {
	Allow bool         `json:"allow,omitempty"`
	To    netip.Prefix `json:"to"`
	// Port 0 is any port; Proto is empty for any protocol, which takes Port 0.
	Port  uint16 `json:"port,omitempty"`
	Proto Proto  `json:"protocol,omitempty"`
}

// HostnameOrID is the name the sandbox has for itself: the user's choice, or
// the first 12 digits of its ID, as docker does.
func (s Sandbox) HostnameOrID() string {
	if s.Hostname != "" || len(s.ID) < 12 {
		return s.Hostname
	}
	return s.ID[:12]
}

// MAC derives a locally administered MAC address from an IP address, as docker
// does: 02:42 and the last four bytes, of an IPv6 address those before them
// folded in. An address that is used again keeps its MAC, so that no
// neighbour's cache is ever wrong.
func MAC(a netip.Addr) string {
	all := a.AsSlice()
	b := all[len(all)-4:]
	if a.Is6() {
		for i := range b {
			b[i] ^= all[8+i]
		}
	}
	return fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

// LinkLocal is the link-local address that the kernel would make of a MAC
// address (RFC 4291, appendix A), which is one that MAC or ParseMAC returned.
func LinkLocal(mac string) netip.Prefix {
	b := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	if hw, err := net.ParseMAC(mac); err == nil && len(hw) == 6 {
		copy(b[8:11], hw[:3])
		copy(b[13:], hw[3:])
		b[8] ^= 2 // the universal/local bit
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// GatewayMode is how a network's traffic with the outside goes, in docker's words.
type GatewayMode string

// The gateway modes.
const (
	// GatewayNAT masquerades what leaves and translates published ports.
	GatewayNAT GatewayMode = "nat"
	// GatewayRouted leaves addresses alone: the outside has a route to the
	// subnet, and reaches the published ports at the sandbox's own address.
	GatewayRouted GatewayMode = "routed"
	// GatewayIsolated is an internal network on which the host has no address.
	GatewayIsolated GatewayMode = "isolated"
)

// Network is a bridge network's definition.
type Network struct {
	Name string `json:"name"`
	// Bridge is the bridge device's name.
	Bridge string `json:"bridge"`
	// Subnets is one of IPv4, one of IPv6, or one of each, in this order.
	Subnets []netip.Prefix `json:"subnets"`
	// IPv6 asks for a subnet of each family: what is not in Subnets is chosen.
	IPv6 bool `json:"ipv6,omitempty"`
	// Gateways has the host's address in each subnet, in the same order.
	Gateways []netip.Addr `json:"gateways"`
	// Range narrows what is handed out automatically of the subnet it is in;
	// invalid means all of it.
	Range netip.Prefix `json:"range,omitzero"`
	// Aux addresses are never handed out, by name.
	Aux          map[string]netip.Addr `json:"aux,omitempty"`
	Labels       map[string]string     `json:"labels,omitempty"`
	MTU          int                   `json:"mtu"`
	Internal     bool                  `json:"internal,omitempty"`
	NoICC        bool                  `json:"noICC,omitempty"`
	NoMasquerade bool                  `json:"noMasquerade,omitempty"`
	// GatewayMode is how the network meets the outside; empty is GatewayNAT.
	GatewayMode GatewayMode `json:"gatewayMode,omitempty"`
	Created     time.Time   `json:"created"`
}

// VethPrefix begins the name of every HostInterface.
const VethPrefix = "sv"

// Endpoint is a sandbox's place on a network, with everything allocated. It is
// what the bridge mode plans from and what `inspect` shows.
type Endpoint struct {
	Network string `json:"network"`
	// Interface is the device's name inside, HostInterface outside.
	Interface     string `json:"interface"`
	HostInterface string `json:"hostInterface"`
	MAC           string `json:"mac"`
	MTU           int    `json:"mtu"`
	// Addresses and Gateways have one for each of the network's subnets.
	Addresses []netip.Prefix `json:"addresses"`
	Gateways  []netip.Addr   `json:"gateways"`
	Aliases   []string       `json:"aliases"`
	Ports     []Port         `json:"ports"`
}

// Facts is what the manager found out and allocated for one sandbox; with the
// Sandbox it is all that a mode plans from.
type Facts struct {
	// Netns is the path the namespace is pinned at.
	Netns string
	// JoinPath is the namespace to join: another sandbox's for ModeContainer, or
	// the one that a runtime has made. If it is Netns itself, it stays as it is.
	JoinPath string
	// JoinEtcDir is the EtcDir of the sandbox to join; empty for a PID.
	JoinEtcDir string
	// EtcDir is the directory for hosts, resolv.conf and hostname; HostsDir has
	// the hosts file of each user-defined network, which its sandboxes share.
	EtcDir, HostsDir string
	// EtcLink, unless empty, is where ip-netns(8) looks for EtcDir.
	EtcLink string
	// IndexPath is the symlink that finds the sandbox by ID; its target is the name.
	IndexPath string
	// JoinedPath marks, for ModeContainer with a sandbox, that it is in use.
	JoinedPath string
	// Mark is this root's link group.
	Mark uint32
	// Endpoints and Networks go together, one each per attachment.
	Endpoints []Endpoint
	Networks  []Network
	// HostResolv is the host's resolv.conf.
	HostResolv string
	// Rewired says that the sandbox's networks have changed since it was made:
	// its hosts file is its own from then on, and settings of interfaces that it
	// has no more are left out.
	Rewired bool
}
