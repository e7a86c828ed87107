package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/sandnet/sandnet/internal/spec"
)

// FuzzPatch holds that patching a bundle's configuration keeps what it does not
// understand, and that twice is once.
func FuzzPatch(f *testing.F) {
	f.Add(`{"a":1,"hooks":{"poststop":[{"path":"/x"}]},"linux":{"namespaces":[{"type":"network"}]},"annotations":{"b":"c"}}`)
	f.Add(`{"hooks":null,"linux":{"x":[1.50]}}`)
	f.Add(`{"annotations":[]}`)
	f.Fuzz(func(t *testing.T, config string) {
		var c object
		if _, err := spec.ReadJSON(bytes.NewReader([]byte(config)), "config.json", &c); err != nil {
			return
		}
		kept := map[string]string{}
		for k, v := range c.values {
			kept[k] = string(v)
		}
		o := spec.SandboxOptions{Publish: []string{"80"}}
		if patch(&c, o, "", nil) != nil {
			return
		}
		once, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range kept {
			if k != "annotations" && k != "hooks" && k != "linux" && string(c.values[k]) != v {
				t.Errorf("%s was %s and is %s", k, v, c.values[k])
			}
		}
		var again object
		if err := json.Unmarshal(once, &again); err != nil {
			t.Fatal(err)
		}
		if err := patch(&again, o, "", nil); err != nil {
			t.Fatal(err)
		}
		if twice, _ := json.Marshal(again); !bytes.Equal(once, twice) {
			t.Errorf("once: %s\ntwice: %s", once, twice)
		}
	})
}
