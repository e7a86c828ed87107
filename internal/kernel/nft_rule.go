package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// ruleCompiler turns one rule's text into the kernel's expressions.
type ruleCompiler struct {
	table plan.Table
	words []string
	out   []expr.Any
	is    nftHeader // what the packet is known to be
}

// compileRule compiles a rule of t. It knows the statements that package
// firewall uses; another one is another case here, another field one more
// line in nftFields.
func compileRule(t plan.Table, text string) ([]expr.Any, error) {
	c := ruleCompiler{table: t, words: strings.Fields(text)}
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
		return c.dnat("ipv4_addr", unix.NFPROTO_IPV4, 1)
	case c.take("dnat ip6 to"):
		return c.dnat("ipv6_addr", unix.NFPROTO_IPV6, 4)
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
// is an address, which fills some registers, and a port.
func (c *ruleCompiler) dnat(addr string, family, regs uint32) error {
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
	if m.Data != addr+" . inet_service" {
		return fmt.Errorf("map %s has no address and port", m.Name)
	}
	c.add(&expr.Lookup{SourceRegister: regFirst, DestRegister: regFirst, IsDestRegSet: true, SetName: m.Name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: regFirst, RegProtoMin: regFirst + regs})
	return nil
}

// match compiles "FIELDS [!=] @SET", "FIELD vmap @MAP" and "FIELD [!=] VALUE".
func (c *ruleCompiler) match() error {
	field, typ, err := c.fields()
	if err != nil {
		return err
	}
	if c.take("vmap") {
		m, err := c.set(typ)
		if err == nil && m.Data != "verdict" {
			err = fmt.Errorf("map %s has no verdicts", m.Name)
		}
		c.add(&expr.Lookup{SourceRegister: regFirst, DestRegister: 0, IsDestRegSet: true, SetName: m.Name})
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
	value := c.next()
	if typ != field.typ {
		return fmt.Errorf("%q: only a set compares with %s", value, typ)
	}
	return c.compare(field, not, value)
}

func (c *ruleCompiler) compare(field nftField, not bool, value string) error {
	equal, differ := expr.CmpOpEq, expr.CmpOpNeq
	if not {
		equal, differ = differ, equal
	}
	compare := func(op expr.CmpOp, b []byte) { c.add(&expr.Cmp{Op: op, Register: regFirst, Data: b}) }
	mask := func(m []byte) {
		c.add(&expr.Bitwise{SourceRegister: regFirst, DestRegister: regFirst, Len: uint32(len(m)), Mask: m, Xor: make([]byte, len(m))})
	}
	switch {
	case field.bits:
		var bits uint32
		for name := range strings.SplitSeq(value, ",") {
			b, err := field.words(name)
			if err != nil {
				return err
			}
			bits |= binary.NativeEndian.Uint32(b)
		}
		mask(native(bits))
		compare(differ, native(0))
	case field.words != nil:
		b, err := field.words(value)
		if err != nil {
			return err
		}
		compare(equal, b)
	case strings.Contains(value, "/"):
		p, err := netip.ParsePrefix(value)
		if err != nil {
			return err
		}
		if want := map[string]int{"ipv4_addr": 32, "ipv6_addr": 128}[field.typ]; p.Addr().BitLen() != want {
			return fmt.Errorf("%s is no prefix of type %s", value, field.typ)
		}
		if p.Bits() < p.Addr().BitLen() {
			m := make([]byte, field.size)
			for i := range p.Bits() {
				m[i/8] |= 0x80 >> (i % 8)
			}
			mask(m)
		}
		compare(equal, p.Masked().Addr().AsSlice())
	default:
		t, err := typeNamed(field.typ)
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

// require has the rule end for packets without the header.
func (c *ruleCompiler) require(of nftHeader) error {
	if of == anyHeader || of == c.is || of == headerIPv6 && c.is == headerICMPv6 {
		return nil
	}
	if c.is != anyHeader && !(c.is == headerIPv6 && of == headerICMPv6) {
		return fmt.Errorf("no packet has both headers")
	}
	test := func(key expr.MetaKey, b []byte) {
		c.add(&expr.Meta{Key: key, Register: regFirst}, &expr.Cmp{Op: expr.CmpOpEq, Register: regFirst, Data: b})
	}
	if c.is == anyHeader {
		inet, ether := map[nftHeader]byte{headerIPv4: unix.NFPROTO_IPV4, headerIPv6: unix.NFPROTO_IPV6, headerICMPv6: unix.NFPROTO_IPV6}[of],
			map[nftHeader]uint16{headerIPv4: unix.ETH_P_IP, headerIPv6: unix.ETH_P_IPV6, headerICMPv6: unix.ETH_P_IPV6, headerARP: unix.ETH_P_ARP}[of]
		switch {
		case c.table.Family == "bridge":
			test(expr.MetaKeyPROTOCOL, binary.BigEndian.AppendUint16(nil, ether))
		case inet == 0:
			return fmt.Errorf("table %s sees no such packets", c.table.Family)
		case c.table.Family == "inet":
			test(expr.MetaKeyNFPROTO, []byte{inet})
		}
	}
	if of == headerICMPv6 {
		test(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMPV6})
	}
	c.is = of
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
		if err := c.require(last.of); err != nil {
			return last, "", fmt.Errorf("%s: %w", last.name, err)
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
