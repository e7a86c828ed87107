package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// Chains of other programs that may take a rule of ours, and what marks it.
const (
	chainForward = "FORWARD"
	chainDocker  = "DOCKER-USER" // Docker's, for the administrator's rules
	ruleComment  = "sandnet"
)

// variant is one of the kernel's two homes of iptables rules, in use here.
// Both filter every packet; each has a program of its own.
type variant struct {
	// programs are the names of its iptables, best first.
	programs []string
	// drops says that the policy of the IPv4 FORWARD chain is DROP.
	drops bool
	// docker says that there is a DOCKER-USER chain.
	docker bool
}

// ForeignForward is the chain in which a rule of ours must accept forwarded
// packets for them to pass: "" if iptables drops none by policy. Where it does
// not, this takes one netlink request and no process.
func ForeignForward() (chain string, err error) {
	vs, err := variants()
	if err != nil {
		return "", err
	}
	for _, v := range vs {
		if v.drops && v.docker {
			return chainDocker, nil
		}
		if v.drops {
			chain = chainForward
		}
	}
	return chain, nil
}

// variants looks for FORWARD chains. Without the program nothing is known of a
// legacy one, and nothing can be done about it either.
func variants() (found []variant, err error) {
	nft := variant{programs: []string{"iptables-nft", "iptables"}}
	exists := false
	for _, family := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		switch drops, err := nftPolicyDrops(family, chainForward); {
		case err == nil:
			exists = true
			_, err := nftPolicyDrops(family, chainDocker)
			nft.drops, nft.docker = nft.drops || drops, nft.docker || err == nil
		case !errors.Is(err, unix.ENOENT):
			return nil, fmt.Errorf("chain %s: %w", chainForward, err)
		}
	}
	if exists {
		found = append(found, nft)
	}
	// Asking the program would load the legacy tables where there are none.
	if !legacyTables() {
		return found, nil
	}
	legacy := variant{programs: []string{"iptables-legacy", "iptables"}}
	ipt, err := legacy.open("ip")
	if errors.Is(err, exec.ErrNotFound) {
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	rules, err := ipt.List("filter", chainForward)
	if err != nil {
		return nil, fmt.Errorf("iptables chain %s: %w", chainForward, err)
	}
	legacy.drops = slices.Contains(rules, "-P "+chainForward+" DROP")
	if legacy.docker, err = ipt.ChainExists("filter", chainDocker); err != nil {
		return nil, fmt.Errorf("iptables chain %s: %w", chainDocker, err)
	}
	return append(found, legacy), nil
}

// legacyTables reports whether the older home of iptables rules is in use.
func legacyTables() bool {
	names, _ := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return slices.Contains(strings.Fields(string(names)), "filter")
}

// LegacyIptables reports whether iptables rules belong into the older home: it
// is in use, and nf_tables is not.
func LegacyIptables() bool {
	if !legacyTables() {
		return false
	}
	_, err := nftPolicyDrops(unix.NFPROTO_IPV4, chainForward)
	return errors.Is(err, unix.ENOENT)
}

// HasNftables reports whether the kernel has nf_tables.
func HasNftables() bool {
	c, err := dialNfnl()
	if err != nil {
		return false
	}
	defer c.close()
	_, err = c.generation()
	return err == nil
}

