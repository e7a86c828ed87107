package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sandnet/sandnet/internal/crash"
	"github.com/sandnet/sandnet/internal/plan"
)

// elementGroup is the elements that go to one set, each once.
type elementGroup struct {
	family     byte
	table, set string
	verdicts   bool // the data are
	elements   []element
}

type element struct {
	key, data []byte
	state     elementState
	// have is the data that the kernel has, if it was looked up.
	have []byte
}

// elementState is what the kernel has under an element's key.
type elementState int

const (
	absent elementState = iota
	same
	other // other data
)

func groupElements(objs []plan.Element) ([]*elementGroup, error) {
	type set struct {
		family, table string
		plan.Set
	}
	type known struct {
		*elementGroup
		key, data nftTypes
		seen      map[string]bool
	}
	var groups []*elementGroup
	sets := map[set]known{}
	for _, o := range objs {
		s := set{o.Family, o.Table, o.Set}
		g, ok := sets[s]
		if !ok {
			family, err := nftFamily(o.Family)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", o.Key(), err)
			}
			g = known{elementGroup: &elementGroup{family: family, table: o.Table, set: o.Set.Name}, seen: map[string]bool{}}
			if g.key, err = typesNamed(o.Set.Type); err == nil && o.Set.Data != "" {
				g.data, err = typesNamed(o.Set.Data)
				g.verdicts = o.Set.Data == "verdict"
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", o.Key(), err)
			}
			sets[s] = g
			groups = append(groups, g.elementGroup)
		}
		if g.seen[o.Entry] {
			continue
		}
		g.seen[o.Entry] = true
		var e element
		var err error
		if e.key, err = g.key.encode(o.Entry); err == nil && g.data != nil {
			e.data, err = g.data.encode(o.Data)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.Key(), err)
		}
		g.elements = append(g.elements, e)
	}
	return groups, nil
}

// ensureMembers adds chains and elements, all in one transaction. An element
// that is there with the same data is none for the kernel, which tells us of
// those it made. One with other data fails the transaction: then, and only
// then, they are looked up, and what differs is replaced in a second one.
func (c *nfnl) ensureMembers(chains []plan.TableChain, objs []plan.Element) (int, error) {
	groups, err := groupElements(objs)
	if err != nil || len(groups)+len(chains) == 0 {
		return 0, err
	}
	if chains, err = c.differing(chains); err != nil {
		return 0, err
	}
	// Compiled before anything is sent.
	if _, err := c.chains(nil, chains); err != nil {
		return 0, err
	}
	made, err := c.addMembers(chains, groups)
	if errors.Is(err, unix.EEXIST) {
		if err = c.lookUp(groups); err == nil {
			made, err = c.addMembers(chains, groups)
		}
	} else if less := c.withoutBridge(groups, err); len(less) < len(groups) {
		made, err = c.addMembers(chains, less)
	}
	return made, elementsError(groups, err)
}

// addMembers adds what is absent, and replaces what is known to be other.
func (c *nfnl) addMembers(chains []plan.TableChain, groups []*elementGroup) (int, error) {
	crash.Point("nft commit")
	replaced := count(groups, other)
	made, err := c.verified.transact(c, func(out []byte) []byte {
		out, _ = c.chains(out, chains) // which compile
		out = c.elements(out, groups, unix.NFT_MSG_DELSETELEM, 0, other)
		return c.elements(out, groups, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_ECHO, absent, other)
	}, func(made int) bool { return made+replaced+len(chains) > 0 })
	return made + len(chains), err
}

// deleteElements looks first, since the kernel deletes by key whatever the
// data, and since one absent element fails the whole transaction.
func (c *nfnl) deleteElements(objs []plan.Element) error {
	groups, err := groupElements(objs)
	if err != nil || len(groups) == 0 {
		return err
	}
	for range 3 { // an element may go between the look and the deletion
		if err = c.lookUp(groups); err != nil || count(groups, same) == 0 {
			return err
		}
		crash.Point("nft commit")
		_, err = c.verified.transact(c, func(out []byte) []byte {
			return c.elements(out, groups, unix.NFT_MSG_DELSETELEM, 0, same)
		}, func(int) bool { return true })
		if !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return elementsError(groups, err)
}

func count(groups []*elementGroup, state elementState) (n int) {
	for _, g := range groups {
		for _, e := range g.elements {
			if e.state == state {
				n++
			}
		}
	}
	return n
}

func elementsError(groups []*elementGroup, err error) error {
	if err == nil {
		return nil
	}
	g := groups[0]
	return fmt.Errorf("elements of table %s %s (first set %s): %w", familyName(g.family), g.table, g.set, err)
}

func (c *nfnl) elements(out []byte, groups []*elementGroup, typ, flags uint16, states ...elementState) []byte {
	for _, g := range groups {
		var some []element
		for _, e := range g.elements {
			if slices.Contains(states, e.state) {
				some = append(some, e)
			}
		}
		for chunk := range slices.Chunk(some, maxPerMessage) {
			out = c.elementMessage(out, g, typ, flags, chunk)
		}
	}
	return out
}

func (c *nfnl) elementMessage(out []byte, g *elementGroup, typ, flags uint16, elements []element) []byte {
	return c.message(out, typ, flags, g.family, func(b []byte) []byte {
		b = attrString(b, unix.NFTA_SET_ELEM_LIST_TABLE, g.table)
		b = attrString(b, unix.NFTA_SET_ELEM_LIST_SET, g.set)
		return nest(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(b []byte) []byte {
			for _, e := range elements {
				b = nest(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
					b = nest(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return attr(b, unix.NFTA_DATA_VALUE, e.key) })
					if e.data != nil && typ == unix.NFT_MSG_NEWSETELEM {
						b = nest(b, unix.NFTA_SET_ELEM_DATA, func(b []byte) []byte { return elementData(b, g.verdicts, e.data) })
					}
					return b
				})
			}
			return b
		})
	})
}

