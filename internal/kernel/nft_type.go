package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// nftType is one of nft's data types: how a value of it is spelled and stored.
type nftType struct {
	lib    nftables.SetDatatype
	parse  func(string) ([]byte, error)
	format func([]byte) string
}

func typeNamed(name string) (nftType, error) {
	switch name {
	case "ifname":
		return nftType{nftables.TypeIFName, parseIfname, func(b []byte) string { return strconv.Quote(cString(b)) }}, nil
	case "ipv4_addr":
		return nftType{nftables.TypeIPAddr, parseIPv4, func(b []byte) string { return netip.AddrFrom4([4]byte(b)).String() }}, nil
	case "ipv6_addr":
		return nftType{nftables.TypeIP6Addr, parseIPv6, func(b []byte) string { return netip.AddrFrom16([16]byte(b)).String() }}, nil
	case "ether_addr":
		return nftType{nftables.TypeEtherAddr, parseMAC, func(b []byte) string { return net.HardwareAddr(b).String() }}, nil
	case "verdict":
		return nftType{nftables.TypeVerdict, parseVerdict, formatVerdict}, nil
	case "inet_proto":
		return nftType{nftables.TypeInetProto, parseProto, formatProto}, nil
	case "inet_service":
		return nftType{nftables.TypeInetService, parsePort, func(b []byte) string {
			return strconv.Itoa(int(binary.BigEndian.Uint16(b)))
		}}, nil
	}
	return nftType{}, fmt.Errorf("unknown nft type %q", name)
}

// nftTypes are the parts of a concatenation, usually one.
type nftTypes []nftType

func typesNamed(text string) (nftTypes, error) {
	var types nftTypes
	for name := range strings.SplitSeq(text, " . ") {
		t, err := typeNamed(name)
		if err != nil {
			return nil, err
		}
		types = append(types, t)
	}
	return types, nil
}

func (types nftTypes) lib() (nftables.SetDatatype, error) {
	if len(types) == 1 {
		return types[0].lib, nil
	}
	var parts []nftables.SetDatatype
	for _, t := range types {
		parts = append(parts, t.lib)
	}
	return nftables.ConcatSetType(parts...)
}

// encode gives the kernel's form of "a . b": in a concatenation each part
// fills whole registers.
func (types nftTypes) encode(text string) ([]byte, error) {
	if len(types) == 1 {
		return types[0].parse(text)
	}
	parts := strings.Split(text, " . ")
	if len(parts) != len(types) {
		return nil, fmt.Errorf("%q has %d parts, not %d", text, len(parts), len(types))
	}
	out := make([]byte, 0, 16*len(types))
	for i, t := range types {
		b, err := t.parse(parts[i])
		if err != nil {
			return nil, err
		}
		out = pad4(append(out, b...))
	}
	return out, nil
}

func (types nftTypes) decode(b []byte) (string, error) {
	if len(types) == 1 && types[0].lib == nftables.TypeVerdict { // of no fixed size
		return formatVerdict(b), nil
	}
	parts := make([]string, len(types))
	for i, t := range types {
		size := int(t.lib.Bytes)
		if len(b) < size {
			return "", fmt.Errorf("value of %d bytes is too short", len(b))
		}
		parts[i] = t.format(b[:size])
		b = b[min(len(b), (size+3)&^3):]
	}
	return strings.Join(parts, " . "), nil
}

func parseIfname(s string) ([]byte, error) {
	name, err := strconv.Unquote(s)
	if err != nil || name == "" || len(name) >= unix.IFNAMSIZ || strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("%s is no quoted interface name", s)
	}
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...), nil
}

func parseIPv4(s string) ([]byte, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return nil, err
	}
	if !ip.Is4() {
		return nil, fmt.Errorf("%s is no IPv4 address", s)
	}
	return ip.AsSlice(), nil
}

func parseIPv6(s string) ([]byte, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return nil, err
	}
	if !ip.Is6() || ip.Zone() != "" {
		return nil, fmt.Errorf("%s is no IPv6 address", s)
	}
	return ip.AsSlice(), nil
}

func parseMAC(s string) ([]byte, error) {
	mac, err := net.ParseMAC(s)
	if err == nil && len(mac) != 6 {
		err = fmt.Errorf("%s is no Ethernet address", s)
	}
	return mac, err
}

// parseVerdict reads "jump CHAIN", the one verdict that maps of ours hold; its
// form is the kernel's code and the chain's name.
func parseVerdict(s string) ([]byte, error) {
	chain, ok := strings.CutPrefix(s, "jump ")
	if !ok || chain == "" {
		return nil, fmt.Errorf("%q is no jump", s)
	}
	return append(verdictJump(), chain...), nil
}

func verdictJump() []byte { return binary.BigEndian.AppendUint32(nil, unix.NFT_JUMP&0xffffffff) }

func formatVerdict(b []byte) string { return "jump " + string(b[min(4, len(b)):]) }

func parsePort(s string) ([]byte, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return binary.BigEndian.AppendUint16(nil, uint16(n)), err
}

func parseProto(s string) ([]byte, error) {
	switch s {
	case "tcp":
		return []byte{unix.IPPROTO_TCP}, nil
	case "udp":
		return []byte{unix.IPPROTO_UDP}, nil
	case "sctp":
		return []byte{unix.IPPROTO_SCTP}, nil
	case "ipv6-icmp":
		return []byte{unix.IPPROTO_ICMPV6}, nil
	}
	return nil, fmt.Errorf("unknown protocol %q", s)
}

func formatProto(b []byte) string {
	switch b[0] {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	}
	return strconv.Itoa(int(b[0]))
}
