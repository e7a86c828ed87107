package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// What the nft program keeps to itself: kernel headers name them, the
// libraries do not.
const (
	metaOIFKind = 27 // NFT_META_OIFKIND
	ctStatusNAT = 1 << 5
	regFirst    = unix.NFT_REG32_00
	inetIPv4    = unix.NFPROTO_IPV4
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
	if err != nil || name == "" || len(name) >= unix.IFNAMSIZ {
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
	}
	return strconv.Itoa(int(b[0]))
}

// nftField is something of a packet that rules match on.
type nftField struct {
	name string
	typ  string
	size uint32
	// ipv4 says that the field is one of IPv4's header.
	ipv4 bool
	load func(reg uint32) expr.Any
	// bits, for a bit mask, are its names.
	bits func(name string) uint32
}

func nftFields() []nftField {
	meta := func(key expr.MetaKey) func(uint32) expr.Any {
		return func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }
	}
	payload := func(base expr.PayloadBase, offset, size uint32) func(uint32) expr.Any {
		return func(reg uint32) expr.Any {
			return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: size}
		}
	}
	ct := func(key expr.CtKey) func(uint32) expr.Any {
		return func(reg uint32) expr.Any { return &expr.Ct{Key: key, Register: reg} }
	}
	return []nftField{
		{name: "iifname", typ: "ifname", size: 16, load: meta(expr.MetaKeyIIFNAME)},
		{name: "oifname", typ: "ifname", size: 16, load: meta(expr.MetaKeyOIFNAME)},
		{name: "meta oifkind", typ: "ifname", size: 16, load: meta(metaOIFKind)},
		{name: "meta l4proto", typ: "inet_proto", size: 1, load: meta(expr.MetaKeyL4PROTO)},
		{name: "th dport", typ: "inet_service", size: 2, load: payload(expr.PayloadBaseTransportHeader, 2, 2)},
		{name: "ip saddr", typ: "ipv4_addr", size: 4, ipv4: true, load: payload(expr.PayloadBaseNetworkHeader, 12, 4)},
		{name: "ip daddr", typ: "ipv4_addr", size: 4, ipv4: true, load: payload(expr.PayloadBaseNetworkHeader, 16, 4)},
		{name: "ct state", typ: "ct_state", size: 4, load: ct(expr.CtKeySTATE), bits: ctState},
		{name: "ct status", typ: "ct_status", size: 4, load: ct(expr.CtKeySTATUS), bits: ctStatus},
		{name: "fib daddr type", typ: "fib_addrtype", size: 4, load: func(reg uint32) expr.Any {
			return &expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}
		}},
	}
}

func ctState(name string) uint32 {
	switch name {
	case "established":
		return expr.CtStateBitESTABLISHED
	case "related":
		return expr.CtStateBitRELATED
	case "new":
		return expr.CtStateBitNEW
	case "invalid":
		return expr.CtStateBitINVALID
	case "untracked":
		return expr.CtStateBitUNTRACKED
	}
	return 0
}

func ctStatus(name string) uint32 {
	if name == "dnat" {
		return ctStatusNAT
	}
	return 0
}

// ruleCompiler turns one rule's text into the kernel's expressions.
type ruleCompiler struct {
	table plan.Table
	words []string
	out   []expr.Any
	ipv4  bool // the packet is known to be IPv4
}

// compileRule compiles a rule of t. It knows the statements that package
// firewall uses; another one is another case here, another field one more
// line in nftFields.
func compileRule(t plan.Table, text string) ([]expr.Any, error) {
	c := ruleCompiler{table: t, words: strings.Fields(text), ipv4: t.Family == "ip"}
	for len(c.words) > 0 {
		if err := c.statement(); err != nil {
			return nil, fmt.Errorf("rule %q: %w", text, err)
		}
	}
	return c.out, nil
}

func (c *ruleCompiler) add(e ...expr.Any) { c.out = append(c.out, e...) }

// take consumes the words of phrase if they come next.
func (c *ruleCompiler) take(phrase string) bool {
	words := strings.Fields(phrase)
	if len(c.words) < len(words) || !slices.Equal(c.words[:len(words)], words) {
		return false
	}
	c.words = c.words[len(words):]
	return true
}

func (c *ruleCompiler) next() string {
	if len(c.words) == 0 {
		return ""
	}
	w := c.words[0]
	c.words = c.words[1:]
	return w
}

func (c *ruleCompiler) statement() error {
	switch {
	case c.take("accept"):
		c.add(&expr.Verdict{Kind: expr.VerdictAccept})
	case c.take("drop"):
		c.add(&expr.Verdict{Kind: expr.VerdictDrop})
	case c.take("return"):
		c.add(&expr.Verdict{Kind: expr.VerdictReturn})
	case c.take("goto"):
		return c.jump(expr.VerdictGoto)
	case c.take("jump"):
		return c.jump(expr.VerdictJump)
	case c.take("masquerade"):
		c.add(&expr.Masq{})
	case c.take("dnat ip to"):
		return c.dnat()
	case c.take("meta mark set meta mark |"):
		return c.setMark()
	case c.take("meta mark &"):
		return c.testMark()
	default:
		return c.match()
	}
	return nil
}

