package kernel

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/plan"
)

// explainNft names the part of nf_tables that the kernel lacks, if that is
// why. A transaction does not say which of its messages failed in a way that
// could be told apart, so each part is tried by itself, on a table that is
// deleted in the transaction that makes it.
func explainNft(err error) error {
	if !isUnsupported(err) {
		return err
	}
	for _, part := range nftParts() {
		if probe := tryNft("inet", part.chain, part.rule); probe != nil {
			return fmt.Errorf("kernel lacks %s (CONFIG_%s): %w", part.what, part.config, errors.Join(err, probe))
		}
	}
	return err
}

// nftPart is a part of nf_tables that sandnet uses, with a rule that needs it.
type nftPart struct{ what, config, chain, rule string }

func nftParts() []nftPart {
	return []nftPart{
		{"nf_tables in family inet", "NF_TABLES_INET", "", ""},
		{"nf_tables NAT chains", "NFT_NAT", "nat", ""},
		{"nf_tables masquerading", "NFT_MASQ", "nat", "masquerade"},
		{"nf_tables connection tracking", "NFT_CT", "filter", "ct state established accept"},
		{"nf_tables address types", "NFT_FIB_INET", "filter", "fib daddr type local accept"},
		{"nf_tables matching of device kinds", "NF_TABLES of Linux 5.1", "filter", `meta oifkind "bridge" accept`},
	}
}

// isUnsupported reports whether err may mean that the kernel lacks something.
func isUnsupported(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}

// hasBridgeFamily reports whether the kernel has nf_tables for bridges
// (CONFIG_NF_TABLES_BRIDGE).
func hasBridgeFamily() bool { return tryNft("bridge", "filter", "accept") == nil }

func tryNft(family, chainType, rule string) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil
	}
	defer conn.CloseLasting()
	t := plan.Table{Family: family, Name: "sandnet-probe"}
	number, err := nftFamily(family)
	if err != nil {
		return nil
	}
	table := conn.AddTable(&nftables.Table{Name: t.Name, Family: nftables.TableFamily(number)})
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
