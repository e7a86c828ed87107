package spec_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sandnet/sandnet/internal/spec"
)

func TestReadJSON(t *testing.T) {
	for _, c := range []struct{ in, why string }{
		{`{"a":1,"b":{"a":1,"c":[{"a":1},{"a":2}]}}`, ""},
		{` {"a":"}"} `, ""},
		{``, "it is empty"},
		{`{"a":1`, "it ends too early"},
		{`[1]`, "it is not an object"},
		{`{"a":1}{"a":1}`, "something follows the object"},
		{`{"a":1,"a":2}`, `the key "a" is there twice`},
		{`{"x":[{"b":1,"b":1}]}`, `the key "b" is there twice`},
		{`{"a":"text"}`, "a should not be a string"},
		{`{"a":1,}`, "it is not JSON"},
		{`{"a":"` + strings.Repeat("x", spec.MaxJSON) + `"}`, "it is longer than 1048576 bytes"},
	} {
		var v struct{ A any }
		var n struct{ A int }
		var to any = &n
		if c.why == "" {
			to = &v
		}
		_, err := spec.ReadJSON(strings.NewReader(c.in), "text", to)
		switch {
		case c.why == "" && err != nil:
			t.Errorf("%.40s: %v", c.in, err)
		case c.why != "" && (err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(c.why))):
			t.Errorf("%.40s: got %v, want %q", c.in, err, c.why)
		}
	}
}

func TestAnnotationsRoundTrip(t *testing.T) {
	o := spec.SandboxOptions{Net: []string{"app", "db"}, Publish: []string{"8080:80", "53/udp"}, IP: "10.0.0.2", MAC: "02:42:00:00:00:01",
		Name: "web", NetworkAlias: []string{"www"}, Labels: []string{"a=b", "c=d"}}
	back, asked, unknown := spec.Annotations(o.ToAnnotations())
	if d := cmp.Diff(o, back); d != "" || !asked || len(unknown) > 0 {
		t.Errorf("asked %v, unknown %v:\n%s", asked, unknown, d)
	}
	if _, asked, _ := spec.Annotations(map[string]string{"org.example": "1"}); asked {
		t.Error("somebody else's annotation asks for a network")
	}
	if _, _, unknown := spec.Annotations(map[string]string{"io.sandnet.x": "1", "io.sandnet.ip": ""}); !slices.Equal(unknown, []string{"io.sandnet.x"}) {
		t.Errorf("unknown are %v", unknown)
	}
}

// FuzzReadJSON holds that what is accepted is one object without doubt: read
// again from its own encoding it is the same.
func FuzzReadJSON(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,{"b":null}],"c":"\u0000"}`, `{"a":1,"a":2}`, `{"a":{"a":{"a":[]}}}`, `[`, `{"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var v map[string]any
		if _, err := spec.ReadJSON(strings.NewReader(s), "text", &v); err != nil {
			return
		}
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var again map[string]any
		if _, err := spec.ReadJSON(strings.NewReader(string(data)), "text", &again); err != nil {
			t.Errorf("%q, which was accepted, is not: %v", data, err)
		}
		if d := cmp.Diff(v, again); d != "" {
			t.Error(d)
		}
	})
}

// FuzzAnnotations holds that whatever annotations say ends in a valid sandbox
// or an error.
func FuzzAnnotations(f *testing.F) {
	f.Add("bridge", "8080:80,443", "10.0.0.2", "02:42:00:00:00:01", "web", "a,b", "k=v")
	f.Add("container:x", "", "", "", "../x", ",", "=")
	f.Fuzz(func(t *testing.T, network, publish, ip, mac, name, aliases, labels string) {
		all := map[string]string{spec.AnnotationNetwork: network, spec.AnnotationPublish: publish, spec.AnnotationIP: ip,
			spec.AnnotationMAC: mac, spec.AnnotationName: name, spec.AnnotationAliases: aliases, spec.AnnotationLabels: labels}
		maps.DeleteFunc(all, func(_, v string) bool { return v == "" })
		o, asked, unknown := spec.Annotations(all)
		if asked != (len(all) > 0) || len(unknown) > 0 {
			t.Errorf("asked %v, unknown %v of %v", asked, unknown, all)
		}
		s, err := o.Parse()
		if err != nil {
			return
		}
		if err := s.Validate(); err != nil {
			t.Errorf("%v became an invalid sandbox: %v", all, err)
		}
	})
}
