package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// nfnl is the check's socket to nf_tables.
func (c *checker) nfnl() (*nfnl, error) {
	if c.nft != nil {
		return c.nft, nil
	}
	var err error
	c.nft, err = dialNfnl()
	return c.nft, err
}

func (c *checker) table(t plan.Table) error {
	conn, err := c.nfnl()
	if err != nil {
		return err
	}
	family, err := nftFamily(t.Family)
	if err != nil {
		return err
	}
	switch ours, err := conn.isOurs(family, t); {
	case errors.Is(err, unix.ENOENT):
		c.missing()
		return nil
	case err != nil:
		return err
	case !ours:
		c.differs("comment", t.Comment(), "another one")
		return nil
	}
	want, have, _, err := conn.tableRules(family, t)
	if err != nil {
		return err
	}
	if !slices.Equal(want, have) {
		left := 0
		for _, r := range want {
			if slices.Contains(have, r) {
				left++
			}
		}
		c.differs("rules", fmt.Sprintf("%d", len(want)), fmt.Sprintf("%d, %d of them as made", len(have), left))
	}
	if dormant, err := conn.dormant(family, t); err != nil || dormant {
		c.differs("flags", "", "dormant")
		return err
	}
	return c.policies(conn, family, t)
}

// dormant reports whether somebody has switched the table off.
func (c *nfnl) dormant(family byte, t plan.Table) (off bool, err error) {
	named := func(b []byte) []byte { return attrString(b, unix.NFTA_TABLE_NAME, t.Name) }
	err = c.get(unix.NFT_MSG_GETTABLE, 0, family, named, func(m nfMsg) error {
		for typ, b := range attrs(m.attrs) {
			if typ == unix.NFTA_TABLE_FLAGS && len(b) == 4 {
				off = binary.BigEndian.Uint32(b)&nftTableDormant != 0
			}
		}
		return nil
	})
	return off, err
}

// nftTableDormant is NFT_TABLE_F_DORMANT of <linux/netfilter/nf_tables.h>.
const nftTableDormant = 1

// policies compares those of the base chains, which are all accept.
func (c *checker) policies(conn *nfnl, family byte, t plan.Table) error {
	drops := map[string]bool{}
	err := retryInterrupted(func() error {
		clear(drops)
		return conn.get(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, family, nil, func(m nfMsg) error {
			var table, chain string
			drop := false
			for typ, b := range attrs(m.attrs) {
				switch typ {
				case unix.NFTA_CHAIN_TABLE:
					table = cString(b)
				case unix.NFTA_CHAIN_NAME:
					chain = cString(b)
				case unix.NFTA_CHAIN_POLICY:
					drop = len(b) == 4 && [4]byte(b) == [4]byte{} // NF_DROP
				}
			}
			if table == t.Name && drop {
				drops[chain] = true
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range t.Chains {
		if drops[ch.Name] {
			c.differs("policy of "+ch.Name, "accept", "drop")
		}
	}
	return nil
}

// allElements asks for all elements in one exchange per set.
func (c *checker) allElements() error {
	conn, err := c.nfnl()
	if err != nil {
		return err
	}
	groups, err := groupElements(only[plan.Element](c.objs))
	if err != nil {
		return err
	}
	if err := conn.lookUp(groups); err != nil {
		return err
	}
	id := func(family byte, table, set string, key []byte) string {
		return fmt.Sprintf("%d %s %s %x", family, table, set, key)
	}
	states := map[string]element{}
	for _, g := range groups {
		for _, e := range g.elements {
			states[id(g.family, g.table, g.set, e.key)] = e
		}
	}
	return each(c, func(o plan.Element) error {
		one, err := groupElements([]plan.Element{o})
		if err != nil {
			return err
		}
		e := states[id(one[0].family, o.Table, o.Set.Name, one[0].elements[0].key)]
		switch e.state {
		case absent:
			c.missing()
		case other:
			data, err := typesNamed(o.Set.Data)
			if err != nil {
				return err
			}
			have, err := data.decode(e.have)
			if err != nil {
				have = "another value"
			}
			c.differs("data", o.Data, have)
		}
		return nil
	})
}

// allRules asks each variant of iptables that has the chain for the rule.
func (c *checker) allRules() error {
	return each(c, func(r plan.Rule) error {
		missing := false
		err := eachRule([]plan.Rule{r}, func(ipt *iptables.IPTables, r plan.Rule) error {
			have, err := ipt.Exists(r.Table, r.Chain, r.Spec...)
			missing = missing || err == nil && !have
			return err
		})
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("it takes %s to look: %w", r.Family+"tables", err)
		}
		if missing {
			c.missing()
		}
		return err
	})
}

// allPorts looks every reservation up in the map, if there is one.
func (c *checker) allPorts() error {
	gone, err := checkHostPorts(only[plan.HostPort](c.objs))
	if err != nil {
		return err
	}
	return each(c, func(p plan.HostPort) error {
		if slices.Contains(gone, p) {
			c.missing()
		}
		return nil
	})
}

// bindGuard: the programs come with the first reservation. Without any, it is
// the reservations that are missing.
func (c *checker) bindGuard() error {
	attached, gone, err := checkBindGuard()
	if err == nil && len(attached) > 0 && len(gone) > 0 {
		c.differs("programs", strings.Join(append(attached, gone...), " "), strings.Join(attached, " "))
	}
	return err
}

// tableChain compares one owner's chain in a table.
func (c *checker) tableChain(t plan.TableChain) error {
	conn, err := c.nfnl()
	if err != nil {
		return err
	}
	differ, err := conn.differing([]plan.TableChain{t})
	if err == nil && len(differ) > 0 {
		c.missing()
	}
	return err
}

// chains compares an owner's iptables chains.
func (c *checker) chains(o plan.Chains) error {
	have, ok := c.saved[o.Program()]
	if !ok {
		var err error
		if have, err = save(o.Program()); errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("it takes %s to look: %w", o.Program(), err)
		} else if err != nil {
			return err
		}
		c.saved[o.Program()] = have
	}
	lines, err := have.missing(o)
	if err == nil && len(lines) > 0 {
		c.differs("rules", "as made", fmt.Sprintf("%d lines of %s-restore away from it", len(lines), o.Program()))
	}
	return err
}
