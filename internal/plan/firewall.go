package plan

import (
	"fmt"
	"net/netip"
	"strings"
)

// Table is an nftables table with its sets, chains and rules: the part of the
// rule set that does not change with sandboxes. It is made, replaced and
// deleted as a whole, each in one transaction. Elements come and go on their
// own, as objects of their owners.
type Table struct {
	Family string `json:"family"`
	Name   string `json:"name"`
	// Mark is in the table's comment: it says whose the table is, as a Link's does.
	Mark   uint32  `json:"mark"`
	Sets   []Set   `json:"sets"`
	Chains []Chain `json:"chains"`
}

// Set is a named set or, with a Data type, a map. Types are nft's, joined by
// " . " for concatenations: "inet_proto . inet_service".
type Set struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Data string `json:"data,omitempty"`
	// Comment is for the reader of a rule set.
	Comment string `json:"comment,omitempty"`
}

// Chain is a chain; without a Hook it is a regular one, jumped to.
type Chain struct {
	Name string `json:"name"`
	// Type is filter, nat or route; Hook prerouting, input, forward, output or
	// postrouting; Priority the number that nft shows.
	Type     string `json:"type,omitempty"`
	Hook     string `json:"hook,omitempty"`
	Priority int    `json:"priority,omitempty"`
	// Rules are in nft's syntax; package kernel says which subset it compiles.
	Rules []string `json:"rules"`
}

func (Table) Kind() Kind    { return KindTable }
func (t Table) Key() string { return "table " + t.Family + " " + t.Name }

// Comment is how the table is known again.
func (t Table) Comment() string { return fmt.Sprintf("made by sandnet %d", t.Mark) }

// Commands is the table as `nft -f` reads it.
func (t Table) Commands() []string {
	out := []string{"nft -f - <<'EOF'", fmt.Sprintf("table %s %s {", t.Family, t.Name), fmt.Sprintf("  comment %q", t.Comment())}
	for _, s := range t.Sets {
		word, typ := "set", s.Type
		if s.Data != "" {
			word, typ = "map", s.Type+" : "+s.Data
		}
		line := fmt.Sprintf("  %s %s { type %s;", word, s.Name, typ)
		if s.Comment != "" {
			line += fmt.Sprintf(" comment %q;", s.Comment)
		}
		out = append(out, line+" }")
	}
	for _, c := range t.Chains {
		out = append(out, fmt.Sprintf("  chain %s {", c.Name))
		if c.Hook != "" {
			out = append(out, fmt.Sprintf("    type %s hook %s priority %d; policy accept;", c.Type, c.Hook, c.Priority))
		}
		for _, r := range c.Rules {
			out = append(out, "    "+r)
		}
		out = append(out, "  }")
	}
	return append(out, "}", "EOF")
}

// Element is an element of a set or map of a Table, in nft's syntax.
type Element struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Set    Set    `json:"set"`
	Entry  string `json:"entry"`
	Data   string `json:"data,omitempty"`
}

func (Element) Kind() Kind { return KindElement }
func (e Element) Key() string {
	return fmt.Sprintf("element %s %s %s %s", e.Family, e.Table, e.Set.Name, e.Entry)
}
func (e Element) Commands() []string {
	data := ""
	if e.Data != "" {
		data = " : " + e.Data
	}
	return []string{fmt.Sprintf("nft add element %s %s %s '{ %s%s }'", e.Family, e.Table, e.Set.Name, e.Entry, data)}
}

// TableChain is a chain of a Table with an owner of its own, who has it jumped
// to from a verdict map. Its name holds a slash, which no name of the
// Table's own chains does.
type TableChain struct {
	Family string   `json:"family"`
	Table  string   `json:"table"`
	Name   string   `json:"name"`
	Rules  []string `json:"rules"`
}

func (TableChain) Kind() Kind    { return KindTableChain }
func (c TableChain) Key() string { return fmt.Sprintf("chain %s %s %s", c.Family, c.Table, c.Name) }
func (c TableChain) Commands() []string {
	out := []string{fmt.Sprintf("nft add chain %s %s %s", c.Family, c.Table, c.Name)}
	for _, r := range c.Rules {
		out = append(out, fmt.Sprintf("nft add rule %s %s %s %s", c.Family, c.Table, c.Name, quote(r)))
	}
	return out
}

// Chains are the iptables rules of one owner, in one family: chains of its own
// and, in the chains of others, the rules that lead there. They come with one
// iptables-restore and go with another, however many they are.
type Chains struct {
	// Family is "ip" or "ip6".
	Family string `json:"family"`
	// Legacy says that they are in the kernel's older home of iptables rules,
	// and not in nf_tables.
	Legacy bool `json:"legacy,omitempty"`
	// Name tells the owner's from others': "host"; the name of a bridge, with
	// which, after a dash, the names of its chains end; or a letter, a dash and
	// the name of a veth, which after the prefix is the one chain's name. The
	// rules in chains of other owners have such a name or the bridge's in them.
	Name string `json:"name"`
	// Mark is in the first rule of each chain and in each rule of a built-in
	// chain: it says whose they are, as a Link's does.
	Mark   uint32     `json:"mark"`
	Tables []ChainsOf `json:"tables"`
}

