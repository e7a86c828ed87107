package kernel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// How sandnet recognises its own: the table by its comment, each rule by user
// data that nft passes over, made of the wanted table's hash and the rule's
// number. One dump of the rules thus tells that everything stands as wanted.
// A set is what it was made as until the table changes, since rules hold it.
const (
	ruleTag = 0x5a // a user data type that nft does not use
	// maxPerMessage keeps a message's element list below 64 KiB.
	maxPerMessage = 400
)

// nftaTableUserdata is NFTA_TABLE_USERDATA, which golang.org/x/sys/unix lacks.
const nftaTableUserdata = 6

// ensureNft makes tables and elements exist. In the ordinary case it is one
// dump per table and one transaction for all elements.
func ensureNft(objs []plan.Object) (changed int, err error) {
	c, err := dialNfnl()
	if err != nil {
		return 0, err
	}
	defer c.close()
	var elements []plan.Element
	for _, o := range objs {
		switch o := o.(type) {
		case plan.Table:
			made, err := c.ensureTable(o)
			if err != nil {
				return changed, fmt.Errorf("%s: %w", o.Key(), err)
			}
			if made {
				changed++
			}
		case plan.Element:
			elements = append(elements, o)
		}
	}
	n, err := c.ensureElements(elements)
	return changed + n, err
}

// deleteNft removes tables and elements. An element that has got other data
// is somebody else's by now and stays; so does a table that is not ours.
func deleteNft(objs []plan.Object) error {
	c, err := dialNfnl()
	if err != nil {
		return err
	}
	defer c.close()
	var elements []plan.Element
	var tables []plan.Table
	for _, o := range objs {
		switch o := o.(type) {
		case plan.Table:
			tables = append(tables, o)
		case plan.Element:
			elements = append(elements, o)
		}
	}
	// What goes with its table needs no deletion of its own.
	elements = slices.DeleteFunc(elements, func(e plan.Element) bool {
		return slices.ContainsFunc(tables, func(t plan.Table) bool { return t.Family == e.Family && t.Name == e.Table })
	})
	errs := []error{c.deleteElements(elements)}
	for i := len(tables) - 1; i >= 0; i-- {
		if err := c.deleteTable(tables[i]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", tables[i].Key(), err))
		}
	}
	return errors.Join(errs...)
}

