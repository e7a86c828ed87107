package kernel

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// A plan.TableChain is known by the slash in its name. Its rules say, in their
// user data, of which chain they are, their number and how many there are.

func isTableChain(name string) bool { return strings.Contains(name, "/") }

// nftRule is a rule as a dump shows it.
type nftRule struct{ chain, mark string }

// rules dumps the rules of a table, or of one of its chains.
func (c *nfnl) rules(family byte, table, chain string) (found []nftRule, err error) {
	in := func(b []byte) []byte {
		b = attrString(b, unix.NFTA_RULE_TABLE, table)
		if chain != "" {
			b = attrString(b, unix.NFTA_RULE_CHAIN, chain)
		}
		return b
	}
	err = retryInterrupted(func() error {
		found = found[:0]
		return c.get(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, in, func(m nfMsg) error {
			var r nftRule
			for typ, b := range attrs(m.attrs) {
				switch typ {
				case unix.NFTA_RULE_CHAIN:
					r.chain = cString(b)
				case unix.NFTA_RULE_USERDATA:
					r.mark = string(b)
				}
			}
			found = append(found, r)
			return nil
		})
	})
	return found, err
}

// chainNames lists the chains of a table.
func (c *nfnl) chainNames(family byte, table string) (names []string, err error) {
	err = retryInterrupted(func() error {
		names = names[:0]
		return c.get(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, family, nil, func(m nfMsg) error {
			var of, name string
			for typ, b := range attrs(m.attrs) {
				switch typ {
				case unix.NFTA_CHAIN_TABLE:
					of = cString(b)
				case unix.NFTA_CHAIN_NAME:
					name = cString(b)
				}
			}
			if of == table {
				names = append(names, name)
			}
			return nil
		})
	})
	return names, err
}

// chainMarks are the user data of the rules of a TableChain.
func chainMarks(ch plan.TableChain) []string {
	sum := sha256.Sum256([]byte(strings.Join(ch.Rules, "\n")))
	marks := make([]string, len(ch.Rules))
	for i := range marks {
		m := append([]byte{ruleTag, 12}, sum[:8]...)
		m = binary.BigEndian.AppendUint16(m, uint16(i))
		marks[i] = string(binary.BigEndian.AppendUint16(m, uint16(len(marks))))
	}
	return marks
}

// wholeChain reports whether these are all the marks of some TableChain.
func wholeChain(marks []string) bool {
	for i, m := range marks {
		if len(m) != 14 || m[:10] != marks[0][:10] ||
			int(binary.BigEndian.Uint16([]byte(m[10:]))) != i || int(binary.BigEndian.Uint16([]byte(m[12:]))) != len(marks) {
			return false
		}
	}
	return len(marks) > 0
}

// differing are those of chains that the kernel has not, or not so.
func (c *nfnl) differing(chains []plan.TableChain) ([]plan.TableChain, error) {
	var out []plan.TableChain
	for _, ch := range chains {
		family, err := nftFamily(ch.Family)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ch.Key(), err)
		}
		have, err := c.rules(family, ch.Table, ch.Name)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("%s: %w", ch.Key(), err)
		}
		if !slices.EqualFunc(chainMarks(ch), have, func(m string, r nftRule) bool { return m == r.mark }) {
			out = append(out, ch)
		}
	}
	return out, nil
}

// chains appends the messages that make each chain what it should be.
func (c *nfnl) chains(out []byte, chains []plan.TableChain) ([]byte, error) {
	for _, ch := range chains {
		family, err := nftFamily(ch.Family)
		if err != nil {
			return nil, err
		}
		out = c.message(out, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, family, func(b []byte) []byte {
			return attrString(attrString(b, unix.NFTA_CHAIN_TABLE, ch.Table), unix.NFTA_CHAIN_NAME, ch.Name)
		})
		in := func(b []byte) []byte {
			return attrString(attrString(b, unix.NFTA_RULE_TABLE, ch.Table), unix.NFTA_RULE_CHAIN, ch.Name)
		}
		out = c.message(out, unix.NFT_MSG_DELRULE, 0, family, in)
		marks := chainMarks(ch)
		for i, text := range ch.Rules {
			exprs, err := compileRule(plan.Table{Family: ch.Family, Name: ch.Table}, text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", ch.Key(), err)
			}
			packed, err := packExprs(family, exprs)
			if err != nil {
				return nil, fmt.Errorf("%s: rule %q: %w", ch.Key(), text, err)
			}
			out = c.message(out, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, family, func(b []byte) []byte {
				b = nest(in(b), unix.NFTA_RULE_EXPRESSIONS, func(b []byte) []byte { return append(b, packed...) })
				return attr(b, unix.NFTA_RULE_USERDATA, []byte(marks[i]))
			})
		}
	}
	return out, nil
}

