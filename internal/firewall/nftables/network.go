package nftables

import (
	"strconv"

	"github.com/sandnet/sandnet/internal/firewall"
	"github.com/sandnet/sandnet/internal/plan"
	"github.com/sandnet/sandnet/internal/spec"
)

// Network plans the elements of one bridge network.
func (Firewall) Network(_ uint32, n spec.Network) []plan.Object {
	br := strconv.Quote(n.Bridge)
	pair := setTalk
	if n.NoICC {
		pair = setApart
	}
	objs := []plan.Object{element(setBridges, br, ""), element(pair, br+" . "+br, "")}
	if !firewall.Closed(n) {
		objs = append(objs, element(setOutbound, br, ""))
		if !n.NoMasquerade && !firewall.Routed(n) {
			objs = append(objs, element(setMasquerade, br, ""))
		}
	}
	return objs
}

func element(s plan.Set, key, data string) plan.Element {
	s.Comment = ""
	return plan.Element{Family: tableFamily, Table: TableName, Set: s, Entry: key, Data: data}
}