func family4or6(name string) byte {
	if name == "ip6" {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// nftPolicyDrops looks at a chain that iptables-nft keeps in table filter;
// ENOENT if there is none.
func nftPolicyDrops(family byte, chain string) (drops bool, err error) {
	c, err := dialNfnl()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return false, unix.ENOENT
	}
	if err != nil {
		return false, err
	}
	defer c.close()
	named := func(b []byte) []byte {
		return attrString(attrString(b, unix.NFTA_CHAIN_TABLE, "filter"), unix.NFTA_CHAIN_NAME, chain)
	}
	err = c.get(unix.NFT_MSG_GETCHAIN, 0, family, named, func(m nfMsg) error {
		for typ, b := range attrs(m.attrs) {
			if typ == unix.NFTA_CHAIN_POLICY {
				drops = [4]byte(b) == [4]byte{} // NF_DROP, in network order
			}
		}
		return nil
	})
	return drops, err
}

// open gives the variant's program.
func (v variant) open(family string) (*iptables.IPTables, error) {
	proto := iptables.ProtocolIPv4
	if family == "ip6" {
		proto = iptables.ProtocolIPv6
	}
	for _, name := range v.programs {
		if family == "ip6" {
			name = strings.Replace(name, "iptables", "ip6tables", 1)
		}
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return ipt, nil
	}
	return nil, fmt.Errorf("%s: %w", v.programs[0], exec.ErrNotFound)
}

// ensureRules inserts rules at the top of their chains, in every variant that
// has the chain.
func ensureRules(rules []plan.Rule) (changed int, err error) {
	err = eachRule(rules, func(ipt *iptables.IPTables, r plan.Rule) error {
		have, err := ipt.Exists(r.Table, r.Chain, r.Spec...)
		if have || err != nil {
			return err
		}
		crash.Point("iptables insert")
		changed++
		return ipt.Insert(r.Table, r.Chain, 1, r.Spec...)
	})
	return changed, err
}

// deleteRules deletes rules; with the chain, or with iptables, they are gone.
func deleteRules(rules []plan.Rule) error {
	return eachRule(rules, func(ipt *iptables.IPTables, r plan.Rule) error {
		have, err := ipt.Exists(r.Table, r.Chain, r.Spec...)
		if !have || err != nil {
			return err
		}
		crash.Point("iptables delete")
		return ipt.Delete(r.Table, r.Chain, r.Spec...)
	})
}

// eachRule calls do for every rule and variant that has the rule's chain. A
// chain that is gone drops nothing: there, no rule is as good as one.
func eachRule(rules []plan.Rule, do func(*iptables.IPTables, plan.Rule) error) error {
	if len(rules) == 0 {
		return nil
	}
	vs, err := variants()
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range vs {
		for _, r := range rules {
			if err := v.withChain(r, do); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", r.Key(), err))
			}
		}
	}
	return errors.Join(errs...)
}

func (v variant) withChain(r plan.Rule, do func(*iptables.IPTables, plan.Rule) error) error {
	ipt, err := v.open(r.Family)
	if r.Family == "ip6" && errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if exists, err := ipt.ChainExists(r.Table, r.Chain); err != nil || !exists {
		return err
	}
	return do(ipt, r)
}

// ownedRules lists the rules with our comment in the chains that may have one.
func ownedRules() ([]plan.Rule, error) {
	vs, err := variants()
	if err != nil {
		return nil, err
	}
	var owned []plan.Rule
	for _, v := range vs {
		for _, family := range []string{"ip", "ip6"} {
			found, err := v.ownedRules(family)
			owned = append(owned, found...)
			if err != nil {
				return owned, err
			}
		}
	}
	return owned, nil
}

func (v variant) ownedRules(family string) ([]plan.Rule, error) {
	ipt, err := v.open(family)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil // who had it inserted our rules with it
	}
	if err != nil {
		return nil, err
	}
	var owned []plan.Rule
	for _, chain := range []string{chainForward, chainDocker} {
		if exists, err := ipt.ChainExists("filter", chain); err != nil || !exists {
			continue
		}
		lines, err := ipt.List("filter", chain)
		if err != nil {
			return owned, fmt.Errorf("%s chain %s: %w", family, chain, err)
		}
		for _, line := range lines {
			spec, isRule := strings.CutPrefix(line, "-A "+chain+" ")
			if words := strings.Fields(spec); isRule && hasComment(words) {
				owned = append(owned, plan.Rule{Family: family, Table: "filter", Chain: chain, Spec: words})
			}
		}
	}
	return owned, nil
}

func hasComment(spec []string) bool {
	i := slices.Index(spec, "--comment")
	return i >= 0 && i+1 < len(spec) && strings.Trim(spec[i+1], `"`) == ruleComment
}
