package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// How sandnet recognises its iptables chains: by the prefix of their names and
// by the comment in the first rule of each, which has the mark of their owner.
// What is new is made, and what is recorded is deleted, by one
// iptables-restore, which fails if it is wrong about what is there; then, and
// only then, iptables-save is asked, and the difference made.

// byProgram are objects that one program sees to, in their order.
func byProgram(objs []plan.Chains) [][]plan.Chains {
	var groups [][]plan.Chains
	for _, o := range objs {
		i := slices.IndexFunc(groups, func(g []plan.Chains) bool { return g[0].Program() == o.Program() })
		if i < 0 {
			groups = append(groups, []plan.Chains{o})
		} else {
			groups[i] = append(groups[i], o)
		}
	}
	return groups
}

// ensureChains makes chains exist.
func ensureChains(objs []plan.Chains) (changed int, err error) {
	for _, group := range byProgram(objs) {
		n, err := ensureGroup(group)
		changed += n
		if err != nil {
			return changed, fmt.Errorf("%s: %w", group[0].Key(), err)
		}
	}
	return changed, nil
}

func ensureGroup(group []plan.Chains) (changed int, err error) {
	program := group[0].Program()
	if slices.ContainsFunc(group, isShared) {
		if _, err := tool(program, "restore"); group[0].Family == "ip6" && (errors.Is(err, exec.ErrNotFound) || noIPv6()) {
			return 0, nil // a network with IPv6 will say so
		}
	} else {
		var lines []string
		for _, c := range group {
			lines = append(lines, c.Restore()...)
		}
		if err = restore(program, byTable(lines)); err == nil || !errors.As(err, new(*exec.ExitError)) {
			return len(group), err
		}
	}
	have, saveErr := save(program)
	if saveErr != nil {
		return 0, errors.Join(err, saveErr)
	}
	var lines []string
	for _, c := range group {
		diff, err := have.missing(c)
		if err != nil {
			return 0, err
		}
		if len(diff) > 0 {
			changed++
		}
		lines = append(lines, diff...)
	}
	if len(lines) == 0 {
		return 0, nil
	}
	return changed, restore(program, byTable(lines))
}

// byTable merges restore input into one section per table: each COMMIT of a
// table costs as much as there is in it.
func byTable(lines []string) []string {
	var tables, out []string
	sections := map[string][]string{}
	table := ""
	for _, l := range lines {
		if strings.HasPrefix(l, "*") {
			if table = l; sections[table] == nil {
				tables, sections[table] = append(tables, l), []string{l}
			}
		} else if l != "COMMIT" {
			sections[table] = append(sections[table], l)
		}
	}
	for _, t := range tables {
		out = append(append(out, sections[t]...), "COMMIT")
	}
	return out
}

// isShared reports whether others put rules into chains of c.
func isShared(c plan.Chains) bool { return c.Name == "host" }

func noIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err != nil
}

// deleteChains deletes chains, and what leads to them, last first.
func deleteChains(objs []plan.Chains) error {
	var errs []error
	for _, group := range byProgram(objs) {
		if err := deleteGroup(group); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", group[0].Key(), err))
		}
	}
	return errors.Join(errs...)
}

func deleteGroup(group []plan.Chains) error {
	program := group[0].Program()
	if _, err := tool(program, "restore"); errors.Is(err, exec.ErrNotFound) {
		return nil // who had it deleted our rules with it
	}
	var err error
	if !slices.ContainsFunc(group, isShared) {
		var lines []string
		for _, c := range slices.Backward(group) {
			lines = append(lines, removal(c, nil)...)
		}
		if err = restore(program, lines); err == nil || !errors.As(err, new(*exec.ExitError)) {
			return err
		}
	}
	have, saveErr := save(program)
	if saveErr != nil {
		return errors.Join(err, saveErr)
	}
	var lines []string
	for _, c := range slices.Backward(group) {
		lines = append(lines, removal(c, have)...)
	}
	if len(lines) == 0 {
		return nil
	}
	if err := restore(program, lines); err != nil || group[0].Legacy {
		return err
	}
	return dropEmptyTables(group[0].Family)
}

