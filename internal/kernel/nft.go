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
func (v *verified) ensureNft(objs []plan.Object) (changed int, err error) {
	c, err := v.dial()
	if err != nil {
		return 0, err
	}
	defer c.close()
	for _, t := range only[plan.Table](objs) {
		made, err := c.ensureTable(t)
		if t.Family == "bridge" && isUnsupported(err) && !hasBridgeFamily() {
			continue // sandboxes are then not kept from using each other's addresses
		}
		if err != nil {
			return changed, fmt.Errorf("%s: %w", t.Key(), err)
		}
		if made {
			changed++
		}
	}
	n, err := c.ensureMembers(only[plan.TableChain](objs), only[plan.Element](objs))
	return changed + n, err
}

// deleteNft removes tables and elements. An element that has got other data
// is somebody else's by now and stays; so does a table that is not ours.
func (v *verified) deleteNft(objs []plan.Object) error {
	c, err := v.dial()
	if err != nil {
		return err
	}
	defer c.close()
	tables, elements, chains := only[plan.Table](objs), only[plan.Element](objs), only[plan.TableChain](objs)
	// What goes with its table needs no deletion of its own.
	goes := func(family, table string) bool {
		return slices.ContainsFunc(tables, func(t plan.Table) bool { return t.Family == family && t.Name == table })
	}
	elements = slices.DeleteFunc(elements, func(e plan.Element) bool { return goes(e.Family, e.Table) })
	chains = slices.DeleteFunc(chains, func(c plan.TableChain) bool { return goes(c.Family, c.Table) })
	errs := []error{c.deleteElements(elements), c.deleteChains(chains)}
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
		chains, err := c.tableChains(t)
		if errors.Is(err, unix.ENOENT) {
			continue // removed since it was listed
		}
		if err != nil {
			return owned, fmt.Errorf("%s: %w", t.Key(), err)
		}
		elements, err := c.tableElements(t)
		if errors.Is(err, unix.ENOENT) {
			continue // removed since it was listed
		}
		owned = append(owned, t)
		if err != nil {
			return owned, fmt.Errorf("%s: %w", t.Key(), err)
		}
		owned = slices.Concat(owned, chains, elements)
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
	case "bridge":
		return unix.NFPROTO_BRIDGE, nil
	}
	return 0, fmt.Errorf("unknown nft family %q", name)
}

func familyName(family byte) string {
	switch family {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_BRIDGE:
		return "bridge"
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

// intact reports whether the kernel has exactly t's rules, and whole chains of
// other owners.
func (c *nfnl) intact(family byte, t plan.Table) (bool, error) {
	want, have, others, err := c.tableRules(family, t)
	// The kernel lists chains in the order of their making.
	if err != nil || !slices.Equal(want, have) || !slices.ContainsFunc(t.Sets, func(s plan.Set) bool { return s.Data == "verdict" }) {
		return err == nil && slices.Equal(want, have), err
	}
	names, err := c.chainNames(family, t.Name)
	for _, name := range names {
		if isTableChain(name) && !wholeChain(others[name]) {
			return false, err
		}
	}
	return true, err
}

// tableRules are the rules that t asks for and those that the kernel has, each
// as its chain and its mark, and the marks in each chain of another owner.
func (c *nfnl) tableRules(family byte, t plan.Table) (want, have []string, others map[string][]string, err error) {
	sum := tableSum(t)
	for _, ch := range t.Chains {
		for range ch.Rules {
			want = append(want, ch.Name+string(ruleMark(sum, len(want))))
		}
	}
	rules, err := c.rules(family, t.Name, "")
	others = map[string][]string{}
	for _, r := range rules {
		if isTableChain(r.chain) {
			others[r.chain] = append(others[r.chain], r.mark)
			continue
		}
		have = append(have, r.chain+r.mark)
	}
	return want, have, others, err
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
	// Verdict maps hold the chains of other owners: both are made anew by them.
	kept, err := dropSets(conn, table, t.Sets)
	if err != nil {
		return err
	}
	for _, ch := range chains {
		if ch.Table.Name == t.Name {
			conn.DelChain(ch)
		}
	}
	for _, s := range t.Sets {
		if kept[s.Name] {
			continue
		}
		lib, err := nftSet(table, s)
		if err == nil {
			err = conn.AddSet(lib, nil)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
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

// dropSets deletes the sets that are not as wanted, and returns the others.
func dropSets(conn *nftables.Conn, table *nftables.Table, want []plan.Set) (kept map[string]bool, err error) {
	have, err := conn.GetSets(table)
	kept = map[string]bool{}
	for _, s := range have {
		i := slices.IndexFunc(want, func(w plan.Set) bool { return w.Name == s.Name })
		if i >= 0 && want[i].Data != "verdict" && want[i].Type == s.KeyType.Name && want[i].Data == s.DataType.Name {
			kept[s.Name] = true
		} else if !s.Anonymous {
			conn.DelSet(s)
		}
	}
	return kept, err
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
