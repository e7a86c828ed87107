package kernel

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What the nft program keeps to itself: kernel headers name them, the
// libraries do not.
const (
	metaIIFKind = 26 // NFT_META_IIFKIND
	metaOIFKind = 27 // NFT_META_OIFKIND
	ctDstIP     = 20 // NFT_CT_DST_IP
	ctDstIP6    = 22 // NFT_CT_DST_IP6
	ctStatusNAT = 1 << 5
	regFirst    = unix.NFT_REG32_00
)

// nftHeader says what a packet must be for a field to be there.
type nftHeader int

const (
	anyHeader nftHeader = iota
	headerIPv4
	headerIPv6
	headerARP
	headerICMPv6 // in IPv6
)

// nftField is something of a packet that rules match on.
type nftField struct {
	name string
	typ  string
	size uint32
	of   nftHeader
	load func(reg uint32) expr.Any
	// words, unless nil, gives the value of a word that is no type's; bits says
	// that several of them make a mask, and one of them is enough.
	words func(word string) ([]byte, error)
	bits  bool
}

func metaField(name, typ string, size uint32, key expr.MetaKey) nftField {
	return nftField{name: name, typ: typ, size: size,
		load: func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }}
}

func payloadField(name, typ string, size uint32, of nftHeader, base expr.PayloadBase, offset uint32) nftField {
	return nftField{name: name, typ: typ, size: size, of: of,
		load: func(reg uint32) expr.Any {
			return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: size}
		}}
}

func ctField(name, typ string, size uint32, key expr.CtKey) nftField {
	return nftField{name: name, typ: typ, size: size,
		load: func(reg uint32) expr.Any { return &expr.Ct{Key: key, Register: reg} }}
}

// worded gives a field its words.
func (f nftField) worded(bits bool, words func(string) ([]byte, error)) nftField {
	f.words, f.bits = words, bits
	return f
}

func nftFields() []nftField {
	const link, network, transport = expr.PayloadBaseLLHeader, expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	return []nftField{
		metaField("iifname", "ifname", 16, expr.MetaKeyIIFNAME),
		metaField("oifname", "ifname", 16, expr.MetaKeyOIFNAME),
		metaField("iifgroup", "devgroup", 4, expr.MetaKeyIIFGROUP).worded(false, nativeNumber),
		metaField("meta iifkind", "ifname", 16, metaIIFKind),
		metaField("meta oifkind", "ifname", 16, metaOIFKind),
		metaField("meta l4proto", "inet_proto", 1, expr.MetaKeyL4PROTO),
		payloadField("th dport", "inet_service", 2, anyHeader, transport, 2),
		payloadField("ip saddr", "ipv4_addr", 4, headerIPv4, network, 12),
		payloadField("ip daddr", "ipv4_addr", 4, headerIPv4, network, 16),
		payloadField("ip6 length", "integer", 2, headerIPv6, network, 4).worded(false, wireNumber),
		payloadField("ip6 nexthdr", "inet_proto", 1, headerIPv6, network, 6),
		payloadField("ip6 saddr", "ipv6_addr", 16, headerIPv6, network, 8),
		payloadField("ip6 daddr", "ipv6_addr", 16, headerIPv6, network, 24),
		payloadField("ether saddr", "ether_addr", 6, anyHeader, link, 6),
		payloadField("ether type", "ether_type", 2, anyHeader, link, 12).worded(false, etherType),
		payloadField("arp htype", "integer", 2, headerARP, network, 0).worded(false, wireNumber),
		payloadField("arp ptype", "ether_type", 2, headerARP, network, 2).worded(false, etherType),
		payloadField("arp hlen", "integer", 1, headerARP, network, 4).worded(false, byteNumber),
		payloadField("arp plen", "integer", 1, headerARP, network, 5).worded(false, byteNumber),
		payloadField("arp saddr ether", "ether_addr", 6, headerARP, network, 8),
		payloadField("arp saddr ip", "ipv4_addr", 4, headerARP, network, 14),
		payloadField("icmpv6 type", "icmpv6_type", 1, headerICMPv6, transport, 0).worded(false, icmpv6Type),
		// The target of a neighbour solicitation or advertisement, its first
		// option's type and length, and the MAC address in it. nft lists them thus.
		payloadField("@th,64,128", "ipv6_addr", 16, anyHeader, transport, 8),
		payloadField("@th,192,16", "integer", 2, anyHeader, transport, 24).worded(false, wireNumber),
		payloadField("@th,208,48", "ether_addr", 6, anyHeader, transport, 26),
		ctField("ct state", "ct_state", 4, expr.CtKeySTATE).worded(true, ctState),
		ctField("ct status", "ct_status", 4, expr.CtKeySTATUS).worded(true, ctStatus),
		// Direction 0 is the original one.
		ctField("ct original ip daddr", "ipv4_addr", 4, ctDstIP),
		ctField("ct original ip6 daddr", "ipv6_addr", 16, ctDstIP6),
		ctField("ct original proto-dst", "inet_service", 2, expr.CtKeyPROTODST),
		nftField{name: "fib daddr type", typ: "fib_addrtype", size: 4, load: func(reg uint32) expr.Any {
			return &expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}
		}}.worded(false, addrType),
	}
}

func number(s string, bits int) (uint64, error) { return strconv.ParseUint(s, 0, bits) }

func nativeNumber(s string) ([]byte, error) {
	n, err := number(s, 32)
	return native(uint32(n)), err
}

func wireNumber(s string) ([]byte, error) {
	n, err := number(s, 16)
	return binary.BigEndian.AppendUint16(nil, uint16(n)), err
}

func byteNumber(s string) ([]byte, error) {
	n, err := number(s, 8)
	return []byte{byte(n)}, err
}

func etherType(s string) ([]byte, error) {
	switch s {
	case "ip":
		return binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP), nil
	case "ip6":
		return binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6), nil
	case "arp":
		return binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP), nil
	}
	return nil, fmt.Errorf("unknown Ethernet type %q", s)
}

// icmpv6Type knows the types of neighbour discovery (RFC 4861).
func icmpv6Type(s string) ([]byte, error) {
	switch s {
	case "nd-router-advert":
		return []byte{134}, nil
	case "nd-neighbor-solicit":
		return []byte{135}, nil
	case "nd-neighbor-advert":
		return []byte{136}, nil
	case "nd-redirect":
		return []byte{137}, nil
	}
	return nil, fmt.Errorf("unknown ICMPv6 type %q", s)
}

func addrType(s string) ([]byte, error) {
	if s == "local" {
		return native(unix.RTN_LOCAL), nil
	}
	return nil, fmt.Errorf("unknown address type %q", s)
}

func ctState(name string) ([]byte, error) {
	switch name {
	case "established":
		return native(expr.CtStateBitESTABLISHED), nil
	case "related":
		return native(expr.CtStateBitRELATED), nil
	case "new":
		return native(expr.CtStateBitNEW), nil
	case "invalid":
		return native(expr.CtStateBitINVALID), nil
	case "untracked":
		return native(expr.CtStateBitUNTRACKED), nil
	}
	return nil, fmt.Errorf("ct state has no %q", name)
}

func ctStatus(name string) ([]byte, error) {
	if name == "dnat" {
		return native(ctStatusNAT), nil
	}
	return nil, fmt.Errorf("ct status has no %q", name)
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