// ChainsOf is the part of Chains in one iptables table.
type ChainsOf struct {
	Table  string      `json:"table"`
	Chains []RuleChain `json:"chains,omitempty"`
	// Rules go to the end of other owners' chains; those of a built-in chain
	// to its top.
	Rules []PlacedRule `json:"rules,omitempty"`
}

// RuleChain is an iptables chain with its rules, as iptables-save prints them
// behind "-A CHAIN ".
type RuleChain struct {
	Name  string   `json:"name"`
	Rules []string `json:"rules,omitempty"`
}

// PlacedRule is a rule in a chain of another owner.
type PlacedRule struct {
	Chain string `json:"chain"`
	Rule  string `json:"rule"`
}

// BuiltIn reports whether the rule is in a chain of iptables' own.
func (r PlacedRule) BuiltIn() bool { return !strings.HasPrefix(r.Chain, ChainPrefix) }

// ChainPrefix is what the names of all our iptables chains begin with.
const ChainPrefix = "SANDNET-"

// Comment marks a rule as that of the sandnet with this mark.
func (c Chains) Comment() string { return ChainsComment(c.Mark) }

// ChainsComment is the comment match of the sandnet with this mark.
func ChainsComment(mark uint32) string {
	return fmt.Sprintf(`-m comment --comment "made by sandnet %d"`, mark)
}

func (Chains) Kind() Kind    { return KindChains }
func (c Chains) Key() string { return "chains " + c.Program() + " " + c.Name }

// Program is the iptables program of the family and the home of its rules.
func (c Chains) Program() string {
	name := "iptables"
	if c.Family == "ip6" {
		name = "ip6tables"
	}
	if c.Legacy {
		return name + "-legacy"
	}
	return name + "-nft"
}

// Restore is the input of iptables-restore --noflush that makes the chains
// where there are none of that name: -N fails otherwise.
func (c Chains) Restore() []string {
	var out []string
	for _, t := range c.Tables {
		out = append(out, "*"+t.Table)
		for _, ch := range t.Chains {
			out = append(out, "-N "+ch.Name, "-A "+ch.Name+" "+c.Comment())
			for _, r := range ch.Rules {
				out = append(out, "-A "+ch.Name+" "+r)
			}
		}
		for _, r := range t.Rules {
			out = append(out, c.Place(r))
		}
		out = append(out, "COMMIT")
	}
	return out
}

// Place is the command that puts the rule where it belongs.
func (c Chains) Place(r PlacedRule) string {
	if r.BuiltIn() {
		return "-I " + r.Chain + " 1 " + r.Rule
	}
	return "-A " + r.Chain + " " + r.Rule
}

// Commands is the chains as iptables-restore reads them.
func (c Chains) Commands() []string {
	return append(append([]string{c.Program() + "-restore --noflush -w <<'EOF'"}, c.Restore()...), "EOF")
}

// Flow is what the kernel remembers of a published UDP port: packets to IP and
// Port of the host, translated to To. Made, flows that go elsewhere are
// forgotten; deleted, those that go there: a UDP flow would otherwise stay on
// its old path for as long as packets come.
type Flow struct {
	// IP is the host's address, unspecified for all.
	IP   netip.Addr     `json:"ip"`
	Port uint16         `json:"port"`
	To   netip.AddrPort `json:"to"`
}

func (Flow) Kind() Kind    { return KindFlow }
func (f Flow) Key() string { return fmt.Sprintf("flow %s %s", netip.AddrPortFrom(f.IP, f.Port), f.To) }
func (f Flow) Commands() []string {
	dst := ""
	if !f.IP.IsUnspecified() {
		dst = fmt.Sprintf(" --orig-dst %s", f.IP)
	}
	return []string{fmt.Sprintf("conntrack -D -p udp%s --orig-port-dst %d # but those to %s", dst, f.Port, f.To)}
}

// Rule is a rule in a chain that is not ours (Docker's DOCKER-USER, the
// built-in FORWARD), inserted at its top through iptables.
type Rule struct {
	// Family is "ip" or "ip6".
	Family string   `json:"family"`
	Table  string   `json:"table"`
	Chain  string   `json:"chain"`
	Spec   []string `json:"spec"`
}

func (Rule) Kind() Kind { return KindRule }
func (r Rule) Key() string {
	return fmt.Sprintf("rule %s %s %s %s", r.Family, r.Table, r.Chain, strings.Join(r.Spec, " "))
}
func (r Rule) Commands() []string {
	cmd := "iptables"
	if r.Family == "ip6" {
		cmd = "ip6tables"
	}
	return []string{fmt.Sprintf("%s -w -t %s -I %s %s", cmd, r.Table, r.Chain, strings.Join(r.Spec, " "))}
}