func elementData(b []byte, verdict bool, data []byte) []byte {
	if !verdict {
		return attr(b, unix.NFTA_DATA_VALUE, data)
	}
	return nest(b, unix.NFTA_DATA_VERDICT, func(b []byte) []byte {
		b = attr(b, unix.NFTA_VERDICT_CODE, data[:4])
		return attrString(b, unix.NFTA_VERDICT_CHAIN, string(data[4:]))
	})
}

// lookUp fills in the elements' states. It asks for each, all in one system
// call, which costs as much as there are elements of ours; a dump would cost
// as much as there are elements at all.
func (c *nfnl) lookUp(groups []*elementGroup) error {
	for _, g := range groups {
		for some := range slices.Chunk(g.elements, maxPerMessage) {
			if err := c.lookUpSome(g, some); err != nil {
				return elementsError([]*elementGroup{g}, err)
			}
		}
	}
	return nil
}

func (c *nfnl) lookUpSome(g *elementGroup, elements []element) error {
	var out []byte
	first := c.seq + 1
	for i := range elements {
		elements[i].state = absent
		out = c.elementMessage(out, g, unix.NFT_MSG_GETSETELEM, 0, elements[i:i+1])
	}
	return c.exchange(out, first, c.seq, false, func(m nfMsg) error {
		e := &elements[m.seq-first]
		switch {
		case errors.Is(m.err, unix.ENOENT):
			return nil
		case m.err != nil:
			return m.err
		}
		e.state = other
		for _, data := range listed(m.attrs) {
			if bytes.Equal(data, e.data) {
				e.state = same
			}
			e.have = slices.Clone(data)
		}
		return nil
	})
}

// listed yields the keys and data of a message with elements.
func listed(b []byte) func(yield func(key, data []byte) bool) {
	value := func(b []byte) []byte {
		for typ, v := range attrs(b) {
			switch typ {
			case unix.NFTA_DATA_VALUE:
				return v
			case unix.NFTA_DATA_VERDICT:
				return jumpData(v)
			}
		}
		return nil
	}
	return func(yield func(key, data []byte) bool) {
		for typ, list := range attrs(b) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, item := range attrs(list) {
				var key, data []byte
				for typ, v := range attrs(item) {
					switch typ {
					case unix.NFTA_SET_ELEM_KEY:
						key = value(v)
					case unix.NFTA_SET_ELEM_DATA:
						data = value(v)
					}
				}
				if !yield(key, data) {
					return
				}
			}
		}
	}
}

// jumpData is the form in which parseVerdict gives one.
func jumpData(b []byte) []byte {
	var code, chain []byte
	for typ, v := range attrs(b) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			code = v
		case unix.NFTA_VERDICT_CHAIN:
			chain = []byte(cString(v))
		}
	}
	return append(slices.Clone(code), chain...)
}

// tableElements lists the elements of every set of t.
func (c *nfnl) tableElements(t plan.Table) ([]plan.Object, error) {
	family, err := nftFamily(t.Family)
	if err != nil {
		return nil, err
	}
	sets, err := c.sets(family, t.Name)
	if err != nil {
		return nil, err
	}
	var all []plan.Object
	for _, s := range sets {
		found, err := c.setElements(family, t, s)
		if err != nil {
			return all, fmt.Errorf("set %s: %w", s.Name, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

func (c *nfnl) setElements(family byte, t plan.Table, s plan.Set) ([]plan.Object, error) {
	key, err := typesNamed(s.Type)
	if err != nil {
		return nil, err
	}
	var data nftTypes
	if s.Data != "" {
		if data, err = typesNamed(s.Data); err != nil {
			return nil, err
		}
	}
	var found []plan.Object
	names := func(b []byte) []byte {
		b = attrString(b, unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
		return attrString(b, unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	}
	err = retryInterrupted(func() error {
		found = nil
		return c.get(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, family, names, func(m nfMsg) error {
			for k, d := range listed(m.attrs) {
				e := plan.Element{Family: t.Family, Table: t.Name, Set: s}
				var err error
				if e.Entry, err = key.decode(k); err == nil && data != nil {
					e.Data, err = data.decode(d)
				}
				if err != nil {
					return err
				}
				found = append(found, e)
			}
			return nil
		})
	})
	return found, err
}

// retryInterrupted repeats a dump until no change came between its parts.
func retryInterrupted(dump func() error) error {
	for range 10 {
		if err := dump(); !errors.Is(err, errInterrupted) {
			return err
		}
	}
	return dump()
}