// removal is the restore input that deletes c; of what have says is there,
// unless it is nil.
func removal(c plan.Chains, have saved) []string {
	var out []string
	for _, t := range slices.Backward(c.Tables) {
		var rules, flush, drop []string
		for _, r := range t.Rules {
			if have == nil || slices.Contains(have[t.Table][r.Chain], r.Rule) {
				rules = append(rules, "-D "+r.Chain+" "+r.Rule)
			}
		}
		for _, ch := range t.Chains {
			if have == nil || have.ours(c, t.Table, ch.Name) {
				flush, drop = append(flush, "-F "+ch.Name), append(drop, "-X "+ch.Name)
			}
		}
		if cmds := slices.Concat(rules, flush, drop); len(cmds) > 0 {
			out = append(append(append(out, "*"+t.Table), cmds...), "COMMIT")
		}
	}
	return out
}

// saved is what iptables-save prints: rules by table and chain.
type saved map[string]map[string][]string

// ours reports whether a chain is there and c's owner's. One that has lost its
// comment is if another one of c has it; an empty one is anybody's who has its
// name.
func (s saved) ours(c plan.Chains, table, chain string) bool {
	rules, ok := s[table][chain]
	return ok && (len(rules) == 0 || slices.ContainsFunc(c.Tables, func(t plan.ChainsOf) bool {
		return slices.ContainsFunc(t.Chains, func(ch plan.RuleChain) bool { return slices.Contains(s[t.Table][ch.Name], c.Comment()) })
	}))
}

// missing is the restore input that makes c what it should be. In a chain that
// others add to, c's rules come first.
func (s saved) missing(c plan.Chains) ([]string, error) {
	var out []string
	for _, t := range c.Tables {
		var cmds []string
		anew := map[string]bool{}
		for _, ch := range t.Chains {
			have, exists := s[t.Table][ch.Name]
			if exists && !s.ours(c, t.Table, ch.Name) {
				return nil, fmt.Errorf("iptables chain %s of table %s exists and was not made by sandnet, or by one with another --root: rename or delete it", ch.Name, t.Table)
			}
			want := append([]string{c.Comment()}, ch.Rules...)
			if len(have) >= len(want) && slices.Equal(have[:len(want)], want) && (isShared(c) || len(have) == len(want)) {
				continue
			}
			anew[ch.Name] = true
			cmds = append(cmds, ":"+ch.Name+" - [0:0]") // empties it where it is
		}
		for _, ch := range t.Chains {
			if anew[ch.Name] {
				cmds = append(cmds, "-A "+ch.Name+" "+c.Comment())
				for _, r := range ch.Rules {
					cmds = append(cmds, "-A "+ch.Name+" "+r)
				}
			}
		}
		for _, r := range t.Rules {
			have := s[t.Table][r.Chain]
			at := slices.Index(have, r.Rule)
			// In a built-in chain, nobody else's rule comes before ours.
			if at >= 0 && (!r.BuiltIn() || !slices.ContainsFunc(have[:at], func(o string) bool { return !isOurs(o) })) {
				continue
			}
			if at >= 0 {
				cmds = append(cmds, "-D "+r.Chain+" "+r.Rule)
			}
			cmds = append(cmds, c.Place(r))
		}
		if len(cmds) > 0 {
			out = append(append(append(out, "*"+t.Table), cmds...), "COMMIT")
		}
	}
	return out, nil
}

// isOurs reports whether a rule in a built-in chain is one of some sandnet's.
func isOurs(rule string) bool {
	return strings.Contains(rule, `--comment "made by sandnet `) || hasComment(strings.Fields(rule))
}

// ownedChains lists the chains with our mark, each with the rules that lead
// to it.
func ownedChains(mark uint32) ([]plan.Chains, error) {
	var owned []plan.Chains
	legacy := legacyTables()
	for _, c := range []plan.Chains{{Family: "ip"}, {Family: "ip6"}, {Family: "ip", Legacy: true}, {Family: "ip6", Legacy: true}} {
		if c.Legacy && !legacy {
			continue // asking would make the tables
		}
		if !c.Legacy {
			if _, err := nftPolicyDrops(family4or6(c.Family), chainForward); err != nil {
				continue
			}
		}
		have, err := save(c.Program())
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		if err != nil {
			return owned, err
		}
		c.Mark = mark
		owned = append(owned, have.owned(c)...)
	}
	return owned, nil
}

