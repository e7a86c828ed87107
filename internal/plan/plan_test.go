package plan

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// every has one object of each kind, with every field set.
func every() []Object {
	addr, pfx := netip.MustParseAddr("10.1.0.2"), netip.MustParsePrefix("10.1.0.2/24")
	return []Object{
		Netns{Path: "/run/netns/web", Mark: 83},
		Netns{Path: "/run/netns/side", Join: "/proc/42/ns/net"},
		Link{Name: "br0", Type: Bridge, MTU: 1500, MAC: "02:42:0a:01:00:01", Mark: 83},
		Link{Name: "sv1", Type: Veth, MTU: 1400, Master: "br0", Mark: 83, Peer: "eth0", PeerNetns: "/run/netns/web", PeerMAC: "02:42:0a:01:00:02", Isolated: true, Hairpin: true},
		Link{Name: "si1", Type: IFB, MTU: 1400, Mark: 83},
		Qdisc{Link: "sv1", Type: TBF, Rate: 10_000_000, Burst: 12500, Limit: 75000},
		Qdisc{Link: "sv1", Type: Ingress},
		Redirect{Link: "sv1", To: "si1"},
		Addr{Netns: "/run/netns/web", Link: "eth0", Addr: pfx},
		Route{Netns: "/run/netns/web", Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: addr, Link: "eth0"},
		Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Link: "br0"},
		Sysctl{Netns: "/run/netns/web", Name: "net/core/somaxconn", Value: "10", Restore: "9"},
		Table{Family: "inet", Name: "t", Sets: []Set{{Name: "m", Type: "inet_proto . inet_service", Data: "ipv4_addr", Comment: "c"}},
			Chains: []Chain{{Name: "c", Type: "nat", Hook: "output", Priority: -100, Rules: []string{"accept"}}}},
		Element{Family: "inet", Table: "t", Set: Set{Name: "m", Type: "inet_proto . inet_service", Data: "ipv4_addr"}, Entry: "tcp . 80", Data: "10.1.0.2"},
		TableChain{Family: "inet", Table: "t", Name: "egress/x", Rules: []string{"drop"}},
		Chains{Family: "ip6", Name: "host", Mark: 83, Tables: []ChainsOf{{Table: "filter",
			Chains: []RuleChain{{Name: "SANDNET-X", Rules: []string{"-j DROP"}}}, Rules: []PlacedRule{{"FORWARD", "-j SANDNET-X"}, {"SANDNET-Y", "-j SANDNET-X"}}}}},
		Flow{IP: netip.IPv4Unspecified(), Port: 53, To: netip.MustParseAddrPort("10.1.0.2:53")},
		Rule{Family: "ip6", Table: "filter", Chain: "FORWARD", Spec: []string{"-j", "ACCEPT"}},
		HostPort{Proto: "tcp", IP: netip.IPv4Unspecified(), Port: 8080},
		HostPort{Proto: "udp", IP: netip.IPv6Unspecified(), Port: 53, To: netip.AddrPortFrom(addr, 5353), Owner: 7},
		BindGuard{},
		File{Path: "/etc/netns/web/hosts", Content: "a 'quoted'\n\tline\n"},
		Symlink{Path: "/run/x", Target: "web"},
		HostsLine{Dir: "/run/hosts/n", Addr: addr, Names: []string{"web", "www"}},
		HostsFile{Path: "/run/etc/web/hosts", Netns: "/run/netns/web", Header: LocalHosts, Dirs: []string{"/run/hosts/n", "/run/hosts/m"}},
	}
}

func TestJSONKeepsEveryObject(t *testing.T) {
	want := Plan{Owner: "sandbox/web", Meta: json.RawMessage(`{"a":1}`), Objects: every()}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Plan
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if want.Sum() != got.Sum() {
		t.Error("the sum changed in a round trip")
	}
	for i, o := range want.Objects {
		if !Equal(o, got.Objects[i]) {
			t.Errorf("%s is not equal after a round trip", o.Key())
		}
	}
}

// TestEncodingIsThatOfTheLibrary holds what is written by hand against
// encoding/json, with every field set and with none.
func TestEncodingIsThatOfTheLibrary(t *testing.T) {
	objs := every()
	for _, o := range every() {
		objs = append(objs, reflect.Zero(reflect.TypeOf(o)).Interface().(Object))
	}
	type more struct {
		Map   map[string][]int `json:"map"`
		Empty map[string]int   `json:"empty,omitempty"`
		Raw   json.RawMessage  `json:"raw"`
		Time  time.Time        `json:"time"`
		Zero  time.Time        `json:"zero,omitzero"`
		Neg   int8             `json:"neg"`
		Yes   bool             `json:"yes,omitempty"`
	}
	values := []any{more{}, more{Map: map[string][]int{"b": {1}, "a<": nil}, Raw: json.RawMessage(`{"x":[1]}`),
		Time: time.Unix(1, 2).UTC(), Zero: time.Unix(3, 0), Neg: -5, Yes: true}}
	for _, o := range objs {
		values = append(values, o)
	}
	for _, v := range values {
		got, err := AppendJSON(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Errorf("%T: %s", v, d)
		}
	}
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"", "plain", "a\nb\t", `"\`, "<&>", "é\u2028", "\x00\x7f\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, _ := json.Marshal(s)
		if got := appendText(nil, s); string(got) != string(want) {
			t.Errorf("%q is %s, want %s", s, got, want)
		}
	})
}

func TestUnknownKindIsAnError(t *testing.T) {
	var p Plan
	err := json.Unmarshal([]byte(`{"owner":"x","objects":[{"kind":"warp"}]}`), &p)
	if err == nil || !strings.Contains(err.Error(), "warp") {
		t.Errorf("got %v, want an error that names the kind", err)
	}
}

func TestKeysAreDistinct(t *testing.T) {
	seen := map[string]Object{}
	for _, o := range every() {
		if other, ok := seen[o.Key()]; ok {
			t.Errorf("%#v and %#v share the key %q", o, other, o.Key())
		}
		seen[o.Key()] = o
		if len(o.Commands()) == 0 {
			t.Errorf("%s has no commands", o.Key())
		}
	}
}

func TestStaleAndUnion(t *testing.T) {
	a, b := Object(Symlink{Path: "a"}), Object(Symlink{Path: "b"})
	changed := Object(Symlink{Path: "b", Target: "new"})
	old, want := []Object{a, b}, []Object{changed}
	if d := cmp.Diff([]Object{a}, Stale(old, want)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Object{changed, a}, Union(old, want)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Object{changed}, Changed(old, append(want, a))); d != "" {
		t.Error(d)
	}
}

func FuzzUnmarshal(f *testing.F) {
	data, err := json.Marshal(Plan{Owner: "x", Objects: every()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Plan
		if json.Unmarshal(data, &p) != nil {
			return
		}
		if _, err := json.Marshal(p); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

// FuzzQuote holds the promise that nothing in a plan's text leaves its word.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "plain", "a b", "it's", "a\nb", "$(x)", `\'`, "\t'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(quote(s), "\n") {
			t.Errorf("quote(%q) = %q breaks the line", s, quote(s))
		}
	})
}