// packExprs is the list of expressions in a rule's message.
func packExprs(family byte, exprs []expr.Any) (out []byte, err error) {
	for _, e := range exprs {
		body, err := expr.Marshal(family, e)
		if err != nil {
			return nil, err
		}
		if ct, ok := e.(*expr.Ct); ok && (ct.Key == ctDstIP || ct.Key == ctDstIP6) {
			// The library gives these keys no direction.
			body = attrString(nil, unix.NFTA_EXPR_NAME, "ct")
			body = nest(body, unix.NFTA_EXPR_DATA, func(b []byte) []byte {
				b = attr(b, unix.NFTA_CT_KEY, binary.BigEndian.AppendUint32(nil, uint32(ct.Key)))
				b = attr(b, unix.NFTA_CT_DREG, binary.BigEndian.AppendUint32(nil, ct.Register))
				return attr(b, unix.NFTA_CT_DIRECTION, []byte{byte(ct.Direction)})
			})
		}
		out = nest(out, unix.NFTA_LIST_ELEM, func(b []byte) []byte { return append(b, body...) })
	}
	return out, nil
}

// deleteChains deletes what nothing jumps to any more.
func (c *nfnl) deleteChains(chains []plan.TableChain) error {
	var errs []error
	for _, ch := range chains {
		family, err := nftFamily(ch.Family)
		if err == nil {
			out := c.message(c.begin(), unix.NFT_MSG_DELCHAIN, 0, family, func(b []byte) []byte {
				return attrString(attrString(b, unix.NFTA_CHAIN_TABLE, ch.Table), unix.NFTA_CHAIN_NAME, ch.Name)
			})
			crash.Point("nft commit")
			_, err = c.commit(out)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("%s: %w", ch.Key(), err))
		}
	}
	return errors.Join(errs...)
}

// tableChains lists the chains in t that have owners of their own; what is in
// them their records know.
func (c *nfnl) tableChains(t plan.Table) ([]plan.Object, error) {
	family, err := nftFamily(t.Family)
	if err != nil {
		return nil, err
	}
	names, err := c.chainNames(family, t.Name)
	var found []plan.Object
	for _, name := range names {
		if isTableChain(name) {
			found = append(found, plan.TableChain{Family: t.Family, Table: t.Name, Name: name})
		}
	}
	return found, err
}

// sets lists the named sets of a table, with the types that sandnet knows.
func (c *nfnl) sets(family byte, table string) (found []plan.Set, err error) {
	in := func(b []byte) []byte { return attrString(b, unix.NFTA_SET_TABLE, table) }
	err = retryInterrupted(func() error {
		found = nil
		return c.get(unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, family, in, func(m nfMsg) error {
			var s plan.Set
			var flags, data uint32
			for typ, b := range attrs(m.attrs) {
				switch typ {
				case unix.NFTA_SET_NAME:
					s.Name = cString(b)
				case unix.NFTA_SET_FLAGS:
					flags = binary.BigEndian.Uint32(b)
				case unix.NFTA_SET_KEY_TYPE:
					s.Type = typeNames(binary.BigEndian.Uint32(b))
				case unix.NFTA_SET_DATA_TYPE:
					data = binary.BigEndian.Uint32(b)
				}
			}
			if flags&unix.NFT_SET_MAP != 0 {
				if s.Data = "verdict"; data != unix.NFT_DATA_VERDICT {
					s.Data = typeNames(data)
				}
			}
			if flags&unix.NFT_SET_ANONYMOUS == 0 {
				found = append(found, s)
			}
			return nil
		})
	})
	return found, err
}

// typeNames are the types of a concatenation: nft packs them at 6 bits each.
func typeNames(packed uint32) string {
	var names []string
	for ; packed > 0; packed >>= 6 {
		name := "unknown"
		for _, known := range []string{"ifname", "ipv4_addr", "ipv6_addr", "ether_addr", "inet_proto", "inet_service"} {
			if t, err := typeNamed(known); err == nil && t.lib.GetNFTMagic() == packed&63 {
				name = known
			}
		}
		names = append(names, name)
	}
	slices.Reverse(names)
	return strings.Join(names, " . ")
}

// withoutBridge leaves out the elements of the bridge family where the kernel
// has no nf_tables for bridges: there, sandboxes are not kept from using each
// other's addresses.
func (c *nfnl) withoutBridge(groups []*elementGroup, err error) []*elementGroup {
	if !isUnsupported(err) || hasBridgeFamily() {
		return groups
	}
	return slices.DeleteFunc(slices.Clone(groups), func(g *elementGroup) bool { return g.family == unix.NFPROTO_BRIDGE })
}
