package plan

import (
	"fmt"
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
