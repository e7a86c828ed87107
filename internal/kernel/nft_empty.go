package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
)

// dropEmptyTables deletes those of iptables' nf_tables tables that say nothing
// any more: no rule, no chain but the built-in ones, no policy but ACCEPT.
// iptables makes them again when it wants them. Should somebody put something
// in meanwhile, the generation in the transaction refuses it.
func dropEmptyTables(family string) error {
	c, err := dialNfnl()
	if err != nil {
		return err
	}
	defer c.close()
	number, err := nftFamily(family)
	if err != nil {
		return err
	}
	for _, table := range []string{"raw", "nat", "filter"} {
		gen, err := c.generation()
		if err != nil {
			return err
		}
		if empty, err := c.isEmpty(number, table); err != nil || !empty {
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("table %s %s: %w", family, table, err)
			}
			continue
		}
		out := c.message(c.beginAt(gen), unix.NFT_MSG_DELTABLE, 0, number, func(b []byte) []byte {
			return attrString(b, unix.NFTA_TABLE_NAME, table)
		})
		crash.Point("nft commit")
		if _, err := c.commit(out); err != nil && !errors.Is(err, unix.ERESTART) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("empty table %s %s: %w", family, table, err)
		}
	}
	return nil
}

// isEmpty reports whether there is such a table and it says nothing.
func (c *nfnl) isEmpty(family byte, table string) (bool, error) {
	named := func(b []byte) []byte { return attrString(b, unix.NFTA_TABLE_NAME, table) }
	if err := c.get(unix.NFT_MSG_GETTABLE, 0, family, named, func(nfMsg) error { return nil }); err != nil {
		return false, err
	}
	rules, err := c.rules(family, table, "")
	if err != nil || len(rules) > 0 {
		return false, err
	}
	empty := true
	err = retryInterrupted(func() error {
		return c.get(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, family, nil, func(m nfMsg) error {
			var of string
			builtIn, drops := false, false
			for typ, b := range attrs(m.attrs) {
				switch typ {
				case unix.NFTA_CHAIN_TABLE:
					of = cString(b)
				case unix.NFTA_CHAIN_HOOK:
					builtIn = true
				case unix.NFTA_CHAIN_POLICY:
					drops = [4]byte(b) == [4]byte{}
				}
			}
			if of == table && (!builtIn || drops) {
				empty = false
			}
			return nil
		})
	})
	return empty, err
}
