// Package plan is the vocabulary in which sandnet says what it wants: a Plan
// is a list of kernel objects (namespaces, links, addresses, rules, files)
// with an owner. It is plain data. The package compares plans, prints them as
// the iproute2, nft and iptables commands that would have the same effect,
// and reads and writes them as JSON.
//
// It does not know how objects come about (package kernel), when they do
// (package reconcile), or why (packages modes and firewall).
package plan

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"reflect"
)

// Kind names an object type in JSON.
type Kind string

// Object is one thing in the kernel or the file system. Implementations are
// plain structs, used by value.
type Object interface {
	// Kind is the type's name in JSON.
	Kind() Kind
	// Key identifies the object on one host: of two objects with equal keys
	// only one can exist at a time.
	Key() string
	// Commands are the shell commands that would have the same effect.
	Commands() []string
}

// Plan is everything one owner wants to exist, in the order in which it is to
// be made. Objects may refer only to objects before them or to other owners'.
type Plan struct {
	// Owner is KIND/NAME, for example "sandbox/web"; see package record.
	Owner string
	// Meta is the owner's own description of itself, opaque to the engine. It
	// is stored with the plan so that one file says everything of one owner.
	Meta    json.RawMessage
	Objects []Object
}

// Stale returns what old has and want does not, by key, in old's order.
func Stale(old, want []Object) []Object {
	keep := make(map[string]bool, len(want))
	for _, o := range want {
		keep[o.Key()] = true
	}
	var stale []Object
	for _, o := range old {
		if !keep[o.Key()] {
			stale = append(stale, o)
		}
	}
	return stale
}

// Union returns want followed by what only old has: everything that may exist
// while old is being turned into want.
func Union(old, want []Object) []Object {
	if len(old) == 0 {
		return want
	}
	out := make([]Object, 0, len(want)+len(old))
	return append(append(out, want...), Stale(old, want)...)
}

// Changed returns what want has and old does not have just so, in want's order.
func Changed(old, want []Object) []Object {
	have := make(map[string]Object, len(old))
	for _, o := range old {
		have[o.Key()] = o
	}
	var changed []Object
	for _, o := range want {
		if was, ok := have[o.Key()]; !ok || !Equal(was, o) {
			changed = append(changed, o)
		}
	}
	return changed
}

// Equal reports whether a and b are the same object with the same properties.
func Equal(a, b Object) bool { return reflect.DeepEqual(a, b) }

// WriteText prints the plan as commands, one a line, each group under a
// comment with the owner.
func (p Plan) WriteText(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "# %s\n", p.Owner); err != nil {
		return err
	}
	for _, o := range p.Objects {
		for _, c := range o.Commands() {
			if _, err := fmt.Fprintln(w, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// Sum identifies the plan's content: equal plans have equal sums. It is what a
// record starts with, so that comparing with one needs no decoding.
func (p Plan) Sum() string {
	body, err := p.appendBody(nil)
	if err != nil {
		return "" // it has no record either
	}
	return sum(body)
}

func sum(body []byte) string {
	h := fnv.New64a()
	h.Write(body)
	return fmt.Sprintf("%016x", h.Sum64())
}

type planJSON struct {
	Owner   string            `json:"owner"`
	Meta    json.RawMessage   `json:"meta,omitempty"`
	Objects []json.RawMessage `json:"objects"`
}

// MarshalJSON writes the plan with each object's kind beside its fields:
// {"sum":…,"owner":…,"meta":…,"objects":[{"kind":"addr",…},…]}.
func (p Plan) MarshalJSON() ([]byte, error) {
	const head = `{"sum":"0123456789abcdef",`
	b, err := p.appendBody([]byte(head))
	if err != nil {
		return nil, err
	}
	copy(b[len(`{"sum":"`):], sum(b[len(head):]))
	return b, nil
}

// appendBody appends all of the plan's JSON but its sum and the opening brace.
func (p Plan) appendBody(b []byte) ([]byte, error) {
	b = appendText(append(b, `"owner":`...), p.Owner)
	if len(p.Meta) > 0 {
		b = append(append(b, `,"meta":`...), p.Meta...)
	}
	b = append(b, `,"objects":[`...)
	for i, o := range p.Objects {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		b = append(append(append(b, `{"kind":"`...), o.Kind()...), '"')
		if b, err = appendFields(b, reflect.ValueOf(o)); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Key(), err)
		}
		b = append(b, '}')
	}
	return append(b, "]}"...), nil
}

// UnmarshalJSON reads what MarshalJSON wrote. An unknown kind is an error: a
// record of a newer sandnet must not be half understood.
func (p *Plan) UnmarshalJSON(data []byte) error {
	var in planJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*p = Plan{Owner: in.Owner, Meta: in.Meta}
	for i, raw := range in.Objects {
		var head struct{ Kind Kind }
		if err := json.Unmarshal(raw, &head); err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
		o, err := decode(head.Kind, raw)
		if err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
		p.Objects = append(p.Objects, o)
	}
	return nil
}

func decode(k Kind, raw []byte) (Object, error) {
	switch k {
	case KindNetns:
		return as[Netns](raw)
	case KindLink:
		return as[Link](raw)
	case KindAddr:
		return as[Addr](raw)
	case KindRoute:
		return as[Route](raw)
	case KindSysctl:
		return as[Sysctl](raw)
	case KindTable:
		return as[Table](raw)
	case KindElement:
		return as[Element](raw)
	case KindTableChain:
		return as[TableChain](raw)
	case KindChains:
		return as[Chains](raw)
	case KindFlow:
		return as[Flow](raw)
	case KindRule:
		return as[Rule](raw)
	case KindHostPort:
		return as[HostPort](raw)
	case KindBindGuard:
		return as[BindGuard](raw)
	case KindFile:
		return as[File](raw)
	case KindSymlink:
		return as[Symlink](raw)
	case KindHostsLine:
		return as[HostsLine](raw)
	case KindHostsFile:
		return as[HostsFile](raw)
	case KindQdisc:
		return as[Qdisc](raw)
	case KindRedirect:
		return as[Redirect](raw)
	}
	return nil, &UnknownKindError{k}
}

// UnknownKindError says that a plan was written by another version of sandnet.
type UnknownKindError struct{ What Kind }

func (e *UnknownKindError) Error() string {
	return fmt.Sprintf("unknown object kind %q: was it written by another version of sandnet?", e.What)
}

func as[T Object](raw []byte) (Object, error) {
	var o T
	err := json.Unmarshal(raw, &o)
	return o, err
}