// ownedNft lists the tables that carry our mark, and what is in their sets.
func ownedNft(mark uint32) ([]plan.Object, error) {
	c, err := dialNfnl()
	if err != nil {
		return nil, err
	}
	defer c.close()
	var owned []plan.Object
	var tables []plan.Table
	err = retryInterrupted(func() error {
		tables = nil
		return c.get(unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, nil, func(m nfMsg) error {
			t := plan.Table{Family: familyName(m.family), Mark: mark}
			if name, comment := tableNamed(m); bytes.Equal(comment, tableUserdata(t)) {
				t.Name = name
				tables = append(tables, t)
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("nft tables: %w", err)
	}
	for _, t := range tables {
		owned = append(owned, t)
		elements, err := c.tableElements(t)
		if err != nil {
			return owned, fmt.Errorf("%s: %w", t.Key(), err)
		}
		owned = append(owned, elements...)
	}
	return owned, nil
}

func nftFamily(name string) (byte, error) {
	switch name {
	case "inet":
		return unix.NFPROTO_INET, nil
	case "ip":
		return unix.NFPROTO_IPV4, nil
	case "ip6":
		return unix.NFPROTO_IPV6, nil
	}
	return 0, fmt.Errorf("unknown nft family %q", name)
}

func familyName(family byte) string {
	switch family {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	}
	return "inet"
}

// ensureTable leaves an intact table alone; everything else about it is
// replaced in one transaction, but for the elements of unchanged sets.
func (c *nfnl) ensureTable(t plan.Table) (made bool, err error) {
	family, err := nftFamily(t.Family)
	if err != nil {
		return false, err
	}
	if ok, err := c.intact(family, t); ok || err != nil {
		return false, err
	}
	crash.Point("nft table")
	switch ours, err := c.isOurs(family, t); {
	case errors.Is(err, unix.ENOENT):
		if err := c.createTable(family, t); err != nil {
			return false, explainNft(err)
		}
	case err != nil:
		return false, err
	case !ours:
		return false, fmt.Errorf("exists and was not made by sandnet, or by one with another --root: rename or delete it")
	}
	if err := replaceTable(family, t); err != nil {
		return false, explainNft(err)
	}
	return true, nil
}

// intact reports whether the kernel has exactly t's rules.
func (c *nfnl) intact(family byte, t plan.Table) (bool, error) {
	sum := tableSum(t)
	var want, have []string
	for _, ch := range t.Chains {
		for range ch.Rules {
			want = append(want, ch.Name+string(ruleMark(sum, len(want))))
		}
	}
	err := retryInterrupted(func() error {
		have = have[:0]
		inTable := func(b []byte) []byte { return attrString(b, unix.NFTA_RULE_TABLE, t.Name) }
		return c.get(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, inTable, func(m nfMsg) error {
			var chain, mark string
			for typ, b := range attrs(m.attrs) {
				switch typ {
				case unix.NFTA_RULE_CHAIN:
					chain = cString(b)
				case unix.NFTA_RULE_USERDATA:
					mark = string(b)
				}
			}
			have = append(have, chain+mark)
			return nil
		})
	})
	// The kernel lists chains in the order of their making.
	return slices.Equal(want, have), err
}

// tableSum is a hash of everything t asks for.
func tableSum(t plan.Table) [8]byte {
	sum := sha256.Sum256([]byte(strings.Join(t.Commands(), "\n")))
	return [8]byte(sum[:])
}

// ruleMark is the user data of rule number n of the table with this sum.
func ruleMark(sum [8]byte, n int) []byte {
	return append([]byte{ruleTag, 10}, append(sum[:], byte(n>>8), byte(n))...)
}

// isOurs looks the table's mark up; the error is ENOENT if there is no table.
func (c *nfnl) isOurs(family byte, t plan.Table) (ours bool, err error) {
	named := func(b []byte) []byte { return attrString(b, unix.NFTA_TABLE_NAME, t.Name) }
	err = c.get(unix.NFT_MSG_GETTABLE, 0, family, named, func(m nfMsg) error {
		_, comment := tableNamed(m)
		ours = bytes.Equal(comment, tableUserdata(t))
		return nil
	})
	return ours, err
}

func tableNamed(m nfMsg) (name string, userdata []byte) {
	for typ, b := range attrs(m.attrs) {
		switch typ {
		case unix.NFTA_TABLE_NAME:
			name = cString(b)
		case nftaTableUserdata:
			userdata = b
		}
	}
	return name, userdata
}

// tableUserdata is the comment as nft stores it: type 0, length, text.
func tableUserdata(t plan.Table) []byte {
	return append([]byte{0, byte(len(t.Comment()) + 1)}, t.Comment()+"\x00"...)
}

// createTable makes an empty table with our comment, which google/nftables
// cannot give it. It is not filled in the same transaction for that reason; an
// empty table does nothing.
func (c *nfnl) createTable(family byte, t plan.Table) error {
	out := c.message(c.begin(), unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, family, func(b []byte) []byte {
		b = attrString(b, unix.NFTA_TABLE_NAME, t.Name)
		return attr(b, nftaTableUserdata, tableUserdata(t))
	})
	crash.Point("nft commit")
	_, err := c.commit(out)
	return err
}

func (c *nfnl) deleteTable(t plan.Table) error {
	family, err := nftFamily(t.Family)
	if err != nil {
		return err
	}
	ours, err := c.isOurs(family, t)
	if err == nil && ours {
		out := c.message(c.begin(), unix.NFT_MSG_DELTABLE, 0, family, func(b []byte) []byte {
			return attrString(b, unix.NFTA_TABLE_NAME, t.Name)
		})
		crash.Point("nft commit")
		_, err = c.commit(out)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// replaceTable gives an existing table of ours its sets, chains and rules.
func replaceTable(family byte, t plan.Table) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	table := &nftables.Table{Name: t.Name, Family: nftables.TableFamily(family)}
	// Emptied first in any case: whoever else filled the table since we looked
	// must not be left with every rule twice.
	conn.FlushTable(table)
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return err
	}
	for _, ch := range chains {
		if ch.Table.Name == t.Name {
			conn.DelChain(ch)
		}
	}
	if err := replaceSets(conn, table, t.Sets); err != nil {
		return err
	}
	for _, ch := range t.Chains {
		lib, err := nftChain(table, ch)
		if err != nil {
			return err
		}
		conn.AddChain(lib)
	}
	sum, n := tableSum(t), 0
	for _, ch := range t.Chains {
		for _, text := range ch.Rules {
			exprs, err := compileRule(t, text)
			if err != nil {
				return err
			}
			conn.AddRule(&nftables.Rule{
				Table: table, Chain: &nftables.Chain{Name: ch.Name}, Exprs: exprs, UserData: ruleMark(sum, n),
			})
			n++
		}
	}
	crash.Point("nft commit")
	return conn.Flush()
}

func replaceSets(conn *nftables.Conn, table *nftables.Table, want []plan.Set) error {
	have, err := conn.GetSets(table)
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, s := range have {
		i := slices.IndexFunc(want, func(w plan.Set) bool { return w.Name == s.Name })
		if i >= 0 && want[i].Type == s.KeyType.Name && want[i].Data == s.DataType.Name {
			kept[s.Name] = true
		} else if !s.Anonymous {
			conn.DelSet(s)
		}
	}
	for _, w := range want {
		if kept[w.Name] {
			continue
		}
		s, err := nftSet(table, w)
		if err != nil {
			return fmt.Errorf("set %s: %w", w.Name, err)
		}
		if err := conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", w.Name, err)
		}
	}
	return nil
}

func nftSet(table *nftables.Table, s plan.Set) (*nftables.Set, error) {
	lib := &nftables.Set{Table: table, Name: s.Name, IsMap: s.Data != "", Comment: s.Comment}
	key, err := typesNamed(s.Type)
	if err != nil {
		return nil, err
	}
	lib.Concatenation = len(key) > 1
	// Only for nft, which shows the elements.
	lib.KeyByteOrder = binaryutil.BigEndian
	if s.Type == "ifname" {
		lib.KeyByteOrder = binaryutil.NativeEndian
	}
	if lib.KeyType, err = key.lib(); err != nil || s.Data == "" {
		return lib, err
	}
	data, err := typesNamed(s.Data)
	if err != nil {
		return nil, err
	}
	lib.DataType, err = data.lib()
	return lib, err
}

func nftChain(table *nftables.Table, c plan.Chain) (*nftables.Chain, error) {
	lib := &nftables.Chain{Name: c.Name, Table: table}
	switch c.Hook {
	case "":
		return lib, nil
	case "prerouting":
		lib.Hooknum = nftables.ChainHookPrerouting
	case "input":
		lib.Hooknum = nftables.ChainHookInput
	case "forward":
		lib.Hooknum = nftables.ChainHookForward
	case "output":
		lib.Hooknum = nftables.ChainHookOutput
	case "postrouting":
		lib.Hooknum = nftables.ChainHookPostrouting
	default:
		return nil, fmt.Errorf("chain %s: unknown hook %q", c.Name, c.Hook)
	}
	accept := nftables.ChainPolicyAccept
	lib.Policy = &accept
	lib.Type = nftables.ChainType(c.Type)
	lib.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	return lib, nil
}

// explainNft names the part of nf_tables that the kernel lacks, if that is
// why. A transaction does not say which of its messages failed in a way that
// could be told apart, so each part is tried by itself, on a table that is
// deleted in the transaction that makes it.
func explainNft(err error) error {
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return err
	}
	for _, part := range []struct {
		what, config string
		chain        string
		rule         string
	}{
		{"nf_tables in family inet", "NF_TABLES_INET", "", ""},
		{"nf_tables NAT chains", "NFT_NAT", "nat", ""},
		{"nf_tables masquerading", "NFT_MASQ", "nat", "masquerade"},
		{"nf_tables connection tracking", "NFT_CT", "filter", "ct state established accept"},
		{"nf_tables address types", "NFT_FIB_INET", "filter", "fib daddr type local accept"},
		{"nf_tables matching of device kinds", "NF_TABLES of Linux 5.1", "filter", `meta oifkind "bridge" accept`},
	} {
		if probe := tryNft(part.chain, part.rule); probe != nil {
			return fmt.Errorf("kernel lacks %s (CONFIG_%s): %w", part.what, part.config, errors.Join(err, probe))
		}
	}
	return err
}

func tryNft(chainType, rule string) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil
	}
	defer conn.CloseLasting()
	t := plan.Table{Family: "inet", Name: "sandnet-probe"}
	table := conn.AddTable(&nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet})
	if chainType != "" {
		chain, err := nftChain(table, plan.Chain{Name: "probe", Type: chainType, Hook: "postrouting"})
		if err != nil {
			return nil
		}
		conn.AddChain(chain)
		var exprs []expr.Any
		if exprs, err = compileRule(t, rule); err != nil {
			return nil
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	conn.DelTable(table)
	return conn.Flush()
}