func (c *ruleCompiler) jump(kind expr.VerdictKind) error {
	name := c.next()
	if !slices.ContainsFunc(c.table.Chains, func(ch plan.Chain) bool { return ch.Name == name }) {
		return fmt.Errorf("no chain %q", name)
	}
	c.add(&expr.Verdict{Kind: kind, Chain: name})
	return nil
}

func (c *ruleCompiler) setMark() error {
	bits, err := strconv.ParseUint(c.next(), 0, 32)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	c.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: regFirst},
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: 4, Mask: native(^uint32(bits)), Xor: native(uint32(bits))},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: regFirst})
	return nil
}

// testMark compiles the rest of "meta mark & MASK == VALUE".
func (c *ruleCompiler) testMark() error {
	mask, err := strconv.ParseUint(c.next(), 0, 32)
	if err != nil || !c.take("==") {
		return fmt.Errorf("mask and == expected in the test of a mark")
	}
	value, err := strconv.ParseUint(c.next(), 0, 32)
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	c.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: regFirst},
		&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: 4, Mask: native(uint32(mask)), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: native(uint32(value))})
	return nil
}

// dnat compiles the rest of "dnat ip to FIELDS map @MAP", where the map's data
// is an address and a port.
func (c *ruleCompiler) dnat() error {
	_, typ, err := c.fields()
	if err != nil {
		return err
	}
	if !c.take("map") {
		return fmt.Errorf("map expected before %q", c.next())
	}
	m, err := c.set(typ)
	if err != nil {
		return err
	}
	if m.Data != "ipv4_addr . inet_service" {
		return fmt.Errorf("map %s has no address and port", m.Name)
	}
	c.add(&expr.Lookup{SourceRegister: regFirst, DestRegister: regFirst, IsDestRegSet: true, SetName: m.Name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: inetIPv4, RegAddrMin: regFirst, RegProtoMin: regFirst + 1})
	return nil
}

// match compiles "FIELDS [!=] @SET" and "FIELD [!=] VALUE".
func (c *ruleCompiler) match() error {
	field, typ, err := c.fields()
	if err != nil {
		return err
	}
	not := c.take("!=")
	if len(c.words) > 0 && strings.HasPrefix(c.words[0], "@") {
		s, err := c.set(typ)
		if err != nil {
			return err
		}
		c.add(&expr.Lookup{SourceRegister: regFirst, SetName: s.Name, Invert: not})
		return nil
	}
	equal, differ := expr.CmpOpEq, expr.CmpOpNeq
	if not {
		equal, differ = differ, equal
	}
	compare := func(op expr.CmpOp, b []byte) { c.add(&expr.Cmp{Op: op, Register: regFirst, Data: b}) }
	mask := func(m []byte) {
		c.add(&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: uint32(len(m)), Mask: m, Xor: make([]byte, len(m))})
	}
	value := c.next()
	switch {
	case typ != field.typ:
		return fmt.Errorf("%q: only a set compares with %s", value, typ)
	case field.bits != nil:
		var bits uint32
		for name := range strings.SplitSeq(value, ",") {
			b := field.bits(name)
			if b == 0 {
				return fmt.Errorf("%s has no %q", field.name, name)
			}
			bits |= b
		}
		mask(native(bits))
		compare(differ, native(0))
	case typ == "ipv4_addr":
		p, err := netip.ParsePrefix(value)
		if err != nil {
			return err
		}
		mask(binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits())))
		compare(equal, p.Masked().Addr().AsSlice())
	case typ == "fib_addrtype":
		if value != "local" {
			return fmt.Errorf("unknown address type %q", value)
		}
		compare(equal, native(unix.RTN_LOCAL))
	default:
		t, err := typeNamed(typ)
		if err != nil {
			return err
		}
		b, err := t.parse(value)
		if err != nil {
			return err
		}
		compare(equal, b)
	}
	return nil
}

// fields compiles "A . B": each field is loaded after the one before, from the
// first register on. It returns the last one and the type of all together.
func (c *ruleCompiler) fields() (last nftField, typ string, err error) {
	var loads []expr.Any
	var types []string
	reg := uint32(regFirst)
	for {
		known := nftFields()
		i := slices.IndexFunc(known, func(f nftField) bool { return c.take(f.name) })
		if i < 0 {
			return last, "", fmt.Errorf("unknown syntax at %q", strings.Join(c.words, " "))
		}
		last = known[i]
		if last.ipv4 && !c.ipv4 {
			c.ipv4 = true
			c.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: regFirst},
				&expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: []byte{inetIPv4}})
		}
		loads = append(loads, last.load(reg))
		types = append(types, last.typ)
		reg += (last.size + 3) / 4
		if !c.take(".") {
			break
		}
	}
	c.add(loads...)
	return last, strings.Join(types, " . "), nil
}

// set consumes "@NAME", a set of the table whose elements have type typ.
func (c *ruleCompiler) set(typ string) (plan.Set, error) {
	name, ok := strings.CutPrefix(c.next(), "@")
	i := slices.IndexFunc(c.table.Sets, func(s plan.Set) bool { return s.Name == name })
	if !ok || i < 0 {
		return plan.Set{}, fmt.Errorf("no set %q", name)
	}
	s := c.table.Sets[i]
	if s.Type != typ {
		return s, fmt.Errorf("set %s has elements of type %s, not %s", name, s.Type, typ)
	}
	return s, nil
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