// owned are the chains that carry c's mark, by name of their object.
func (s saved) owned(c plan.Chains) []plan.Chains {
	found := map[string]*plan.Chains{}
	var names []string
	for _, table := range []string{"filter", "nat", "raw"} {
		parts := map[string]*plan.ChainsOf{}
		for chain, rules := range s[table] {
			if !strings.HasPrefix(chain, plan.ChainPrefix) || !slices.Contains(rules, c.Comment()) {
				continue
			}
			name := chainOwner(chain)
			if parts[name] == nil {
				parts[name] = &plan.ChainsOf{Table: table}
			}
			parts[name].Chains = append(parts[name].Chains, plan.RuleChain{Name: chain})
		}
		for name, part := range parts {
			for chain, rules := range s[table] {
				for _, r := range rules {
					if leadsTo(c, name, chain, r) {
						part.Rules = append(part.Rules, plan.PlacedRule{Chain: chain, Rule: r})
					}
				}
			}
			if found[name] == nil {
				o := c
				o.Name = name
				found[name] = &o
				names = append(names, name)
			}
			found[name].Tables = append(found[name].Tables, *part)
		}
	}
	slices.Sort(names)
	// The host's first: the others' rules are in its chains.
	slices.SortStableFunc(names, func(a, b string) int { return boolInt(b == "host") - boolInt(a == "host") })
	out := make([]plan.Chains, len(names))
	for i, name := range names {
		out[i] = *found[name]
	}
	return out
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// chainOwner is the name of the object that a chain belongs to: each of a
// sandbox's chains, whose names begin with one letter, is one.
func chainOwner(chain string) string {
	both := strings.TrimPrefix(chain, plan.ChainPrefix)
	kind, link, ok := strings.Cut(both, "-")
	switch {
	case !ok:
		return "host"
	case len(kind) == 1:
		return both
	}
	return link
}

// leadsTo reports whether a rule in a chain of another owner is name's.
func leadsTo(c plan.Chains, name, chain, rule string) bool {
	if name == "host" {
		return !strings.HasPrefix(chain, plan.ChainPrefix) && strings.HasPrefix(rule, c.Comment())
	}
	return strings.HasPrefix(chain, plan.ChainPrefix) && chainOwner(chain) == "host" &&
		slices.ContainsFunc(strings.Fields(rule), func(w string) bool {
			return w == name || strings.HasPrefix(w, plan.ChainPrefix) && chainOwner(w) == name
		})
}

// tool finds the program's -restore or -save.
func tool(program, what string) (string, error) {
	plain := strings.TrimSuffix(strings.TrimSuffix(program, "-nft"), "-legacy")
	for _, name := range []string{program + "-" + what, plain + "-" + what} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s-%s: %w", program, what, exec.ErrNotFound)
}

// restore applies lines, one transaction per table.
func restore(program string, lines []string) error {
	path, err := tool(program, "restore")
	if err != nil {
		return err
	}
	for _, l := range lines {
		if strings.ContainsFunc(l, isUnsafe) {
			return fmt.Errorf("%q does not belong into a rule", l)
		}
	}
	crash.Point("iptables-restore")
	cmd := exec.Command(path, "--noflush", "-w")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", path, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

// isUnsafe reports whether a character is none of those that rules consist of.
func isUnsafe(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(` -_.:,/+*"[]`, r))
}

func save(program string) (saved, error) {
	path, err := tool(program, "save")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", path, err, strings.TrimSpace(errOut.String()))
	}
	s, table := saved{}, map[string][]string{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			table = map[string][]string{}
			s[line[1:]] = table
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			table[name] = []string{}
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[3:], " ")
			table[chain] = append(table[chain], rule)
		}
	}
	return s, nil
}
